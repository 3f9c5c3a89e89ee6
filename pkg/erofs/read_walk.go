package erofs

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// WalkFunc is called for each entry of a tree: its slash-separated path, "."
// for the root, and its inode. Returning fs.SkipDir for a directory leaves out
// what is in it; fs.SkipAll ends the walk; other errors end it and are Walk's.
type WalkFunc func(path string, st *Stat) error

// maxPath bounds the length of a path in a walk, in bytes: a hostile image may
// nest a million directories.
const maxPath = 1 << 16

// Walk visits the tree under the inode with a number, a directory before what
// is in it, entries in bytewise order. A file with several names is visited as
// often; a directory that is met twice is an error, so every walk ends.
func (f *FS) Walk(nid uint64, fn WalkFunc) error {
	w := walker{f: f, fn: fn, seen: make(map[uint64]struct{})}
	err := w.walk(nid, ".")
	if errors.Is(err, fs.SkipDir) || errors.Is(err, fs.SkipAll) {
		return nil
	}
	return err
}

type walker struct {
	f    *FS
	fn   WalkFunc
	seen map[uint64]struct{} // directories
}

func (w *walker) walk(nid uint64, path string) error {
	ino, err := w.f.inode(nid)
	if err != nil {
		return &fs.PathError{Op: "walk", Path: path, Err: err}
	}
	if ino.isDir() {
		if _, ok := w.seen[nid]; ok {
			return &fs.PathError{Op: "walk", Path: path, Err: ino.corrupt(ino.Offset, "a directory that has been met before")}
		}
		w.seen[nid] = struct{}{}
	}
	err = w.fn(path, &ino.Stat)
	if !ino.isDir() {
		if err == fs.SkipDir {
			return nil
		}
		return err
	}
	if err != nil {
		if err == fs.SkipDir {
			return nil
		}
		return err
	}
	list, err := w.f.readDir(ino)
	if err != nil {
		return &fs.PathError{Op: "walk", Path: path, Err: err}
	}
	for _, e := range list {
		sub := joinPath(path, e.Name)
		if len(sub) > maxPath {
			return fmt.Errorf("walk %.100s...: a path of more than %d bytes: %w", sub, maxPath, fault.ErrUnsupported)
		}
		if err := w.walk(e.Nid, sub); err != nil {
			return err
		}
	}
	return nil
}

// joinPath is path.Join without cleaning: names in an image may be anything.
func joinPath(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}
