package inflate

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
)

// benchData is a layer as there are many: a tar of Go's sources, some 100 MB,
// made once and kept in the directory for temporary files.
func benchData(b *testing.B) (in []byte, size int64) {
	b.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		b.Skipf("no go command: %v", err)
	}
	words := strings.Fields(string(goroot))
	name := filepath.Join(os.TempDir(), "layerpipe-bench-"+words[1]+".tar.gz")
	if in, err = os.ReadFile(name); err != nil {
		tar, err := exec.Command("tar", "-C", words[0], "-cf", "-", "src").Output()
		if err != nil {
			b.Skipf("no tar: %v", err)
		}
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		if _, err := w.Write(tar); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		in = buf.Bytes()
		// Renamed, so that nobody reads half of it.
		if err := os.WriteFile(name+".tmp", in, 0o666); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(name+".tmp", name); err != nil {
			b.Fatal(err)
		}
	}
	size, err = NewReader(bytes.NewReader(in)).WriteTo(io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	return in, size
}

// BenchmarkInflate compares decoders. bench/libdeflate compares with libdeflate,
// and does so in turns, which gives better ratios.
func BenchmarkInflate(b *testing.B) {
	in, size := benchData(b)
	z := NewReader(nil)
	for _, d := range []struct {
		name   string
		decode func() (int64, error)
	}{
		{"layerpipe", func() (int64, error) {
			z.Reset(bytes.NewReader(in))
			return z.WriteTo(io.Discard)
		}},
		{"klauspost", func() (int64, error) {
			r, err := kgzip.NewReader(bytes.NewReader(in))
			if err != nil {
				return 0, err
			}
			return io.Copy(io.Discard, r)
		}},
		{"stdlib", func() (int64, error) {
			r, err := gzip.NewReader(bytes.NewReader(in))
			if err != nil {
				return 0, err
			}
			return io.Copy(io.Discard, r)
		}},
	} {
		b.Run(d.name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if n, err := d.decode(); err != nil || n != size {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// BenchmarkEmptyBlocks is what an attacker can make of tables: blocks with new
// codes and nothing else. Compare with the rate of input of BenchmarkInflate,
// which is a third or so of what it prints.
func BenchmarkEmptyBlocks(b *testing.B) {
	single := make([]uint8, 257)
	single[256] = 1
	flat := bytes.Repeat([]uint8{8}, 286)
	for i := 226; i < len(flat); i++ {
		flat[i] = 9
	}
	ladder := make([]uint8, 257)
	for i := range maxBits {
		ladder[i] = uint8(i + 1)
	}
	ladder[256] = maxBits
	for _, c := range []struct {
		name string
		lens []uint8
	}{
		{"single", single},
		{"flat", flat},
		{"ladder", ladder},
		{"deep", spread(286, 1, maxBits)},
	} {
		b.Run(c.name, func(b *testing.B) {
			var w bitWriter
			w.bytes(0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255)
			for range 1000 {
				w.shortDynamic(false, c.lens, []uint8{0})
				w.code(canonical(c.lens)[256], c.lens[256])
			}
			w.word("1:1")
			w.word("1:2")
			w.word("=0000000")
			w.bytes(make([]byte, 8)...)
			in := w.b
			b.SetBytes(int64(len(in)))
			z := NewReader(nil)
			for b.Loop() {
				z.Reset(bytes.NewReader(in))
				if _, err := z.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
