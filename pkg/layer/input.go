package layer

import (
	"context"
	"io"
)

// An input is the blob as the decoder sees it: an io.Reader that knows its
// offset, and that can lend its blocks to the piece hasher.
type input struct {
	s    *stream
	cur  *block
	rest []byte // of cur, not read yet
	off  int64  // in the blob, of the next byte to be read
	err  error  // sticky; io.EOF at the end

	lend func(b *block) // called for each new block, if not nil
}

// failed reports whether reading failed, as opposed to having ended.
func (in *input) failed() bool { return in.err != nil && in.err != io.EOF }

// fill makes rest non-empty.
func (in *input) fill() error {
	for len(in.rest) == 0 && in.err == nil {
		if in.cur != nil {
			in.cur.release()
			in.cur = nil
		}
		b, ok := in.s.receive(in.s.in)
		switch {
		case ok:
			in.cur, in.rest = b, b.data()
			if in.lend != nil {
				in.lend(b)
			}
		case in.s.ctx.Err() != nil:
			in.err = context.Cause(in.s.ctx)
		case in.s.inErr != nil:
			in.err = in.s.inErr
		default:
			in.err = io.EOF
		}
	}
	if len(in.rest) > 0 {
		return nil
	}
	return in.err
}

// peek returns some of the next bytes.
func (in *input) peek() ([]byte, error) {
	err := in.fill()
	return in.rest, err
}

func (in *input) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := in.fill(); err != nil {
		return 0, err
	}
	n := copy(p, in.rest)
	in.skip(n)
	return n, nil
}

func (in *input) skip(n int) {
	in.rest = in.rest[n:]
	in.off += int64(n)
}

// ReadByte is there so that no decoder puts a buffer of its own in between,
// which would read past the end of its data.
func (in *input) ReadByte() (byte, error) {
	if err := in.fill(); err != nil {
		return 0, err
	}
	c := in.rest[0]
	in.skip(1)
	return c, nil
}

// take reads a whole block, which the caller must release.
func (in *input) take() (*block, error) {
	if err := in.fill(); err != nil {
		return nil, err
	}
	b := in.cur
	in.skip(len(in.rest))
	in.cur = nil
	return b, nil
}

// drain reads to the end.
func (in *input) drain() error {
	for {
		if err := in.fill(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		in.skip(len(in.rest))
	}
}
