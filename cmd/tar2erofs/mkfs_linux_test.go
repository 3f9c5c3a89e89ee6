package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// buildCommand compiles tar2erofs for tests that start it.
func buildCommand(t *testing.T, env ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "tar2erofs")
	cmd := exec.Command(interop.Tool(t, "go"), "build", "-o", name, ".")
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return name
}

// mkfsScript runs scripts/mkfs.erofs.
func mkfsScript(t *testing.T, program string, stdin io.Reader, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.Command(filepath.Join(interop.RepoRoot(t), "scripts", "mkfs.erofs"), args...)
	cmd.Env = append(os.Environ(), "TAR2EROFS="+program)
	var out, diag strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &diag
	err = cmd.Run()
	return out.String(), diag.String(), err
}

// stacked are two layers with what overlayfs can show of them: directories are
// listed where a layer touches them, and hard links stay within a layer.
var stacked = []testimage.Layer{
	{Compression: testimage.Plain, Write: func(b *testimage.Builder) {
		b.Dir("etc/", 0o755)
		b.File("etc/motd", 0o644, "gone\n")
		b.File("etc/kept", 0o644, "kept\n")
		b.Dir("etc/replaced/", 0o755)
		b.File("etc/replaced/file", 0o644, "a file below what becomes a file\n")
		b.Dir("opaque/", 0o755)
		b.File("opaque/lower", 0o644, "hidden\n")
		b.Dir("opaque/sub/", 0o755)
		b.File("opaque/sub/lower", 0o644, "hidden\n")
		b.Dir("again/", 0o755, testimage.Owner(1, 1))
		b.File("again/lower", 0o644, "gone with its directory\n")
		b.Dir("deleted/", 0o755)
		b.File("deleted/file", 0o644, "gone\n")
		b.Dir("tmp/", 0o1777)
		b.File("linked", 0o4755, "two names\n", testimage.Xattr("user.a", "b"))
		b.Link("link", "linked")
		b.Symlink("sym", "etc")
		b.Node("null", '3', 0o666, 1, 3)
		b.File("big", 0o644, strings.Repeat("0123456789", 100_000))
	}},
	{Compression: testimage.Plain, Write: func(b *testimage.Builder) {
		b.Dir("etc/", 0o750, testimage.Owner(5, 5))
		b.Whiteout("etc/", "motd")
		b.File("etc/replaced", 0o644, "was a directory\n")
		b.Whiteout("", "deleted")
		b.Dir("opaque/", 0o700)
		b.Whiteout("opaque/", "lower")
		b.Opaque("opaque/")
		b.File("opaque/upper", 0o644, "seen\n")
		b.Dir("opaque/sub/", 0o755)
		b.Whiteout("opaque/sub/", "lower")
		b.File("opaque/sub/upper", 0o644, "seen\n")
		b.Whiteout("", "again")
		b.Dir("again/", 0o711)
		b.Whiteout("again/", "lower")
		b.File("again/upper", 0o644, "a new directory of the old name\n")
		b.File("new", 0o644, "three names\n")
		b.Link("new2", "new")
		b.Link("etc/new3", "new")
		b.Symlink("null", "/dev/null")
	}},
}

// TestContainerd converts two layers, each by itself, with the command lines
// that containerd's erofs differ runs, stacks their mounts with overlayfs as
// its snapshotter does, and wants to see what umoci unpacks.
func TestContainerd(t *testing.T) {
	image := testimage.NewLayers(t, stacked...)
	want := interop.Umoci(t, image.Ref())
	program := buildCommand(t)
	const uuid = "00112233-4455-6677-8899-aabbccddeeff"
	for _, mode := range []string{"--tar=f --aufs --quiet -Enoinline_data -b4096 -U " + uuid, "--tar=i --aufs --quiet -b4096 -U " + uuid} {
		t.Run(mode[:7], func(t *testing.T) {
			var lower []string
			for n, l := range image.Layers {
				dir := t.TempDir()
				blob := filepath.Join(image.Dir, "blobs", "sha256", l.Digest.Encoded())
				out := filepath.Join(dir, "layer.erofs")
				f, err := os.Open(blob)
				if err != nil {
					t.Fatal(err)
				}
				// A pipe, as containerd gives it, not the file itself.
				_, stderr, err := mkfsScript(t, program, io.MultiReader(f), append(strings.Fields(mode), out)...)
				f.Close()
				if err != nil || stderr != "" {
					t.Fatalf("layer %d: %v: %s", n, err, stderr)
				}
				if mode[6] == 'i' {
					appendFile(t, out, blob)
				}
				head, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				if got := head[1024+0x30:][:4]; !bytes.Equal(got, []byte{0, 0x11, 0x22, 0x33}) {
					t.Errorf("UUID begins with %x", got)
				}
				at := filepath.Join(dir, "mnt")
				if err := os.Mkdir(at, 0o755); err != nil {
					t.Fatal(err)
				}
				interop.MountErofs(t, out, at)
				lower = append([]string{at}, lower...)
			}
			merged := t.TempDir()
			if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
				t.Fatalf("overlay: %v", err)
			}
			defer func() {
				if err := unix.Unmount(merged, 0); err != nil {
					t.Error(err)
				}
			}()
			fstree.Equal(t, merged, want, fstree.Options{})
		})
	}
}

