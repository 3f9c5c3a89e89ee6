package nbddev

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/pkg/nbd"
)

type mem []byte

func (m mem) Size() int64 { return int64(len(m)) }

func (m mem) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

// needsDriver skips a test where there is no driver. In the virtual machine
// there is.
func needsDriver(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(sysfs(0, "")); err != nil || os.Geteuid() != 0 {
		t.Skip("skipped: this needs root and a kernel with the driver (make test-vm)")
	}
}

// attached attaches a device of three blocks, in this way or the other; detach
// detaches it and sees everything end.
func attached(t *testing.T, block int, netlink bool) (d *Device, want []byte, detach func()) {
	t.Helper()
	data := mem(bytes.Repeat([]byte("0123456789abcdef"), 3*block/16))
	s := &nbd.Server{Exports: []nbd.Export{{Device: data}}}
	ended := make(chan error, 1)
	c := Config{Index: -1, Size: data.Size(), BlockSize: block, Backend: "test"}
	d, err := attach(c, netlink, func(nc net.Conn) { ended <- s.ServeTransmission(context.Background(), nc) })
	if err != nil {
		t.Fatal(err)
	}
	return d, data, func() {
		if err := d.Disconnect(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := d.Disconnect(); err != nil {
			t.Errorf("twice: %v", err)
		}
		if i, err := Stat(d.Index); err != nil || i.Attached {
			t.Errorf("%+v, %v", i, err)
		}
	}
}

// TestDriver attaches, reads and detaches, with every size of block, in both
// ways.
func TestDriver(t *testing.T) {
	needsDriver(t)
	for _, block := range []int{512, 1024, 2048, 4096} {
		for _, netlink := range []bool{true, false} {
			d, want, detach := attached(t, block, netlink)
			if d.Netlink != netlink {
				t.Errorf("netlink %v", d.Netlink)
			}
			if i, err := Stat(d.Index); err != nil || !i.Attached || i.Size != int64(len(want)) || i.BlockSize != block {
				t.Errorf("%+v, %v", i, err)
			}
			if got, err := os.ReadFile(d.Path()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("block %d: %d bytes, %v", block, len(got), err)
			}
			if InUse(d.Index) {
				t.Error("in use")
			}
			detach()
		}
	}
}

// TestStateIsFirst: a device is known before it is attached, whenever its server
// may be killed. What the driver does not give leaves nothing.
func TestStateIsFirst(t *testing.T) {
	needsDriver(t)
	dir := StateDir(t.TempDir())
	data := mem(make([]byte, 4096))
	srv := &nbd.Server{Exports: []nbd.Export{{Device: data}}}
	known := make(chan []Entry, 1)
	s := &State{Index: -1, Backend: "test", Size: data.Size(), BlockSize: 512}
	d, f, err := dir.Attach(s, func(nc net.Conn) {
		// The driver's connection is a moment old.
		all, err := dir.List()
		if err != nil {
			t.Error(err)
		}
		known <- all
		srv.ServeTransmission(context.Background(), nc)
	})
	if err != nil {
		t.Fatal(err)
	}
	if all := <-known; len(all) != 1 || !all[0].Live || all[0].Index != d.Index || all[0].Backend != "test" {
		t.Errorf("%+v of %s", all, d.Path())
	}
	elsewhere := StateDir(t.TempDir())
	again := *s
	if _, _, err := elsewhere.Attach(&again, nil); !errors.Is(err, unix.EBUSY) {
		t.Errorf("twice: %v", err)
	}
	if left, _ := os.ReadDir(string(elsewhere)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	// What is known of it stays when its server is gone: it waits for the next.
	f.Close()
	again = *s
	if _, _, err := dir.Attach(&again, nil); !errors.Is(err, unix.EBUSY) {
		t.Errorf("that of a dead server: %v", err)
	}
	f, _, err = dir.Take(s.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Disconnect(), f.Remove()); err != nil {
		t.Error(err)
	}
}

// TestSignals: a signal to one of this process's threads does not end a
// connection made by ioctl, whose thread is in the driver. Go's scheduler sends
// them all the time.
func TestSignals(t *testing.T) {
	needsDriver(t)
	d, want, detach := attached(t, 512, false)
	defer detach()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil || len(threads) < 2 {
		t.Fatalf("%v, %v", threads, err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Tgkill(os.Getpid(), tid, unix.SIGURG); err != nil && err != unix.ESRCH {
			t.Error(err)
		}
	}
	if got, err := os.ReadFile(d.Path()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// connected lists the devices that have a server, or wait for one.
func (l *link) connected() (map[int]bool, error) {
	replies, err := l.do(cmdStatus, 0, func(*netlink.AttributeEncoder) {})
	if err != nil {
		return nil, err
	}
	devices := make(map[int]bool)
	for _, m := range replies {
		d, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return nil, err
		}
		for d.Next() {
			if d.Type() == attrDeviceList {
				d.Nested(func(d *netlink.AttributeDecoder) error { return decodeDevices(d, devices) })
			}
		}
		if err := d.Err(); err != nil {
			return nil, err
		}
	}
	return devices, nil
}

func decodeDevices(d *netlink.AttributeDecoder, devices map[int]bool) error {
	for d.Next() {
		if d.Type() != deviceItem {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			index, connected := -1, false
			for d.Next() {
				switch d.Type() {
				case deviceIndex:
					index = int(d.Uint32())
				case deviceConnected:
					connected = d.Uint8() != 0
				}
			}
			devices[index] = connected
			return nil
		})
	}
	return nil
}

// TestStatus: what netlink says of all devices is what sysfs says of one.
func TestStatus(t *testing.T) {
	l, err := openLink()
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	defer l.Close()
	all, err := l.connected()
	if err != nil || len(all) == 0 {
		t.Fatalf("%v, %v", all, err)
	}
	for index, connected := range all {
		if i, err := Stat(index); err != nil || i.Attached != connected {
			t.Errorf("%+v, %v; netlink says %v", i, err, connected)
		}
	}
}
