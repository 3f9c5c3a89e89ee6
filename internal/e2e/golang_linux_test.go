package e2e

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestGolang takes the three-layer image out of Debian's docker-registry, and
// wants the kernel to show, both ways, exactly what umoci unpacks.
func TestGolang(t *testing.T) {
	interop.Root(t)
	host := interop.DockerRegistry(t)
	im := golangImage(t)
	ref := interop.PushOCI(t, im.Ref(), host, "golang:gzip")
	want := unpacked(t, im)

	t.Run("whole", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "golang.erofs")
		must(t, fetch(ref), whole(out))
		equalMounted(t, out, want)
	})

	out := filepath.Join(t.TempDir(), "golang.index.erofs")
	must(t, fetch(ref), index(out))

	t.Run("lazily, gzip", func(t *testing.T) {
		server := serve(t, "--plain-http", "--index", out, "--blob", ref)
		equalMounted(t, interop.NbdFuse(t, server.uri), want)
	})

	t.Run("cat index and tars", func(t *testing.T) {
		equalMounted(t, concatenated(t, out, im), want)
	})

	t.Run("lazily, zstd", func(t *testing.T) {
		// The same tars: umoci does not read zstd, so its tree is of the gzip ones.
		im := testimage.New(t, golangOptions().With(testimage.Zstd, testimage.ZstdFrames, testimage.Gzip))
		ref := interop.PushOCI(t, im.Ref(), host, "golang:zstd")
		out := filepath.Join(t.TempDir(), "golang.index.erofs")
		must(t, fetch(ref), index(out))
		server := serve(t, "--plain-http", "--index", out, "--blob", ref)
		equalMounted(t, interop.NbdFuse(t, server.uri), want)
	})
}

// TestRepeatedLayer is the image A, B, A.
func TestRepeatedLayer(t *testing.T) {
	interop.Root(t)
	host := interop.DockerRegistry(t)
	for name, c := range map[string]testimage.Compression{"gzip": testimage.Gzip, "plain": testimage.Plain} {
		t.Run(name, func(t *testing.T) {
			im := testimage.NewLayers(t, testimage.Repeated(c)...)
			ref := interop.PushOCI(t, im.Ref(), host, "aba:"+name)
			want := unpacked(t, im)
			out, idx := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "index")
			must(t, fetch(ref), whole(out))
			equalMounted(t, out, want)
			must(t, fetch(ref), index(idx))
			equalMounted(t, concatenated(t, idx, im), want)
			server := serve(t, "--plain-http", "--index", idx, "--blob", ref)
			equalMounted(t, interop.NbdFuse(t, server.uri), want)
		})
	}
}

// unpacked is the image's tree as umoci unpacks it.
func unpacked(t *testing.T, im *testimage.Image) fstree.Tree {
	t.Helper()
	tree, err := fstree.List(interop.Umoci(t, im.Ref()), fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// equalMounted mounts an image through the kernel and compares what it shows.
func equalMounted(t *testing.T, image string, want fstree.Tree) {
	t.Helper()
	mnt := t.TempDir()
	interop.MountErofs(t, image, mnt)
	fstree.EqualTree(t, mnt, want, fstree.Options{})
}

// concatenated is `cat index layer0.tar layer1.tar ...`.
func concatenated(t *testing.T, index string, im *testimage.Image) string {
	t.Helper()
	dir := t.TempDir()
	disk, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	appendFile(t, disk, index)
	for i := range im.Layers {
		name := filepath.Join(dir, "layer.tar")
		if err := im.Tar(i, name); err != nil {
			t.Fatal(err)
		}
		appendFile(t, disk, name)
	}
	return disk.Name()
}

func appendFile(t *testing.T, w io.Writer, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		t.Fatal(err)
	}
}
