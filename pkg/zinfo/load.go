package zinfo

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Load reads a zinfo file of version 1 or 2. blobSize is the size of the
// compressed data, or -1 if it is not known; it is the bound of the offsets in
// the file. A file that promises what cannot be is refused with
// fault.ErrCorrupt. Memory is only taken for points that are really there.
//
// SOCI and erofs-utils write several checkpoints of the same output offset if
// the data begins with empty members or blocks; the last of them is kept.
func Load(r io.Reader, blobSize int64) (*Index, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	var h [headerSize]byte
	if _, err := io.ReadFull(br, h[:]); err != nil {
		return nil, loadError(0, err)
	}
	l, err := newLoader(h[:], blobSize)
	if err != nil {
		return nil, err
	}
	var b [fieldsSize]byte
	window := make([]byte, WindowSize)
	for {
		_, err := io.ReadFull(br, b[:])
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, l.readError(err)
		}
		if err := l.add(b[:]); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(br, window); err != nil {
			return nil, loadError(l.off-pointSize, err)
		}
		if !bytes.Equal(window, zeroWindow[:]) {
			l.last().Window = bytes.Clone(window)
		}
	}
	return l.finish()
}

// Open is Load for a file of size bytes that stays open for as long as the
// index is in use: of each checkpoint it reads where it is, and its window only
// when that is needed. So who reads in one place pays for one window, however
// many there are.
func Open(r io.ReaderAt, size, blobSize int64) (*Index, error) {
	var b [fieldsSize]byte
	if err := readAt(r, b[:headerSize], 0); err != nil {
		return nil, loadError(0, err)
	}
	l, err := newLoader(b[:headerSize], blobSize)
	if err != nil {
		return nil, err
	}
	for l.off < size {
		if err := readAt(r, b[:], l.off); err != nil {
			return nil, l.readError(err)
		}
		if err := l.add(b[:]); err != nil {
			return nil, err
		}
		if l.off > size {
			return nil, loadError(l.off-pointSize, io.EOF)
		}
	}
	x, err := l.finish()
	if err != nil {
		return nil, err
	}
	x.Unpack = func(i int, window []byte) error {
		if l.at[i] == 0 {
			clear(window[:WindowSize])
			return nil
		}
		at := l.at[i] + fieldsSize
		if err := readAt(r, window[:WindowSize], at); err != nil {
			return loadError(at, err)
		}
		return nil
	}
	return x, nil
}

// readAt fills p. An end within is io.EOF.
func readAt(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		return err
	}
	return nil
}

// A loader puts an index together, checkpoint by checkpoint, and refuses the
// first that cannot be: a sparse file of zeros must not keep it busy.
type loader struct {
	x     *Index
	have  int64   // checkpoints that the header promises
	count int64   // that there have been
	off   int64   // of the next one in the file
	at    []int64 // offsets in the file by point; 0: the window is zeros
}

func newLoader(header []byte, blobSize int64) (*loader, error) {
	l := &loader{
		x:    &Index{SpanSize: int64(binary.LittleEndian.Uint64(header[4:])), Size: -1, BlobSize: max(blobSize, -1)},
		have: int64(int32(binary.LittleEndian.Uint32(header))),
		off:  headerSize,
	}
	if l.have < 1 {
		return nil, corrupt(0, "%d checkpoints", l.have)
	}
	if l.x.SpanSize < 0 {
		return nil, corrupt(4, "a span size of %d", l.x.SpanSize)
	}
	return l, nil
}

// add takes a checkpoint's fields.
func (l *loader) add(b []byte) error {
	if l.count == l.have {
		return l.excess()
	}
	in, out := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	if in > maxOffset || out > maxOffset || b[16] > 7 {
		return corrupt(l.off, "checkpoint at in=%d out=%d bits=%d", in, out, b[16])
	}
	p := Point{In: int64(in), Out: int64(out), Bits: b[16]}
	if n := len(l.at); n > 0 && p.Out == l.last().Out && p.In > l.last().In {
		*l.last(), l.at[n-1] = p, l.off
	} else {
		l.x.Points, l.at = append(l.x.Points, p), append(l.at, l.off)
	}
	l.count++
	l.off += pointSize
	return l.x.validate(len(l.x.Points) - 1)
}

// readError is the error for a checkpoint whose fields cannot be read.
func (l *loader) readError(err error) error {
	if l.count == l.have && (err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)) {
		return l.excess()
	}
	return loadError(l.off, err)
}

func (l *loader) excess() error {
	return corrupt(l.off, "data after the last of %d checkpoints", l.have)
}

// last is the last point.
func (l *loader) last() *Point { return &l.x.Points[len(l.x.Points)-1] }

// finish is called at the end of the file.
func (l *loader) finish() (*Index, error) {
	x := l.x
	switch l.count {
	case l.have:
	case l.have - 1: // version 1
		if l.count == 0 || x.Points[0].Out > 0 || x.Points[0].In <= minHeader {
			x.Points, l.at = append([]Point{{In: minHeader}}, x.Points...), append([]int64{0}, l.at...)
		}
	default:
		return nil, corrupt(l.off, "the file ends after %d of %d checkpoints", l.count, l.have)
	}
	if x.Points[0].Out == 0 {
		x.Points[0].Window, l.at[0] = nil, 0 // erofs-utils writes what its memory held
	}
	if err := x.Validate(); err != nil {
		return nil, err
	}
	return x, nil
}

// loadError is the error for a read that failed in the record at off.
func loadError(off int64, err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("zinfo: offset %d: a record is cut short: %w: %w", off, fault.ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return err
}
