package nbddev

import (
	"bytes"
	"context"
	"net"
	"os"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/nbd"
)

type mem []byte

func (m mem) Size() int64 { return int64(len(m)) }

func (m mem) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

// TestDriver attaches, reads and detaches, with every size of block, in both
// ways.
func TestDriver(t *testing.T) {
	if _, err := os.Stat(sysfs(0, "")); err != nil || os.Geteuid() != 0 {
		t.Skip("skipped: this needs root and a kernel with the driver (make test-vm)")
	}
	for _, block := range []int{512, 1024, 2048, 4096} {
		for _, netlink := range []bool{true, false} {
			want := mem(bytes.Repeat([]byte("0123456789abcdef"), 3*block/16))
			s := &nbd.Server{Exports: []nbd.Export{{Device: want}}}
			ended := make(chan error, 1)
			c := Config{Index: -1, Size: want.Size(), BlockSize: block, Backend: "test"}
			d, err := attach(c, netlink, func(nc net.Conn) { ended <- s.ServeTransmission(t.Context(), nc) })
			if err != nil {
				t.Fatal(err)
			}
			if d.Netlink != netlink {
				t.Errorf("netlink %v", d.Netlink)
			}
			if i, err := Stat(d.Index); err != nil || !i.Attached || i.Size != want.Size() || i.BlockSize != block {
				t.Errorf("%+v, %v", i, err)
			}
			if got, err := os.ReadFile(d.Path()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("block %d: %d bytes, %v", block, len(got), err)
			}
			if InUse(d.Index) {
				t.Error("in use")
			}
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
