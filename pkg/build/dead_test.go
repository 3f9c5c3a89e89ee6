package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// tarLayers are plain tars in memory.
func tarLayers(tars ...[]byte) build.Layers {
	var list []*build.Layer
	for n, b := range tars {
		list = append(list, &build.Layer{Name: fmt.Sprintf("layer %d", n), Blob: bytes.NewReader(b)})
	}
	return build.List(list...)
}

// buildTars makes an image of tars and returns its file and what was told of
// it.
func buildTars(t *testing.T, o build.Options, tars ...[]byte) (*os.File, *build.Result) {
	t.Helper()
	dir := t.TempDir()
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	out := create("image.erofs")
	res, err := build.Image(context.Background(), out, create("tails"), tarLayers(tars...), o)
	if err != nil {
		t.Fatal(err)
	}
	st, err := out.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != res.Size {
		t.Errorf("the image has %d bytes, the result says %d", st.Size(), res.Size)
	}
	return out, res
}

type file struct {
	name string
	data []byte
}

func tarOf(t *testing.T, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.data))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func builderTar(t testing.TB, write func(b *testimage.Builder)) []byte {
	t.Helper()
	var buf bytes.Buffer
	b := testimage.NewBuilder(&buf)
	write(b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestNoDeadData replaces and deletes random files of lower layers and holds
// the image to the size of one that is made of what is left, but for the chunk
// tables of files that had to be cut up; and its files to their contents.
func TestNoDeadData(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		block := 512 << rng.IntN(4)
		content := func() []byte {
			// Mostly small, sometimes many blocks, sometimes exact multiples.
			n := rng.IntN(3 * block)
			switch rng.IntN(4) {
			case 0:
				n = rng.IntN(200 * block)
			case 1:
				n = rng.IntN(8) * block
			}
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			return b
		}
		want := map[string][]byte{}
		var tars [][]byte
		total := int64(0)
		for range 1 + rng.IntN(4) {
			var files []file
			listed := map[string]bool{}
			for range rng.IntN(40) {
				name := fmt.Sprintf("f%02d", rng.IntN(40))
				if listed[name] {
					continue
				}
				listed[name] = true
				if _, ok := want[name]; ok && rng.IntN(3) == 0 {
					files = append(files, file{".wh." + name, nil})
					delete(want, name)
					continue
				}
				data := content()
				total += int64(len(data))
				files = append(files, file{name, data})
				want[name] = data
			}
			tars = append(tars, tarOf(t, files...))
		}
		o := build.Options{BlockSize: block, NoInline: rng.IntN(4) == 0}
		out, res := buildTars(t, o, tars...)
		checkFiles(t, out, want)

		var left []file
		bytesLeft := int64(0)
		for name, data := range want {
			left = append(left, file{name, data})
			bytesLeft += int64(len(data))
		}
		_, flat := buildTars(t, o, tarOf(t, left...))
		if dead := total - bytesLeft; res.Moved > dead+int64(len(want)+len(tars))*int64(2*block) {
			t.Errorf("seed %d: %d bytes moved, %d were dead", seed, res.Moved, dead)
		}
		// A table has 4 bytes a block; a file that is not worth it may leave
		// as much dead.
		slack := flat.Size/int64(block)*4*2 + 8*int64(block)
		if res.Size > flat.Size+slack {
			t.Errorf("seed %d: %d bytes, the same files at once take %d", seed, res.Size, flat.Size)
		}
		if t.Failed() {
			t.Fatalf("seed %d, block size %d", seed, block)
		}
	}
}

// checkFiles reads a flat directory of files back.
func checkFiles(t *testing.T, image io.ReaderAt, want map[string][]byte) {
	t.Helper()
	fsys, err := erofs.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	list, err := fs.ReadDir(fsys, ".")
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(want) {
		t.Errorf("%d files, want %d", len(list), len(want))
	}
	for _, e := range list {
		got, err := fs.ReadFile(fsys, e.Name())
		if err != nil {
			t.Errorf("%s: %v", e.Name(), err)
		} else if !bytes.Equal(got, want[e.Name()]) {
			t.Errorf("%s: %d bytes that differ from the %d put in", e.Name(), len(got), len(want[e.Name()]))
		}
	}
}

// TestXattrErrors: what cannot be stored is refused with the path that has it.
func TestXattrErrors(t *testing.T) {
	big := strings.Repeat("v", 60_000)
	for name, changes := range map[string][]testimage.Change{
		"value of 65536 bytes": {func(h *tar.Header) {
			h.PAXRecords = map[string]string{"LIBARCHIVE.xattr.user.x": base64.StdEncoding.EncodeToString(make([]byte, 65536))}
		}},
		"bytes of xattrs on one file": {testimage.Xattr("user.1", big), testimage.Xattr("user.2", big), testimage.Xattr("user.3", big), testimage.Xattr("user.4", big), testimage.Xattr("user.5", big)},
	} {
		tarball := builderTar(t, func(b *testimage.Builder) { b.File("dir/file", 0o644, "", changes...) })
		dir := t.TempDir()
		out, err := os.Create(filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		_, err = build.Image(t.Context(), out, out, tarLayers(tarball), build.Options{})
		if !errors.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), `"dir/file"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
