package e2e

import (
	"bytes"
	"crypto/sha512"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// TestCompressedArchive: an image archive that somebody compressed is the image
// all the same, on a pipe and as a file.
func TestCompressedArchive(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	archive := must(t, []string{tool("oci-fetch"), im.Ref()})
	want := filepath.Join(t.TempDir(), "want")
	if _, ends := pipe(t, bytes.NewReader(archive), whole(want)); ends[0].code != 0 {
		t.Fatal(ends[0].stderr)
	}
	for name, compress := range map[string]func(io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	} {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			w, err := compress(&buf)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(archive); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "image")
			if err := os.WriteFile(file, buf.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			piped, named := filepath.Join(dir, "piped"), filepath.Join(dir, "named")
			if _, ends := pipe(t, &buf, whole(piped)); ends[0].code != 0 {
				t.Error(ends[0].stderr)
			}
			must(t, whole(named, file))
			for _, got := range []string{piped, named} {
				if !sameFile(t, got, want) {
					t.Errorf("%s is not the image", got)
				}
			}
		})
	}
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

// TestSHA512: a layer with another digest than SHA-256 is served, too.
func TestSHA512(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	layer := im.Blob(1)
	b, err := os.ReadFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	x := filepath.Join(t.TempDir(), "index")
	must(t, append(index(x, layer), "--digest", fmt.Sprintf("sha512:%x", sha512.Sum512(b))))
	must(t, []string{tool("erofs-nbd"), "--index", x, "--blob", layer, "--run", ":"})
}

// TestNoLayers: an image without layers is an empty root, whole and as an
// index.
func TestNoLayers(t *testing.T) {
	im := testimage.NewLayers(t)
	for _, build := range []func(string, ...string) []string{whole, index} {
		out := filepath.Join(t.TempDir(), "out")
		must(t, []string{tool("oci-fetch"), im.Ref()}, build(out))
		if got := must(t, []string{tool("erofs-dump"), "--ls", out}); len(bytes.TrimSpace(got)) != 0 {
			t.Errorf("the root is not empty: %s", got)
		}
		command := []string{tool("erofs-nbd"), out, "--run", ":"}
		if strings.Contains(fmt.Sprint(build(out)), " -i ") {
			command = []string{tool("erofs-nbd"), "--index", out, "--blob", im.Ref(), "--run", ":"}
		}
		must(t, command)
	}
}

// TestNotReadyWithoutLayers: where no layer can be had, erofs-nbd says so and
// ends, before anybody mounts what will give nothing but errors.
func TestNotReadyWithoutLayers(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	other := testimage.New(t, testimage.Small)
	x := filepath.Join(t.TempDir(), "index")
	must(t, []string{tool("oci-fetch"), im.Ref()}, index(x))
	reg := testregistry.New()
	if err := reg.AddLayout("other", other.Dir); err != nil {
		t.Fatal(err)
	}
	host := serveRegistry(t, reg)
	locked := testregistry.New()
	if err := locked.AddLayout("image", im.Dir); err != nil {
		t.Fatal(err)
	}
	locked.Basic("somebody", "secret")
	server := httptest.NewServer(locked)
	defer server.Close()
	for _, tt := range []struct {
		name, ref string
		code      int
	}{
		{"another repository", host + "/other", 4},
		{"no such repository", host + "/none", 4},
		{"no credentials", strings.TrimPrefix(server.URL, "http://") + "/image", 3},
	} {
		_, ends := pipe(t, nil, []string{tool("erofs-nbd"), "--index", x, "--blob", tt.ref, "--plain-http", "--run", "echo served"})
		if ends[0].code != tt.code || strings.Count(ends[0].stderr, "\n") != 0 || ends[0].stderr == "" {
			t.Errorf("%s: exit code %d, want %d: %s", tt.name, ends[0].code, tt.code, ends[0].stderr)
		}
	}
}
