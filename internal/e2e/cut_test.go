package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ulikunitz/xz"

	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// edges are the places in a tar where something begins or ends: headers, data,
// padding, and the two blocks of the end marker.
func edges(t testing.TB, archive []byte) []int {
	t.Helper()
	r := bytes.NewReader(archive)
	at := func() int { return len(archive) - r.Len() }
	list := []int{0, 1}
	for tr := tar.NewReader(onlyReader{r}); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data := at()
		end := data + int(h.Size)
		list = append(list, data-512, data-1, data, (data+end)/2, end, (end+511)&^511)
	}
	list = append(list, len(archive)-1024)
	slices.Sort(list)
	list = slices.Compact(list)
	return slices.DeleteFunc(list, func(n int) bool { return n >= len(archive) })
}

// TestCutImageStream cuts the image stream at each edge: what comes out of the
// pipe is then never taken for a whole image.
func TestCutImageStream(t *testing.T) {
	for name, c := range map[string]testimage.Compression{"gzip": testimage.Gzip, "zstd": testimage.Zstd, "plain": testimage.Plain} {
		archive := must(t, []string{tool("oci-fetch"), testimage.NewLayers(t, testimage.Repeated(c)...).Ref()})
		cuts := append(edges(t, archive), len(archive)-512)
		t.Logf("%s: %d cuts", name, len(cuts))
		for _, n := range cuts {
			refused(t, fmt.Sprintf("%s, cut at %d of %d", name, n, len(archive)), archive[:n], whole, index)
		}
	}
}

// TestCutLayerStream is the same for a bare layer on a pipe, plain and packed.
func TestCutLayerStream(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Plain)...)
	plain, err := os.ReadFile(im.Blob(0))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range edges(t, plain) {
		refused(t, fmt.Sprintf("plain, cut at %d of %d", n, len(plain)), plain[:n], whole, index)
	}
	for name, packed := range map[string][]byte{
		"gzip": blob(t, testimage.Gzip), "zstd": blob(t, testimage.Zstd), "zstd frames": blob(t, testimage.ZstdFrames),
	} {
		for _, n := range spread(len(packed)) {
			refused(t, fmt.Sprintf("%s, cut at %d of %d", name, n, len(packed)), packed[:n], whole, index)
		}
	}
	var packed bytes.Buffer
	w, err := xz.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range spread(packed.Len()) {
		refused(t, fmt.Sprintf("xz, cut at %d of %d", n, packed.Len()), packed.Bytes()[:n], whole)
	}
}

// blob is layer 0 of the repeated image as it is stored.
func blob(t testing.TB, c testimage.Compression) []byte {
	t.Helper()
	b, err := os.ReadFile(testimage.NewLayers(t, testimage.Repeated(c)...).Blob(0))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// spread are places to cut n bytes: both ends closely, and the middle.
func spread(n int) []int {
	list := []int{0, 1, 2, 9, 10, 11, 18}
	for i := 1; i < 8; i++ {
		list = append(list, n*i/8)
	}
	for i := 9; i > 0; i-- {
		list = append(list, n-i)
	}
	return list
}

// refused feeds a broken stream to tar2erofs through a pipe. It must fail, say
// why in one line, and leave nothing.
func refused(t testing.TB, what string, input []byte, builds ...func(string, ...string) []string) {
	t.Helper()
	for i, build := range builds {
		out := empty(t)
		// A bytes.Reader is copied into a pipe; a file would be seeked.
		_, ends := pipe(t, bytes.NewReader(input), build(out))
		if end := ends[0]; end.code == 0 || end.code > 5 {
			t.Errorf("%s (build %d): exit code %d: %s", what, i, end.code, end.stderr)
		} else if end.stderr == "" || bytes.ContainsRune([]byte(end.stderr), '\n') {
			t.Errorf("%s (build %d): not one line on stderr: %q", what, i, end.stderr)
		}
		absent(t, out)
	}
}

// TestMissingEndMarker is the difference between a pipe and a file: a file that
// ends on an entry's edge is as long as somebody meant it to be.
func TestMissingEndMarker(t *testing.T) {
	data, err := os.ReadFile(testimage.NewLayers(t, testimage.Repeated(testimage.Plain)...).Blob(0))
	if err != nil {
		t.Fatal(err)
	}
	data = data[:len(data)-1024]
	refused(t, "no end marker, on a pipe", data, whole, index)
	name := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	out := empty(t)
	_, ends := pipe(t, nil, whole(out, name))
	if _, err := os.Stat(out); ends[0].code != 0 || ends[0].stderr == "" || err != nil {
		t.Errorf("no end marker, in a file: exit code %d, %q, %v", ends[0].code, ends[0].stderr, err)
	}
	// In the middle of an entry, a file is as broken as a pipe.
	if err := os.WriteFile(name, data[:len(data)-700], 0o644); err != nil {
		t.Fatal(err)
	}
	out = empty(t)
	if _, ends := pipe(t, nil, whole(out, name)); ends[0].code == 0 {
		t.Error("a file that ends in mid-entry was taken")
	}
	absent(t, out)
}

// TestFlippedByteUpstream flips a byte of each kind of layer, in the registry
// and in an archive that was fetched before: no image comes of it.
func TestFlippedByteUpstream(t *testing.T) {
	for name, c := range map[string]testimage.Compression{
		"plain": testimage.Plain, "gzip": testimage.Gzip, "zstd": testimage.Zstd, "zstd frames": testimage.ZstdFrames,
	} {
		t.Run(name, func(t *testing.T) {
			im := testimage.NewLayers(t, testimage.Repeated(c)...)
			archive := must(t, []string{tool("oci-fetch"), im.Ref()})
			layer, err := os.ReadFile(im.Blob(1))
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.Index(archive, layer)
			if at < 0 {
				t.Fatal("the archive does not hold the layer as it is")
			}
			reg := testregistry.New()
			if err := reg.AddLayout("flip", im.Dir); err != nil {
				t.Fatal(err)
			}
			ref := serveRegistry(t, reg) + "/flip"
			for _, n := range []int{0, len(layer) / 2, len(layer) - 1} {
				bad := slices.Clone(layer)
				bad[n] ^= 1
				copy(archive[at:], bad)
				refused(t, fmt.Sprintf("archive, byte %d flipped", n), archive, whole, index)
				copy(archive[at:], layer)

				reg.PutBlob("flip", im.Layers[1].Digest, bad)
				out := empty(t)
				_, ends := pipe(t, nil, fetch(ref), whole(out))
				if ends[0].code != 5 || ends[1].code == 0 {
					t.Errorf("registry, byte %d flipped: exit codes %d and %d, want 5 and a failure: %s", n, ends[0].code, ends[1].code, ends[0].stderr)
				}
				absent(t, out)

				// A layer alone, which the next command knows no digest of.
				for _, build := range []func(string, ...string) []string{whole, index} {
					_, ends = pipe(t, nil, append(fetch(ref), "--layer", "1"), build(out))
					if ends[0].code != 5 || ends[1].code == 0 {
						t.Errorf("--layer, byte %d flipped: exit codes %d and %d, want 5 and a failure: %s", n, ends[0].code, ends[1].code, ends[0].stderr)
					}
					absent(t, out)
				}
			}
		})
	}
}
