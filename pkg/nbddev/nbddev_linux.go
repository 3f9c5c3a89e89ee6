package nbddev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// ErrNoDriver says that this kernel has no NBD driver.
var ErrNoDriver = fmt.Errorf("this kernel has no nbd driver (modprobe nbd): %w", fault.ErrUnsupported)

// ErrLive says that a device has a server already.
var ErrLive = errors.New("it has a server that is alive")

// requestTimeout is after how long the block layer looks at a request that is
// not answered. One that went to a server that has died since is sent again
// then, and no earlier. The kernel's timer for it goes off on a grid of 1.0 to
// 1.7 seconds, by its HZ, so the two together bound how long reads wait after a
// reattach: less than 2 seconds. A slow server is not disturbed by it.
const requestTimeout = 200 * time.Millisecond

// defaultTimeout is the kernel's own.
const defaultTimeout = 30 * time.Second

// A Config is what the driver is told of a device.
type Config struct {
	Index     int   // which device; negative for any that is free
	Size      int64 // bytes, a multiple of 512
	BlockSize int   // bytes: 512, 1024, 2048 or 4096
	// Backend tells what is attached. Who takes the device over has to give the
	// same.
	Backend string
	// DeadTimeout is how long reads wait when the server is gone, before they
	// fail. In seconds; at least one.
	DeadTimeout time.Duration
}

// check refuses what the driver would take and get wrong.
func (c *Config) check() error {
	switch {
	case c.BlockSize != 512 && c.BlockSize != 1024 && c.BlockSize != 2048 && c.BlockSize != 4096:
		return fault.Usagef("nbd: blocks of %d bytes", c.BlockSize)
	case c.Size <= 0 || c.Size%int64(c.BlockSize) != 0:
		return fault.Usagef("nbd: a device of %d bytes with blocks of %d", c.Size, c.BlockSize)
	}
	return nil
}

// A Device is attached to this process.
type Device struct {
	Index int
	// Netlink is false for a device that no other server can take over.
	Netlink bool

	backend string
	dev     *os.File // without netlink
}

// Path is the device's file.
func (d *Device) Path() string { return Path(d.Index) }

// Probe loads the driver if need be; ErrNoDriver if there is none.
func Probe() error {
	for try := range 2 {
		if l, err := openLink(); err == nil {
			return l.Close()
		}
		// Netlink may be out of reach where the devices are not.
		if _, err := os.Stat(sysfs(0, "")); err == nil {
			return nil
		}
		if try == 0 {
			exec.Command("modprobe", "nbd").Run() // what comes of it shows now
		}
	}
	return ErrNoDriver
}

// sockets makes a pair: a connection for the server, a descriptor for the
// driver. The caller closes the descriptor.
func sockets() (net.Conn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "nbd")
	defer f.Close() // FileConn has its own
	nc, err := net.FileConn(f)
	if err != nil {
		unix.Close(fds[1])
		return nil, 0, err
	}
	return nc, fds[1], nil
}

// attach attaches a device. The driver's requests come from a connection, in the
// transmission phase of the protocol, for simple replies; serve is called in a
// goroutine of its own with it, serves it to its end and closes it. It is not
// called if there is an error before there is a device.
func attach(c Config, netlink bool, serve func(net.Conn)) (_ *Device, err error) {
	nc, fd, err := sockets()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	d := &Device{backend: c.Backend}
	defer func() {
		if err != nil {
			nc.Close() // also where somebody serves it
		}
	}()
	if netlink {
		l, err := openLink()
		if err != nil {
			return nil, explain(c.Index, err)
		}
		defer l.Close()
		d.Netlink = true
		if d.Index, err = l.connect(&c, fd); err != nil {
			return nil, explain(c.Index, err)
		}
		go serve(nc)
		if err := setTimeout(d.Index, requestTimeout); err != nil {
			d.Disconnect()
			return nil, err
		}
	} else {
		if d.Index, d.dev, err = ioctlAttach(&c, fd); err != nil {
			return nil, explain(c.Index, err)
		}
		go ioctlRun(d.dev)
		go serve(nc)
	}
	if err := waitReady(d.Index, c.Size); err != nil {
		d.Disconnect()
		return nil, err
	}
	return d, nil
}

