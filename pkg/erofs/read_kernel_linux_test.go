package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// treeOf lists an image through pkg/erofs in the form of the kernel's list.
func treeOf(t testing.TB, fsys *erofs.FS) fstree.Tree {
	t.Helper()
	tree := make(fstree.Tree)
	first := make(map[uint64]string)
	sums := make(map[uint64]string)
	var walk func(nid uint64, path string)
	walk = func(nid uint64, path string) {
		st, err := fsys.StatNid(nid)
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		e := fstree.Entry{Mode: st.Mode & 0o7777, UID: st.UID, GID: st.GID}
		if !st.IsDir() {
			e.Nlink, e.Mtime = uint64(st.Nlink), st.Mtime.UnixNano()
			if st.Nlink > 1 {
				if _, ok := first[nid]; !ok {
					first[nid] = path
				}
				e.Link = first[nid]
			}
		}
		switch st.Mode & ondisk.ModeTypeMask {
		case ondisk.ModeRegular:
			e.Type, e.Size = "file", st.Size
			if e.Sum = sums[nid]; e.Sum == "" {
				f, err := fsys.OpenNid(nid)
				if err != nil {
					t.Fatalf("%q: %v", path, err)
				}
				h := sha256.New()
				if n, err := io.Copy(h, f); err != nil || n != st.Size {
					t.Errorf("%q: read %d of %d bytes: %v", path, n, st.Size, err)
				}
				e.Sum = fmt.Sprintf("%x", h.Sum(nil))
				sums[nid] = e.Sum
			}
		case ondisk.ModeDir:
			e.Type = "dir"
		case ondisk.ModeSymlink:
			e.Type, e.Size = "symlink", st.Size
			if e.Target, err = fsys.ReadLinkNid(nid); err != nil {
				t.Errorf("%q: %v", path, err)
			}
		case ondisk.ModeFIFO:
			e.Type = "fifo"
		case ondisk.ModeSocket:
			e.Type = "socket"
		case ondisk.ModeChar:
			e.Type = "char"
		case ondisk.ModeBlock:
			e.Type = "block"
		}
		if e.Type == "char" || e.Type == "block" {
			major, minor := st.Device()
			e.Rdev = fmt.Sprintf("%d:%d", major, minor)
		}
		xattrs, err := fsys.Xattrs(nid)
		if err != nil {
			t.Errorf("%q: %v", path, err)
		}
		for _, x := range xattrs {
			if e.Xattrs == nil {
				e.Xattrs = make(map[string]string)
			}
			e.Xattrs[x.Name] = string(x.Value)
		}
		tree[path] = e
		if !st.IsDir() {
			return
		}
		list, err := fsys.Dirents(nid)
		if err != nil {
			t.Errorf("%q: %v", path, err)
		}
		for _, d := range list {
			walk(d.Nid, filepath.Join(path, d.Name))
		}
	}
	walk(fsys.RootNid(), ".")
	return tree
}

// dirTimes are what fstree leaves out: directories' times and link counts.
func dirTimes(t testing.TB, mount string, fsys *erofs.FS) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(mount), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		var k unix.Stat_t
		if err := unix.Lstat(filepath.Join(mount, p), &k); err != nil {
			return err
		}
		info, err := fsys.Lstat(p)
		if err != nil {
			return err
		}
		st := info.Sys().(*erofs.Stat)
		if k.Mtim.Nano() != st.Mtime.UnixNano() || uint64(k.Nlink) != uint64(st.Nlink) || k.Size != st.Size {
			t.Errorf("%s: directory mtime %v nlink %d size %d, the kernel says %v, %d, %d", p, st.Mtime.UTC(), st.Nlink, st.Size,
				time.Unix(k.Mtim.Unix()).UTC(), k.Nlink, k.Size)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// diffTrees reports at most 20 differences.
func diffTrees(t testing.TB, what string, got, want fstree.Tree) {
	t.Helper()
	lines := fstree.Diff(got, want)
	if len(lines) > 20 {
		lines = append(lines[:20], fmt.Sprintf("... and %d more", len(lines)-20))
	}
	if len(lines) > 0 {
		t.Errorf("%s:\n%s", what, strings.Join(lines, "\n"))
	}
}

// fuseMount shows an image through erofsfuse. ok is false if it cannot.
func fuseMount(t testing.TB, image string, args ...string) (dir string, ok bool) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return "", false
	}
	dir = t.TempDir()
	cmd := exec.Command(interop.Peer(t, "erofsfuse")[0], append(args, "-f", image, dir)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
		}
	})
	var before unix.Stat_t
	unix.Stat(filepath.Dir(dir), &before)
	for range 500 {
		var st unix.Stat_t
		if unix.Stat(dir, &st) == nil && st.Dev != before.Dev {
			return dir, true
		}
		select {
		case <-ended:
			t.Logf("erofsfuse: %s", log.String())
			return "", false
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Logf("erofsfuse is not ready: %s", log.String())
	return "", false
}

// loopDevice attaches a file to a loop device until the test ends.
func loopDevice(t testing.TB, file string) string {
	t.Helper()
	losetup := interop.Tool(t, "losetup")
	dev := strings.TrimSpace(string(interop.Run(t, losetup, "--show", "-rf", file)))
	t.Cleanup(func() { exec.Command(losetup, "-d", dev).Run() })
	return dev
}

// TestEncodedExtentsKernel: the kernel reads the image by hand the same way.
func TestEncodedExtentsKernel(t *testing.T) {
	image, blob, content := encodedImage(t, 16)
	dir := t.TempDir()
	file, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(file, append(image, blob...), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := interop.TryMountErofs(t, file, mount); err != nil {
		if interop.KernelSince(t, 6, 15) {
			t.Fatal(err)
		}
		t.Skipf("skipped: 48-bit images came with Linux 6.15: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(mount, "f"))
	if err != nil || !bytes.Equal(b, content) {
		t.Errorf("the kernel reads %d bytes of %d: %v", len(b), len(content), err)
	}
}
