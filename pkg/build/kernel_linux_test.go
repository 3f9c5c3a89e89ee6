package build_test

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

// modes are the ways to build that the kernel is asked about.
var modes = []build.Options{
	{}, {NoInline: true}, {BlockSize: 512}, {BlockSize: 1024}, {Index: true},
}

// mountTar builds an image of one tar in each mode, mounts it, and lets
// check look at it.
func mountTar(t *testing.T, tarball []byte, check func(t *testing.T, dir string)) {
	t.Helper()
	interop.Root(t)
	for _, o := range modes {
		t.Run(fmt.Sprintf("index=%t,block=%d,noinline=%t", o.Index, o.BlockSize, o.NoInline), func(t *testing.T) {
			out, _ := buildTars(t, o, tarball)
			fsck := append(interop.Peer(t, "fsck.erofs"), out.Name())
			if o.Index {
				// As erofs-nbd shows it: the layer behind the index.
				if _, err := out.Seek(0, 2); err != nil {
					t.Fatal(err)
				}
				if _, err := out.Write(tarball); err != nil {
					t.Fatal(err)
				}
			} else {
				interop.Run(t, fsck...)
			}
			dir := t.TempDir()
			interop.MountErofs(t, out.Name(), dir)
			check(t, dir)
		})
	}
}

// unpack has GNU tar, as root, unpack what the kernel's mount is compared to.
func unpack(t *testing.T, tarball []byte) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(interop.Tool(t, "tar"), "-C", dir, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-xpf", "-")
	cmd.Stdin = bytes.NewReader(tarball)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return dir
}

// TestKernelSizes has a file of every size around the edges that matter:
// inline tails that just fit or do not, with and without xattrs, compact and
// extended.
func TestKernelSizes(t *testing.T) {
	tarball := builderTar(t, func(b *testimage.Builder) {
		rng := rand.New(rand.NewPCG(1, 2))
		var sizes []int
		for _, block := range []int{512, 1024, 4096} {
			for _, d := range []int{-97, -65, -64, -63, -33, -32, -31, -1, 0, 1, 31, 32} {
				sizes = append(sizes, block+d, 3*block+d, block-76+d)
			}
		}
		for i, n := range append(sizes, 0, 1, 100_000, 1<<20, 1<<20+1) {
			data := make([]byte, n)
			for k := range data {
				data[k] = byte(rng.Uint32())
			}
			b.File(fmt.Sprintf("%05d-%d", n, i), 0o644, string(data))
			b.File(fmt.Sprintf("%05d-%d-x", n, i), 0o644, string(data), testimage.Xattr("user.n", fmt.Sprint(i)))
			b.File(fmt.Sprintf("%05d-%d-e", n, i), 0o644, string(data), testimage.Mtime(time.Unix(int64(i), 5)))
		}
		for _, n := range []int{1, 59, 415, 416, 417, 447, 448, 449, 479, 480, 481, 1000, 4030, 4031, 4032, 4033, 4064, 4065, 4095} {
			b.Symlink(fmt.Sprintf("s%d", n), strings.Repeat("x", n))
			b.Symlink(fmt.Sprintf("t%d", n), strings.Repeat("x", n), testimage.Mtime(time.Unix(7, 7)))
		}
	})
	want := unpack(t, tarball)
	mountTar(t, tarball, func(t *testing.T, dir string) { fstree.Equal(t, dir, want, fstree.Options{}) })
}

