package source

import (
	"bytes"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociarchive"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// TestSources is one suite for every place an image can lie in.
func TestSources(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	reg := testregistry.New()
	if err := reg.AddLayout("team/app", im.Dir); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(reg)
	defer srv.Close()
	archive := filepath.Join(t.TempDir(), "a.tar")
	writeArchive(t, archive, "oci:"+im.Dir)
	o := Options{PlainHTTP: true, AuthFile: emptyFile(t), RetryWait: time.Millisecond}
	for _, ref := range []string{
		strings.TrimPrefix(srv.URL, "http://") + "/team/app",
		"oci:" + im.Dir, "oci:" + im.Dir + ":" + testimage.Tag, "oci:" + im.Dir + "@" + im.Manifest.Digest.String(),
		"oci-archive:" + archive, "oci-archive:" + archive + ":" + testimage.Tag,
	} {
		s, err := Open(ref, o)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		testSource(t, s, ref, im)
		dir := t.TempDir()
		for range 2 {
			c, err := Cache{Dir: dir, Notify: func(line string) { t.Error(line) }}.Wrap(s)
			if err != nil {
				t.Fatal(err)
			}
			testSource(t, c, ref, im)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		if IsLocal(ref) != strings.HasPrefix(ref, "oci") {
			t.Errorf("IsLocal(%s)", ref)
		}
	}
}

func testSource(t *testing.T, s Source, ref string, im *testimage.Image) {
	t.Helper()
	if s.Name() != ref {
		t.Errorf("%s is called %s", ref, s.Name())
	}
	img, err := s.Resolve(t.Context(), nil)
	if err != nil {
		t.Errorf("%s: %v", ref, err)
		return
	}
	if img.Manifest.Digest != im.Manifest.Digest || img.Config.Digest != im.Config.Digest || len(img.Layers) != len(im.Layers) ||
		img.Name != ref || (img.Tag != testimage.Tag) || ociimage.VerifyBytes(img.ManifestBytes, img.Manifest) != nil {
		t.Errorf("%s: %+v", ref, img)
	}
	if _, err := s.Resolve(t.Context(), &ocispec.Platform{OS: "plan9", Architecture: "mips"}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("%s: another platform: %v", ref, err)
	}
	ahead := Ahead(t.Context(), s, img.Layers, 2)
	defer ahead.Close()
	var wg sync.WaitGroup
	for i, l := range img.Layers {
		want, err := os.ReadFile(im.Blob(i))
		if err != nil {
			t.Fatal(err)
		}
		for how, blobs := range map[string]Blobs{"": streams{s}, "ahead": ahead} {
			b, err := readAll(blobs.Blob(t.Context(), l))
			if err != nil || !bytes.Equal(b, want) {
				t.Errorf("%s, layer %d %s: %d bytes, %v", ref, i, how, len(b), err)
			}
		}
		if b, err := readAll(s.Blob(t.Context(), ocispec.Descriptor{Digest: l.Digest, Size: -1})); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s, layer %d without a size: %d bytes, %v", ref, i, len(b), err)
		}
		for _, d := range []ocispec.Descriptor{l, {Digest: l.Digest}} {
			wg.Go(func() { testBlobAt(t, s, d, want) })
		}
	}
	wg.Wait()
	for name, d := range map[string]ocispec.Descriptor{
		"missing":    {Digest: "sha256:" + "00" + img.Layers[0].Digest[9:], Size: 5},
		"bad":        {Digest: "sha256:../../x", Size: 5},
		"wrong size": {Digest: img.Layers[0].Digest, Size: img.Layers[0].Size + 1},
	} {
		if b, err := readAll(s.Blob(t.Context(), d)); err == nil {
			t.Errorf("%s, %s: %d bytes", ref, name, len(b))
		}
	}
}

func testBlobAt(t *testing.T, s Source, d ocispec.Descriptor, want []byte) {
	b, err := s.BlobAt(t.Context(), d)
	if err != nil {
		t.Errorf("%s: %v", s.Name(), err)
		return
	}
	defer b.Close()
	if b.Size() != int64(len(want)) {
		t.Errorf("%s: size %d, want %d", s.Name(), b.Size(), len(want))
	}
	p := make([]byte, 500)
	for _, off := range []int{0, len(want) / 3, len(want) - 500, len(want) - 1} {
		n, err := b.ReadAtContext(t.Context(), p, int64(off))
		rest := want[off:min(off+500, len(want))]
		if !bytes.Equal(p[:n], rest) || n < 500 && err != io.EOF || n == 500 && err != nil && err != io.EOF {
			t.Errorf("%s at %d: %d bytes, %v", s.Name(), off, n, err)
		}
	}
	if n, err := b.ReadAtContext(t.Context(), p, b.Size()); n != 0 || err != io.EOF {
		t.Errorf("%s at its end: %d, %v", s.Name(), n, err)
	}
}

func readAll(r io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func writeArchive(t *testing.T, name, ref string) {
	t.Helper()
	s, err := Open(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	img, err := s.Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := ociarchive.WriteImage(t.Context(), f, img, s.Blob, nil); err != nil {
		t.Fatal(err)
	}
}

func emptyFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestFlipped: what has changed on disk is noticed at the end of the stream.
func TestFlipped(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Plain)...)
	archive := filepath.Join(t.TempDir(), "a.tar")
	writeArchive(t, archive, "oci:"+im.Dir)
	flip := func(name string, find []byte) {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		i := bytes.Index(b, find)
		if i < 0 {
			t.Fatalf("%s: layer not found", name)
		}
		b[i+len(find)/2] ^= 1
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	layer, err := os.ReadFile(im.Blob(0))
	if err != nil {
		t.Fatal(err)
	}
	flip(archive, layer)
	flip(im.Blob(0), layer)
	for _, ref := range []string{"oci:" + im.Dir, "oci-archive:" + archive} {
		s, err := Open(ref, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readAll(s.Blob(t.Context(), im.Layers[0])); !errors.Is(err, fault.ErrIntegrity) {
			t.Errorf("%s: %v", ref, err)
		}
		s.Close()
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(name), 0o700)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("v2/oci-layout", `{"imageLayoutVersion":"2.0.0"}`)
	write("junk/oci-layout", `junk`)
	write("large/oci-layout", strings.Repeat(" ", ociimage.MaxManifestSize+1))
	for ref, want := range map[string]error{
		"oci:":                               fault.ErrUsage,
		"oci-archive:":                       fault.ErrUsage,
		"oci:" + dir + "/none":               fault.ErrNotFound,
		"oci:" + dir:                         fault.ErrNotFound,
		"oci:" + dir + "/v2":                 fault.ErrUnsupported,
		"oci:" + dir + "/junk":               fault.ErrCorrupt,
		"oci:" + dir + "/large":              fault.ErrCorrupt,
		"oci-archive:" + dir + "/none":       fault.ErrNotFound,
		"oci-archive:" + write("x.tar", "x"): io.ErrUnexpectedEOF,
		"oci-archive:" + write("x.tar.gz", "\x1f\x8b\x08\x00"): fault.ErrUnsupported,
		"Not/A/Reference": fault.ErrUsage,
	} {
		if _, err := Open(ref, Options{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", ref, err, want)
		}
	}
	for _, ref := range []string{"./x.tar", "../image", "/x", "docker-archive:/x.tar", "dir:/x", "oci-layout:./x", "docker-daemon:alpine:latest"} {
		if _, err := Open(ref, Options{}); !errors.Is(err, fault.ErrUsage) || !strings.Contains(err.Error(), "oci-archive:FILE") {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for ref, doubt := range map[string]bool{
		"docker-archive:x.tar": true, "containers-storage:alpine": true, "x.tar": true,
		"golang": false, "docker:dind": false, "reg.io/x.tar": false,
	} {
		said := ""
		s, err := Open(ref, Options{Notify: func(line string) { said += line }})
		if err != nil || strings.Contains(said, "oci-archive:FILE") != doubt {
			t.Errorf("%s: %v, said %q", ref, err, said)
			continue
		}
		s.Close()
	}
	if _, err := Open("oci-archive:"+dir, Options{}); err == nil {
		t.Error("a directory was opened as an archive")
	}
}

func TestSplitTag(t *testing.T) {
	dir := filepath.ToSlash(t.TempDir())
	there := []string{dir + "/image"}
	if runtime.GOOS != "windows" { // no colons there
		there = append(there, dir+"/a:b", dir+"/image:2", dir+"/image:2:3") // beside image
	}
	for _, name := range there {
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
		hex := "sha256:" + strings.Repeat("0", 64)
		for rest, want := range map[string]string{
			"": "", ":v1": "v1", ":": "", ":reg.io:5000/team/app:v1": "reg.io:5000/team/app:v1", "@" + hex: hex,
		} {
			if path, tag, err := SplitTag(name + rest); err != nil || path != name || tag != want {
				t.Errorf("%s: %q, %q, %v", name+rest, path, tag, err)
			}
		}
	}
	for s, want := range map[string][2]string{
		dir + "/new": {dir + "/new", ""}, dir + "/new:v1": {dir + "/new", "v1"}, dir + "/new:x/y": {dir + "/new:x/y", ""},
	} {
		if path, tag, err := SplitTag(s); err != nil || path != want[0] || tag != want[1] {
			t.Errorf("%s: %q, %q, %v", s, path, tag, err)
		}
	}
}
