package layer

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// The .xz file format, version 1.2.0.
const (
	xzHeader = 12   // stream header, section 2.1.1
	xzFooter = 12   // stream footer, section 2.1.2
	xzLZMA2  = 0x21 // the filter, section 5.3.1

	// xzMaxDict bounds the decoder's memory, in bytes: it allocates what a
	// block's header asks for, up to 4 GiB. xz -9 asks for 64 MiB.
	xzMaxDict = 128 << 20
)

// xzCheckSize is by type of check, section 2.1.1.2.
var xzCheckSize = [16]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

// An xzReader passes an .xz file through to its decoder and follows its
// structure meanwhile. It is there for two things that the decoder leaves to
// be desired: it refuses a dictionary that is too large before memory is
// allocated for it, and it makes an error of an end within a stream wherever
// that is.
type xzReader struct {
	in   *input
	head []byte // bytes that have been looked at and are to be read yet
	body int64  // bytes that follow head unseen
	next func() error
	buf  [1024]byte // the longest block header

	check  int64 // bytes of check behind each block
	packed int64 // bytes of the block's data so far
}

func newXzReader(in *input) *xzReader {
	x := &xzReader{in: in}
	x.next = x.stream
	return x
}

// Read implements io.Reader.
func (x *xzReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case len(x.head) > 0:
			n := copy(p, x.head)
			x.head = x.head[n:]
			return n, nil
		case x.body > 0:
			n, err := x.in.Read(p[:min(int64(len(p)), x.body)])
			x.body -= int64(n)
			return n, x.eof(err)
		}
		if err := x.next(); err != nil {
			return 0, err
		}
	}
}

// take reads n bytes, behind those of head, into head.
func (x *xzReader) take(n int) ([]byte, error) {
	at := len(x.head)
	x.head = x.buf[:at+n]
	_, err := io.ReadFull(x.in, x.head[at:])
	return x.head[at:], x.eof(err)
}

// stream begins a stream, section 2.1.1. Behind one there may be another, zeros
// in fours, or nothing more.
func (x *xzReader) stream() error {
	if _, err := x.in.peek(); err != nil {
		return err
	}
	b, err := x.take(4)
	if err != nil || binary.LittleEndian.Uint32(b) == 0 {
		return err
	}
	if _, err = x.take(xzHeader - 4); err != nil {
		return err
	}
	if Sniff(x.head) != Xz {
		return x.corrupt("garbage after the end of the xz data")
	}
	x.check = xzCheckSize[x.head[7]&15]
	x.next = x.block
	return nil
}

// block reads a block's header, section 3.1, or where there is none begins the
// index.
func (x *xzReader) block() error {
	b, err := x.take(1)
	if err != nil {
		return err
	}
	if b[0] == 0 {
		return x.index()
	}
	if b, err = x.take(int(b[0])*4 + 3); err != nil {
		return err
	}
	flags, b := b[0], b[1:len(b)-4]
	for _, has := range []bool{flags&0x40 != 0, flags&0x80 != 0} {
		if has { // compressed, uncompressed size: the decoder's business
			_, n := binary.Uvarint(b)
			if n <= 0 {
				return x.corrupt("malformed xz block header")
			}
			b = b[n:]
		}
	}
	if flags&3 != 0 || len(b) > 0 && b[0] != xzLZMA2 {
		return fmt.Errorf("offset %d: xz filter other than LZMA2: %w", x.in.off, fault.ErrUnsupported)
	}
	if len(b) < 3 || b[1] != 1 || b[2] > 40 {
		return x.corrupt("malformed xz block header")
	}
	// Section 5.3.1: 2^12, 3*2^11, 2^13, ..., the last one 1 less.
	if dict := uint64(2|b[2]&1) << (b[2]/2 + 11); dict > xzMaxDict {
		return fmt.Errorf("offset %d: xz block needs a dictionary of %d MiB, more than %d: %w", x.in.off, dict>>20, xzMaxDict>>20, fault.ErrUnsupported)
	}
	x.packed = 0
	x.next = x.chunk
	return nil
}

// chunk reads an LZMA2 chunk's header, or the end of a block's chunks.
func (x *xzReader) chunk() error {
	b, err := x.take(1)
	if err != nil {
		return err
	}
	switch c := b[0]; {
	case c == 0:
		x.packed++
		x.body = -x.packed&3 + x.check // padding and check
		x.next = x.block
		return nil
	case c <= 2: // not compressed
		b, err = x.take(2)
		if err != nil {
			return err
		}
		x.body = int64(binary.BigEndian.Uint16(b)) + 1
	case c >= 0x80:
		b, err = x.take(4)
		if err != nil {
			return err
		}
		x.body = int64(binary.BigEndian.Uint16(b[2:])) + 1
		if c >= 0xc0 { // with new properties
			x.body++
		}
	default:
		return x.corrupt("malformed LZMA2 chunk")
	}
	x.packed += int64(len(x.head)) + x.body
	return nil
}

// index passes the index on, section 4, and the footer. Its numbers are read
// byte by byte; how many there are is the file's to say, but none is kept.
func (x *xzReader) index() error {
	n := int64(1)
	records, k, err := x.varint()
	if err != nil {
		return err
	}
	n += k
	left := records
	x.next = func() error {
		for len(x.head) < len(x.buf)-32 && left > 0 {
			for range 2 {
				_, k, err := x.varint()
				if err != nil {
					return err
				}
				n += k
			}
			left--
		}
		if left == 0 {
			x.body = -n&3 + 4 + xzFooter
			x.next = x.stream
		}
		return nil
	}
	return nil
}

// varint reads a number, section 1.2, and says how long it is.
func (x *xzReader) varint() (v uint64, n int64, err error) {
	for n < 9 {
		b, err := x.take(1)
		if err != nil {
			return 0, 0, err
		}
		v |= uint64(b[0]&0x7f) << (7 * n)
		n++
		if b[0] < 0x80 {
			return v, n, nil
		}
	}
	return 0, 0, x.corrupt("malformed xz index")
}

// eof makes an error of an end within a stream.
func (x *xzReader) eof(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("offset %d: xz data is cut short: %w: %w", x.in.off, fault.ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return err
}

func (x *xzReader) corrupt(what string) error {
	return fmt.Errorf("offset %d: %s: %w", x.in.off, what, fault.ErrCorrupt)
}
