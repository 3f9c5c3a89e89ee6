package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestArchivesOfOthers reads an image in each form that skopeo writes, with
// the index last and blobs in any order, from a file and from a pipe.
func TestArchivesOfOthers(t *testing.T) {
	skopeo := interop.Tool(t, "skopeo")
	im := testimage.New(t, testimage.Small)
	want := unpacked(t, im)
	for _, form := range []string{"oci-archive", "docker-archive"} {
		t.Run(form, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "archive")
			interop.Run(t, skopeo, "--insecure-policy", "copy", "--quiet", im.Ref(), form+":"+archive+":app:v1")
			fromFile, fromPipe := filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "out")
			must(t, whole(fromFile, archive))
			equalMounted(t, fromFile, want)
			must(t, []string{"cat", archive}, whole(fromPipe))
			equalMounted(t, fromPipe, want)
		})
	}
}

// TestOthersReadOurArchive gives oci-fetch's output to skopeo, which must find
// the image unchanged.
func TestOthersReadOurArchive(t *testing.T) {
	skopeo := interop.Tool(t, "skopeo")
	im := testimage.New(t, testimage.Small.With(testimage.Gzip, testimage.Zstd, testimage.Plain))
	dir := t.TempDir()
	archive, copied := filepath.Join(dir, "archive"), filepath.Join(dir, "copied")
	must(t, []string{tool("oci-fetch"), im.Ref(), "-o", archive})
	interop.Run(t, skopeo, "--insecure-policy", "copy", "--quiet", "--preserve-digests", "oci-archive:"+archive, "oci:"+copied+":x")
	for _, d := range append(im.Layers, im.Manifest, im.Config) {
		if _, err := os.Stat(filepath.Join(copied, "blobs", "sha256", d.Digest.Encoded())); err != nil {
			t.Error(err)
		}
	}
}

// TestServeForms serves an image in each form that erofs-nbd takes.
func TestServeForms(t *testing.T) {
	interop.Root(t)
	im := testimage.New(t, testimage.Small.With(testimage.Plain, testimage.Gzip, testimage.ZstdFrames))
	gzipped := testimage.New(t, testimage.Small) // the same tars, for umoci
	want := unpacked(t, gzipped)
	dir := t.TempDir()
	full, idx := filepath.Join(dir, "whole"), filepath.Join(dir, "index")
	must(t, []string{tool("oci-fetch"), im.Ref()}, whole(full))
	must(t, []string{tool("oci-fetch"), im.Ref()}, index(idx))
	// A layer that is an EROFS image, between two that are tars.
	tarLayer := testimage.Layer{Write: func(b *testimage.Builder) { b.File("x", 0o644, "x") }}
	native := testimage.NewLayers(t, tarLayer, testimage.Layer{File: full, MediaType: "application/vnd.erofs.layer.v1"}, tarLayer)

	for name, args := range map[string][]string{
		"image":                  {full},
		"layout":                 {"--index", idx, "--blob", im.Ref()},
		"files":                  {"--index", idx, "--blob", im.Blob(0), "--blob", im.Blob(1), "--blob", im.Blob(2)},
		"native layer by number": {"--blob", native.Ref(), "--layer", "1"},
		"native layer by digest": {"--blob", native.Ref(), "--layer", native.Layers[1].Digest.String()},
	} {
		t.Run(name, func(t *testing.T) {
			equalMounted(t, interop.NbdFuse(t, serve(t, args...).uri), want)
		})
	}
}

// TestOwnZinfo serves a foreign index, which has no seek section, by the zinfo
// that tar2erofs made on the way, which is the one that gzindex --sparse makes.
func TestOwnZinfo(t *testing.T) {
	interop.Root(t)
	im := oneLayer(t, testimage.Gzip)
	dir := t.TempDir()
	idx, onTheWay := filepath.Join(dir, "index"), filepath.Join(dir, "zinfo")
	must(t, append(index(idx, im.Blob(0)), "--zinfo", onTheWay))
	own := must(t, []string{tool("oci-fetch"), "--layer", "0", im.Ref()}, []string{tool("gzindex"), "--sparse"})
	got, err := os.ReadFile(onTheWay)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(own) {
		t.Errorf("tar2erofs --zinfo wrote %d bytes that are not the %d of gzindex --sparse", len(got), len(own))
	}
	foreign := filepath.Join(dir, "foreign")
	interop.Run(t, append(interop.Peer(t, "mkfs.erofs"), "--quiet", "--tar=i", "--gzinfo="+filepath.Join(dir, "theirs"), foreign, im.Blob(0))...)
	equalMounted(t, interop.NbdFuse(t, serve(t, "--index", foreign, "--zinfo", onTheWay, "--blob", im.Blob(0)).uri), unpacked(t, im))
}

// TestDumpTar takes an image apart into a tar again: tar2erofs makes the same
// tree of it, and so does GNU tar.
func TestDumpTar(t *testing.T) {
	interop.Root(t)
	gnutar := interop.Tool(t, "tar")
	im := testimage.New(t, testimage.Small)
	want := unpacked(t, im)
	dir := t.TempDir()
	first, second, tree := filepath.Join(dir, "first"), filepath.Join(dir, "second"), filepath.Join(dir, "tree")
	must(t, []string{tool("oci-fetch"), im.Ref()}, whole(first))
	must(t, []string{tool("erofs-dump"), "--tar", first}, whole(second))
	equalMounted(t, second, want)
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, []string{tool("erofs-dump"), "--tar", first}, []string{gnutar, "-C", tree, "-xpf", "-", "--xattrs", "--xattrs-include=*", "--numeric-owner"})
	fstree.EqualTree(t, tree, want, fstree.Options{})
}