// TestMkfsScript: what the script knows has an effect, and what it does not know
// it refuses, in one line, without an image.
func TestMkfsScript(t *testing.T) {
	interop.Tool(t, "bash")
	program := buildCommand(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	tarball := filepath.Join(dir, "a.tar")
	f, err := os.Create(tarball)
	if err != nil {
		t.Fatal(err)
	}
	b := testimage.NewBuilder(f)
	b.File("f", 0o644, strings.Repeat("f", 3000), testimage.Owner(7, 7))
	b.Whiteout("", "gone")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ theirs, ours string }{
		{"--tar=f", "--whiteouts=keep"},
		{"--tar=f --aufs -Enoinline_data -b 4096", "--whiteouts=overlay --no-inline -b 4096"},
		{"--tar=f -E noinline_data -b2048", "--whiteouts=keep --no-inline -b 2048"},
		{"--quiet --workers=3 --sort=none -d0 --tar=i -b4096 --aufs", "--whiteouts=overlay -i"},
		{"--tar=f -T5 --all-root -L name", "--whiteouts=keep -T 5 --all-root -L name"},
		{"--tar=f -T -5 --mkfs-time --force-uid 3 --gid-offset=2", "--whiteouts=keep --time=-5 --mkfs-time --force-uid 3 --gid-offset=2"},
		{"--tar=f -T 5 --ignore-mtime --preserve-mtime --xattr-prefix=user.x", "--whiteouts=keep -T 5 --ignore-mtime --xattr-prefix=user.x"},
		{"--tar=f -Uclear --ungzip", "--whiteouts=keep -U clear"},
	} {
		want := filepath.Join(dir, "want")
		tar2erofs(t, nil, append(strings.Fields(tt.ours), want, tarball)...)
		if stdout, stderr, err := mkfsScript(t, program, nil, append(strings.Fields(tt.theirs), out, tarball)...); err != nil || stderr+stdout != "" {
			t.Errorf("%s: %v: %s%s", tt.theirs, err, stdout, stderr)
			continue
		}
		if !bytes.Equal(readFile(t, out), readFile(t, want)) {
			t.Errorf("%s: not what tar2erofs %s makes", tt.theirs, tt.ours)
		}
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
	}
	for args, want := range map[string]string{
		"--tar=f":                         "which FILE?",
		"OUT":                             "--tar=f or --tar=i",
		"OUT dir":                         "--tar=f or --tar=i",
		"--tar=headerball OUT":            "--tar=headerball",
		"--tar=f -zlz4 OUT":               "compress",
		"--tar=f -Ededupe OUT":            "-Ededupe",
		"--tar=f -Enoinline_data,^x OUT":  "-E^x",
		"--tar=f --chunksize=4096 OUT":    "--chunksize=4096",
		"--tar=f -x-1 OUT":                "-x-1",
		"--tar=f -b four OUT":             "no number",
		"--tar=f OUT one.tar two.tar":     "more than one",
		"--tar=f -U":                      "-U needs a value",
		"--tar=f --nonsense OUT":          "--nonsense",
		"--tar=f --uid-offset=x OUT":      "no number",
		"--tar=f --oci=f OUT":             "--oci=f",
		"--tar=f --exclude-path=x OUT":    "--exclude-path=x",
		"--tar=f -U 1 OUT no/such/file":   "--uuid",
		"--tar=f -b4096 OUT no/such/file": "no such file",
	} {
		stdout, stderr, err := mkfsScript(t, program, strings.NewReader(""), strings.Fields(strings.ReplaceAll(args, "OUT", out))...)
		if err == nil || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: %v: %q %q, want %q", args, err, stdout, stderr, want)
		}
		if _, err := os.Lstat(out); err == nil {
			t.Errorf("%s: made an image", args)
		}
	}
	// Names with blanks, a tar on stdin; one that is cut leaves what was there.
	spaced := filepath.Join(dir, "a name", "of $many words")
	if err := os.Mkdir(filepath.Dir(spaced), 0o755); err != nil {
		t.Fatal(err)
	}
	whole := readFile(t, tarball)
	entries := whole[:512+3072+512] // without the end marker, as some layers are
	for _, mode := range []string{"--tar=f", "--tar=i"} {
		for n, in := range [][]byte{whole, entries} {
			if _, stderr, err := mkfsScript(t, program, bytes.NewBuffer(in), mode, "--aufs", "--quiet", spaced); err != nil || strings.Count(stderr, "\n") != n {
				t.Errorf("%s, stdin: %v: %s", mode, err, stderr)
			}
		}
		before := readFile(t, spaced)
		for _, cut := range []int{0, 100, 512, 2000, len(entries) - 1} {
			if _, stderr, err := mkfsScript(t, program, bytes.NewBuffer(whole[:cut]), mode, "--aufs", spaced); err == nil || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%s, cut at %d: %v: %s", mode, cut, err, stderr)
			}
			if !bytes.Equal(readFile(t, spaced), before) {
				t.Errorf("%s, cut at %d: OUT has changed", mode, cut)
			}
		}
	}
	if left, err := os.ReadDir(filepath.Dir(spaced)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, stderr, err := mkfsScript(t, filepath.Join(dir, "none"), nil, "--tar=f", out, tarball); err == nil || !strings.Contains(stderr, "TAR2EROFS") {
		t.Errorf("no program: %v: %s", err, stderr)
	}
	if stdout, _, err := mkfsScript(t, program, nil, "--version"); err != nil || !strings.HasPrefix(stdout, "mkfs.erofs, by tar2erofs") {
		t.Errorf("--version: %v: %s", err, stdout)
	}
	// containerd looks for this before it takes the program for able.
	if stdout, _, err := mkfsScript(t, program, nil, "--help"); err != nil || !strings.Contains(stdout, "--tar=") {
		t.Errorf("--help: %v: %s", err, stdout)
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
