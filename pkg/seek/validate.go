package seek

import (
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Validate checks that the layer makes sense: digest and sizes, spans in
// order and inside the blob, and exactly as many digests as its bytes need.
// Errors are fault.ErrCorrupt, or fault.ErrUnsupported for an unknown kind.
// What Read returns has been checked already.
func (l *Layer) Validate() error {
	d := &l.Descriptor
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %v: %w", d.Digest, err, fault.ErrCorrupt)
	}
	if d.Size < 0 || l.Size < 0 {
		return corrupt("negative size")
	}
	switch l.Kind {
	case Plain:
		return l.validatePlain()
	case Gzip, Zstd:
		return l.validateSpans()
	}
	return fmt.Errorf("%v: %w", l.Kind, fault.ErrUnsupported)
}

func (l *Layer) validatePlain() error {
	if l.Size != l.Descriptor.Size {
		return corrupt("plain layer of %d bytes in a blob of %d", l.Size, l.Descriptor.Size)
	}
	want := 1
	if l.Size == 0 {
		want = 0
	}
	if len(l.Spans) != want {
		return corrupt("plain layer with %d spans", len(l.Spans))
	}
	for i := range l.Spans {
		s := &l.Spans[i]
		if s.In != 0 || s.Out != 0 || s.Bits != 0 || !s.Window.IsZero() {
			return corrupt("plain layer with a checkpoint")
		}
		if err := l.validateDigests(i); err != nil {
			return err
		}
	}
	return nil
}

func (l *Layer) validateSpans() error {
	if len(l.Spans) == 0 {
		return corrupt("%v layer without spans", l.Kind)
	}
	growth := int64(maxGrowthGzip)
	if l.Kind == Zstd {
		growth = maxGrowthZstd
	}
	for i := range l.Spans {
		s := &l.Spans[i]
		if s.Bits > 7 || s.Bits > 0 && (l.Kind != Gzip || s.In == 0) {
			return corrupt("span %d: %d bits", i, s.Bits)
		}
		if l.Kind != Gzip && !s.Window.IsZero() {
			return corrupt("span %d: a window in a %v layer", i, l.Kind)
		}
		if i == 0 && (s.Out != 0 || s.In < 0 || l.Kind == Zstd && s.In != 0) {
			return corrupt("first span at %d, output %d", s.In, s.Out)
		}
		if i > 0 && (s.In <= l.Spans[i-1].In || s.Out <= l.Spans[i-1].Out) {
			return corrupt("span %d at %d, output %d, is not behind its predecessor", i, s.In, s.Out)
		}
		if s.In >= l.Descriptor.Size || s.Out > l.Size {
			return corrupt("span %d at %d, output %d, is outside the layer", i, s.In, s.Out)
		}
		in, inEnd, out, outEnd := l.Range(i)
		// outEnd-out > growth*(inEnd-in+1), without overflow.
		if (outEnd-out)/growth > inEnd-in+1 {
			return corrupt("span %d: %d bytes cannot inflate to %d", i, inEnd-in, outEnd-out)
		}
		if err := l.validateDigests(i); err != nil {
			return err
		}
	}
	return nil
}

func (l *Layer) validateDigests(i int) error {
	in, inEnd, _, _ := l.Range(i)
	if want := Pieces(inEnd - in); int64(len(l.Spans[i].Digests)) != want {
		return corrupt("span %d: %d digests for %d bytes", i, len(l.Spans[i].Digests), inEnd-in)
	}
	return nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, fault.ErrCorrupt)...)
}
