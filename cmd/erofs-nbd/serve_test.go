package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

func TestLocalImage(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	name := makeImage(t, im, build.Options{})
	s := start(t, name, "--stats")
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, s.uri); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, or other ones", len(got), len(want))
	}
	if code := s.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got := s.stderr.String(); !strings.Contains(got, "served 1 connections") || strings.Contains(got, "warning") {
		t.Errorf("stderr: %s", got)
	}
}

// TestIndex serves an index with layers of each kind from every place they can
// be in.
func TestIndex(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	files := []string{"--index", f.index}
	for i := range f.im.Layers {
		files = append(files, "--blob", f.im.Blob(i))
	}
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"files", files},
		{"layout", []string{"--index", f.index, "--blob", f.im.Ref()}},
		{"registry", []string{"--index", f.index, "--blob", ref, "--plain-http", "--require-verified"}},
		{"small cache", []string{"--index", f.index, "--blob", ref, "--plain-http", "--cache-size", "1MiB"}},
		{"tcp", []string{"--index", f.index, "--blob", f.im.Ref(), "--listen", "tcp:127.0.0.1:0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, tt.args...)
			f.same(t, readAll(t, s.uri))
			if code := s.stop(); code != 0 || s.stderr.String() != "" {
				t.Errorf("exit code %d, stderr: %s", code, s.stderr)
			}
		})
	}
	// The whole disk once is each blob about once.
	reg.Reset()
	s := start(t, "--index", f.index, "--blob", ref, "--plain-http")
	if n := reg.TotalServed(); n > 100<<10 {
		t.Errorf("%d bytes fetched at the start", n)
	}
	first := dial(t, s.uri)
	if _, err := first.ReadAt(make([]byte, 1024), f.starts[1]+100); err != nil {
		t.Fatal(err)
	}
	in, inEnd, _, _ := f.layers[1].Range(0)
	if n := reg.TotalServed(); n > inEnd-in+4096 {
		t.Errorf("%d bytes fetched for a span of %d", n, inEnd-in)
	}
	readAll(t, s.uri)
	var blobs int64
	for _, l := range f.im.Layers {
		blobs += l.Size
	}
	if n := reg.TotalServed(); n > blobs*115/100 {
		t.Errorf("%d bytes fetched for blobs of %d", n, blobs)
	}
}

// TestRepeatedLayer: A, B, A is two blobs and three layers.
func TestRepeatedLayer(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	index := makeImage(t, im, build.Options{Index: true})
	want, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	for i := range im.Layers {
		name := filepath.Join(t.TempDir(), "tar")
		if err := im.Tar(i, name); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, b...)
	}
	s := start(t, "--index", index, "--blob", im.Ref())
	if got := readAll(t, s.uri); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, or other ones", len(got), len(want))
	}
}

// TestFlippedByte: a byte that changed in each kind of layer is an I/O error
// where it is, and nowhere else.
func TestFlippedByte(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	for i := range f.layers {
		l := &f.layers[i]
		t.Run(l.Kind.String(), func(t *testing.T) {
			blob, err := os.ReadFile(f.im.Blob(i))
			if err != nil {
				t.Fatal(err)
			}
			// A byte in the middle of a span that has neighbours; of a plain
			// layer, in a piece.
			span := len(l.Spans) / 2
			in, inEnd, out, outEnd := l.Range(span)
			if l.Kind == seek.Plain {
				in, inEnd = seek.PieceSize, min(2*seek.PieceSize, l.Size)
				out, outEnd = in, inEnd
			} else if span == 0 {
				t.Fatalf("%d spans", len(l.Spans))
			}
			blob[(in+inEnd)/2] ^= 0x10
			reg.PutBlob("team/golang", l.Descriptor.Digest, blob)
			s := start(t, "--index", f.index, "--blob", ref, "--plain-http")
			c := dial(t, s.uri)
			bad := f.starts[i] + (out+outEnd)/2
			for _, off := range []int64{bad, f.starts[i] + out, f.starts[i] + outEnd - 1} {
				p := make([]byte, 1)
				if _, err := c.ReadAt(p, off); !errors.Is(err, nbdclient.EIO) {
					t.Errorf("read at %d: %v, want EIO", off, err)
				}
			}
			for _, off := range []int64{f.starts[i] + out - 512, f.starts[i] + outEnd, 0} {
				n := min(512, int64(len(f.disk))-off)
				p := make([]byte, n)
				if _, err := c.ReadAt(p, off); err != nil || !bytes.Equal(p, f.disk[off:][:n]) {
					t.Errorf("read at %d, beside it: %v", off, err)
				}
			}
			s.logged("I/O error")
			s.logged(l.Descriptor.Digest.String())
		})
	}
}

