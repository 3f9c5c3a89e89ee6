package tarstream

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"golang.org/x/sys/unix"
)

// sourceTree makes a tree of what tools find hard to store.
func sourceTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(root, name) }
	file := func(name, data string) string {
		t.Helper()
		must(os.MkdirAll(filepath.Dir(at(name)), 0o755))
		must(os.WriteFile(at(name), []byte(data), 0o644))
		return at(name)
	}
	file("empty", "")
	file("block", strings.Repeat("b", blockSize))
	file("big", strings.Repeat("0123456789abcdef", 20000))
	file("new\nline \\ \"quoted\"", "x")
	file("latin1-\xe4\xf6\xfc", "x")
	file("ünïcode", "x")
	file(strings.Repeat("n", 100), "hundred")
	file(strings.Repeat("d", 90)+"/"+strings.Repeat("n", 90), "prefix")
	file(strings.Repeat(strings.Repeat("long", 40)+"/", 3)+strings.Repeat("n", 255), "very long")
	must(os.Chmod(file("suid", "x"), 0o755|os.ModeSetuid))
	must(os.Chmod(file("tmp/x", "x"), 0))
	must(os.Chmod(at("tmp"), 0o777|os.ModeSticky))
	must(os.Lchown(file("uid-3000000", "x"), 3000000, 3000001))
	most := uint32(1<<32 - 2) // a variable, as int may have 32 bits itself
	must(os.Lchown(file("uid-max", "x"), int(most), int(most)))
	must(os.Link(at("big"), at("hard")))
	must(os.Link(at("big"), at("tmp/hard")))
	must(os.Symlink("big", at("soft")))
	must(os.Symlink(strings.Repeat("target/", 40), at("soft-long")))
	must(unix.Mkfifo(at("fifo"), 0o640))
	must(unix.Mknod(at("char"), unix.S_IFCHR|0o620, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(at("block-device"), unix.S_IFBLK|0o620, int(unix.Mkdev(4095, 1048575))))
	mtime := func(name string, sec, nsec int64) {
		t.Helper()
		ts, err := unix.TimeToTimespec(time.Unix(sec, nsec))
		if err == unix.ERANGE {
			return // a system whose times have 32 bits
		}
		must(err)
		must(unix.UtimesNanoAt(unix.AT_FDCWD, file(name, "x"), []unix.Timespec{ts, ts}, 0))
	}
	mtime("mtime-ns", 1700000000, 123456789)
	mtime("mtime-1960", -300000000, 0)
	mtime("mtime-1969", -1, 999999999)
	mtime("mtime-2100", 4102444800, 1)
	// Sparse: many runs, so that old maps need extension blocks; and only holes.
	must(os.Truncate(file("hole", ""), 1<<20))
	f, err := os.Create(at("sparse"))
	must(err)
	for i := range int64(60) {
		_, err = f.WriteAt([]byte(strings.Repeat("s", 5000)), i*65536+8192)
		must(err)
	}
	must(f.Truncate(5 << 20))
	must(f.Close())
	xattr := func(name, key, value string) {
		t.Helper()
		if err := unix.Lsetxattr(at(name), key, []byte(value), 0); err != nil {
			interop.Missing(t, "set %s: %v", key, err)
		}
	}
	file("xattrs", "x")
	xattr("xattrs", "user.text", "value")
	xattr("xattrs", "user.binary", "\x00\x01=\n\xff\x00")
	xattr("xattrs", "user.a=b%3D", "escapes")
	xattr("xattrs", "user.empty", "")
	xattr("xattrs", "user.long", strings.Repeat("v", 2000))
	xattr("xattrs", "trusted.t", "t")
	xattr("xattrs", "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	acl := func(perms ...uint32) string { // tag, perm, id of each
		b := binary.LittleEndian.AppendUint32(nil, aclVersion)
		for i := 0; i < len(perms); i += 3 {
			b = binary.LittleEndian.AppendUint16(b, uint16(perms[i]))
			b = binary.LittleEndian.AppendUint16(b, uint16(perms[i+1]))
			b = binary.LittleEndian.AppendUint32(b, perms[i+2])
		}
		return string(b)
	}
	must(os.Mkdir(at("acl"), 0o750))
	file("acl/file", "x")
	list := acl(aclUserObj, 7, aclNoID, aclUser, 5, 54321, aclGroupObj, 4, aclNoID, aclGroup, 6, 54322, aclMask, 7, aclNoID, aclOther, 0, aclNoID)
	xattr("acl", "system.posix_acl_access", list)
	xattr("acl", "system.posix_acl_default", list)
	xattr("acl/file", "system.posix_acl_access", list)
	return root
}

