package testimage

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// systemFiles are parts of a Linux system that make the base layer's contents
// real: programs, a library, many small files. Those that a machine lacks are
// left out, so the image can be made on any.
var systemFiles = []string{
	"usr/bin/bash", "usr/bin/tar", "usr/bin/sed", "usr/bin/grep", "usr/bin/find", "usr/bin/awk", "usr/bin/mawk",
	"usr/bin/perl", "usr/share/common-licenses", "usr/share/zoneinfo/Europe", "usr/share/zoneinfo/America",
	"usr/share/perl5/Debian", "usr/share/i18n/charmaps", "usr/share/terminfo", "usr/lib/os-release",
}

// capNetRaw is security.capability, version 2: cap_net_raw+ep.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Base writes the lowest layer: a small Debian-like root with one of each kind
// of entry. With system, real files of this machine are added.
func Base(b *Builder, system bool) {
	b.Dir("./", 0o755)
	for _, d := range []string{"usr/", "usr/bin/", "usr/sbin/", "usr/lib/", "usr/lib64/", "usr/share/", "usr/local/", "etc/", "var/", "var/lib/", "dev/", "home/", "opt/"} {
		b.Dir(d, 0o755)
	}
	b.Symlink("bin", "usr/bin")
	b.Symlink("sbin", "usr/sbin")
	b.Symlink("lib", "usr/lib")
	b.Symlink("lib64", "usr/lib64")
	b.Dir("tmp/", 0o1777)
	b.Dir("root/", 0o700)
	b.Dir("var/empty/", 0o555)
	b.Dir("srv/", 0o2775, Owner(0, 50))

	b.File("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
	b.File("etc/shadow", 0o640, "root:*:20000:0:99999:7:::\n", Owner(0, 42))
	b.File("etc/hostname", 0o644, "layerpipe\n")
	b.File("etc/motd", 0o644, "This message is deleted further up.\n")
	b.File("etc/issue", 0o644, "A file that becomes a directory.\n")
	b.Dir("etc/skel/", 0o755)
	b.File("etc/skel/.profile", 0o644, "# a directory that becomes a file\n")
	b.Dir("etc/conf.d/", 0o750)
	for i := range 40 {
		b.File("etc/conf.d/"+strconv.Itoa(i)+".conf", 0o644, strings.Repeat("key = value\n", i))
	}
	b.File("etc/replaced", 0o600, "the lower one\n", Owner(1, 2))

	b.File("usr/bin/passwd", 0o4755, "#!/bin/sh\nexit 1\n")
	b.File("usr/bin/wall", 0o2755, "#!/bin/sh\nexit 1\n", Owner(0, 5))
	b.File("usr/bin/ping", 0o755, "#!/bin/sh\nexit 0\n", Xattr("security.capability", capNetRaw))
	b.File("usr/bin/oldtool", 0o755, "#!/bin/sh\necho old\n")
	b.File("usr/bin/tool", 0o755, "#!/bin/sh\necho tool\n")
	b.Link("usr/bin/tool-1.0", "usr/bin/tool")
	b.Link("usr/sbin/tool", "bin/tool") // a target below a symbolic link
	b.Symlink("usr/bin/sh", "bash")

	b.Node("dev/null", tar.TypeChar, 0o666, 1, 3)
	b.Node("dev/tty", tar.TypeChar, 0o666, 5, 0, Owner(0, 5))
	b.Node("dev/loop0", tar.TypeBlock, 0o660, 7, 0, Owner(0, 6))
	b.Node("dev/huge", tar.TypeChar, 0o600, 300, 70000)
	b.Node("dev/initctl", tar.TypeFifo, 0o600, 0, 0)

	odd := "var/lib/odd/"
	b.Dir(odd, 0o755)
	b.File(odd+"xattrs", 0o644, "x", Xattr("user.comment", "plain text"), Xattr("user.binary", "\x00\xff\n=\x00"),
		Xattr("trusted.layerpipe", "root's own"))
	b.Dir(odd+"xattr-dir/", 0o755, Xattr("user.comment", "plain text"))
	b.File(odd+"shared-xattr", 0o644, "y", Xattr("user.comment", "plain text"))
	b.File(odd+"big-ids", 0o644, "", Owner(70000, 4000000000))
	b.File(odd+"nanoseconds", 0o644, "ns", Mtime(time.Date(2023, 4, 5, 6, 7, 8, 123456789, time.UTC)))
	b.File(odd+"before-1970", 0o644, "old", Mtime(time.Unix(-86400, 0)))
	b.File(odd+"after-2038", 0o644, "new", Mtime(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)))
	b.File(odd+"caf\xe9 latin-1", 0o644, "not UTF-8")
	b.File(odd+"schön \U0001f427", 0o644, "UTF-8")
	b.File(odd+"new\nline", 0o644, "a name of two lines")
	b.File(odd+"!before-dot", 0o644, "sorts before . and ..")
	b.File(odd+strings.Repeat("n", 255), 0o644, "the longest name")
	deep := odd + strings.Repeat("directory-of-a-long-name/", 8)
	for i := len(odd); i < len(deep); i += len("directory-of-a-long-name/") {
		b.Dir(deep[:i+len("directory-of-a-long-name/")], 0o711)
	}
	b.File(deep+"file", 0o644, "below a long path")
	b.Symlink(odd+"long-link", "/"+strings.Repeat("far/", 60)+"away")
	b.Symlink(odd+"dangling", "nowhere")
	b.Symlink(odd+"loop", "loop")
	for _, size := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 65536} {
		b.File(odd+"size-"+strconv.Itoa(size), 0o644, pattern(size))
	}
	b.File(odd+"islands", 0o644, strings.Repeat("\x00", 1<<20)+"island"+strings.Repeat("\x00", 1<<20)+"end")
	b.Dir(odd+"many/", 0o755)
	for i := range 600 {
		b.File(odd+"many/entry-"+strconv.Itoa(i), 0o644, "")
	}
	b.Dir(odd+"opaque/", 0o755)
	b.File(odd+"opaque/hidden", 0o644, "hidden from above")
	b.Dir(odd+"opaque/sub/", 0o755)
	b.File(odd+"opaque/sub/hidden", 0o644, "hidden from above")
	b.Dir(odd+"gone/", 0o755)
	b.File(odd+"gone/too", 0o644, "deleted with its directory")

	if system {
		for _, path := range systemFiles {
			for _, d := range parents(path, "usr/bin", "usr/lib", "usr/share") {
				b.Dir(d+"/", 0o755)
			}
			b.Tree(path, filepath.Join("/", path))
		}
	}
}