// TestFilesInWrongOrder are refused at the start, as are those of another
// image.
func TestFilesInWrongOrder(t *testing.T) {
	plain := func(n string) testimage.Layer {
		return testimage.Layer{Compression: testimage.Plain, Write: func(b *testimage.Builder) { b.File(n, 0o644, n) }}
	}
	im := testimage.NewLayers(t, plain("one"), plain("two")) // of the same size
	index := makeImage(t, im, build.Options{Index: true})
	code, _, stderr := invoke(t, "--index", index, "--blob", im.Blob(1), "--blob", im.Blob(0))
	if code != cli.ExitIntegrity || !strings.Contains(stderr, "layer 0") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if code, _, stderr := invoke(t, "--index", index, "--blob", im.Blob(0)); code != cli.ExitUsage {
		t.Errorf("one of two: exit code %d: %s", code, stderr)
	}
}

// TestNative serves a layer that is an image.
func TestNative(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Plain)...)
	image, err := os.ReadFile(makeImage(t, im, build.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	reg, host := serveLayout(t, im.Dir)
	host = strings.TrimSuffix(host, "team/golang:latest")
	native := reg.AddBlob("native", "application/vnd.erofs.layer.v1", image)
	suffix := reg.AddBlob("native", "application/vnd.example.layer.v1.erofs", image)
	liar := reg.AddBlob("native", "application/vnd.erofs", bytes.Repeat([]byte("no image"), 1000))
	short := reg.AddBlob("native", "application/vnd.erofs", image[:len(image)-4096])
	tar := reg.AddBlob("native", ocispec.MediaTypeImageLayer, []byte("tar"))
	config := reg.AddBlob("native", ocispec.MediaTypeImageConfig, []byte(`{"os":"linux","architecture":"amd64"}`))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{native, suffix, liar, short, tar}}
	m.SchemaVersion = 2
	reg.AddManifest("native", "v1", ocispec.MediaTypeImageManifest, m)
	args := func(layer string, more ...string) []string {
		return append([]string{"--blob", host + "native:v1", "--plain-http", "--layer", layer}, more...)
	}
	for _, l := range []string{"0", native.Digest.String(), "1"} {
		s := start(t, args(l)...)
		if got := readAll(t, s.uri); !bytes.Equal(got, image) {
			t.Errorf("layer %s: %d bytes, want %d, or other ones", l, len(got), len(image))
		}
		if got := s.stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "warning") {
			t.Errorf("layer %s: stderr: %s", l, got)
		}
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{args("0", "--require-verified"), cli.ExitIntegrity, "--require-verified"},
		{args("2"), cli.ExitFailed, "EROFS"},
		{args("3"), cli.ExitFailed, "image"},
		{args("4"), cli.ExitFailed, "media type"},
		{args("5"), cli.ExitNotFound, "no layer 5"},
		{args("sha256:" + strings.Repeat("0", 64)), cli.ExitNotFound, "no layer sha256:"},
		{args("top"), cli.ExitUsage, "neither a number nor a digest"},
	} {
		code, stdout, stderr := invoke(t, tt.args...)
		if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
}