// unpackers are the tools that archives are unpacked with, to be followed by
// the archive's name, -C, and the directory.
var unpackers = map[string][]string{
	"tar":    {"--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-xpf"},
	"bsdtar": {"--numeric-owner", "--xattrs", "--acls", "-xpf"},
}

// fromUnpacking says where we go another way than a tool; the lines are
// fstree.Diff's, ours first, or how they begin. The tool may be "source", too:
// what the archive was made of.
var fromUnpacking = []struct{ archive, tool, line, why string }{
	{"bsd-pax", "source", `"mtime-1969": mtime 1969-12-31T23:59:58.000000001Z, want 1969-12-31T23:59:59.999999999Z`, wrongFraction},
	{"bsd-pax", "bsdtar", `"mtime-1969": mtime 1969-12-31T23:59:58.000000001Z, want 1969-12-31T23:59:59.999999999Z`, wrongFraction},
	{"bsd-paxr", "bsdtar", `"mtime-1969": mtime 1969-12-31T23:59:58.000000001Z, want 1969-12-31T23:59:59.999999999Z`, wrongFraction},
	{"bsd-pax", "bsdtar", `"xattrs": xattr user.a%3Db%253D none, want "escapes"`, notUndone},
	{"bsd-paxr", "bsdtar", `"xattrs": xattr user.a%3Db%253D none, want "escapes"`, notUndone},
	{"nil-uid.tar", "bsdtar", `"P1050238.JPG.log": `, "libarchive takes junk in the field of a sparse file's real size for the size of one that is not sparse"},
	{"invalid-go17.tar", "tar", ``, prefixLost},
	{"invalid-go17.tar", "bsdtar", ``, prefixLost},
	{"pax-global-records.tar", "tar", `"file3": unexpected file`, emptyPath},
	{"pax-global-records.tar", "tar", `"file4": unexpected file`, emptyPath},
	{"pax-global-records.tar", "bsdtar", ``, "libarchive does not apply global headers"},
	{"sparse-formats.tar", "tar", ``, "GNU tar gives up in this old sparse map, libarchive, archive/tar and tarfile read it as we do"},
}

const (
	wrongFraction = "libarchive writes -1 + 0.999999999 as -1.999999999, which says -2 + 0.000000001; GNU tar reads it as we do"
	prefixLost    = "Go before 1.8 put a prefix under GNU's magic: others lose the directory, Go itself (so the container runtimes) reads it as we do"
	emptyPath     = "an empty path takes back the global one and the header's own name stands; GNU tar makes it an empty name and fails"
	notUndone     = "libarchive does not undo its own escapes: the attribute comes back under two names"
)

// differs reports a line unless fromUnpacking explains it.
func differs(t *testing.T, archive, tool, line string) {
	t.Helper()
	for _, d := range fromUnpacking {
		if d.archive == archive && d.tool == tool && strings.HasPrefix(line, d.line) {
			t.Logf("%s: %.200s: %s", tool, line, d.why)
			return
		}
	}
	t.Errorf("%s: %.500s", tool, line)
}

