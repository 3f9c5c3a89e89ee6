package disk

import (
	"errors"

	"golang.org/x/sys/unix"
)

// ReadReady reads what the page cache has. A filesystem that cannot tell is
// not asked again.
func (f *file) ReadReady(p []byte, off int64) bool {
	if f.unready.Load() || off < 0 || int64(len(p)) > f.size-off {
		return false
	}
	n, err := unix.Preadv2(int(f.fd), [][]byte{p}, off, unix.RWF_NOWAIT)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		f.unready.Store(true)
	}
	return err == nil && n == len(p)
}
