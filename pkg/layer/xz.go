package layer

import (
	"errors"
	"fmt"

	"github.com/ulikunitz/xz"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

func (s *stream) unxz(in *input) error {
	x := newXzReader(in)
	z, err := xz.NewReader(x)
	if err == nil {
		err = s.pump(z)
	}
	if err == nil || in.failed() || s.ctx.Err() != nil || errors.Is(err, fault.ErrCorrupt) || errors.Is(err, fault.ErrUnsupported) {
		return err
	}
	return fmt.Errorf("offset %d: xz: %v: %w", in.off, err, fault.ErrCorrupt)
}
