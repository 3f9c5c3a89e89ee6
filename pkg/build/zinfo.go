package build

import (
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// Zinfo is a gzip layer's checkpoints as an index of their own. Its windows
// are sparse, as the seek section's are.
func Zinfo(l *seek.Layer, spanSize int64) (*zinfo.Index, error) {
	if l.Kind != seek.Gzip {
		return nil, fmt.Errorf("a %v layer has no gzip checkpoints: %w", l.Kind, fault.ErrUnsupported)
	}
	if spanSize == 0 {
		spanSize = zinfo.DefaultSpanSize
	}
	x := &zinfo.Index{SpanSize: spanSize, Size: l.Size, BlobSize: l.Descriptor.Size}
	for _, s := range l.Spans {
		p := zinfo.Point{In: s.In, Out: s.Out, Bits: s.Bits}
		if !s.Window.IsZero() {
			p.Window = make([]byte, zinfo.WindowSize)
			s.Window.Unpack(p.Window)
		}
		x.Points = append(x.Points, p)
	}
	return x, nil
}