// unpackBoth unpacks an archive through the Reader and with a tool, and
// returns the first tree.
func unpackBoth(t *testing.T, name, archive, tool string) fstree.Tree {
	t.Helper()
	path := interop.Tool(t, tool)
	mine, theirs := t.TempDir(), t.TempDir()
	extract(t, archive, mine)
	args := append(append([]string{}, unpackers[tool]...), archive, "-C", theirs)
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Logf("%s: %v: %s", tool, err, out) // it says what it left out; the trees tell
	}
	got, err := fstree.List(mine, fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := fstree.List(theirs, fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range fstree.Diff(got, want) {
		differs(t, name, tool, line)
	}
	return got
}

// mounted holds what the kernel shows of an archive's images to a tree that was
// unpacked of it: through the Reader, which unpackBoth holds to the tools.
func mounted(t *testing.T, archive string, want fstree.Tree) {
	t.Helper()
	program := tar2erofs(t)
	tarball, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range [][]string{{"-b", "4096"}, {"-b", "1024"}, {"-i"}} {
		dir := t.TempDir()
		image, at := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
		interop.Run(t, append(append([]string{program}, mode...), image, archive)...)
		if mode[0] == "-i" {
			f, err := os.OpenFile(image, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = f.Write(tarball); err == nil {
				err = f.Truncate(fileSize(t, f) + int64(-len(tarball)&(blockSize-1)))
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		interop.MountErofs(t, image, at)
		got, err := fstree.List(at, fstree.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := want["."]; !ok {
			delete(got, ".")
		}
		for _, line := range fstree.Diff(got, want) {
			t.Errorf("mounted, %q: %.500s", mode, line)
		}
	}
}

func fileSize(t *testing.T, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

var buildOnce sync.Once
var built string

// tar2erofs compiles the command, which this package cannot import.
func tar2erofs(t *testing.T) string {
	t.Helper()
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "tarstream-test-")
		if err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(dir, "tar2erofs")
		interop.Run(t, interop.Tool(t, "go"), "build", "-o", program, "github.com/layerpipe/layerpipe/cmd/tar2erofs")
		built = program
	})
	if built == "" {
		t.Fatal("tar2erofs was not built")
	}
	return built
}

// TestMain deletes what tar2erofs made.
func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

// TestTools reads what the tools make of one tree in each of their formats.
func TestTools(t *testing.T) {
	interop.Root(t)
	gnutar := interop.Tool(t, "tar")
	bsdtar := interop.Tool(t, "bsdtar")
	busybox := interop.Tool(t, "busybox")
	src := sourceTree(t)
	snap := filepath.Join(t.TempDir(), "snap")
	gnu := func(args ...string) []string {
		return append(append([]string{gnutar, "--numeric-owner"}, args...), "-C", src, "-cf")
	}
	bsd := func(args ...string) []string {
		return append(append([]string{bsdtar, "--numeric-owner"}, args...), "-C", src, "-cf")
	}
	for _, tt := range []struct {
		name    string
		create  []string // and the archive's name, and "."
		partial bool     // the tool says that the format cannot hold all of it
		whole   bool     // it holds all of it: the source itself is the oracle
		tool    string   // that made it, and is asked to unpack it again
	}{
		{name: "gnu-v7", create: gnu("--format=v7"), partial: true, tool: "tar"},
		{name: "gnu-oldgnu", create: gnu("--format=oldgnu"), tool: "tar"},
		{name: "gnu-gnu", create: gnu("--format=gnu"), tool: "tar"},
		{name: "gnu-ustar", create: gnu("--format=ustar"), partial: true, tool: "tar"},
		{name: "gnu-posix", create: gnu("--format=posix", "--xattrs", "--xattrs-include=*", "--acls"), whole: true, tool: "tar"},
		{name: "gnu-posix-hard-dereference", create: gnu("--format=posix", "--hard-dereference"), tool: "tar"},
		{name: "gnu-oldgnu-sparse", create: gnu("--format=oldgnu", "-S"), tool: "tar"},
		{name: "gnu-gnu-sparse", create: gnu("--format=gnu", "-S"), tool: "tar"},
		{name: "gnu-posix-sparse-0.0", create: gnu("--format=posix", "-S", "--sparse-version=0.0", "--xattrs", "--xattrs-include=*", "--acls"), whole: true, tool: "tar"},
		{name: "gnu-posix-sparse-0.1", create: gnu("--format=posix", "-S", "--sparse-version=0.1", "--xattrs", "--xattrs-include=*", "--acls"), whole: true, tool: "tar"},
		{name: "gnu-posix-sparse-1.0", create: gnu("--format=posix", "-S", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*", "--acls"), whole: true, tool: "tar"},
		{name: "gnu-gnu-incremental", create: gnu("--format=gnu", "-g", snap), tool: "tar"},
		{name: "gnu-posix-incremental", create: gnu("--format=posix", "-g", snap+"2", "--xattrs", "--xattrs-include=*", "--acls"), whole: true, tool: "tar"},
		{name: "gnu-posix-global", create: gnu("--format=posix", "--pax-option=globexthdr.name=g,gid=77,mtime=12345.5", "--owner=0"), tool: "tar"},
		{name: "gnu-label", create: gnu("--format=gnu", "--label=volume"), tool: "tar"},
		{name: "gnu-no-recursion", create: append(gnu("--format=posix")[:len(gnu("--format=posix"))-1], "--no-recursion", "tmp/x", "big", "-cf"), tool: "tar"},
		{name: "bsd-v7", create: bsd("--format=v7"), partial: true, tool: "bsdtar"},
		{name: "bsd-ustar", create: bsd("--format=ustar"), partial: true, tool: "bsdtar"},
		{name: "bsd-gnutar", create: bsd("--format=gnutar"), partial: true, tool: "bsdtar"},
		{name: "bsd-pax", create: bsd("--format=pax", "--xattrs", "--acls"), whole: true, tool: "bsdtar"},
		{name: "bsd-paxr", create: bsd("--format=paxr", "--xattrs", "--acls"), tool: "bsdtar"},
		{name: "busybox", create: []string{busybox, "tar", "-C", src, "-cf"}, tool: "tar"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "a.tar")
			out, err := exec.Command(tt.create[0], append(append([]string{}, tt.create[1:]...), archive, ".")...).CombinedOutput()
			if err != nil && !tt.partial {
				t.Fatalf("%q: %v: %s", tt.create, err, out)
			}
			b, err := os.ReadFile(archive)
			if err != nil {
				t.Fatal(err)
			}
			// Data offsets and maps, held against the archive's bytes.
			if _, warnings, err := read(t, string(b)); err != io.EOF || len(warnings) != 0 {
				t.Errorf("%v, warnings %q", err, warnings)
			}
			got := unpackBoth(t, tt.name, archive, tt.tool)
			if tt.name == "gnu-no-recursion" {
				delete(got, ".")
			}
			mounted(t, archive, got)
			if !tt.whole {
				return
			}
			want, err := fstree.List(src, fstree.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range fstree.Diff(got, want) {
				differs(t, tt.name, "source", line)
			}
		})
	}
}

// TestUnpackCorpus unpacks the archives of archive/tar's and tarfile's own
// tests.
func TestUnpackCorpus(t *testing.T) {
	interop.Root(t)
	archives := goTestdata(t)
	archives["testtar.tar"] = testtar(t)
next:
	for name, archive := range archives {
		members, _, err := read(t, archive)
		if err != io.EOF && err != ErrNoEndMarker {
			continue // refused: TestCorpus says why
		}
		for _, m := range members {
			if m.Size > maxSum || len(filepath.Base(m.Name)) > 255 {
				continue next // more than a file system takes, or than a test should
			}
		}
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.tar")
			if err := os.WriteFile(file, []byte(archive), 0o600); err != nil {
				t.Fatal(err)
			}
			var got fstree.Tree
			for tool := range unpackers {
				got = unpackBoth(t, name, file, tool)
			}
			delete(got, ".")
			mounted(t, file, got)
		})
	}
}