// Reattach takes over a device whose server is gone: c must be what it was
// attached with. serve is called as by StateDir.Attach. ErrLive if the server is
// not gone.
func Reattach(c Config, serve func(net.Conn)) (_ *Device, err error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	i, err := Stat(c.Index)
	switch {
	case err != nil:
		return nil, err
	case !i.Attached:
		return nil, fmt.Errorf("%s is not attached: %w", Path(c.Index), fault.ErrNotFound)
	case i.Backend != c.Backend:
		return nil, fmt.Errorf("%s is attached to something else (%.100q, not %.100q): %w", Path(c.Index), i.Backend, c.Backend, fault.ErrIntegrity)
	case i.Size != c.Size || i.BlockSize != c.BlockSize:
		return nil, fmt.Errorf("%s has %d bytes in blocks of %d, not %d in blocks of %d: %w", Path(c.Index), i.Size, i.BlockSize, c.Size, c.BlockSize, fault.ErrIntegrity)
	}
	l, err := openLink()
	if err != nil {
		return nil, explain(c.Index, err)
	}
	defer l.Close()
	// The driver may hear of a server's death a moment after we do.
	const most = 2 * time.Second
	for end := time.Now().Add(most); ; time.Sleep(10 * time.Millisecond) {
		nc, err := replace(l, &c)
		if err == nil {
			go serve(nc)
			// Who died while he attached it may not have come to that.
			return &Device{Index: c.Index, Netlink: true, backend: c.Backend}, setTimeout(c.Index, requestTimeout)
		}
		if !errors.Is(err, ErrLive) || time.Now().After(end) {
			return nil, explain(c.Index, err)
		}
	}
}

// replace gives the driver a new socket. It takes one whether it needs it or
// not; that it has dropped it shows only as the end of our side.
func replace(l *link, c *Config) (net.Conn, error) {
	nc, fd, err := sockets()
	if err != nil {
		return nil, err
	}
	err = l.reconfigure(c, fd)
	unix.Close(fd)
	if err == nil && hungUp(nc) {
		err = ErrLive
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return nc, nil
}

// hungUp reports whether nobody holds the other end of a connection.
func hungUp(nc net.Conn) (gone bool) {
	raw, err := nc.(*net.UnixConn).SyscallConn()
	if err != nil {
		return true
	}
	if err := raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && err != unix.EAGAIN
	}); err != nil {
		return true
	}
	return gone
}

// DisconnectOnClose makes the driver detach the device when its last user
// closes it: the filesystem, at unmount. It must be in use already.
func (d *Device) DisconnectOnClose() error {
	if !d.Netlink {
		return nil // the server has to look out for itself
	}
	l, err := openLink()
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.clientFlags(d.Index, d.backend, clientDisconnectOnClose); err != nil {
		return explain(d.Index, err)
	}
	return nil
}

// Disconnect detaches the device, if it is not detached yet. Reads in flight and
// all that come later fail. The Conn ends.
func (d *Device) Disconnect() error {
	if d.dev != nil {
		if err := ioctlEnd(d.dev); err != nil {
			return explain(d.Index, err)
		}
		return waitGone(d.Index, 5*time.Second)
	}
	return Disconnect(d.Index, d.backend)
}

// Disconnect detaches a device from whatever server it has or had. One that is
// not attached, or to another backend than this, is left alone.
func Disconnect(index int, backend string) error {
	i, err := Stat(index)
	if err != nil || !i.Attached || i.Backend != backend {
		return err
	}
	l, err := openLink()
	if err != nil {
		return explain(index, err)
	}
	defer l.Close()
	if err := l.disconnect(index); err != nil && err != unix.EINVAL { // EINVAL: it was quicker
		return explain(index, err)
	}
	return waitGone(index, 5*time.Second)
}

// Wait waits for the end of a device that is being detached.
func (d *Device) Wait() error { return waitGone(d.Index, 5*time.Second) }

// explain says in words what an errno of the driver's means.
func explain(index int, err error) error {
	name := "nbd"
	if index >= 0 {
		name = Path(index)
	}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: attaching a device needs root: %w", name, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is in use: %w", name, err)
	}
	return fmt.Errorf("%s: %w", name, err)
}
