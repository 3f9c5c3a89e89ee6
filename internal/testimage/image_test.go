package testimage

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestDeterministic builds each image twice.
func TestDeterministic(t *testing.T) {
	for name, build := range map[string]func() *Image{
		"gzip":    func() *Image { return New(t, Small) },
		"mixed":   func() *Image { return New(t, Small.With(Plain, Zstd, ZstdFrames)) },
		"A, B, A": func() *Image { return NewLayers(t, Repeated(Gzip)...) },
	} {
		if a, b := build().Manifest.Digest, build().Manifest.Digest; a != b {
			t.Errorf("%s: two runs gave %s and %s", name, a, b)
		}
	}
}

// TestLayers wants each layer's tar whole and with the digest that the config
// says, and the same one however it is packed.
func TestLayers(t *testing.T) {
	gz := New(t, Small)
	mixed := New(t, Small.With(Plain, Zstd, ZstdFrames))
	for i := range gz.Layers {
		if gz.DiffIDs[i] != mixed.DiffIDs[i] {
			t.Errorf("layer %d: contents depend on the compression", i)
		}
		for _, im := range []*Image{gz, mixed} {
			name := filepath.Join(t.TempDir(), "tar")
			if err := im.Tar(i, name); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := digest.FromBytes(data); got != im.DiffIDs[i] {
				t.Errorf("layer %d: tar is %s, config says %s", i, got, im.DiffIDs[i])
			}
		}
	}
}

// TestUpperConcernsLower wants each whiteout, link and replacement of the upper
// layer to concern a name that a lower layer really has.
func TestUpperConcernsLower(t *testing.T) {
	im := New(t, Small)
	lower := names(t, im, 0)
	for n := range names(t, im, 1) {
		lower[n] = true
	}
	for _, n := range []string{"etc/motd", "var/lib/odd/gone/", "usr/bin/oldtool", "etc/replaced", "etc/issue", "etc/skel/",
		"etc/hostname", "etc/conf.d/7.conf", "usr/local/go/VERSION", "usr/bin/tool", "var/lib/odd/xattrs", "usr/sbin/tool", "bin"} {
		if !lower[n] {
			t.Errorf("the lower layers have no %s", n)
		}
	}
	upper := names(t, im, 2)
	for _, n := range []string{"etc/.wh.motd", "bin/newtool", "var/lib/odd/opaque/.wh..wh..opq"} {
		if !upper[n] {
			t.Errorf("the upper layer has no %s", n)
		}
	}
	for _, n := range []string{"usr/bin/", "tmp/", "srv/", "opt/"} {
		if upper[n] {
			t.Errorf("the upper layer should omit %s", n)
		}
	}
}

func names(t *testing.T, im *Image, layer int) map[string]bool {
	t.Helper()
	name := filepath.Join(t.TempDir(), "tar")
	if err := im.Tar(layer, name); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	set := make(map[string]bool)
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return set
		}
		if err != nil {
			t.Fatal(err)
		}
		set[h.Name] = true
	}
}

func TestRepeated(t *testing.T) {
	im := NewLayers(t, Repeated(Gzip)...)
	if len(im.Layers) != 3 || im.Layers[0].Digest != im.Layers[2].Digest || im.Layers[0].Digest == im.Layers[1].Digest {
		t.Errorf("layers are not A, B, A: %v", im.Layers)
	}
}
