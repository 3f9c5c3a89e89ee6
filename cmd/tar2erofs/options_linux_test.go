package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

// tar2erofs runs the command in this process.
func tar2erofs(t *testing.T, stdin io.Reader, args ...string) {
	t.Helper()
	var stderr strings.Builder
	env := &cli.Env{Name: "tar2erofs", Args: args, Stdin: stdin, Stdout: io.Discard, Stderr: &stderr}
	if code := cli.Run(t.Context(), env, run); code != 0 {
		t.Fatalf("tar2erofs %q: exit code %d: %s", args, code, stderr.String())
	}
}

// optionsTar has every type, several owners and times, and lists all its
// directories, the root too.
func optionsTar(t *testing.T) string {
	t.Helper()
	var buf bytes.Buffer
	b := testimage.NewBuilder(&buf)
	at := func(sec, nsec int64) testimage.Change { return testimage.Mtime(time.Unix(sec, nsec)) }
	b.Dir("./", 0o755, at(1_400_000_000, 0))
	b.Dir("dir/", 0o1777, at(1_700_000_000, 0), testimage.Owner(5, 6))
	b.File("dir/new", 0o4755, "new", at(1_600_000_000, 0), testimage.Owner(1000, 2000))
	b.File("dir/old", 0o644, strings.Repeat("old", 3000), at(1_500_000_000, 500_000_000))
	b.File("dir/edge", 0o644, "", at(1_550_000_000, 1))
	b.Link("dir/link", "dir/new")
	b.Symlink("sym", "dir/new", at(1_560_000_000, 7), testimage.Owner(70_000, 80_000))
	b.Node("null", '3', 0o666, 1, 3, testimage.Owner(1, 1))
	b.Node("fifo", '6', 0o600, 0, 0, at(1, 0))
	for _, name := range []string{"user.mime.type", "user.mime.charset", "user.mim", "trusted.overlay.origin", "user.mime.type.long"} {
		b.File("x-"+name, 0o644, name, testimage.Xattr(name, "value of "+name), testimage.Xattr("user.other", name))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "options.tar")
	if err := os.WriteFile(name, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestOptionsAsMkfs holds each option that mkfs.erofs has, too, to what it
// makes of the same archive.
func TestOptionsAsMkfs(t *testing.T) {
	interop.Root(t)
	mkfs := interop.Peer(t, "mkfs.erofs")
	// Two things that mkfs.erofs 1.9.4 gets wrong have no row here: a file whose
	// mtime is within the build's second loses its nanoseconds, and with
	// --mkfs-time --ignore-mtime inodes that must be extended keep their mtime.
	tests := []struct {
		ours, theirs, epoch string // arguments; SOURCE_DATE_EPOCH
	}{
		{"", "", ""},
		{"-T 1550000000", "-T1550000000", ""},
		{"--time=-77", "-T-77", ""},
		{"-T 1550000000 --all-time", "-T1550000000 --all-time", ""},
		{"-T 1550000001 --mkfs-time", "-T1550000001 --mkfs-time", ""},
		{"-T 1550000000 --ignore-mtime", "-T1550000000 --ignore-mtime", ""},
		{"", "", "1550000000"},
		{"-T 1", "-T1", "1550000000"},
		{"--mkfs-time", "--mkfs-time", "1550000000"},
		{"--ignore-mtime", "--ignore-mtime", "1550000000"},
		{"--all-root", "--all-root", ""},
		{"--force-uid 7", "--force-uid=7", ""},
		{"--force-uid 7 --force-gid 70000", "--force-uid=7 --force-gid=70000", ""},
		{"--uid-offset 100000 --gid-offset 3", "--uid-offset=100000 --gid-offset=3", ""},
		{"--all-root --uid-offset 100000", "--all-root --uid-offset=100000", ""},
		{"--force-gid 9 --gid-offset=-2", "--force-gid=9 --gid-offset=-2", ""},
		{"--xattr-prefix user.mime. --xattr-prefix trusted.overlay.", "--xattr-prefix=user.mime. --xattr-prefix=trusted.overlay.", ""},
		{"--xattr-prefix user.mime. --xattr-prefix user.mime.type", "--xattr-prefix=user.mime. --xattr-prefix=user.mime.type", ""},
		{"--no-inline", "-Enoinline_data", ""},
		{"-b 512", "-b512", ""},
		{"-b 2048", "-b2048", ""},
		{"-L name -U 00112233-4455-6677-8899-aabbccddeeff", "-Lname -U00112233-4455-6677-8899-aabbccddeeff", ""},
	}
	tarball := optionsTar(t)
	for _, tt := range tests {
		t.Run(strings.TrimSpace(tt.epoch+" "+tt.ours), func(t *testing.T) {
			t.Setenv("SOURCE_DATE_EPOCH", tt.epoch)
			if tt.epoch == "" {
				os.Unsetenv("SOURCE_DATE_EPOCH")
			}
			dir := t.TempDir()
			mount := func(name string) string {
				at := filepath.Join(dir, name+".mnt")
				if err := os.Mkdir(at, 0o755); err != nil {
					t.Fatal(err)
				}
				interop.MountErofs(t, filepath.Join(dir, name), at)
				return at
			}
			theirs := filepath.Join(dir, "theirs")
			interop.Run(t, append(append(mkfs, "--quiet", "--tar=f"), append(strings.Fields(tt.theirs), theirs, tarball)...)...)
			want := mount("theirs")
			for _, mode := range []string{"whole", "index"} {
				args := strings.Fields(tt.ours)
				if mode == "index" {
					if strings.Contains(tt.ours, "-b ") {
						continue
					}
					args = append(args, "-i")
				}
				image := filepath.Join(dir, mode)
				tar2erofs(t, nil, append(args, image, tarball)...)
				interop.Run(t, append(interop.Peer(t, "fsck.erofs"), image)...)
				if mode == "index" {
					appendFile(t, image, tarball)
				}
				got := mount(mode)
				fstree.Equal(t, got, want, fstree.Options{})
				for _, d := range []string{".", "dir"} { // which fstree leaves out
					if g, w := mtime(t, filepath.Join(got, d)), mtime(t, filepath.Join(want, d)); g != w {
						t.Errorf("%s, %s: mtime %v, want %v", mode, d, g, w)
					}
				}
			}
		})
	}
}

func mtime(t *testing.T, name string) time.Time {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	return time.Unix(st.Mtim.Unix()).UTC()
}

func appendFile(t *testing.T, to, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
}

// TestBlockSizes: fsck.erofs extracts from images of blocks up to a page what
// tar does. Larger ones neither it nor the kernel reads here: there it is our
// own reader, which finds nothing wrong and no difference.
func TestBlockSizes(t *testing.T) {
	interop.Root(t) // to set owners
	tarball := optionsTar(t)
	want := t.TempDir()
	interop.Run(t, interop.Tool(t, "tar"), "-C", want, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", tarball)
	dir := t.TempDir()
	page := openImage(t, filepath.Join(dir, "4096"), "-b", "4096", "", tarball)
	for _, block := range []string{"512", "1024", "2048", "4096", "8192", "16384", "32768", "65536"} {
		image := filepath.Join(dir, block)
		fsys := openImage(t, image, "-b", block, "", tarball)
		_, err := fsys.Check(t.Context(), erofs.CheckOptions{Data: true}, func(p erofs.Problem) { t.Errorf("block size %s: %v", block, p) })
		if err != nil {
			t.Fatal(err)
		}
		err = erofs.Diff(t.Context(), page, fsys, func(d erofs.Difference) error {
			t.Errorf("block size %s: %s %v %v", block, d.Path, d.Change, d.Details)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(block) > 4 || block == "8192" {
			continue
		}
		interop.Run(t, append(interop.Peer(t, "fsck.erofs"), "--extract="+image+".x", "--preserve", "--xattrs", image)...)
		fstree.Equal(t, image+".x", want, fstree.Options{})
	}
}

func openImage(t *testing.T, image string, args ...string) *erofs.FS {
	t.Helper()
	for k, a := range args {
		if a == "" {
			args[k] = image
		}
	}
	tar2erofs(t, nil, args...)
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}
