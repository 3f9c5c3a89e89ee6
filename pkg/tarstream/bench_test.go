package tarstream

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// smallFiles is an archive of n files of 100 bytes, in the given format.
func smallFiles(tb testing.TB, n int, format tar.Format) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	mtime := time.Unix(1700000000, 0)
	if format == tar.FormatPAX {
		mtime = time.Unix(1700000000, 123456789) // so that each has an extended header
	}
	data := bytes.Repeat([]byte("x"), 100)
	for i := range n {
		h := &tar.Header{Name: fmt.Sprintf("usr/share/doc/dir-%d/file-%d", i/100, i), Mode: 0o644, Size: int64(len(data)), ModTime: mtime, Format: format, Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func benchmark(b *testing.B, format tar.Format, next func(src io.Reader) func() error) {
	const files = 100_000
	archive := smallFiles(b, files, format)
	b.SetBytes(int64(len(archive)))
	b.ReportAllocs()
	for b.Loop() {
		n, step := 0, next(bytes.NewReader(archive))
		for ; step() == nil; n++ {
		}
		if n != files {
			b.Fatalf("%d files", n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/files, "ns/entry")
}

func ours(src io.Reader) func() error {
	r := NewReader(NewSource(src))
	return func() error { _, err := r.Next(); return err }
}

// theirs hides Seek, which a pipe does not have either.
func theirs(src io.Reader) func() error {
	r := tar.NewReader(struct{ io.Reader }{src})
	return func() error { _, err := r.Next(); return err }
}

func BenchmarkNext(b *testing.B) {
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX} {
		b.Run(strings.ToLower(format.String()), func(b *testing.B) { benchmark(b, format, ours) })
		b.Run(strings.ToLower(format.String())+"-archive-tar", func(b *testing.B) { benchmark(b, format, theirs) })
	}
}

// TestAllocs bounds what an entry costs: itself and its name; a record and an
// xattr no more than what they bring.
func TestAllocs(t *testing.T) {
	const entries = 1000
	for _, tt := range []struct {
		name    string
		entry   string
		perItem float64
	}{
		{"ustar", hdr{name: "usr/share/file", prefix: "pre/fix"}.file("x"), 2},
		{"symlink", hdr{name: "usr/share/file", typ: '2', link: "target"}.block(), 3},
		{"long name", longName(strings.Repeat("n", 200)) + hdr{name: "n", magic: magicGNU}.file("x"), 2},
		{"pax", pax("path", strings.Repeat("n", 200), "mtime", "1700000000.123456789", "atime", "1700000000.5", "uid", "70000") + hdr{name: "n"}.file("x"), 2},
		{"xattr", pax("SCHILY.xattr.user.a", "v") + hdr{name: "n"}.file("x"), 5}, // and the list, the name, the value
	} {
		archive := []byte(strings.Repeat(tt.entry, entries) + end)
		allocs := testing.AllocsPerRun(5, func() {
			r := NewReader(&memSource{archive})
			n := 0
			for ; ; n++ {
				if _, err := r.Next(); err != nil {
					break
				}
			}
			if n != entries {
				t.Errorf("%s: %d entries", tt.name, n)
			}
		})
		if per := allocs / entries; per > tt.perItem+0.1 {
			t.Errorf("%s: %.1f allocations an entry, want %.0f", tt.name, per, tt.perItem)
		}
	}
}
