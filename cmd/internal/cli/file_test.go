package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// TestCreateThroughLinks: an output whose name is a symbolic link is the file
// that the link points to, there or not.
func TestCreateThroughLinks(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"links", "other", "other/below"} {
		if err := os.Mkdir(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"links/new":      "../other/file",
		"links/again":    "new",
		"links/absolute": at("other/absolute"),
		"links/below":    "../other/below",
		"links/up":       "below/../file", // in other, not in links
		"links/loop":     "pool",
		"links/pool":     "loop",
		"links/nowhere":  "no/such/file",
	} {
		if err := os.Symlink(target, at(name)); err != nil {
			t.Skipf("skipped: no symbolic links: %v", err)
		}
	}
	for _, c := range []struct{ name, made string }{
		{"links/new", "other/file"},
		{"links/new", "other/file"}, // which is there now
		{"links/again", "other/file"},
		{"links/up", "other/file"},
		{"links/absolute", "other/absolute"},
	} {
		o, err := Create(at(c.name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.WriteString(c.name); err != nil {
			t.Fatal(err)
		}
		if err := o.Commit(); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(at(c.made)); err != nil || string(b) != c.name {
			t.Errorf("%s: %s is %q: %v", c.name, c.made, b, err)
		}
		if _, err := os.Readlink(at(c.name)); err != nil {
			t.Errorf("%s: the link has gone: %v", c.name, err)
		}
	}
	// A pipe's name in /proc is a link to no name at all.
	if r, w, err := os.Pipe(); err == nil && runtime.GOOS == "linux" {
		o, err := Create(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.WriteString("x"); err != nil {
			t.Error(err)
		}
		if err := errors.Join(o.Commit(), w.Close()); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != "x" {
			t.Errorf("a pipe has got %q: %v", b, err)
		}
	}
	// So is that of a file which was removed, though it reads like a name.
	if f, err := os.Create(at("other/removed")); err == nil && runtime.GOOS == "linux" {
		os.Remove(f.Name())
		if o, err := Create(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); !errors.Is(err, os.ErrNotExist) {
			o.Commit()
			t.Errorf("a file that was removed: %v", err)
		}
		f.Close()
	}
	if _, err := Create(at("links/loop")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	if _, err := Create(at("links/nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a link into no directory: %v", err)
	}
	for d, want := range map[string]int{"links": 8, "other": 3} {
		if list, err := os.ReadDir(at(d)); err != nil || len(list) != want {
			t.Errorf("%s: %v, %v", d, list, err)
		}
	}
}
