package nbddev

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// The driver's ioctls, include/uapi/linux/nbd.h.
const (
	ioctlSetSock       = 0xab00
	ioctlSetBlockSize  = 0xab01
	ioctlDoIt          = 0xab03
	ioctlClearSock     = 0xab04
	ioctlSetSizeBlocks = 0xab07
	ioctlDisconnect    = 0xab08
	ioctlSetTimeout    = 0xab09
	ioctlSetFlags      = 0xab0a
)

// ioctlAttach finds a device, or takes the one that c names, and gives the
// driver its socket. The device stays attached as long as a thread of this
// process is in the driver.
func ioctlAttach(c *Config, fd int) (index int, dev *os.File, err error) {
	if c.Index >= 0 {
		dev, err = ioctlTry(c, c.Index, fd)
		return c.Index, dev, err
	}
	all, err := devices()
	if err != nil {
		return 0, nil, err
	}
	for _, i := range all {
		if info, err := Stat(i); err != nil || info.Attached {
			continue
		}
		dev, err := ioctlTry(c, i, fd)
		if errors.Is(err, unix.EBUSY) { // somebody was quicker
			continue
		}
		return i, dev, err
	}
	return 0, nil, fmt.Errorf("all %d nbd devices are in use", len(all))
}

func ioctlTry(c *Config, index, fd int) (_ *os.File, err error) {
	// Not for ourselves alone: the mount needs it, too.
	raw, err := unix.Open(Path(index), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: Path(index), Err: err}
	}
	dev := os.NewFile(uintptr(raw), Path(index))
	set := func(name string, request uint, value int) {
		if err == nil {
			if e := unix.IoctlSetInt(raw, request, value); e != nil {
				err = fmt.Errorf("%s: %s: %w", Path(index), name, e)
			}
		}
	}
	set("NBD_SET_SOCK", ioctlSetSock, fd)
	if err != nil {
		dev.Close()
		return nil, err
	}
	set("NBD_SET_BLKSIZE", ioctlSetBlockSize, c.BlockSize)
	set("NBD_SET_SIZE_BLOCKS", ioctlSetSizeBlocks, int(c.Size/int64(c.BlockSize)))
	set("NBD_SET_FLAGS", ioctlSetFlags, serverHasFlags|serverReadOnly)
	set("NBD_SET_TIMEOUT", ioctlSetTimeout, 0)
	if err != nil {
		unix.IoctlSetInt(raw, ioctlClearSock, 0)
		dev.Close()
		return nil, err
	}
	return dev, nil
}

// ioctlRun stays in the driver until the device is disconnected.
func ioctlRun(dev *os.File) {
	// A signal to this thread would end the connection, be it one of those by
	// which Go's scheduler preempts. So none reaches it; and as it is not
	// unlocked, it ends with this goroutine.
	runtime.LockOSThread()
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil)
	raw := int(dev.Fd())
	// Its errors are those of the connection, which the server sees itself.
	unix.IoctlSetInt(raw, ioctlDoIt, 0)
	unix.IoctlSetInt(raw, ioctlClearSock, 0)
	dev.Close()
}

// ioctlEnd asks the driver to disconnect a device; nothing is wrong if it has
// done so already.
func ioctlEnd(dev *os.File) error {
	raw, err := dev.SyscallConn()
	if err != nil {
		return err
	}
	var errno error
	if err := raw.Control(func(fd uintptr) { errno = unix.IoctlSetInt(int(fd), ioctlDisconnect, 0) }); err != nil {
		return nil // ioctlRun has closed it
	}
	if errno == unix.EINVAL { // no socket any more
		return nil
	}
	return errno
}
