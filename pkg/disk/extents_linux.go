package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/pkg/nbd"
)

// extents finds the file's holes. A filesystem that does not know of holes has
// none.
func (f *file) extents(off, length int64, limit int) ([]nbd.Extent, error) {
	var out []nbd.Extent
	for end := min(off+length, f.size); off < end && len(out) < limit; {
		data, err := unix.Seek(int(f.fd), off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // nothing but a hole up to the end
			return append(out, nbd.Extent{Length: end - off, Hole: true, Zero: true}), nil
		case errors.Is(err, unix.EINVAL):
			return append(out, nbd.Extent{Length: end - off}), nil
		case err != nil:
			return nil, &os.PathError{Op: "seek", Path: f.Name(), Err: err}
		case data > off:
			next := min(data, end)
			out = append(out, nbd.Extent{Length: next - off, Hole: true, Zero: true})
			off = next
			continue
		}
		hole, err := unix.Seek(int(f.fd), off, unix.SEEK_HOLE)
		if err != nil {
			return nil, &os.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		if hole <= off { // it was punched at this moment: data is never wrong
			hole = end
		}
		next := min(hole, end)
		out = append(out, nbd.Extent{Length: next - off})
		off = next
	}
	return out, nil
}
