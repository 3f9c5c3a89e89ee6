package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// golang is the image of the large tests: all of it, or a part with -short. It
// is made once.
var golang = sync.OnceValues(func() (*testimage.Image, error) {
	return testimage.Golang(filepath.Join(binDir, "golang"), golangOptions())
})

func golangOptions() testimage.Options {
	if testing.Short() {
		return testimage.Small
	}
	return testimage.Options{}
}

func golangImage(t testing.TB) *testimage.Image {
	t.Helper()
	im, err := golang()
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// section reads the seek section of an index file, and returns with it the
// file's size, which is where the layers begin on the served device.
func section(t testing.TB, index string) (*seek.Section, int64) {
	t.Helper()
	f, err := os.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	s, err := seek.Read(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return s, st.Size()
}

// onlyReader hides that a file can seek, so that archive/tar reads through it.
type onlyReader struct{ io.Reader }

// smallFile finds a regular file of about 1 KB past the middle of a layer, and
// where its data begins in the tar.
func smallFile(t testing.TB, im *testimage.Image, layer int) (name string, off, size int64) {
	t.Helper()
	tarFile := filepath.Join(t.TempDir(), "layer.tar")
	if err := im.Tar(layer, tarFile); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(tarFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for tr := tar.NewReader(onlyReader{f}); ; {
		h, err := tr.Next()
		if err != nil {
			t.Fatalf("no file of 1 KB in layer %d: %v", layer, err)
		}
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg && h.Size >= 900 && h.Size <= 1100 && off > st.Size()/2 {
			return h.Name, off, h.Size
		}
	}
}

// TestLazyIsLazy counts what the registry sends: little at the start, and for
// one small file no more than the compressed spans that it lies in.
func TestLazyIsLazy(t *testing.T) {
	im := golangImage(t)
	name, off, size := smallFile(t, im, 1)
	reg := testregistry.New()
	if err := reg.AddLayout("golang", im.Dir); err != nil {
		t.Fatal(err)
	}
	ref := serveRegistry(t, reg) + "/golang"
	idx := filepath.Join(t.TempDir(), "index")
	must(t, fetch(ref), index(idx))
	s, _ := section(t, idx)
	var touched int64
	for i := range s.Layers[1].Spans {
		in, inEnd, out, outEnd := s.Layers[1].Range(i)
		if out < off+size && off < outEnd {
			touched += inEnd - in
		}
	}

	reg.Reset()
	server := serve(t, "--plain-http", "--index", idx, "--blob", ref)
	client, err := nbdclient.Dial(server.uri)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	image, err := erofs.Open(client)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Stat(image, name); err != nil {
		t.Fatal(err)
	}
	atStart := reg.TotalServed()
	if atStart >= 100_000 {
		t.Errorf("the registry sent %d bytes before any file was read", atStart)
	}
	data, err := fs.ReadFile(image, name)
	if err != nil || int64(len(data)) != size {
		t.Fatalf("%s: %d bytes, %v; want %d", name, len(data), err, size)
	}
	sent := reg.TotalServed() - atStart
	if sent > touched || sent == 0 {
		t.Errorf("the registry sent %d bytes for a file of %d bytes that lies in %d compressed bytes", sent, size, touched)
	}
	t.Logf("%d bytes at the start, %d for %s (%d bytes), which lies in %d compressed bytes", atStart, sent, name, size, touched)
}

// spanned is an image of one layer, about 12 MB, that makes several spans however it
// is packed.
func spanned(t testing.TB, c testimage.Compression) *testimage.Image {
	t.Helper()
	contents := string(noise(2 << 20))
	return testimage.NewLayers(t, testimage.Layer{Compression: c, Write: func(b *testimage.Builder) {
		b.Dir("d/", 0o755)
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			b.File("d/"+name, 0o644, contents+name)
		}
	}})
}

// noise is n bytes without a pattern, which compress a little.
func noise(n int) []byte {
	p := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x) & 0x3f
	}
	return p
}

// TestFlippedByteIsEIO flips a byte of a layer in the registry after its index
// was made. Reads of that span fail; its neighbours are right, on the same
// connection.
func TestFlippedByteIsEIO(t *testing.T) {
	for name, c := range map[string]testimage.Compression{
		"plain": testimage.Plain, "gzip": testimage.Gzip, "zstd frames": testimage.ZstdFrames, "zstd, one frame": testimage.Zstd,
	} {
		t.Run(name, func(t *testing.T) {
			im := spanned(t, c)
			reg := testregistry.New()
			if err := reg.AddLayout("flip", im.Dir); err != nil {
				t.Fatal(err)
			}
			ref := serveRegistry(t, reg) + "/flip"
			idx := filepath.Join(t.TempDir(), "index")
			must(t, fetch(ref), index(idx))
			s, base := section(t, idx)
			l := &s.Layers[0]
			pieces := verifiedRanges(l)
			bad := pieces[len(pieces)/2]

			blob, err := os.ReadFile(im.Blob(0))
			if err != nil {
				t.Fatal(err)
			}
			blob[(bad.in+bad.inEnd)/2] ^= 0x10
			reg.PutBlob("flip", im.Layers[0].Digest, blob)

			tarFile := filepath.Join(t.TempDir(), "tar")
			if err := im.Tar(0, tarFile); err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(tarFile)
			if err != nil {
				t.Fatal(err)
			}
			server := serve(t, "--plain-http", "--index", idx, "--blob", ref)
			client, err := nbdclient.Dial(server.uri)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for _, p := range pieces {
				got := make([]byte, p.outEnd-p.out)
				_, err := client.ReadAt(got, base+p.out)
				switch {
				case p == bad && err != nbdclient.EIO:
					t.Errorf("bytes [%d, %d) need the flipped one, and reading them gave %v", p.out, p.outEnd, err)
				case p != bad && err != nil:
					t.Errorf("bytes [%d, %d): %v", p.out, p.outEnd, err)
				case p != bad && !bytes.Equal(got, want[p.out:p.outEnd]):
					t.Errorf("bytes [%d, %d) are wrong", p.out, p.outEnd)
				}
			}
			server.says(t, im.Layers[0].Digest.Encoded()[:12])
		})
	}
}

// A verified is a part of a layer that is verified and decoded as one.
type verified struct{ in, inEnd, out, outEnd int64 }

// verifiedRanges are a layer's spans, or the pieces of a plain one.
func verifiedRanges(l *seek.Layer) (ranges []verified) {
	if l.Kind == seek.Plain {
		for in := int64(0); in < l.Size; in += seek.PieceSize {
			end := min(in+seek.PieceSize, l.Size)
			ranges = append(ranges, verified{in, end, in, end})
		}
		return ranges
	}
	for i := range l.Spans {
		in, inEnd, out, outEnd := l.Range(i)
		ranges = append(ranges, verified{in, inEnd, out, outEnd})
	}
	return ranges
}
