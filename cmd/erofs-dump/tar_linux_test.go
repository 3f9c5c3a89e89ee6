package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/build"
)

// TestTarExtracted: what GNU tar extracts from --tar is what the kernel shows
// of the image.
func TestTarExtracted(t *testing.T) {
	tar := interop.Tool(t, "tar")
	// "user.a=b" is an xattr's name that GNU tar cannot take from an archive.
	sample := makeImage(t, sampleTar(t), build.Options{})
	for _, image := range []string{sample, golden("metabox"), golden("lz4")} {
		out, stderr, code := command("--tar", image)
		if code != 0 {
			t.Fatalf("%d, %s", code, stderr)
		}
		dir, mount := filepath.Join(t.TempDir(), "x"), t.TempDir()
		interop.MountErofs(t, image, mount)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(tar, "--xattrs", "--xattrs-include=*", "-xpf", "-", "-C", dir)
		cmd.Stdin = strings.NewReader(out)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, b)
		}
		got, err := fstree.List(dir, fstree.Options{})
		if err != nil {
			t.Fatal(err)
		}
		want, err := fstree.List(mount, fstree.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range want {
			delete(e.Xattrs, "user.a=b")
		}
		if lines := fstree.Diff(got, want); len(lines) > 0 {
			t.Errorf("%s:\n%s", image, strings.Join(lines, "\n"))
		}
	}
}
