package layer

import (
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

func (s *stream) unxz(in *input) error {
	z, err := xz.NewReader(in)
	if err == nil {
		err = s.pump(z)
	}
	switch {
	case err == nil, in.failed():
		return err
	case errors.Is(err, s.ctx.Err()):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("offset %d: xz data is cut short: %w: %w", in.off, fault.ErrCorrupt, err)
	}
	return fmt.Errorf("offset %d: %v: %w", in.off, err, fault.ErrCorrupt)
}
