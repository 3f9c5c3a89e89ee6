//go:build linux

package build_test

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/ociarchive"
)

// scenarios are pairs of layers that touch what the image specification says,
// or leaves to the tools. umoci is the oracle.
var scenarios = []struct {
	name   string
	layers []func(*testimage.Builder)
}{
	{"whiteout of a file", layers(
		func(b *testimage.Builder) { b.Dir("d/", 0o750); b.File("d/a", 0o644, "a"); b.File("d/b", 0o644, "b") },
		func(b *testimage.Builder) { b.Whiteout("d", "a") })},
	{"whiteout of a tree", layers(
		func(b *testimage.Builder) {
			b.Dir("d/", 0o750)
			b.Dir("d/e/", 0o755)
			b.File("d/e/a", 0o644, "a")
			b.File("f", 0o644, "f")
		},
		func(b *testimage.Builder) { b.Whiteout("", "d") })},
	{"whiteout of nothing", layers(
		func(b *testimage.Builder) { b.File("a", 0o644, "a") },
		func(b *testimage.Builder) { b.Whiteout("no/such/dir", "x"); b.Whiteout("", "y") })},
	{"file before its whiteout in the same layer", layers(
		func(b *testimage.Builder) { b.File("foo", 0o600, "old") },
		func(b *testimage.Builder) { b.File("foo", 0o644, "new"); b.Whiteout("", "foo") })},
	{"whiteout before the file", layers(
		func(b *testimage.Builder) { b.Dir("foo/", 0o700); b.File("foo/old", 0o600, "old") },
		func(b *testimage.Builder) {
			b.Whiteout("", "foo")
			b.Dir("foo/", 0o711)
			b.File("foo/bar", 0o644, "new")
		})},
	{"whiteout of a file, then a directory not listed", layers(
		func(b *testimage.Builder) { b.File("foo", 0o600, "old") },
		func(b *testimage.Builder) { b.Whiteout("", "foo"); b.File("foo/bar", 0o644, "new") })},
	{"new entries, then whiteout of their directory", layers(
		func(b *testimage.Builder) { b.Dir("d/", 0o700); b.File("d/old", 0o600, "old") },
		func(b *testimage.Builder) { b.File("d/new", 0o644, "new"); b.Whiteout("", "d") })},
	{"opaque before", layers(
		func(b *testimage.Builder) {
			b.Dir("d/", 0o700)
			b.File("d/old", 0o600, "old")
			b.Dir("d/s/", 0o700)
			b.File("d/s/old", 0o600, "")
		},
		func(b *testimage.Builder) { b.Dir("d/", 0o755); b.Opaque("d"); b.File("d/new", 0o644, "new") })},
	{"opaque after", layers(
		func(b *testimage.Builder) {
			b.Dir("d/", 0o700)
			b.File("d/old", 0o600, "old")
			b.Dir("d/s/", 0o700)
			b.File("d/s/old", 0o600, "")
		},
		func(b *testimage.Builder) {
			b.File("d/new", 0o644, "new")
			b.File("d/s/new", 0o644, "new")
			b.Opaque("d")
		})},
	{"opaque root", layers(
		func(b *testimage.Builder) {
			b.Dir("d/", 0o700)
			b.File("d/old", 0o600, "old")
			b.File("x", 0o600, "old")
		},
		func(b *testimage.Builder) { b.Opaque(""); b.File("new", 0o644, "new") })},
	{"types replaced", layers(
		func(b *testimage.Builder) {
			b.Dir("dir/", 0o700)
			b.File("dir/x", 0o600, "x")
			b.File("file", 0o600, "f")
			b.Symlink("link", "file")
			b.Node("dev", tar.TypeChar, 0o600, 1, 3)
		},
		func(b *testimage.Builder) {
			b.File("dir", 0o644, "now a file")
			b.Dir("file/", 0o755)
			b.File("file/y", 0o644, "y")
			b.File("link", 0o644, "now a file")
			b.Symlink("dev", "dir", func(h *tar.Header) { h.Mode = 0o600 }) // as some writers do
		})},
	{"directory over a symbolic link to one", layers(
		func(b *testimage.Builder) {
			b.Dir("usr/", 0o755)
			b.Dir("usr/bin/", 0o755)
			b.File("usr/bin/a", 0o755, "a")
			b.Symlink("bin", "usr/bin")
		},
		func(b *testimage.Builder) { b.Dir("bin/", 0o711); b.File("bin/b", 0o755, "b") })},
	{"below symbolic links", layers(
		func(b *testimage.Builder) {
			b.Dir("usr/", 0o755)
			b.Dir("usr/bin/", 0o755)
			b.Symlink("bin", "usr/bin")
			b.Symlink("abs", "/usr/bin")
			b.Symlink("up", "../../../usr")
			b.Symlink("chain", "up/bin")
			b.Symlink("dangling", "var/none")
		},
		func(b *testimage.Builder) {
			b.File("bin/a", 0o755, "a")
			b.File("abs/b", 0o755, "b")
			b.File("chain/c", 0o755, "c")
			b.File("up/lib/d", 0o755, "d")
			b.File("dangling/e", 0o755, "e")
			b.Link("bin/f", "abs/a")
			b.Link("g", "chain/b")
		})},
	{"whiteout below a symbolic link", layers(
		func(b *testimage.Builder) {
			b.Dir("usr/", 0o755)
			b.Dir("usr/bin/", 0o755)
			b.File("usr/bin/a", 0o755, "a")
			b.Symlink("bin", "usr/bin")
		},
		func(b *testimage.Builder) { b.Whiteout("bin", "a") })},
	{"whiteout of a directory on the way to elsewhere", layers(
		func(b *testimage.Builder) {
			b.Dir("d/", 0o755)
			b.Dir("d/s/", 0o755)
			b.Symlink("d/l", "/e")
			b.Dir("e/", 0o755)
		},
		func(b *testimage.Builder) { b.File("d/l/f", 0o644, "f"); b.Whiteout("", "d") })},
	{"whiteout of a symbolic link", layers(
		func(b *testimage.Builder) { b.Dir("d/", 0o755); b.File("d/a", 0o644, "a"); b.Symlink("l", "d") },
		func(b *testimage.Builder) { b.Whiteout("", "l") })},
	{"hard links across layers", layers(
		func(b *testimage.Builder) { b.File("a", 0o644, "a"); b.Link("b", "a") },
		func(b *testimage.Builder) { b.Link("c", "a"); b.Whiteout("", "b") })},
	{"one of two names replaced", layers(
		func(b *testimage.Builder) { b.File("a", 0o644, "a"); b.Link("b", "a") },
		func(b *testimage.Builder) { b.File("a", 0o600, "new") })},
	{"hard link to a symbolic link", layers(
		func(b *testimage.Builder) { b.File("a", 0o644, "a"); b.Symlink("s", "a"); b.Link("t", "s") })},
	{"hard link over a file", layers(
		func(b *testimage.Builder) {
			b.File("a", 0o644, "a")
			b.File("b", 0o644, "b")
			b.Link("b", "a")
		})},
	{"directory listed again", layers(
		func(b *testimage.Builder) {
			b.Dir("d/", 0o700, testimage.Xattr("user.a", "1"))
			b.File("d/x", 0o644, "x")
			b.Dir("d/", 0o755, testimage.Owner(7, 8), testimage.Xattr("user.b", "2"))
		},
		func(b *testimage.Builder) { b.Dir("d/", 0o1777) })},
	{"file listed again", layers(
		func(b *testimage.Builder) {
			b.File("x", 0o644, "first, and longer", testimage.Xattr("user.a", "1"))
			b.File("x", 0o600, "second")
		})},
	{"parents omitted", layers(
		func(b *testimage.Builder) { b.Dir("tmp/", 0o1777, testimage.Owner(3, 4)); b.File("a/b/c", 0o644, "c") },
		func(b *testimage.Builder) { b.File("tmp/x", 0o644, "x"); b.File("a/d", 0o644, "d") })},
	{"odd paths", layers(
		func(b *testimage.Builder) {
			b.Dir("./", 0o711, testimage.Owner(5, 6))
			b.Dir("./d//", 0o755)
			b.File("/abs", 0o644, "abs")
			b.File("d/../e", 0o644, "e")
			b.File("../../../up", 0o644, "up")
			b.File("d/./f", 0o644, "f")
			b.File(string([]byte{'n', 0xff, 0xfe}), 0o644, "bytes")
		})},
	{"types and modes", layers(
		func(b *testimage.Builder) {
			b.File("suid", 0o4755, "x", testimage.Owner(70000, 80000))
			b.Dir("sticky/", 0o3777)
			b.Node("null", tar.TypeChar, 0o666, 1, 3)
			b.Node("big", tar.TypeBlock, 0o660, 259, 70000)
			b.Node("pipe", tar.TypeFifo, 0o600, 0, 0)
			b.Symlink("s", "a target of some length that is not there")
			b.File("old", 0o644, "", testimage.Mtime(time.Unix(-86400, 0)))
			b.File("nano", 0o644, "n", testimage.Mtime(time.Unix(1e9, 123456789)))
			b.File("cap", 0o755, "c", testimage.Xattr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
			b.File("trusted", 0o755, "c", testimage.Xattr("trusted.x", "y"), testimage.Xattr("user.long", string(make([]byte, 3000))))
		})},
}

func layers(l ...func(*testimage.Builder)) []func(*testimage.Builder) { return l }

// TestMergeAsUmoci holds merging to what umoci unpacks, as the kernel shows
// it, for whole images and for indexes with their layers behind them.
func TestMergeAsUmoci(t *testing.T) {
	interop.Root(t)
	interop.Tool(t, "umoci")
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			var list []testimage.Layer
			for _, l := range s.layers {
				list = append(list, testimage.Layer{Write: l, Compression: testimage.Plain})
			}
			img, err := testimage.Build(t.TempDir(), list)
			if err != nil {
				t.Fatal(err)
			}
			want := filepath.Join(interop.Umoci(t, "oci:"+img.Dir+":"+testimage.Tag))
			compareTrees(t, img, want)
		})
	}
}

