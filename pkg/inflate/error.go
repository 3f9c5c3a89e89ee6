package inflate

import (
	"errors"
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// An Error says what is wrong with the input, and where. It wraps
// fault.ErrCorrupt (and io.ErrUnexpectedEOF where the input ends too early),
// or fault.ErrIntegrity where a checksum or size is not the promised one.
type Error struct {
	Off int64 // offset in the input
	Msg string
	Err error
}

func (e *Error) Error() string {
	return fmt.Sprintf("gzip: offset %d: %s", e.Off, e.Msg)
}

func (e *Error) Unwrap() error { return e.Err }

var errTruncated = fmt.Errorf("%w: %w", fault.ErrCorrupt, io.ErrUnexpectedEOF)

// errNoInput: a source that keeps on giving nothing, without an error.
var errNoInput = errors.New("gzip: the input gives neither data nor an error")

// fail is the error for what was just decoded. If that was not input but the
// zeros that follow it, then the input was cut short: that is the news, not
// what the zeros stood for.
func (z *Reader) fail(msg string) error {
	if z.overrun() {
		return z.truncated()
	}
	return &Error{z.InputOffset(), msg, fault.ErrCorrupt}
}

// truncated is the error for an end of the input in the midst of a member.
func (z *Reader) truncated() error {
	if z.serr != nil {
		return z.serr
	}
	return &Error{z.base + int64(z.iend), "unexpected end of input", errTruncated}
}
