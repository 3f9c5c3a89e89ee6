package layer

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// The checkpoints are those of pkg/zinfo, windows included.
func TestCheckpointsAreZinfos(t *testing.T) {
	for _, c := range blobCases(t, 1<<20) {
		if c.kind != Gzip {
			continue
		}
		for _, spanSize := range []int64{40_000, 300_000} {
			l := seekOf(t, c.blob, spanSize)
			z := zinfo.NewReader(bytes.NewReader(c.blob), zinfo.Options{SpanSize: spanSize, Sparse: true})
			if _, err := io.Copy(io.Discard, z); err != nil {
				t.Fatal(err)
			}
			x, err := z.Index()
			if err != nil {
				t.Fatal(err)
			}
			if len(x.Points) != len(l.Spans) || x.Size != l.Size || x.BlobSize != l.Descriptor.Size {
				t.Errorf("%s: %d spans of %d bytes, not %d of %d", c.name, len(l.Spans), l.Size, len(x.Points), x.Size)
				continue
			}
			var got, want [seek.WindowSize]byte
			for i := range x.Points {
				p, s := &x.Points[i], &l.Spans[i]
				if p.In != s.In || p.Out != s.Out || p.Bits != s.Bits {
					t.Errorf("%s: span %d at %d, %d, %d, not %d, %d, %d", c.name, i, s.In, s.Bits, s.Out, p.In, p.Bits, p.Out)
				}
				clear(want[:])
				copy(want[:], p.Window)
				s.Window.Unpack(got[:])
				if got != want {
					t.Errorf("%s: span %d has another window", c.name, i)
				}
			}
		}
	}
}

// Windows that no reader of the section would take are not gathered up to the
// layer's end, in however many layers they are: that may be far.
func TestWindowBudget(t *testing.T) {
	full := seek.PackWindow(bytes.Repeat([]byte{1}, seek.WindowSize))
	var budget seek.WindowBudget
	one := gzipped(t, text(1<<20, 1))
	read := func(members int) error {
		src := io.LimitReader(&endless{b: one}, int64(members*len(one)))
		return readAll(src, Options{Seek: true, SpanSize: seek.WindowSize, Windows: &budget})
	}
	if err := read(3); err != nil {
		t.Fatalf("at first: %v", err)
	}
	for budget.Spend(full) == nil {
	}
	if err := read(50); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("when there are enough: %v", err)
	}
}
