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
// often; a directory that is met twice is an error, and so are directories that
// take up more bytes than there are, so every walk ends, and soon.
func (f *FS) Walk(nid uint64, fn WalkFunc) error {
	err := newWalker(f).walk(nid, nil, fn)
	if errors.Is(err, fs.SkipDir) || errors.Is(err, fs.SkipAll) {
		return nil
	}
	return err
}

// A walker lists each directory of an image once.
type walker struct {
	f    *FS
	seen map[uint64]struct{} // directories
	room int64               // bytes that further directories may take up
}

func newWalker(f *FS) *walker {
	return &walker{f: f, seen: make(map[uint64]struct{}), room: f.metaSize()}
}

// enter fails for a directory that has been met before.
func (w *walker) enter(ino *inode) error {
	if _, ok := w.seen[ino.Nid]; ok {
		return ino.corrupt(ino.Offset, "a directory that has been met before")
	}
	w.seen[ino.Nid] = struct{}{}
	return nil
}

// list lists a directory that has been entered.
func (w *walker) list(ino *inode) (list []Dirent, err error) {
	if w.room, err = w.f.takeRoom(ino, w.room); err != nil {
		return nil, err
	}
	return w.f.readDir(ino)
}

func (w *walker) walk(nid uint64, at *pathNode, fn WalkFunc) error {
	ino, err := w.f.inode(nid)
	if err != nil {
		return at.fail(err)
	}
	if !ino.isDir() {
		if err := fn(at.path(), &ino.Stat); err != fs.SkipDir {
			return err
		}
		return nil
	}
	if err := w.enter(ino); err != nil {
		return at.fail(err)
	}
	if err := fn(at.path(), &ino.Stat); err != nil {
		if err == fs.SkipDir {
			return nil
		}
		return err
	}
	list, err := w.list(ino)
	if err != nil {
		return at.fail(err)
	}
	for _, e := range list {
		sub := at.join(e.Name)
		if sub.size > maxPath {
			return fmt.Errorf("walk %.100q...: a path of more than %d bytes: %w", sub.path(), maxPath, fault.ErrUnsupported)
		}
		if err := w.walk(e.Nid, sub, fn); err != nil {
			return err
		}
	}
	return nil
}

// metaSize is how many bytes an image has for inodes, indexes and directories.
// What a metabox decodes to is bounded by what compression can do.
func (f *FS) metaSize() int64 {
	n := f.devices[0].size
	if size := sizeOf(f.devices[0].r); size >= 0 {
		n = size // what the superblock says may be a lie
	}
	n = min(n, maxAddr>>10)
	if f.metabox != nil {
		n += min(f.metabox.r.(*fileData).Size(), 256*n)
	}
	return n
}

// takeRoom takes what a directory's blocks take up from the room that there is
// for them. Directories share no blocks, and an image in which they do may hold
// as many entries as it has bytes, squared.
func (f *FS) takeRoom(ino *inode, room int64) (int64, error) {
	err := f.extents(ino, func(e FileExtent) error {
		if room -= e.AddrLen; room < 0 {
			return ino.corrupt(ino.Offset, "directories take up more bytes than there are")
		}
		return nil
	})
	return room, err
}

// pathNode is a name in a directory. Paths are put together when they are
// wanted: in a deep tree, those of all that is still to be visited would take
// more room than the tree. The root is nil.
type pathNode struct {
	dir  *pathNode
	name string
	size int // of the path, in bytes
}

func (p *pathNode) join(name string) *pathNode {
	n := &pathNode{dir: p, name: name, size: len(name)}
	if p != nil {
		n.size += p.size + 1
	}
	return n
}

// path is path.Join without cleaning: names in an image may be anything.
func (p *pathNode) path() string {
	if p == nil {
		return "."
	}
	b := make([]byte, p.size)
	for i := p.size; ; p = p.dir {
		i -= copy(b[i-len(p.name):], p.name)
		if p.dir == nil {
			return string(b)
		}
		i--
		b[i] = '/'
	}
}

// fail says at which path an error is. Names in an image may be anything, so it
// is quoted.
func (p *pathNode) fail(err error) error { return fmt.Errorf("%.1000q: %w", p.path(), err) }
