package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"io"
	"testing"
)

// FuzzRaw compares with compress/flate, which accepts exactly what zlib does:
// acceptance, output, bytes used; then it resumes at every boundary, with whole
// and with sparse windows.
func FuzzRaw(f *testing.F) {
	for _, c := range cases {
		f.Add(assemble(f, c.text))
	}
	for seed := range uint64(4) {
		data := mixed(20_000, seed)
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6} {
			f.Add(deflated(f, data, level, 7000))
		}
	}
	f.Fuzz(checkFlate)
}

// FuzzGzip compares with compress/gzip. Differences, and why: zlib is on our
// side of each of them.
//
//   - Reserved header flags: we refuse them; compress/gzip does not look.
//   - Zeros after the last member: we allow them, compress/gzip does not.
//   - A name or comment of over 512 bytes, or one that is not Latin-1:
//     compress/gzip refuses it.
func FuzzGzip(f *testing.F) {
	data := mixed(5000, 1)
	f.Add(gzipped(f, data))
	f.Add(gzipped(f, data, nil, data[:100]))
	f.Add(append(gzipped(f, data), 0, 0, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		z := NewReader(bytes.NewReader(in))
		points := z.checkpoints(64)
		got, err := io.ReadAll(io.LimitReader(z, maxOut+1))
		if len(got) > maxOut {
			t.Skip("too large")
		}
		var want []byte
		r, wantErr := gzip.NewReader(bytes.NewReader(in))
		if wantErr == nil {
			want, wantErr = io.ReadAll(r)
		}
		trimmed := bytes.TrimRight(in, "\x00")
		switch {
		case err == nil && wantErr == nil && bytes.Equal(got, want):
		case err != nil && wantErr != nil:
		case err == nil && len(trimmed) < len(in):
			// Zeros behind the last member, which compress/gzip takes for a
			// member that is cut.
			if want, err := untilZeros(in); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes; compress/gzip, member by member: %d bytes, %v", len(got), len(want), err)
			}
		case err == nil && hasFlag(in, flagName|flagComment):
		case err != nil && bytes.Contains([]byte(err.Error()), []byte("reserved")):
		default:
			t.Fatalf("%d bytes, %v; compress/gzip: %d bytes, %v", len(got), err, len(want), wantErr)
		}
		resumeGzip(t, in, points(), got, err)
	})
}

// hasFlag reports whether any byte that could be a member's flags has one of
// these set.
func hasFlag(in []byte, flags byte) bool {
	for i := 0; i+3 < len(in); i++ {
		if in[i] == 0x1f && in[i+1] == 0x8b && in[i+3]&flags != 0 {
			return true
		}
	}
	return false
}

// resumeGzip resumes everywhere. The checksum of a member that is resumed
// half-way cannot be verified, nor whether a distance reaches before its start:
// so that a file which is bad for one of these reasons may turn out good.
func resumeGzip(t *testing.T, in []byte, points []checkpoint, out []byte, wantErr error) {
	if wantErr == nil {
		resumeAll(t, in, points, out, nil, false)
		return
	}
	z := new(Reader)
	for _, p := range points {
		off := p.In
		if p.Bits > 0 {
			off--
		}
		z.Resume(bytes.NewReader(in[off:]), p.Boundary, p.window)
		got, _ := io.ReadAll(io.LimitReader(z, maxOut))
		if !bytes.HasPrefix(got, out[p.Out:]) {
			t.Fatalf("resumed at %+v: %d bytes are not the %d there should be", p.Boundary, len(got), len(out[p.Out:]))
		}
	}
}

// untilZeros decodes members with compress/gzip until only zeros are left.
func untilZeros(in []byte) (out []byte, err error) {
	rest := bytes.NewReader(in)
	z := new(gzip.Reader)
	for first := true; first || len(bytes.TrimRight(in[len(in)-rest.Len():], "\x00")) > 0; first = false {
		if err := z.Reset(rest); err != nil {
			return out, err
		}
		z.Multistream(false)
		b, err := io.ReadAll(z)
		if out = append(out, b...); err != nil {
			return out, err
		}
	}
	return out, nil
}
