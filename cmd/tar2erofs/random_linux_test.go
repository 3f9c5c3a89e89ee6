package main

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

var (
	randomSeed  = flag.Uint64("random.seed", 1, "of the first tree that TestRandomTrees makes")
	randomTrees = flag.Int("random.trees", 6, "how many trees TestRandomTrees makes")
)

// A randomTree makes a tree on disk.
type randomTree struct {
	*rand.Rand
	t     *testing.T
	root  string
	dirs  []string
	files []string
}

func (r *randomTree) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *randomTree) oneIn(n int) bool { return r.IntN(n) == 0 }

// name is one that is not there yet: short or long, of any bytes but "/" and
// NUL now and then, of letters else.
func (r *randomTree) name() string {
	for {
		b := make([]byte, 1+r.IntN(1+r.IntN(1+r.IntN(100))))
		if r.oneIn(30) {
			b = make([]byte, 255)
		}
		any := r.oneIn(5)
		for k := range b {
			if b[k] = byte('a' + r.IntN(26)); any {
				b[k] = byte(1 + r.IntN(255))
			}
			if b[k] == '/' || b[k] == '\\' && k+1 == len(b) {
				b[k] = '!'
			}
		}
		p := filepath.Join(r.dirs[r.IntN(len(r.dirs))], string(b))
		if s := string(b); s == "." || s == ".." || len(p) > 900 {
			continue
		}
		if _, err := os.Lstat(p); err != nil {
			return p
		}
	}
}

// size is often near a block's edge.
func (r *randomTree) size() int64 {
	switch r.IntN(6) {
	case 0:
		return 0
	case 1:
		return int64(r.IntN(100))
	case 2:
		return r.Int64N(300_000)
	}
	return max(0, int64(512<<r.IntN(8)*(1+r.IntN(3))+r.IntN(200)-100))
}

func (r *randomTree) file(p string) {
	size := r.size()
	f, err := os.Create(p)
	r.must(err)
	defer f.Close()
	if r.oneIn(6) { // with holes
		size += r.Int64N(1 << 24)
		for range r.IntN(8) {
			_, err := f.WriteAt(bytes.Repeat([]byte{'s'}, 1+r.IntN(20_000)), r.Int64N(size+1))
			r.must(err)
		}
		if st, err := f.Stat(); err == nil && st.Size() < size {
			r.must(f.Truncate(size))
		}
	} else {
		data := make([]byte, size)
		for k := range data {
			data[k] = byte(r.Uint32())
		}
		_, err := f.Write(data)
		r.must(err)
	}
	r.files = append(r.files, p)
}

