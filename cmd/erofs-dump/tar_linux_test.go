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

// TestTarExtracted: what GNU tar and bsdtar extract from --tar is what the
// kernel shows of the image, access control lists among it.
func TestTarExtracted(t *testing.T) {
	tools := map[string][]string{
		"tar":    {interop.Tool(t, "tar"), "--acls", "--xattrs", "--xattrs-include=*", "-xpf", "-", "-C"},
		"bsdtar": {interop.Tool(t, "bsdtar"), "-xpf", "-", "-C"},
	}
	sample := makeImage(t, sampleTar(t), build.Options{})
	for _, image := range []string{sample, golden("metabox"), golden("lz4")} {
		out, stderr, code := command("--tar", image)
		if code != 0 {
			t.Fatalf("%d, %s", code, stderr)
		}
		mount := t.TempDir()
		interop.MountErofs(t, image, mount)
		want, err := fstree.List(mount, fstree.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for name, tool := range tools {
			dir := filepath.Join(t.TempDir(), "x")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(tool[0], append(tool[1:], dir)...)
			cmd.Stdin, cmd.Env = strings.NewReader(out), append(os.Environ(), "LC_ALL=C.UTF-8")
			if b, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, b)
			}
			got, err := fstree.List(dir, fstree.Options{})
			if err != nil {
				t.Fatal(err)
			}
			// GNU tar cannot take this xattr's name from an archive.
			for _, tree := range []fstree.Tree{got, want} {
				for _, e := range tree {
					delete(e.Xattrs, "user.a=b")
				}
			}
			if lines := fstree.Diff(got, want); len(lines) > 0 {
				t.Errorf("%s, %s:\n%s", image, name, strings.Join(lines, "\n"))
			}
		}
	}
}
