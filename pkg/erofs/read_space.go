package erofs

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A metaSpace is what nids and other metadata addresses point into: the
// primary device, or the metabox inode's contents. It keeps the pages that
// were read last, so that walking a tree costs few reads.
type metaSpace struct {
	r     io.ReaderAt
	name  string // for messages; ends in a space
	pages [metaSlots]atomic.Pointer[metaPage]
}

// 2 MiB in all: the inodes and directories of a small image, or of the part of
// a large one where somebody is at work.
const (
	metaPageSize = 16 << 10
	metaSlots    = 128
)

type metaPage struct {
	no   int64
	data []byte // shorter than metaPageSize at the end of the space
}

func newMetaSpace(r io.ReaderAt, name string) *metaSpace { return &metaSpace{r: r, name: name} }

// page returns a page. Its data may be shorter than a page, and empty.
func (s *metaSpace) page(no int64) ([]byte, error) {
	slot := &s.pages[no%metaSlots]
	if p := slot.Load(); p != nil && p.no == no {
		return p.data, nil
	}
	b := make([]byte, metaPageSize)
	n, err := s.r.ReadAt(b, no*metaPageSize)
	if n < len(b) && err != nil && err != io.EOF {
		return nil, err
	}
	slot.Store(&metaPage{no, b[:n:n]})
	return b[:n], nil
}

// read returns n bytes at off, which must not be changed. The caller bounds n.
func (s *metaSpace) read(off int64, n int) ([]byte, error) {
	if off < 0 || off > maxAddr {
		return nil, fmt.Errorf("%soffset %#x: out of range: %w", s.name, off, fault.ErrCorrupt)
	}
	if in := int(off % metaPageSize); in+n <= metaPageSize {
		b, err := s.page(off / metaPageSize)
		if err != nil {
			return nil, fmt.Errorf("%soffset %#x: %w", s.name, off, err)
		}
		if in+n <= len(b) {
			return b[in : in+n : in+n], nil
		}
		return nil, s.short(off)
	}
	p := make([]byte, n)
	if err := s.readAt(p, off); err != nil {
		return nil, err
	}
	return p, nil
}

// readAt fills p from off on.
func (s *metaSpace) readAt(p []byte, off int64) error {
	if off < 0 || off > maxAddr {
		return fmt.Errorf("%soffset %#x: out of range: %w", s.name, off, fault.ErrCorrupt)
	}
	for len(p) > 0 {
		b, err := s.page(off / metaPageSize)
		if err != nil {
			return fmt.Errorf("%soffset %#x: %w", s.name, off, err)
		}
		in := int(off % metaPageSize)
		if in >= len(b) {
			return s.short(off)
		}
		n := copy(p, b[in:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// short is the error of an image that ends before off.
func (s *metaSpace) short(off int64) error {
	return fmt.Errorf("%soffset %#x: %w", s.name, off, errShort)
}

// errShort is io.ErrUnexpectedEOF, and the image's fault.
var errShort error = shortError{}

type shortError struct{}

func (shortError) Error() string { return "the image ends before that: corrupt input" }
func (shortError) Is(target error) bool {
	return target == fault.ErrCorrupt || target == io.ErrUnexpectedEOF
}

// corruptShort turns a short read into errShort, and leaves other errors.
func corruptShort(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errShort
	}
	return err
}
