//go:build linux

// Package fstree lists a directory tree as the kernel shows it, one canonical
// record an entry, and tells two trees apart. It is the oracle of the interop
// tests: what a mounted image shows against what another tool unpacked.
package fstree

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// An Entry is what lstat, readlink, listxattr and the contents say of one
// path. Fields that say nothing about an image are left at zero: a directory's
// size and link count (each file system has its own) and its mtime (unpacking
// changes it).
type Entry struct {
	Type   string // file, dir, symlink, fifo, socket, char, block
	Mode   uint32 // permission bits with setuid, setgid and sticky
	UID    uint32
	GID    uint32
	Size   int64  // bytes; files and symlinks
	Mtime  int64  // nanoseconds since 1970; not directories'
	Nlink  uint64 // not directories'
	Rdev   string // "major:minor" of a device
	Target string // of a symlink
	Sum    string // sha256 of a file's contents, in hex
	Xattrs map[string]string
	// Link is the first path, in sorted order, of the same inode within the
	// tree; empty for an inode with one name.
	Link string
}

// A Tree maps slash-separated paths relative to the root, which is ".", to
// their entries.
type Tree map[string]Entry

// Options says what to leave out; the zero value compares everything.
type Options struct {
	SkipXattrs bool
	SkipSums   bool // do not read contents
	// Skip leaves out a path, and what is below it.
	Skip func(path string) bool
}

// List walks the tree under root without following symbolic links.
func List(root string, o Options) (Tree, error) {
	type inode struct{ dev, ino uint64 }
	first := make(map[inode]string)
	tree := make(Tree)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if o.Skip != nil && o.Skip(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		e, err := entry(path, &st, o)
		if err != nil {
			return err
		}
		if e.Type != "dir" && st.Nlink > 1 {
			// WalkDir goes in sorted order, so the first name met is the least.
			key := inode{uint64(st.Dev), st.Ino}
			if _, ok := first[key]; !ok {
				first[key] = rel
			}
			e.Link = first[key]
		}
		tree[rel] = e
		return nil
	})
	return tree, err
}

func entry(path string, st *unix.Stat_t, o Options) (Entry, error) {
	e := Entry{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = "file", st.Size
		if !o.SkipSums {
			e.Sum, err = sum(path)
		}
	case unix.S_IFDIR:
		e.Type = "dir"
	case unix.S_IFLNK:
		e.Type, e.Size = "symlink", st.Size
		e.Target, err = os.Readlink(path)
	case unix.S_IFIFO:
		e.Type = "fifo"
	case unix.S_IFSOCK:
		e.Type = "socket"
	case unix.S_IFCHR:
		e.Type = "char"
	case unix.S_IFBLK:
		e.Type = "block"
	default:
		err = fmt.Errorf("%s: unknown type %#o", path, st.Mode)
	}
	if err != nil {
		return e, err
	}
	if e.Type == "char" || e.Type == "block" {
		e.Rdev = fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	}
	if e.Type != "dir" {
		e.Nlink = uint64(st.Nlink)
		e.Mtime = st.Mtim.Nano()
	}
	if !o.SkipXattrs {
		e.Xattrs, err = xattrs(path)
	}
	return e, err
}

func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// xattrs reads all extended attributes that listxattr names; ACLs are among
// them, as system.posix_acl_access and system.posix_acl_default.
func xattrs(path string) (map[string]string, error) {
	names, err := grow(func(p []byte) (int, error) { return unix.Llistxattr(path, p) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	var m map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value, err := grow(func(p []byte) (int, error) { return unix.Lgetxattr(path, name, p) })
		if errors.Is(err, unix.ENODATA) {
			continue // a name without a value: overlay and SELinux do that
		}
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[name] = string(value)
	}
	return m, nil
}

// grow calls get with ever larger buffers until the result fits; 64 KiB is the
// kernel's bound on both a list and a value.
func grow(get func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		p := make([]byte, size)
		n, err := get(p)
		if err == nil {
			return p[:n], nil
		}
		if !errors.Is(err, unix.ERANGE) || size > 1<<20 {
			return nil, err
		}
	}
}
