package nbddev

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// DefaultStateDir is where state files lie unless someone says otherwise. What
// is there does not survive a restart of the machine, and neither do devices.
const DefaultStateDir = "/run/layerpipe"

// stateVersion changes when an older program would read a state file wrong.
const stateVersion = 1

// maxState bounds a state file, in bytes.
const maxState = 1 << 20

// A State is all that is needed to take a device over. It holds no secrets.
type State struct {
	Version     int           `json:"version"`
	Index       int           `json:"device"` // N of /dev/nbdN
	Backend     string        `json:"backend"`
	Identity    string        `json:"identity"` // of the contents, in the server's terms
	Size        int64         `json:"size"`     // bytes
	BlockSize   int           `json:"block_size"`
	DeadTimeout time.Duration `json:"dead_timeout_ns"`
	Netlink     bool          `json:"netlink"` // without it nobody can take the device over
	PID         int           `json:"pid"`
	Mount       string        `json:"mount,omitempty"` // a directory, if it is mounted
	Server      Server        `json:"server"`          // what the server has to be told again
}

// A Server is a JSON value of the server's own.
type Server = json.RawMessage

// A StateDir is a directory of state files, one for each device: nbd7.json. A
// server holds a lock on its file as long as it lives, however it ends; so a
// file without a lock is of a server that has died.
type StateDir string

// A StateFile is a state file that this process has the lock of.
type StateFile struct {
	dir  StateDir
	name string
	f    *os.File
}

func (d StateDir) path(index int) string {
	return filepath.Join(string(d), fmt.Sprintf("nbd%d.json", index))
}

// lock keeps others from making and removing files until unlock is called.
func (d StateDir) lock() (unlock func(), err error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	f, err := os.Open(string(d))
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// Write puts a state file in the place of what is left of an earlier one, and
// holds its lock.
func (d StateDir) Write(s *State) (*StateFile, error) {
	unlock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return d.write(s)
}

// write is Write for one who has the directory's lock.
func (d StateDir) write(s *State) (*StateFile, error) {
	s.Version = stateVersion
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return nil, err
	}
	name := d.path(s.Index)
	f, err := os.CreateTemp(string(d), ".nbd-*.tmp") // mode 0600
	if err != nil {
		return nil, err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		f.Close()
		return nil, err
	}
	return &StateFile{d, name, f}, nil
}

// Close gives the lock up, and leaves the file for the next server.
func (s *StateFile) Close() error { return s.f.Close() }

// Remove removes the file, unless another one has taken its place, and gives
// the lock up.
func (s *StateFile) Remove() error {
	defer s.f.Close()
	unlock, err := s.dir.lock()
	if err != nil {
		return err
	}
	defer unlock()
	ours, err := s.f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(s.name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(ours, there) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(s.name)
}

// open opens a file and tries to get its lock; live means that somebody has it.
// One who only looks does not keep it: others would take him for a server.
func (d StateDir) open(index int, keep bool) (f *os.File, live bool, err error) {
	unlock, err := d.lock()
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	f, err = os.OpenFile(d.path(index), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("nothing is known of a server for %s (no %s): %w", Path(index), d.path(index), fault.ErrNotFound)
	}
	if err != nil {
		return nil, false, err
	}
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	live = err == unix.EWOULDBLOCK
	if err == nil && !keep {
		err = flock(f, unix.LOCK_UN)
	}
	if err != nil && !live {
		f.Close()
		return nil, false, err
	}
	return f, live, nil
}

// read reads and checks a state file.
func read(f *os.File, index int) (*State, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxState {
		return nil, fmt.Errorf("%s: longer than %d bytes: %w", f.Name(), maxState, fault.ErrCorrupt)
	}
	// The version comes first: what else there is depends on it.
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", f.Name(), err, fault.ErrCorrupt)
	}
	if version.Version != stateVersion {
		return nil, fmt.Errorf("%s: version %d, known is %d: %w", f.Name(), version.Version, stateVersion, fault.ErrUnsupported)
	}
	s := new(State)
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(s); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", f.Name(), err, fault.ErrCorrupt)
	}
	c := s.Config()
	if err := c.check(); err != nil || s.Index != index || s.Backend == "" && s.Netlink {
		return nil, fmt.Errorf("%s: it does not describe %s: %w", f.Name(), Path(index), fault.ErrCorrupt)
	}
	return s, nil
}

// Config is what the device was attached with.
func (s *State) Config() Config {
	return Config{Index: s.Index, Size: s.Size, BlockSize: s.BlockSize, Backend: s.Backend, DeadTimeout: s.DeadTimeout}
}

// Take gets the state of a device whose server has died, and its lock. The
// error is ErrLive if the server is alive.
func (d StateDir) Take(index int) (*StateFile, *State, error) {
	f, live, err := d.open(index, true)
	if err != nil {
		return nil, nil, err
	}
	s, err := read(f, index)
	if live {
		f.Close()
		pid := ""
		if err == nil {
			pid = fmt.Sprintf(" (process %d)", s.PID)
		}
		return nil, nil, fmt.Errorf("%s: %w%s", Path(index), ErrLive, pid)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return &StateFile{d, d.path(index), f}, s, nil
}

// Discard removes the state of a device whose server has died, whatever is in
// it. The error is ErrLive if the server is alive.
func (d StateDir) Discard(index int) error {
	f, live, err := d.open(index, true)
	if err != nil {
		return err
	}
	if live {
		f.Close()
		return fmt.Errorf("%s: %w", Path(index), ErrLive)
	}
	return (&StateFile{d, d.path(index), f}).Remove()
}

// An Entry is what is known of one device.
type Entry struct {
	*State
	Index int
	Live  bool // its server is
	// Stale: the device is not attached any more, or to something else.
	Stale bool
	Err   error // the state cannot be read, and is nil
}

// Look tells what is known of one device.
func (d StateDir) Look(index int) (Entry, error) {
	e := Entry{Index: index}
	f, live, err := d.open(index, false)
	if err != nil {
		return e, err
	}
	defer f.Close()
	e.Live = live
	if e.State, e.Err = read(f, index); e.Err == nil {
		i, err := Stat(index)
		if err != nil {
			return e, err
		}
		e.Stale = !i.Attached || i.Backend != e.Backend
		if !e.Netlink {
			// The driver was not told a name; the device goes with its server.
			e.Stale = !i.Attached || !live
		}
	}
	return e, nil
}

// List tells what is known of all devices, in order.
func (d StateDir) List() ([]Entry, error) {
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, file := range files {
		name, ok := strings.CutSuffix(file.Name(), ".json")
		index, known := ParseName(name)
		if !ok || !known {
			continue
		}
		e, err := d.Look(index)
		if errors.Is(err, fault.ErrNotFound) { // removed at this moment
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return a.Index - b.Index })
	return all, nil
}
