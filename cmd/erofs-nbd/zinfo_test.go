package main

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// foreign is an image of one gzip layer, an index of it without a seek section,
// as others make them, and the layer's zinfo.
func foreign(t *testing.T) (im *testimage.Image, index string, z []byte) {
	t.Helper()
	im = testimage.NewLayers(t, testimage.Layer{Compression: testimage.Gzip, Write: func(b *testimage.Builder) {
		b.File("a", 0o644, fileData(1))
	}})
	index = makeImage(t, im, build.Options{Index: true})
	b, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[len(b)-512:]) // the footer
	if err := os.WriteFile(index, b, 0o600); err != nil {
		t.Fatal(err)
	}
	blob, err := os.Open(im.Blob(0))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	r := zinfo.NewReader(blob, zinfo.Options{SpanSize: spanSize})
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	x, err := r.Index()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := x.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	return im, index, buf.Bytes()
}

// TestHostileZinfo: a zinfo that is cut off is refused, and one with any bit
// flipped is refused, or serves: bytes, or EIO. That they are the right ones
// nothing can tell before all is cached, and a warning says so.
func TestHostileZinfo(t *testing.T) {
	im, index, good := foreign(t)
	name := filepath.Join(t.TempDir(), "zinfo")
	args := []string{"--index", index, "--zinfo", name, "--blob", im.Blob(0)}
	write := func(b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{0, 1, 11, 12, 20, len(good) / 2, len(good) - 32768, len(good) - 1} {
		write(good[:n])
		if code, _, stderr := invoke(t, append(args, "--run", "true")...); code != cli.ExitFailed || !strings.Contains(stderr, "zinfo") {
			t.Errorf("%d bytes of %d: exit code %d, %s", n, len(good), code, stderr)
		}
	}
	rng := rand.New(rand.NewPCG(7, 7))
	refused := 0
	for i := range 60 {
		at := i // the header and the first points, then anywhere
		if i >= 40 {
			at = rng.IntN(len(good))
		}
		b := bytes.Clone(good)
		b[at] ^= 1 << rng.IntN(8)
		write(b)
		code, _, stderr := invoke(t, append(args, "--run", "true")...)
		if code == 0 {
			s := start(t, args...)
			c := dial(t, s.uri)
			p := make([]byte, 1000)
			for off := int64(0); off < c.Size(); off += spanSize {
				if _, err := c.ReadAt(p, off); err != nil && err != io.EOF && !errors.Is(err, nbdclient.EIO) {
					t.Fatalf("byte %d: %v", at, err)
				}
			}
			s.stop()
			continue
		}
		refused++
		if strings.Contains(stderr, "panic") {
			t.Errorf("byte %d: %s", at, stderr)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

// TestWholeDigest: a layer that cannot be verified as it is read is, once all
// of it is in the cache directory.
func TestWholeDigest(t *testing.T) {
	im, index, z := foreign(t)
	name := filepath.Join(t.TempDir(), "zinfo")
	if err := os.WriteFile(name, z, 0o600); err != nil {
		t.Fatal(err)
	}
	reg, ref := serveLayout(t, im.Dir)
	args := func(dir string) []string {
		return []string{"--index", index, "--zinfo", name, "--blob", ref, "--layer", "0", "--plain-http", "--cache-dir", dir, "--verbose", "--prefetch", "all"}
	}
	says := func(s *server, want string) {
		t.Helper()
		eventually(t, func() bool { return strings.Contains(s.stderr.String(), want) }, s.stderr.String)
	}
	dir := t.TempDir()
	s := start(t, args(dir)...)
	says(s, "its digest is right")
	readAll(t, s.uri)
	s.stop()
	// A time in the gzip header: no checksum covers it but the digest.
	blob, err := os.ReadFile(im.Blob(0))
	if err != nil {
		t.Fatal(err)
	}
	blob[4] ^= 1
	reg.PutBlob("team/golang", im.Layers[0].Digest, blob)
	dir = t.TempDir()
	s = start(t, args(dir)...)
	says(s, "nothing more of it is served")
	c := dial(t, s.uri)
	if _, err := c.ReadAt(make([]byte, 512), c.Size()-512); !errors.Is(err, nbdclient.EIO) {
		t.Errorf("%v, want EIO", err)
	}
	s.stop()
	if n := len(cacheFiles(t, dir)); n != 0 {
		t.Errorf("%d files of it are kept", n)
	}
}