// parents lists the directories above path that are not known to be there.
func parents(path string, known ...string) []string {
	var dirs []string
	for d := filepath.ToSlash(filepath.Dir(path)); d != "."; d = filepath.ToSlash(filepath.Dir(d)) {
		for _, k := range known {
			if d == k {
				return dirs
			}
		}
		dirs = append([]string{d}, dirs...)
	}
	return dirs
}

// pattern is n bytes that differ from place to place.
func pattern(n int) string {
	p := make([]byte, n)
	x := uint32(n)*2654435761 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		p[i] = byte(x)
	}
	return string(p)
}

// Toolchain writes the middle layer: GOROOT at usr/local/go, or only the named
// parts of it.
func Toolchain(b *Builder, parts []string) {
	root, err := goroot()
	if err != nil {
		b.err = err
		return
	}
	b.Dir("usr/", 0o755)
	b.Dir("usr/local/", 0o755)
	if len(parts) == 0 {
		b.Tree("usr/local/go", root)
		return
	}
	b.Dir("usr/local/go/", 0o755)
	made := []string{"usr/local/go"}
	for _, part := range parts {
		name := "usr/local/go/" + part
		for _, d := range parents(name, made...) {
			b.Dir(d+"/", 0o755)
			made = append(made, d)
		}
		b.Tree(name, filepath.Join(root, filepath.FromSlash(part)))
	}
}

// goroot asks the go command, as the toolchain that built this program may lie
// elsewhere.
func goroot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	root := strings.TrimSpace(string(out))
	// GOROOT itself may be a link, which WalkDir would not follow.
	root, err = filepath.EvalSymlinks(root)
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(root, "VERSION"))
	return root, err
}

// Upper writes the highest layer: it deletes, replaces, hides and links what
// the lower ones have, writes below a symbolic link, and omits parents. It
// touches only what Base has, and usr/local/go/VERSION.
func Upper(b *Builder) {
	odd := "var/lib/odd/"
	// Deleted: a file, a directory, a name below a symbolic link.
	b.Whiteout("etc/", "motd")
	b.Whiteout(odd, "gone")
	b.Whiteout("bin/", "oldtool")
	b.Whiteout("etc/", "never-was-there")
	// Replaced: file by file, file by directory, directory by file, file by link.
	b.File("etc/replaced", 0o644, "the upper one, which is longer than the lower one\n")
	b.Dir("etc/issue/", 0o700, Owner(3, 4))
	b.File("etc/issue/inside", 0o644, "was a file\n")
	b.File("etc/skel", 0o644, "was a directory\n")
	b.Symlink("etc/hostname", "/etc/issue/inside")
	// Hidden, with something new in its place.
	b.Dir(odd+"opaque/", 0o751)
	b.Opaque(odd + "opaque/")
	b.File(odd+"opaque/seen", 0o644, "from above\n")
	// Deleted, and there again in the same layer: whiteouts concern lower layers.
	b.Whiteout("etc/conf.d/", "7.conf")
	b.File("etc/conf.d/7.conf", 0o644, "again\n")
	// Links into lower layers, and one within this one.
	b.Link("usr/local/bin-version", "usr/local/go/VERSION")
	b.Link("usr/bin/tool-2.0", "usr/bin/tool")
	b.Link(odd+"hard", odd+"xattrs")
	b.File(odd+"first", 0o644, "two names\n")
	b.Link(odd+"second", odd+"first")
	// Below a symbolic link; the parents (usr/bin) are not in this layer.
	b.File("bin/newtool", 0o755, "#!/bin/sh\necho new\n")
	// One of several links is replaced: the others stay together.
	b.File("usr/sbin/tool", 0o755, "#!/bin/sh\necho not linked any more\n")
	// Parents omitted: tmp stays 1777, srv keeps its group, new ones are 0755.
	b.File("tmp/file", 0o644, "in tmp\n")
	b.File("srv/file", 0o644, "in srv\n")
	b.File("opt/a/b/c", 0o644, "three levels down\n")
	// Attributes of a lower layer's directory and file change.
	b.Dir("home/", 0o711, Owner(8, 9), Xattr("user.comment", "changed"))
	b.Dir("etc/conf.d/", 0o755)
}