func compareTrees(t *testing.T, img *testimage.Image, want string) {
	t.Helper()
	for _, o := range []build.Options{{}, {NoInline: true, BlockSize: 512}, {Index: true}} {
		t.Run(fmt.Sprintf("index=%t,block=%d", o.Index, o.BlockSize), func(t *testing.T) {
			file := buildLayout(t, img, o)
			dir := t.TempDir()
			interop.MountErofs(t, file, dir)
			fstree.Equal(t, dir, want, fstree.Options{})
		})
	}
}

// buildLayout builds an image of a layout's layers, and for an index puts them
// behind it.
func buildLayout(t *testing.T, img *testimage.Image, o build.Options) string {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	tails, err := os.Create(filepath.Join(t.TempDir(), "tails"))
	if err != nil {
		t.Fatal(err)
	}
	defer tails.Close()
	a, err := ociarchive.NewReader(archiveOf(t, img), ociarchive.ReaderOptions{SpoolDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := build.Image(context.Background(), out, tails, archiveLayers{a}, o); err != nil {
		t.Fatal(err)
	}
	if o.Index {
		if _, err := out.Seek(0, io.SeekEnd); err != nil {
			t.Fatal(err)
		}
		for _, l := range img.Layers {
			b, err := os.ReadFile(filepath.Join(img.Dir, "blobs", l.Digest.Algorithm().String(), l.Digest.Encoded()))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out.Name()
}

// archiveOf packs a layout directory with Debian's tar: blobs in any order.
func archiveOf(t *testing.T, img *testimage.Image) io.Reader {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.tar")
	interop.Run(t, interop.Tool(t, "tar"), "-C", img.Dir, "-cf", name, ".")
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

type archiveLayers struct{ *ociarchive.Reader }

func (a archiveLayers) Len() int { return len(a.Image().Layers) }

func (a archiveLayers) Next() (*build.Layer, error) {
	d, r, err := a.NextLayer()
	if err != nil {
		return nil, err
	}
	return &build.Layer{Name: string(d.Digest), Blob: r, Descriptor: &d}, nil
}
