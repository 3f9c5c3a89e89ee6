package inflate

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
)

// readRaw inflates a raw stream.
func readRaw(in []byte) ([]byte, error) {
	z := new(Reader)
	z.ResetRaw(bytes.NewReader(in))
	return io.ReadAll(z)
}

// maxOut bounds what the oracles decode of a fuzzer's find.
const maxOut = 8 << 20

// checkpoint is a boundary with what it takes to resume there.
type checkpoint struct {
	Boundary
	window []byte
	sparse []byte // with what is not used zeroed
}

// checkpoints takes a checkpoint at every boundary, but at most max of them. The
// result is to be called once everything has been read.
func (z *Reader) checkpoints(max int) func() []checkpoint {
	var list []checkpoint
	var trace Trace
	traced := -1 // the checkpoint that trace is of
	finish := func() {
		if traced >= 0 {
			list[traced].sparse = bytes.Clone(list[traced].window)
			trace.Apply(list[traced].sparse)
			traced = -1
		}
	}
	z.OnBoundary(func(b Boundary) {
		if b.Member || traced >= 0 && b.Out-list[traced].Out >= WindowSize {
			finish() // the trace has ended
		}
		if len(list) >= max {
			return
		}
		c := checkpoint{Boundary: b, window: make([]byte, WindowSize)}
		z.Window(c.window)
		c.sparse = c.window
		if traced < 0 {
			traced = len(list)
			z.StartTrace(&trace)
		}
		list = append(list, c)
	})
	return func() []checkpoint {
		finish()
		return list
	}
}

// checkFlate compares z, a raw stream, with compress/flate: both accept or both
// refuse it, and what comes out is the same. Then it resumes at every
// checkpoint.
func checkFlate(t *testing.T, in []byte) {
	t.Helper()
	src := bytes.NewReader(in)
	want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(src), maxOut+1))
	if len(want) > maxOut {
		t.Skip("too large")
	}
	used := len(in) - src.Len()

	z := new(Reader)
	z.ResetRaw(bytes.NewReader(in))
	points := z.checkpoints(64)
	got, err := io.ReadAll(z)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%v, compress/flate: %v", err, wantErr)
	}
	// At an error each gives what it had by then; compress/flate keeps back up
	// to 32 KiB, but only notices that a block has no end when the input has.
	endless := err != nil && strings.Contains(err.Error(), "no code for the end")
	if err == nil && !bytes.Equal(got, want) || !bytes.HasPrefix(got, want) && !(endless && bytes.HasPrefix(want, got)) {
		t.Fatalf("%d bytes, %v; compress/flate: %d, %v; or they differ", len(got), err, len(want), wantErr)
	}
	if err == nil && z.InputOffset() != int64(used) {
		t.Fatalf("used %d bytes, compress/flate %d", z.InputOffset(), used)
	}
	if z.OutputOffset() != int64(len(got)) {
		t.Fatalf("OutputOffset %d after %d bytes", z.OutputOffset(), len(got))
	}
	resumeAll(t, in, points(), got, err, true)

	// The slower loops.
	for _, slower := range []int{1, 2} {
		z = new(Reader)
		z.slower = slower
		z.ResetRaw(bytes.NewReader(in))
		slow, slowErr := io.ReadAll(z)
		if !bytes.Equal(slow, got) || !sameError(slowErr, err) {
			t.Fatalf("loop %d: %d bytes, %v; fast loop: %d bytes, %v", slower, len(slow), slowErr, len(got), err)
		}
	}
	// The plain loop alone, since it is always tracing.
	z.ResetRaw(bytes.NewReader(in))
	var trace Trace
	z.trace, z.tend = &trace, math.MaxInt
	plain, plainErr := io.ReadAll(z)
	if !bytes.Equal(plain, got) || !sameError(plainErr, err) {
		t.Fatalf("plain loop: %d bytes, %v; fast loop: %d bytes, %v", len(plain), plainErr, len(got), err)
	}
}

// resumeAll decodes from every checkpoint on and compares with what the
// checkpoints were taken from.
func resumeAll(t *testing.T, in []byte, points []checkpoint, out []byte, wantErr error, raw bool) {
	t.Helper()
	z := new(Reader)
	for i, p := range points {
		off := p.In
		if p.Bits > 0 {
			off--
		}
		for _, window := range [][]byte{p.window, p.sparse} {
			// One byte at a time in, odd sizes out.
			src := io.Reader(bytes.NewReader(in[off:]))
			if i&1 == 0 {
				src = &slowReader{src}
			}
			if raw {
				z.ResumeRaw(src, p.Boundary, window)
			} else {
				z.Resume(src, p.Boundary, window)
			}
			z.slower = i / 2 % 3
			got, err := io.ReadAll(z)
			if !bytes.Equal(got, out[p.Out:]) {
				t.Fatalf("resumed at %+v: %d bytes, want %d; or they differ", p.Boundary, len(got), len(out[p.Out:]))
			}
			if !sameError(err, wantErr) {
				t.Fatalf("resumed at %+v: %v, want %v", p.Boundary, err, wantErr)
			}
		}
	}
}

// sameError compares errors by their text: message and offset.
func sameError(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// slowReader gives a few bytes a time.
type slowReader struct{ r io.Reader }

func (s *slowReader) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), 3)]) }
