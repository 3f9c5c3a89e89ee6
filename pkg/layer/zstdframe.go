package layer

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// RFC 8878, section 3.1.
const (
	zstdMagic     = 0xFD2FB528
	zstdSkippable = 0x184D2A50 // and the 15 that follow

	zstdMaxHeader = 4 + 14 // magic number; descriptor, window, dictionary, content size

	zstdSingleSegment = 1 << 5
	zstdChecksum      = 1 << 2
)

// A frameReader cuts a zstd stream into its frames: Read gives the bytes of one
// frame and then io.EOF; next goes on to the one after it. It looks at no more
// than the lengths of things, the rest is the decoder's business.
type frameReader struct {
	in *input

	start   int64 // offset of the frame's magic number
	before  int64 // no frame that is still to come starts before this offset
	content int64 // the frame's content size as its header says, or -1

	head []byte // bytes that have been looked at and are to be read yet
	buf  [zstdMaxHeader]byte
	body int64 // bytes that follow head unseen
	part int   // what comes after body
	sum  bool  // the frame ends with a checksum
}

const (
	partBlock = iota
	partChecksum
	partEnd
)

// next moves to the next frame that has content, past any skippable ones. The
// one before must have been read to its end. It returns io.EOF at the end.
func (f *frameReader) next() error {
	for {
		f.start, f.before = f.in.off, f.in.off
		if _, err := f.in.peek(); err != nil {
			return err
		}
		if err := f.read(f.buf[:4]); err != nil {
			return err
		}
		switch magic := binary.LittleEndian.Uint32(f.buf[:]); {
		case magic == zstdMagic:
			return f.header()
		case magic&^15 == zstdSkippable:
			if err := f.read(f.buf[:4]); err != nil {
				return err
			}
			if err := f.discard(int64(binary.LittleEndian.Uint32(f.buf[:]))); err != nil {
				return err
			}
		default:
			return f.corrupt(f.start, "no zstd frame here, magic number is %08x", magic)
		}
	}
}

// header reads a frame's header behind the magic number, section 3.1.1.1.
func (f *frameReader) header() error {
	n := 5
	if err := f.read(f.buf[4:n]); err != nil {
		return err
	}
	desc := f.buf[4]
	if desc&(1<<3) != 0 {
		return f.corrupt(f.start, "reserved bit is set in a zstd frame header")
	}
	single := desc&zstdSingleSegment != 0
	if !single {
		n++
	}
	n += []int{0, 1, 2, 4}[desc&3]
	size := []int{0, 2, 4, 8}[desc>>6]
	if size == 0 && single {
		size = 1
	}
	if err := f.read(f.buf[5 : n+size]); err != nil {
		return err
	}
	var content [8]byte
	copy(content[:], f.buf[n:n+size])
	f.content = -1
	if size > 0 {
		v := binary.LittleEndian.Uint64(content[:])
		if size == 2 {
			v += 256
		}
		if v > 1<<62 {
			return f.corrupt(f.start, "zstd frame of %d bytes", v)
		}
		f.content = int64(v)
	}
	f.head, f.body, f.part, f.sum = f.buf[:n+size], 0, partBlock, desc&zstdChecksum != 0
	return nil
}

// Read implements io.Reader.
func (f *frameReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case len(f.head) > 0:
			n := copy(p, f.head)
			f.head = f.head[n:]
			return n, nil
		case f.body > 0:
			n, err := f.in.Read(p[:min(int64(len(p)), f.body)])
			f.body -= int64(n)
			return n, f.eof(err)
		case f.part == partBlock:
			if err := f.block(); err != nil {
				return 0, err
			}
		case f.part == partChecksum:
			f.body, f.part = 4, partEnd
		default:
			return 0, io.EOF
		}
	}
}

// block reads a block's header, section 3.1.1.2.
func (f *frameReader) block() error {
	at := f.in.off
	if err := f.read(f.buf[:3]); err != nil {
		return err
	}
	h := uint32(f.buf[0]) | uint32(f.buf[1])<<8 | uint32(f.buf[2])<<16
	f.head = f.buf[:3]
	f.body = int64(h >> 3)
	switch h >> 1 & 3 {
	case 1: // RLE: the size is that of the output
		f.body = 1
	case 3:
		return f.corrupt(at, "reserved zstd block type")
	}
	if h&1 != 0 {
		f.part = partEnd
		if f.sum {
			f.part = partChecksum
		}
	}
	return nil
}

func (f *frameReader) read(p []byte) error {
	_, err := io.ReadFull(f.in, p)
	return f.eof(err)
}

func (f *frameReader) discard(n int64) error {
	for n > 0 {
		b, err := f.in.peek()
		if err != nil {
			return f.eof(err)
		}
		k := min(n, int64(len(b)))
		f.in.skip(int(k))
		n -= k
		f.before = f.in.off
	}
	return nil
}

// eof makes an error of an end within a frame.
func (f *frameReader) eof(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("offset %d: zstd frame at %d is cut short: %w: %w", f.in.off, f.start, fault.ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return err
}

func (f *frameReader) corrupt(off int64, format string, args ...any) error {
	return fmt.Errorf("offset %d: "+format+": %w", append(append([]any{off}, args...), fault.ErrCorrupt)...)
}
