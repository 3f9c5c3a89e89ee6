package nbddev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sysBlock is where the driver's devices show.
const sysBlock = "/sys/block"

// An Info is what the kernel says of a device.
type Info struct {
	Index int
	// Attached: the device has a server, or waits for the next one.
	Attached  bool
	Size      int64  // bytes
	BlockSize int    // bytes
	PID       int    // of the thread that attached it first
	Backend   string // as in Config; "" before Linux 5.14
}

// Path is a device's file.
func Path(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

// ParseName reads "nbd7" or "/dev/nbd7".
func ParseName(s string) (index int, ok bool) {
	digits, ok := strings.CutPrefix(strings.TrimPrefix(s, "/dev/"), "nbd")
	if !ok {
		return 0, false
	}
	// The driver's own bound is 2^20 minors.
	n, err := strconv.ParseUint(digits, 10, 20)
	return int(n), err == nil && strconv.FormatUint(n, 10) == digits
}

func sysfs(index int, name string) string {
	return filepath.Join(sysBlock, fmt.Sprintf("nbd%d", index), filepath.FromSlash(name))
}

// attribute is a line of sysfs, "" if it is not there.
func attribute(index int, name string) (string, error) {
	b, err := os.ReadFile(sysfs(index, name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	return strings.TrimSuffix(string(b), "\n"), err
}

// Stat tells about a device. One that the kernel does not have is not attached.
func Stat(index int) (Info, error) {
	i := Info{Index: index}
	pid, err := attribute(index, "pid")
	if err != nil || pid == "" {
		return i, err
	}
	i.Attached = true
	i.PID, _ = strconv.Atoi(pid)
	if i.Backend, err = attribute(index, "backend"); err != nil {
		return i, err
	}
	sectors, err := attribute(index, "size")
	if err != nil {
		return i, err
	}
	n, _ := strconv.ParseInt(sectors, 10, 64)
	i.Size = n * 512
	block, err := attribute(index, "queue/logical_block_size")
	i.BlockSize, _ = strconv.Atoi(block)
	return i, err
}

// InUse reports whether somebody has a device for himself: a mounted filesystem,
// above all.
func InUse(index int) bool {
	fd, err := unix.Open(Path(index), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return err == unix.EBUSY
	}
	unix.Close(fd)
	return false
}

// waitGone waits until a device has no server and waits for none. While somebody
// has it open the driver goes on to call it attached, which is not waited for.
func waitGone(index int, most time.Duration) error {
	for end := time.Now().Add(most); ; time.Sleep(5 * time.Millisecond) {
		i, err := Stat(index)
		if err == nil && !i.Attached {
			resetTimeout(index)
		}
		if err != nil || !i.Attached {
			return err
		}
		if InUse(index) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: still attached after %v", Path(index), most)
		}
	}
}

// waitReady waits for a device's file, which is somebody else's work, and its
// size.
func waitReady(index int, size int64) error {
	const most = 5 * time.Second
	for end := time.Now().Add(most); ; time.Sleep(5 * time.Millisecond) {
		i, err := Stat(index)
		if err != nil {
			return err
		}
		_, err = os.Stat(Path(index))
		if err == nil && i.Attached && i.Size == size {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: after %v it has %d bytes, not %d, or no file (%v)", Path(index), most, i.Size, size, err)
		}
	}
}

// setTimeout sets after how long the block layer looks at a request again. The
// kernel waits with that until no request is under way: somebody has to serve
// them, or the one who sets it waits for ever.
func setTimeout(index int, d time.Duration) error {
	want := strconv.FormatInt(d.Milliseconds(), 10)
	if is, err := attribute(index, "queue/io_timeout"); err != nil || is == want {
		return err
	}
	return os.WriteFile(sysfs(index, "queue/io_timeout"), []byte(want), 0)
}

// resetTimeout is for the next one who attaches the device, who may have several
// connections, which a short timeout would break. It is not worth waiting for.
func resetTimeout(index int) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		setTimeout(index, defaultTimeout)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}
