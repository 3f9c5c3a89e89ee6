//go:build linux

package fstree

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/interop"
)

// plant makes a small tree; two of them list alike.
func plant(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(root, "d"), 0o755))
	must(os.WriteFile(filepath.Join(root, "d", "file"), []byte("contents"), 0o644))
	must(os.Link(filepath.Join(root, "d", "file"), filepath.Join(root, "hard")))
	must(os.Symlink("d/file", filepath.Join(root, "sym")))
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	must(os.Chmod(filepath.Join(root, "d", "file"), 0o755|os.ModeSetuid))
	at := unix.NsecToTimespec(time.Date(2020, 1, 2, 3, 4, 5, 678, time.UTC).UnixNano())
	for _, name := range []string{"d/file", "sym", "fifo"} {
		must(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, name), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return root
}

func list(t *testing.T, root string) Tree {
	t.Helper()
	tree, err := List(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestListEqual(t *testing.T) {
	a, b := list(t, plant(t)), list(t, plant(t))
	if d := Diff(a, b); len(d) != 0 {
		t.Fatalf("two equal trees differ:\n%s", strings.Join(d, "\n"))
	}
	f := a["d/file"]
	if f.Type != "file" || f.Mode != 0o4755 || f.Size != 8 || f.Nlink != 2 || f.Link != "d/file" ||
		f.Mtime != time.Date(2020, 1, 2, 3, 4, 5, 678, time.UTC).UnixNano() ||
		f.Sum != "d1b2a59fbea7e20077af9f91b27e95e865061b270be03ff539ab3b73587882e8" {
		t.Errorf("d/file: %+v", f)
	}
	if a["hard"].Link != "d/file" || a["sym"].Target != "d/file" || a["fifo"].Type != "fifo" || a["."].Type != "dir" || len(a) != 6 {
		t.Errorf("tree: %+v", a)
	}
}

// TestDiffSees changes one thing at a time and wants exactly that reported.
func TestDiffSees(t *testing.T) {
	tests := []struct {
		name   string
		change func(root string) error
		want   string
	}{
		{"mode", func(r string) error { return os.Chmod(r+"/d", 0o700) }, `"d": mode 0700, want 0755`},
		{"contents", func(r string) error {
			st, err := os.Stat(r + "/d/file")
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(r+"/d/file", []byte("Contents"), 0o644), os.Chmod(r+"/d/file", st.Mode()),
				os.Chtimes(r+"/d/file", time.Time{}, st.ModTime()))
		}, `"d/file": sha256 `},
		{"mtime", func(r string) error { return os.Chtimes(r+"/fifo", time.Time{}, time.Unix(1, 5)) },
			`"fifo": mtime 1970-01-01T00:00:01.000000005Z, want 2020-01-02T03:04:05.000000678Z`},
		{"target", func(r string) error {
			return errors.Join(os.Remove(r+"/sym"), os.Symlink("d/fil3", r+"/sym"))
		}, `"sym": target "d/fil3", want "d/file"`},
		{"nlink", func(r string) error { return os.Remove(r + "/hard") }, `"d/file": nlink 1, want 2`},
		{"missing", func(r string) error { return os.Remove(r + "/fifo") }, `"fifo": missing; want a fifo`},
		{"extra", func(r string) error { return os.Mkdir(r+"/e", 0o755) }, `"e": unexpected dir`},
		{"type", func(r string) error { return errors.Join(os.Remove(r+"/fifo"), os.Mkdir(r+"/fifo", 0o755)) }, `"fifo": is a dir, want a fifo`},
		{"xattr", func(r string) error { return unix.Setxattr(r+"/d", "user.x", []byte("v"), 0) }, `"d": xattr user.x "v", want none`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want, changed := list(t, plant(t)), plant(t)
			if err := tt.change(changed); errors.Is(err, unix.ENOTSUP) {
				interop.Missing(t, "the temporary directory's file system: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(Diff(list(t, changed), want), "\n")
			if !strings.Contains(got, tt.want) {
				t.Errorf("diff:\n%s\nwant %q", got, tt.want)
			}
		})
	}
}

func TestDevices(t *testing.T) {
	interop.Root(t)
	a, b := t.TempDir(), t.TempDir()
	for dir, minor := range map[string]uint32{a: 3, b: 5} {
		if err := unix.Mknod(dir+"/dev", unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			interop.Missing(t, "making device nodes: %v", err)
		}
		if err := errors.Join(os.Chown(dir+"/dev", 7, int(minor)), os.Chtimes(dir+"/dev", time.Time{}, time.Unix(9, 0))); err != nil {
			t.Fatal(err)
		}
	}
	got := strings.Join(Diff(list(t, a), list(t, b)), "\n")
	if want := "\"dev\": gid 3, want 5\n\"dev\": rdev 1:3, want 1:5"; got != want {
		t.Errorf("diff %q, want %q", got, want)
	}
}