func (r *randomTree) add() {
	p := r.name()
	node := func(mode uint32, major, minor uint32) {
		r.must(unix.Mknod(p, mode|0o600, int(unix.Mkdev(major, minor))))
	}
	mode := r.Uint32N(0o10000) | 0o400
	symlink := false
	switch k := r.IntN(20); {
	case k < 9:
		r.file(p)
	case k < 13:
		r.must(os.Mkdir(p, 0o755))
		r.dirs = append(r.dirs, p)
		mode |= 0o100
		if r.oneIn(10) {
			for n := range r.IntN(400) {
				r.must(os.WriteFile(fmt.Sprintf("%s/%0*d", p, 1+r.IntN(30), n), nil, 0o644))
			}
		}
	case k < 16:
		r.must(os.Symlink(strings.Repeat("target/", r.IntN(30))+"x", p))
		symlink = true
	case k < 18 && len(r.files) > 0:
		r.must(os.Link(r.files[r.IntN(len(r.files))], p))
		return
	case k == 18:
		node(unix.S_IFIFO, 0, 0)
	default:
		node(unix.S_IFCHR+r.Uint32N(2)*(unix.S_IFBLK-unix.S_IFCHR), r.Uint32N(4096), r.Uint32N(1<<20))
	}
	if r.oneIn(3) {
		uid := r.Uint32N(1 << 17)
		r.must(os.Lchown(p, int(uid), r.IntN(3)))
	}
	if !symlink {
		r.must(unix.Chmod(p, mode))
	}
	if r.oneIn(4) {
		for range 1 + r.IntN(3) {
			name := []string{"trusted.a", "trusted.overlay.b", "security.c", "trusted.mime." + strings.Repeat("n", r.IntN(100)) + "x"}[r.IntN(4)]
			r.must(unix.Lsetxattr(p, name, []byte(strings.Repeat("v", 1+r.IntN(1+r.IntN(600)))), 0))
		}
	}
	if !r.oneIn(4) {
		const second = 1e9
		mtime := int64(r.Uint32N(1<<31)) * second
		if r.oneIn(2) {
			mtime = 1_700_000_000 * second
		} else if r.oneIn(2) {
			mtime += r.Int64N(second)
		}
		ts := []unix.Timespec{{}, unix.NsecToTimespec(mtime)}
		r.must(unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// archivers are programs that make a tar of what is in a directory; "whole"
// ones keep attributes and fractions of seconds. (libarchive cuts the long names
// of sparse files off; every reader then does.)
var archivers = []struct {
	whole   bool
	command []string // the archive's name and the directory follow
}{
	{true, []string{"tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf", "ARCHIVE", "-C", "DIR", "."}},
	{true, []string{"tar", "--format=posix", "-S", "--sparse-version=0.0", "--xattrs", "--xattrs-include=*", "-cf", "ARCHIVE", "-C", "DIR", "."}},
	{true, []string{"tar", "--format=posix", "-S", "--sparse-version=0.1", "--xattrs", "--xattrs-include=*", "-cf", "ARCHIVE", "-C", "DIR", "."}},
	{true, []string{"tar", "--format=posix", "-S", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*", "-cf", "ARCHIVE", "-C", "DIR", "."}},
	{true, []string{"bsdtar", "--format=pax", "--no-read-sparse", "--xattrs", "--numeric-owner", "-cf", "ARCHIVE", "-C", "DIR", "."}},
	{false, []string{"tar", "--format=gnu", "-cf", "ARCHIVE", "-C", "DIR", "."}},
	{false, []string{"tar", "--format=gnu", "-S", "-cf", "ARCHIVE", "-C", "DIR", "."}},
	{false, []string{"tar", "--format=oldgnu", "-S", "-cf", "ARCHIVE", "-C", "DIR", "."}},
	{false, []string{"python3", "-c", pythonTar, "GNU_FORMAT", "ARCHIVE", "DIR"}},
	{false, []string{"python3", "-c", pythonTar, "PAX_FORMAT", "ARCHIVE", "DIR"}},
}

const pythonTar = `import sys, tarfile
with tarfile.open(sys.argv[2], "w", format=getattr(tarfile, sys.argv[1])) as t:
	t.add(sys.argv[3], arcname=".")`

// TestRandomTrees makes trees at random, has the tools pack them, and wants the
// kernel to show the source again, whatever the options that do not change it.
func TestRandomTrees(t *testing.T) {
	interop.Root(t)
	for k := range *randomTrees {
		seed := *randomSeed + uint64(k)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := &randomTree{Rand: rand.New(rand.NewPCG(seed, 0)), t: t, root: t.TempDir()}
			r.dirs = []string{r.root}
			for range r.IntN(150) {
				r.add()
			}
			want, err := fstree.List(r.root, fstree.Options{})
			r.must(err)
			for range 3 {
				r.check(want)
			}
		})
	}
}

// check packs the tree with some archiver and some options.
func (r *randomTree) check(want fstree.Tree) {
	t := r.t
	a := archivers[r.IntN(len(archivers))]
	dir := t.TempDir()
	tarball, image, at := filepath.Join(dir, "a.tar"), filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	r.must(os.Mkdir(at, 0o755))
	names := strings.NewReplacer("ARCHIVE", tarball, "DIR", r.root)
	command := []string{interop.Tool(t, a.command[0])}
	for _, arg := range a.command[1:] {
		command = append(command, names.Replace(arg))
	}
	interop.Run(t, command...)
	var args []string
	block := 4096
	index := r.oneIn(3)
	switch {
	case index:
		args = append(args, "-i", "--span-size=64KiB")
	case r.oneIn(2):
		block = 512 << r.IntN(8)
		args = append(args, fmt.Sprint("--block-size=", block))
	}
	for _, o := range []string{"--no-inline", "--xattr-prefix=trusted.mime.", "--xattr-prefix=trusted.overlay."} {
		if r.oneIn(3) {
			args = append(args, o)
		}
	}
	in := tarball
	if pack := []string{"", "gzip", "zstd", "xz"}[r.IntN(4)]; pack != "" && !index {
		interop.Run(t, interop.Tool(t, pack), "-1kq", tarball)
		in += map[string]string{"gzip": ".gz", "zstd": ".zst", "xz": ".xz"}[pack]
	}
	args = append(args, image, in)
	tar2erofs(t, nil, args...)
	f, err := os.Open(image)
	r.must(err)
	defer f.Close()
	fsys, err := erofs.Open(f)
	r.must(err)
	bad := func(what any) {
		t.Helper()
		t.Errorf("%q\n%q\n%v", command, args, what)
	}
	_, err = fsys.Check(t.Context(), erofs.CheckOptions{Data: !index}, func(p erofs.Problem) { bad(p) })
	r.must(err)
	if block > os.Getpagesize() {
		return // which the kernel does not read
	}
	if index {
		appendFile(t, image, tarball)
	}
	interop.MountErofs(t, image, at)
	got, err := fstree.List(at, fstree.Options{})
	r.must(err)
	if !a.whole {
		got, want = withoutDetails(got), withoutDetails(want)
	}
	for _, line := range fstree.Diff(got, want) {
		bad(line)
	}
}

// withoutDetails is a tree without what GNU's format and tarfile leave out.
func withoutDetails(tree fstree.Tree) fstree.Tree {
	out := make(fstree.Tree, len(tree))
	for p, e := range tree {
		e.Xattrs = nil
		e.Mtime -= e.Mtime % int64(time.Second)
		out[p] = e
	}
	return out
}
