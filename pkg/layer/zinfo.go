package layer

import (
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// Zinfo is a gzip layer's checkpoints as package zinfo has them; spanSize is
// what they were made with, 0 for the default. The windows stay in l, packed,
// and are sparse. A layer of another kind has none: fault.ErrUnsupported.
func Zinfo(l *seek.Layer, spanSize int64) (*zinfo.Index, error) {
	if l.Kind != seek.Gzip {
		return nil, fmt.Errorf("a %v layer has no gzip checkpoints: %w", l.Kind, fault.ErrUnsupported)
	}
	if spanSize == 0 {
		spanSize = zinfo.DefaultSpanSize
	}
	x := &zinfo.Index{SpanSize: spanSize, Size: l.Size, BlobSize: l.Descriptor.Size}
	for _, s := range l.Spans {
		x.Points = append(x.Points, zinfo.Point{In: s.In, Out: s.Out, Bits: s.Bits})
	}
	x.Unpack = func(i int, window []byte) error {
		l.Spans[i].Window.Unpack(window)
		return nil
	}
	return x, nil
}
