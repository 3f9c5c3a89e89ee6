package nbddev

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// spares is how many devices beyond those that there are may be asked for, as
// others may be quicker: the driver makes what it does not have.
const spares = 64

// Attach attaches the device that s names, or any that is free if its Index is
// negative, and fills in what is known then. It holds the lock of the device's
// state file, which is there before the device is: whoever kills us at whatever
// moment leaves no device that nobody knows of.
//
// The driver's requests come from a connection, in the transmission phase of the
// protocol, for simple replies; serve is called in a goroutine of its own with
// it, serves it to its end and closes it. It is not called if there is an error
// before there is a device.
func (d StateDir) Attach(s *State, serve func(net.Conn)) (*Device, *StateFile, error) {
	c := s.Config()
	if err := c.check(); err != nil {
		return nil, nil, err
	}
	if err := Probe(); err != nil {
		return nil, nil, err
	}
	switch l, err := openLink(); {
	case err == nil:
		l.Close()
	case errors.Is(err, errNoFamily):
		return d.attachIoctl(s, serve)
	default:
		return nil, nil, explain(s.Index, err)
	}
	s.Netlink = true
	if s.Index >= 0 {
		return d.attachAs(s, serve)
	}
	free, err := candidates()
	if err != nil {
		return nil, nil, err
	}
	for _, s.Index = range free {
		dev, file, err := d.attachAs(s, serve)
		if !errors.Is(err, unix.EBUSY) {
			return dev, file, err
		}
	}
	return nil, nil, errors.New("all nbd devices are in use")
}

// attachAs attaches one device, by netlink. The error is EBUSY if somebody has
// it.
func (d StateDir) attachAs(s *State, serve func(net.Conn)) (*Device, *StateFile, error) {
	file, err := d.claim(s)
	if err != nil {
		return nil, nil, err
	}
	dev, err := attach(s.Config(), true, serve)
	if err != nil {
		return nil, nil, errors.Join(err, file.Remove())
	}
	return dev, file, nil
}

// attachIoctl attaches a device that goes with this process, so that nothing has
// to be known of it before.
func (d StateDir) attachIoctl(s *State, serve func(net.Conn)) (*Device, *StateFile, error) {
	dev, err := attach(s.Config(), false, serve)
	if err != nil {
		return nil, nil, err
	}
	s.Index, s.Netlink = dev.Index, false
	file, err := d.Write(s)
	if err != nil {
		return nil, nil, errors.Join(err, dev.Disconnect())
	}
	return dev, file, nil
}

// claim writes a state file, and holds its lock, unless somebody else does, who
// is about to attach the device or just done with it, or the device is attached:
// EBUSY.
func (d StateDir) claim(s *State) (*StateFile, error) {
	unlock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := os.OpenFile(d.path(s.Index), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		defer old.Close()
		switch err := flock(old, unix.LOCK_EX|unix.LOCK_NB); {
		case err == unix.EWOULDBLOCK:
			return nil, explain(s.Index, unix.EBUSY)
		case err != nil:
			return nil, err
		}
	}
	// What is known of a device that waits for its next server must stay. Nobody
	// of us attaches it now, so that this cannot change before we write.
	switch i, err := Stat(s.Index); {
	case err != nil:
		return nil, err
	case i.Attached:
		return nil, explain(s.Index, unix.EBUSY)
	}
	return d.write(s)
}

// devices are the numbers of the devices that there are, in order.
func devices() ([]int, error) {
	found, err := filepath.Glob(filepath.Join(sysBlock, "nbd*"))
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range found {
		if i, ok := ParseName(filepath.Base(name)); ok { // nbd0p1 is none
			all = append(all, i)
		}
	}
	slices.Sort(all)
	return all, nil
}

// candidates are the devices to try: those that are not attached, and then such
// as the driver has to make.
func candidates() ([]int, error) {
	all, err := devices()
	if err != nil {
		return nil, err
	}
	next := 0
	if n := len(all); n > 0 {
		next = all[n-1] + 1
	}
	free := slices.DeleteFunc(all, func(index int) bool {
		i, err := Stat(index)
		return err != nil || i.Attached
	})
	for i := range spares {
		free = append(free, next+i)
	}
	return free, nil
}