// TestKernelDirectories has directories of every number of entries around a
// block's edge, names of every length, and names that sort before the dots.
func TestKernelDirectories(t *testing.T) {
	tarball := builderTar(t, func(b *testimage.Builder) {
		for n := range 60 {
			for k := range n * 3 {
				b.File(fmt.Sprintf("d%d/%s%d", n, strings.Repeat("n", k%50), k), 0o644, "")
			}
			b.Dir(fmt.Sprintf("empty%d/", n), 0o755)
		}
		for _, name := range []string{"!a", "-x", "+", "-", ". ", "..a", ".a", "...", "a", "~", string([]byte{1}), string([]byte{0xff, 0xfe})} {
			b.File("odd/"+name, 0o644, name)
		}
		for n := 1; n <= 255; n++ {
			b.File("long/"+strings.Repeat("l", n), 0o644, "")
		}
		for n := range 5000 {
			b.Dir(fmt.Sprintf("many/%d/", n), 0o755)
		}
	})
	want := unpack(t, tarball)
	mountTar(t, tarball, func(t *testing.T, dir string) {
		fstree.Equal(t, dir, want, fstree.Options{})
		// Looking a name up bisects; listing does not.
		for n := 1; n <= 255; n++ {
			if _, err := os.Lstat(filepath.Join(dir, "long", strings.Repeat("l", n))); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestKernelManyLinks: more names of one file, and more directories in one, than
// the 16 bits of a compact inode count.
func TestKernelManyLinks(t *testing.T) {
	interop.Root(t)
	const many = 66_000
	tarball := builderTar(t, func(b *testimage.Builder) {
		b.File("file", 0o644, "f")
		for n := range many - 1 {
			b.Link(fmt.Sprintf("links/%d", n), "file")
		}
		for n := range many {
			b.Dir(fmt.Sprintf("dirs/%d/", n), 0o755)
		}
	})
	out, _ := buildTars(t, build.Options{}, tarball)
	dir := t.TempDir()
	interop.MountErofs(t, out.Name(), dir)
	for name, want := range map[string]uint64{"file": many, "links/0": many, "dirs": many + 2} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil || uint64(st.Nlink) != want {
			t.Errorf("%s: %d links, want %d (%v)", name, st.Nlink, want, err)
		}
	}
	for name, want := range map[string]int{"links": many - 1, "dirs": many} {
		if list, err := os.ReadDir(filepath.Join(dir, name)); err != nil || len(list) != want {
			t.Errorf("%s: %d entries, want %d (%v)", name, len(list), want, err)
		}
	}
	f, err := os.Open(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.Check(t.Context(), erofs.CheckOptions{}, func(p erofs.Problem) { t.Error(p) }); err != nil {
		t.Error(err)
	}
}

// TestKernelXattrs has attributes alone and in common, in every namespace,
// of every length around a block's edge.
func TestKernelXattrs(t *testing.T) {
	tarball := builderTar(t, func(b *testimage.Builder) {
		for n := range 40 {
			b.File(fmt.Sprintf("common%d", n), 0o644, "data", testimage.Xattr("user.common", "the same value everywhere"),
				testimage.Xattr("trusted.own", strings.Repeat("v", n*97)), testimage.Xattr("user.two", fmt.Sprint(n/2)))
		}
		for n := range 30 {
			name := fmt.Sprintf("many%d/", n)
			var changes []testimage.Change
			for k := range n {
				changes = append(changes, testimage.Xattr(fmt.Sprintf("user.%d", k), "v"))
			}
			b.Dir(name, 0o755, changes...)
			b.Symlink(fmt.Sprintf("link%d", n), "target", testimage.Xattr("trusted.l", fmt.Sprint(n%3)))
		}
		b.File("empty", 0o644, "", testimage.Xattr("user.x", "y"))
		for _, n := range []int{400, 3900, 4000, 4020, 4040, 4096, 20000, 65535} {
			b.File(fmt.Sprintf("big%d", n), 0o644, strings.Repeat("d", n%5000), func(h *tar.Header) {
				h.PAXRecords = map[string]string{"LIBARCHIVE.xattr.user.big": base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'b'}, n))}
			})
		}
	})
	// tmpfs and ext4 take no 64 KiB values: those are checked by hand.
	want := map[string]int{"big65535": 65535, "big20000": 20000, "big4096": 4096}
	mountTar(t, tarball, func(t *testing.T, dir string) {
		tree, err := fstree.List(dir, fstree.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for name, n := range want {
			if got := tree[name].Xattrs["user.big"]; got != strings.Repeat("b", n) {
				t.Errorf("%s: value of %d bytes, want %d", name, len(got), n)
			}
		}
		for n := range 40 {
			x := tree[fmt.Sprintf("common%d", n)].Xattrs
			if x["user.common"] != "the same value everywhere" || x["trusted.own"] != strings.Repeat("v", n*97) || x["user.two"] != fmt.Sprint(n/2) || len(x) != 3 {
				t.Errorf("common%d: %d attributes: %.200q", n, len(x), x)
			}
		}
		for n := range 30 {
			x := tree[fmt.Sprintf("many%d", n)].Xattrs
			if len(x) != n {
				t.Errorf("many%d: %d attributes", n, len(x))
			}
			for k := range n {
				if x[fmt.Sprintf("user.%d", k)] != "v" {
					t.Errorf("many%d: no user.%d", n, k)
				}
			}
			if got := tree[fmt.Sprintf("link%d", n)].Xattrs["trusted.l"]; got != fmt.Sprint(n%3) {
				t.Errorf("link%d: trusted.l=%q", n, got)
			}
		}
	})
}

// TestKernelSparse has GNU tar make sparse files in each of its formats.
func TestKernelSparse(t *testing.T) {
	src := t.TempDir()
	write := func(name string, size int64, runs ...int64) {
		f, err := os.Create(filepath.Join(src, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for _, off := range runs {
			if _, err := f.WriteAt([]byte(fmt.Sprintf("data at %d", off)), off); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("all", 1<<20)
	write("begin", 1<<20, 0)
	write("end", 1<<20, 1<<20-100)
	write("odd", 1<<20+77, 4096, 12345, 500_000)
	write("many", 8<<20, 0, 1<<16, 1<<18, 1<<19, 3<<20, 5<<20, 7<<20)
	write("huge", 1<<40, 292*1000, 292*65534)
	// Behind attributes of every length modulo 8 chunk tables begin anywhere.
	var behind []string
	for n := range 8 {
		name := fmt.Sprint("xattr", n)
		write(name, 100_000, 4096, 70_000)
		if err := unix.Setxattr(filepath.Join(src, name), "user.x", bytes.Repeat([]byte{'x'}, n+1), 0); err != nil {
			interop.Missing(t, "user.x: %v", err)
		}
		behind = append(behind, name)
	}
	// Reading a terabyte of zeros proves nothing more.
	skip := fstree.Options{Skip: func(p string) bool { return p == "huge" }}
	wanted, err := fstree.List(src, skip)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"--format=gnu", "--format=posix --sparse-version=0.0", "--format=posix --sparse-version=0.1", "--format=posix --sparse-version=1.0"} {
		t.Run(format, func(t *testing.T) {
			args := append([]string{interop.Tool(t, "tar"), "-C", src, "-S", "-cf", "-"}, strings.Fields(format)...)
			if strings.Contains(format, "posix") {
				args = append(args, "--xattrs")
			}
			args = append(args, behind...)
			tarball := interop.Run(t, append(args, "all", "begin", "end", "odd", "many", "huge")...)
			mountTar(t, tarball, func(t *testing.T, dir string) {
				got, err := fstree.List(dir, skip)
				if err != nil {
					t.Fatal(err)
				}
				for p := range wanted {
					if p != "." && (got[p].Sum != wanted[p].Sum || got[p].Size != wanted[p].Size) {
						t.Errorf("%s: %d bytes, sum %s; want %d, %s", p, got[p].Size, got[p].Sum, wanted[p].Size, wanted[p].Sum)
					}
				}
				f, err := os.Open(filepath.Join(dir, "huge"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				for _, off := range []int64{292 * 1000, 292 * 65534} {
					text := fmt.Sprintf("data at %d", off)
					b := make([]byte, len(text)+2)
					if _, err := f.ReadAt(b, off-1); err != nil {
						t.Fatal(err)
					}
					if string(b) != "\x00"+text+"\x00" {
						t.Errorf("huge, at %d: %q", off, b)
					}
				}
				if st, err := f.Stat(); err != nil || st.Size() != 1<<40 {
					t.Errorf("huge: %v, %v", st, err)
				}
			})
		})
	}
}

// TestKernelDots lists "." and ".." as the C library does, which takes entries
// with inode number 0 for deleted ones.
func TestKernelDots(t *testing.T) {
	tarball := builderTar(t, func(b *testimage.Builder) { b.File("d/f", 0o644, "f") })
	mountTar(t, tarball, func(t *testing.T, dir string) {
		for _, name := range []string{dir, filepath.Join(dir, "d")} {
			seen := map[string]uint64{}
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 4096)
			n, err := unix.Getdents(int(f.Fd()), buf)
			if err != nil {
				t.Fatal(err)
			}
			// struct linux_dirent64: u64 ino, u64 off, u16 length, u8 type, name.
			for p := buf[:n]; len(p) > 0; p = p[binary.NativeEndian.Uint16(p[16:]):] {
				seen[unix.ByteSliceToString(p[19:])] = binary.NativeEndian.Uint64(p)
			}
			if seen["."] == 0 || seen[".."] == 0 || len(seen) != 3 {
				t.Errorf("%s: inode numbers %v", name, seen)
			}
		}
	})
}
