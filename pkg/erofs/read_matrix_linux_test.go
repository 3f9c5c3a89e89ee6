package erofs_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

// matrixTree makes a directory with one of everything, and returns its path.
func matrixTree(t testing.TB) string {
	t.Helper()
	interop.Root(t)
	root := filepath.Join(t.TempDir(), "tree")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(root, name) }
	write := func(name string, data []byte) {
		t.Helper()
		must(os.MkdirAll(filepath.Dir(at(name)), 0o755))
		must(os.WriteFile(at(name), data, 0o644))
	}
	must(os.MkdirAll(root, 0o755))

	for _, n := range []int{0, 1, 11, 500, 511, 512, 513, 1024, 4000, 4095, 4096, 4097, 8192, 12345, 65536, 131072 + 17} {
		write(fmt.Sprintf("sizes/text%d", n), text(n, uint64(n)))
		write(fmt.Sprintf("sizes/noise%d", n), noise(n, uint64(n)))
	}
	big := text(1<<20+123, 1)
	write("big/text", big)
	write("big/noise", noise(300005, 2))
	write("big/zeros", make([]byte, 200<<10))
	mixed := append(append(append([]byte(nil), big[:300000]...), noise(300000, 3)...), big[300000:700001]...)
	write("big/mixed", mixed)
	// What deduplication finds: the same content at other offsets.
	write("dup/shifted", append([]byte("twelve bytes"), big[:600000]...))
	write("dup/tail", big[len(big)-300000:])
	write("dup/same", big)
	write("dup/noise", append([]byte("x"), noise(300005, 2)...))
	for i := range 40 {
		write(fmt.Sprintf("small/f%02d", i), text(200+37*i, uint64(i%7)))
	}
	sparse, err := os.Create(at("big/sparse"))
	must(err)
	must(sparse.Truncate(1 << 20))
	_, err = sparse.WriteAt(text(10000, 9), 256<<10)
	must(err)
	_, err = sparse.WriteAt([]byte("the end"), 1<<20-7)
	must(err)
	must(sparse.Close())

	for i := range 700 {
		write(fmt.Sprintf("many/%c%s%d", 'A'+i%50, strings.Repeat("n", i%200), i), nil)
	}
	write("names/!before-dot", []byte("1"))
	write("names/-dash", []byte("2"))
	write("names/caf\xe9", []byte("not UTF-8"))
	write("names/new\nline", []byte("3"))
	write("names/"+strings.Repeat("l", 255), []byte("4"))
	must(os.Mkdir(at("empty"), 0o1777))
	must(os.Chmod(at("empty"), 0o777|fs.ModeSticky))
	must(os.Link(at("big/text"), at("names/hard")))
	must(os.Link(at("big/text"), at("hard2")))
	must(os.Symlink("../big/text", at("names/link")))
	must(os.Symlink("/names/link", at("absolute")))
	must(os.Symlink("../../../../names", at("big/up")))
	must(os.Symlink(strings.Repeat("long/", 800), at("names/longlink")))
	must(os.Symlink("dangling", at("dangling")))
	must(unix.Mkfifo(at("fifo"), 0o600))
	must(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(at("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	must(unix.Mknod(at("socket"), unix.S_IFSOCK|0o755, 0))
	must(os.Chmod(at("sizes/text1"), 0o755|fs.ModeSetuid|fs.ModeSetgid))
	gid := uint32(4_000_000_000) // as an int it may be negative, which is what the kernel takes
	must(os.Lchown(at("sizes/text11"), 70000, int(gid)))
	must(os.Lchown(at("names/link"), 12, 34))

	set := func(name, attr string, value []byte) {
		t.Helper()
		must(unix.Lsetxattr(at(name), attr, value, 0))
	}
	set("sizes/text500", "user.comment", []byte("hello"))
	set("sizes/text500", "user.empty", nil)
	set("sizes/text500", "trusted.overlay.opaque", []byte("y"))
	set("empty", "trusted.overlay.opaque", []byte("y"))
	set("sizes/noise512", "user.big", noise(3000, 4))
	set("big/text", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	for i := range 20 {
		set(fmt.Sprintf("small/f%02d", i), "user.shared.one", []byte("the same value many times"))
		set(fmt.Sprintf("small/f%02d", i), "user.shared.two", text(300, 5))
	}
	acl := []byte("\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff")
	set("sizes/text512", "system.posix_acl_access", acl)
	set("empty", "system.posix_acl_default", acl)

	// Times: most the same, some with nanoseconds, old, or far ahead.
	must(filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		ts := []unix.Timespec{unix.NsecToTimespec(1700000000e9), unix.NsecToTimespec(1700000000e9)}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	}))
	stamp := func(name string, sec, nsec int64) {
		time := unix.NsecToTimespec(sec*1e9 + nsec)
		ts := []unix.Timespec{time, time}
		must(unix.UtimesNanoAt(unix.AT_FDCWD, at(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	stamp("sizes/text11", 1700000001, 123456789)
	stamp("sizes/text4095", -5, 999999999)
	stamp("sizes/text4096", 5_000_000_000, 1)
	stamp("names/link", 1600000000, 0)
	stamp("empty", 1500000000, 77)
	return root
}

// matrix is the list of mkfs.erofs's options to cover: a name and arguments.
// BLOB stands for the path of an extra device.
var matrix = []struct {
	name string
	args string
	fuse bool // compare with erofsfuse too; it takes a while
}{
	{"plain", "", true},
	{"noinline", "-Enoinline_data", false},
	{"extended", "-Eforce-inode-extended", false},
	{"b512", "-b512", false},
	{"b1024", "-b1024", false},
	{"b2048-lz4", "-b2048 -zlz4", false},
	{"b512-zstd", "-b512 -zzstd -C8192", false},
	{"chunk4k", "--chunksize=4096", true},
	{"chunk64k", "--chunksize=65536", false},
	{"blobdev", "--chunksize=65536 --blobdev=BLOB", false},
	{"xattr-prefix", "--xattr-prefix=user.shared. --xattr-prefix=trusted.overlay.", false},
	{"plain-xattr-prefix", "-Eplain-xattr-prefixes --xattr-prefix=user.shared. -zlz4 -Efragments", false},
	{"no-shared-xattr", "-x0", false},
	{"lz4", "-zlz4", true},
	{"lz4-legacy", "-zlz4 -Elegacy-compress", false},
	{"lz4-64k", "-zlz4 -C65536", false},
	{"lz4hc-full", "-zlz4hc,12 -C16384 -Elegacy-compress,ztailpacking", false},
	{"lz4-ztail", "-zlz4 -Eztailpacking", true},
	{"lz4-fragments", "-zlz4 -C32768 -Efragments", false},
	{"lz4-allfragments", "-zlz4hc -C65536 -Eall-fragments", false},
	{"lz4-dedupe", "-zlz4 -C16384 -Ededupe", true},
	{"lz4-dedupe-fragments", "-zlz4 -C16384 -Ededupe,all-fragments,ztailpacking", false},
	{"lzma", "-zlzma", false},
	{"lzma-big", "-zlzma,level=1,dictsize=1048576 -C131072 -Eztailpacking,fragments", true},
	{"lzma-dedupe", "-zlzma -C16384 -Ededupe,fragments", false},
	{"deflate", "-zdeflate", true},
	{"deflate-big", "-zdeflate,level=9 -C65536 -Efragments,ztailpacking", false},
	{"deflate-dedupe", "-zdeflate -C16384 -Ededupe", false},
	{"libdeflate", "-zlibdeflate -C32768", false},
	{"zstd", "-zzstd", false},
	{"zstd-big", "-zzstd,level=1 -C1048576 -Eztailpacking", true},
	{"zstd-dedupe", "-zzstd -C32768 -Ededupe,fragments", false},
	{"hints", "-zlz4 --compress-hints=HINTS -C65536", false},
	{"dirs-compressed", "-zlz4 --zD", false},
	{"48bit", "-E48bit", false},
	{"48bit-lz4", "-E48bit -zlz4", false},
	{"48bit-zstd", "-E48bit -zzstd -C65536 -Efragments", true},
	{"48bit-lzma-dedupe", "-E48bit -zlzma,level=1 -C65536 -Ededupe,ztailpacking", false},
	{"48bit-deflate-allfragments", "-E48bit -zdeflate -C32768 -Eall-fragments", false},
	{"48bit-chunk", "-E48bit --chunksize=4096", false},
	{"dot-omitted", "-E48bit,dot-omitted", false},
	{"metabox", "-E48bit,dot-omitted -zzstd -C65536 -m4096:zstd", true},
	{"metabox-inodes", "-E48bit -zlz4 -m4096:lz4hc --MZ=i", false},
	{"metabox-fragments", "-E48bit -zlz4 -C65536 -Efragments -m65536:lzma --MZ=i --xattr-prefix=user.shared.", false},
}

// TestMatrix holds pkg/erofs against the kernel over what mkfs.erofs can write,
// and erofsfuse beside it. Where the kernel refuses an image, the tree that it
// was made of stands in.
func TestMatrix(t *testing.T) {
	if strconv.IntSize == 32 {
		t.Skip("skipped: a stat of 32 bits does not show all of the tree's times")
	}
	mkfs := interop.Peer(t, "mkfs.erofs")
	src := matrixTree(t)
	source := sync.OnceValue(func() fstree.Tree {
		tree, err := fstree.List(src, fstree.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return tree
	})
	for _, c := range matrix {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			image, blob := filepath.Join(dir, "image.erofs"), filepath.Join(dir, "blob")
			hints := filepath.Join(dir, "hints")
			if err := os.WriteFile(hints, []byte("16384 big/.*\n"), 0o666); err != nil {
				t.Fatal(err)
			}
			args := strings.Fields(strings.NewReplacer("BLOB", blob, "HINTS", hints).Replace(c.args))
			args = append(append(args, "--quiet", "-T1700000000", "--mkfs-time"), image, src)
			out, err := exec.Command(mkfs[0], args...).CombinedOutput()
			if err != nil {
				t.Fatalf("mkfs.erofs %s: %v\n%s", strings.Join(args, " "), err, out)
			}
			f, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var opts []erofs.Option
			var mountOpts, fuseOpts []string
			if strings.Contains(c.args, "BLOB") {
				b, err := os.Open(blob)
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				opts = append(opts, erofs.WithDevices(b))
				mountOpts = append(mountOpts, "device="+loopDevice(t, blob))
				fuseOpts = append(fuseOpts, "--device="+blob)
			}
			fsys, err := erofs.Open(f, opts...)
			if err != nil {
				t.Fatal(err)
			}
			tree := treeOf(t, fsys)

			mount := t.TempDir()
			if err := interop.TryMountErofs(t, image, mount, mountOpts...); err != nil {
				t.Logf("the kernel refuses the image, so the source stands in: %v", err)
				diffTrees(t, "pkg/erofs and the source", tree, source())
			} else {
				kernel, err := fstree.List(mount, fstree.Options{})
				if err != nil {
					t.Fatal(err)
				}
				diffTrees(t, "pkg/erofs and the kernel", tree, kernel)
				dirTimes(t, mount, fsys)
			}
			if c.fuse {
				if dir, ok := fuseMount(t, image, fuseOpts...); ok {
					o := fstree.Options{SkipXattrs: true}
					fuse, err := fstree.List(dir, o)
					if err != nil {
						t.Fatal(err)
					}
					for p, e := range fuse {
						e.Mtime -= ((e.Mtime % 1e9) + 1e9) % 1e9
						fuse[p] = e
					}
					plain := make(fstree.Tree)
					for p, e := range tree {
						e.Xattrs = nil
						e.Mtime -= ((e.Mtime % 1e9) + 1e9) % 1e9 // erofsfuse shows seconds
						plain[p] = e
					}
					diffTrees(t, "pkg/erofs and erofsfuse", plain, fuse)
				}
			}
			checkExtents(t, fsys)
			fsys.Check(t.Context(), erofs.CheckOptions{Data: true}, func(p erofs.Problem) { t.Errorf("check: %v", p) })
		})
	}
}

// checkExtents reads files at random places and compares with their beginning
// to end reading, and looks whether the list of extents covers them.
func checkExtents(t testing.TB, fsys *erofs.FS) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	for _, name := range []string{"big/text", "big/mixed", "dup/shifted", "big/sparse", "sizes/text4097"} {
		whole, err := fsys.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		f, err := fsys.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			off := rng.Int64N(int64(len(whole)))
			p := make([]byte, rng.IntN(100000)+1)
			n, err := f.(io.ReaderAt).ReadAt(p, off)
			want := whole[off:min(off+int64(len(p)), int64(len(whole)))]
			if !bytes.Equal(p[:n], want) || (err == io.EOF) != (n < len(p)) {
				t.Errorf("%s: ReadAt(%d bytes, %d) = %d, %v", name, len(p), off, n, err)
			}
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		end := int64(0)
		err = fsys.Extents(info.Sys().(*erofs.Stat).Nid, func(e erofs.FileExtent) error {
			if e.Offset != end && e.Kind != erofs.ExtentEncoded {
				t.Errorf("%s: extent %+v, want one at %d", name, e, end)
			}
			end = e.Offset + e.Length
			return nil
		})
		if err != nil || end != info.Size() {
			t.Errorf("%s: extents up to %d of %d: %v", name, end, info.Size(), err)
		}
	}
}
