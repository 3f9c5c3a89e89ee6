package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// oneLayer is an image that mkfs.erofs reads without tripping over what our
// other images have in them.
func oneLayer(t *testing.T, c testimage.Compression) *testimage.Image {
	t.Helper()
	return testimage.NewLayers(t, testimage.Layer{Compression: c, Write: func(b *testimage.Builder) {
		b.Dir("./", 0o755)
		b.Dir("etc/", 0o755)
		b.File("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n", testimage.Xattr("user.comment", "a file"))
		b.Link("etc/passwd-", "etc/passwd")
		b.Symlink("etc/link", "passwd")
		b.Dir("tmp/", 0o1777, testimage.Owner(3, 70000))
		b.Dir("usr/", 0o755)
		b.Dir("usr/local/", 0o755)
		testimage.Toolchain(b, []string{"VERSION", "src/net", "bin/gofmt"})
	}})
}

// TestForeignIndex serves an index and a zinfo that mkfs.erofs made.
func TestForeignIndex(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	im := oneLayer(t, testimage.Gzip)
	want := unpacked(t, im)
	dir := t.TempDir()
	idx, zinfo := filepath.Join(dir, "index"), filepath.Join(dir, "zinfo")
	interop.Run(t, append(mkfs, "--quiet", "--tar=i", "--gzinfo="+zinfo, idx, im.Blob(0))...)

	for name, blob := range map[string][]string{
		"file":   {"--blob", im.Blob(0)},
		"layout": {"--blob", im.Ref(), "--layer", "0"},
		"digest": {"--blob", im.Ref(), "--layer", im.Layers[0].Digest.String()},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, append([]string{"--index", idx, "--zinfo", zinfo}, blob...)...)
			equalMounted(t, interop.NbdFuse(t, server.uri), want)
			server.says(t, "verif")
		})
	}
}

// TestErofsfuseReadsIndex has the peer's own reader read our index, with the
// layer as its device.
func TestErofsfuseReadsIndex(t *testing.T) {
	interop.Root(t)
	erofsfuse := interop.Peer(t, "erofsfuse")
	im := oneLayer(t, testimage.Gzip)
	want := unpacked(t, im)
	dir := t.TempDir()
	idx, layer, mnt := filepath.Join(dir, "index"), filepath.Join(dir, "layer.tar"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := im.Tar(0, layer); err != nil {
		t.Fatal(err)
	}
	must(t, index(idx, layer))
	cmd := exec.Command(erofsfuse[0], append(erofsfuse[1:], "-f", "--device="+layer, idx, mnt)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if unix.Unmount(mnt, 0) != nil {
			unix.Unmount(mnt, unix.MNT_DETACH)
			cmd.Process.Kill()
		}
		cmd.Wait()
	})
	for range 500 {
		if _, err := os.Lstat(filepath.Join(mnt, "etc")); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	fstree.EqualTree(t, mnt, want, fstree.Options{})
}

// TestFsckAcceptsWhole has the peer's fsck.erofs check a whole image, and
// extract it.
func TestFsckAcceptsWhole(t *testing.T) {
	interop.Root(t)
	fsck := interop.Peer(t, "fsck.erofs")
	im := testimage.New(t, testimage.Small)
	want := unpacked(t, im)
	// fsck.erofs sets the owner last, at which the kernel drops capabilities.
	for _, e := range want {
		delete(e.Xattrs, "security.capability")
	}
	dir := t.TempDir()
	out, tree := filepath.Join(dir, "out"), filepath.Join(dir, "tree")
	must(t, []string{tool("oci-fetch"), im.Ref()}, whole(out))
	interop.Run(t, append(fsck, "--extract="+tree, "--preserve", "--xattrs", out)...)
	fstree.EqualTree(t, tree, want, fstree.Options{})
}