// TestForeign serves what mkfs.erofs makes of one layer.
func TestForeign(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	im := testimage.New(t, testimage.Small)
	dir := t.TempDir()
	const i = 1
	index, z, tar := filepath.Join(dir, "index"), filepath.Join(dir, "zinfo"), filepath.Join(dir, "tar")
	if err := im.Tar(i, tar); err != nil {
		t.Fatal(err)
	}
	interop.Run(t, append(mkfs, "--quiet", "--tar=i", "--gzinfo="+z, index, im.Blob(i))...)
	want, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(tar)
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, data...)
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"image", []string{"--index", index, "--zinfo", z, "--blob", im.Ref(), "--layer", fmt.Sprint(i)}},
		{"blob", []string{"--index", index, "--zinfo", z, "--blob", im.Blob(i)}},
		{"tar", []string{"--index", index, "--blob", tar}},
	} {
		s := start(t, tt.args...)
		if got := readAll(t, s.uri); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d, or other ones", tt.name, len(got), len(want))
		}
		if got := s.stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "warning") {
			t.Errorf("%s: stderr: %s", tt.name, got)
		}
		if code, _, stderr := invoke(t, append(tt.args, "--require-verified")...); code != cli.ExitIntegrity {
			t.Errorf("%s: --require-verified: exit code %d: %s", tt.name, code, stderr)
		}
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no layer", []string{"--index", index, "--zinfo", z, "--blob", im.Ref()}, cli.ExitUsage, "--layer"},
		{"no zinfo", []string{"--index", index, "--blob", im.Ref(), "--layer", "1"}, cli.ExitUsage, "zinfo"},
		{"other layer", []string{"--index", index, "--zinfo", z, "--blob", im.Ref(), "--layer", "2"}, cli.ExitFailed, "zinfo"},
		{"other tar", []string{"--index", index, "--blob", index}, cli.ExitIntegrity, "blocks"},
		{"zinfo of a tar", []string{"--index", index, "--zinfo", z, "--blob", tar}, cli.ExitUsage, "not compressed"},
		{"no zinfo file", []string{"--index", index, "--zinfo", tar, "--blob", im.Blob(i)}, cli.ExitFailed, "zinfo"},
	} {
		code, stdout, stderr := invoke(t, tt.args...)
		if code != tt.code && !(tt.code == cli.ExitFailed && code == cli.ExitIntegrity) || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q, %q", tt.name, code, stdout, stderr)
		}
	}
}

// TestMount mounts an index through nbdfuse, as the README says.
func TestMount(t *testing.T) {
	f := newFixture(t)
	s := start(t, "--index", f.index, "--blob", f.im.Ref())
	mnt := t.TempDir()
	interop.MountErofs(t, interop.NbdFuse(t, s.uri), mnt)
	for i := range f.im.Layers {
		got, err := os.ReadFile(filepath.Join(mnt, fileName(i)))
		if err != nil || string(got) != fileData(i) {
			t.Errorf("%s: %d bytes, %v", fileName(i), len(got), err)
		}
	}
}

// TestForeignSeek serves what mkfs.erofs makes of a tar, by seek data from a
// file: bad bytes are not served, and what does not fit is refused.
func TestForeignSeek(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	im := testimage.New(t, testimage.Small)
	dir := t.TempDir()
	const i = 1
	index, sections, tar := filepath.Join(dir, "index"), filepath.Join(dir, "seek"), filepath.Join(dir, "tar")
	if err := im.Tar(i, tar); err != nil {
		t.Fatal(err)
	}
	interop.Run(t, append(mkfs, "--quiet", "--tar=i", index, tar)...)
	want, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(tar)
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, data...)
	// The section has all layers of the image: the right one is picked.
	var s seek.Section
	for k := range im.Layers {
		f, err := os.Open(im.Blob(k))
		if err != nil {
			t.Fatal(err)
		}
		r := layer.NewReader(t.Context(), f, layer.Options{Seek: true})
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		l, err := r.Seek()
		if err != nil {
			t.Fatal(err)
		}
		s.Layers = append(s.Layers, *l)
		r.Close()
		f.Close()
	}
	b, err := s.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sections, b, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--blob", im.Ref(), "--layer", fmt.Sprint(i)},
		{"--blob", im.Blob(i)},
	} {
		s := start(t, append(args, "--index", index, "--seek", sections, "--require-verified")...)
		if got := readAll(t, s.uri); !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes, want %d, or other ones", args, len(got), len(want))
		}
		if got := s.stderr.String(); got != "" {
			t.Errorf("%v: stderr: %s", args, got)
		}
	}
	blob, err := os.ReadFile(im.Blob(i))
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(dir, "bad")
	blob[100] ^= 1
	if err := os.WriteFile(bad, blob, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"flipped", []string{"--seek", sections, "--blob", bad}, cli.ExitIntegrity, "do not match their digest"},
		{"other blob", []string{"--seek", sections, "--blob", tar}, cli.ExitNotFound, "no seek data for"},
		{"no section", []string{"--seek", tar, "--blob", im.Blob(i)}, cli.ExitNotFound, "no footer"},
		{"no file", []string{"--seek", filepath.Join(dir, "none"), "--blob", im.Blob(i)}, cli.ExitNotFound, "no such file"},
		{"no layer", []string{"--seek", sections, "--blob", im.Ref()}, cli.ExitUsage, "--layer"},
	} {
		code, stdout, stderr := invoke(t, append(tt.args, "--index", index)...)
		if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q, %q", tt.name, code, stdout, stderr)
		}
	}
}
