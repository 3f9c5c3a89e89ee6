// Package rootfs holds the tree of a root filesystem in memory and applies
// image layers to it, lowest first, by the rules of the OCI image
// specification ("Image Layer Filesystem Changeset"): whiteouts, opaque
// directories, hard links, replaced entries. Where the specification is
// silent it does what umoci does.
//
// File contents are no part of the tree: an inode says where they lie.
package rootfs

import (
	"cmp"
	"encoding/binary"
	"iter"
	"slices"

	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// Bits of Inode.Mode: st_mode's own.
const (
	ModeType    = 0o170000
	ModeFifo    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
)

// An Inode is one file. A million of them must fit into memory: what only few
// files have lies behind a pointer.
type Inode struct {
	Mode   uint16 // type and permissions
	Device uint16 // of the data: 0 is the image itself, n the n-th layer's blob
	Nlink  uint32 // names; of a directory 2 and one for each subdirectory
	UID    uint32
	GID    uint32

	MtimeNsec uint32
	Rdev      uint32 // device nodes; see pkg/erofs/ondisk.EncodeRdev
	Tail      uint32 // writer's: where the part behind the last whole block waits
	Nid       uint32 // writer's: the number that directory entries refer to

	Mtime  int64 // seconds since the epoch
	Size   int64 // bytes; of a symlink the target's length
	Offset int64 // of the data on its device, or -1 where there is none

	Xattrs  *XattrSet
	content *content
}

// content is what directories, symlinks and sparse files have.
type content struct {
	target   string
	dir      *directory
	extents  *[]tarstream.Extent
	whiteout bool // OverlayWhiteouts: a character device that hides a name
}

// IsDir reports whether i is a directory.
func (i *Inode) IsDir() bool { return i.Mode&ModeType == ModeDir }

// IsRegular reports whether i is a regular file.
func (i *Inode) IsRegular() bool { return i.Mode&ModeType == ModeRegular }

// IsSymlink reports whether i is a symbolic link.
func (i *Inode) IsSymlink() bool { return i.Mode&ModeType == ModeSymlink }

// Target is what a symlink points to.
func (i *Inode) Target() string {
	if i.content == nil {
		return ""
	}
	return i.content.target
}

// Sparse is the runs of a sparse file that are stored, back to back from
// Offset on; ok is false for a file that is not sparse.
func (i *Inode) Sparse() (runs []tarstream.Extent, ok bool) {
	if i.content == nil || i.content.extents == nil {
		return nil, false
	}
	return *i.content.extents, true
}

// An XattrSet is the extended attributes of an inode, ordered by name. Sets
// are shared between inodes and not changed.
type XattrSet struct {
	List   []tarstream.Xattr
	Uses   uint32 // writer's: how many inodes have it
	Stored uint32 // writer's: bytes that it takes beside an inode
}

// Tree is a root filesystem. The zero value is not ready: see New.
type Tree struct {
	root   *Inode
	layer  uint16
	opts   Options
	count  int64 // of inodes made
	opaque bool  // OverlayWhiteouts: some directory is

	forward []forwardLink
	sets    map[string]*XattrSet
	setSize int64 // bytes of memory that they take, about

	// The directory that the last entry was put into: archives list a
	// directory's files together.
	lastDir string
	lastIn  *Inode
	slab    []Inode
}

// Whiteouts says what becomes of a layer's whiteouts.
type Whiteouts int

const (
	// MergeWhiteouts applies them to the layers below and drops them.
	MergeWhiteouts Whiteouts = iota
	// OverlayWhiteouts turns them into overlayfs's form, for a layer that
	// will be mounted as one: a character device 0/0, and the xattr
	// trusted.overlay.opaque=y.
	OverlayWhiteouts
	// KeepWhiteouts leaves them the files that they are.
	KeepWhiteouts
)

// Options of a Tree. The zero value merges.
type Options struct {
	Whiteouts Whiteouts
}

// New makes a tree that has a root directory, 0755 root:root.
func New(o Options) *Tree {
	t := &Tree{opts: o, sets: make(map[string]*XattrSet)}
	t.root = t.impliedDir()
	t.root.content.dir.parent = t.root
	return t
}

// Root is the root directory.
func (t *Tree) Root() *Inode { return t.root }

// All visits every inode once, with one of its paths ("" is the root), parents
// before their entries and entries in order.
func (t *Tree) All() iter.Seq2[string, *Inode] {
	return func(yield func(string, *Inode) bool) {
		seen := make(map[*Inode]struct{}) // of those with several names
		type dir struct {
			path string
			self *Inode
			next int
		}
		if !yield("", t.root) {
			return
		}
		t.root.Sort()
		stack := []dir{{self: t.root}}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next == top.self.Len() {
				stack = stack[:len(stack)-1]
				continue
			}
			name, i := top.self.Entry(top.next)
			top.next++
			if !i.IsDir() && i.Nlink > 1 {
				if _, ok := seen[i]; ok {
					continue
				}
				seen[i] = struct{}{}
			}
			path := string(name)
			if top.path != "" {
				path = top.path + "/" + path
			}
			if !yield(path, i) {
				return
			}
			if i.IsDir() {
				i.Sort()
				stack = append(stack, dir{path: path, self: i})
			}
		}
	}
}

// Count is at least the number of the tree's inodes.
func (t *Tree) Count() int64 { return t.count }

// Prune takes away the paths that match tells, which come without a leading
// slash, and all that is below them. A file that has another name stays under
// that one.
func (t *Tree) Prune(match func(path []byte) bool) {
	t.prune(t.root, nil, match)
}

func (t *Tree) prune(dir *Inode, prefix []byte, match func(path []byte) bool) {
	// Backwards, since the last entry moves to where one was removed.
	for k := dir.Len() - 1; k >= 0; k-- {
		name, i := dir.Entry(k)
		path := append(prefix, name...)
		switch {
		case match(path):
			t.unlinkAt(dir, k)
		case i.IsDir():
			t.prune(i, append(path, '/'), match)
		}
	}
}

// newInode allocates in slabs: one garbage-collected object for many inodes.
func (t *Tree) newInode() *Inode {
	if len(t.slab) == 0 {
		t.slab = make([]Inode, 256)
	}
	i := &t.slab[0]
	t.slab = t.slab[1:]
	t.count++
	return i
}

// newDir makes an empty directory that is nowhere yet.
func (t *Tree) newDir() *Inode {
	i := t.newInode()
	*i = Inode{Mode: ModeDir | 0o755, Nlink: 2, Offset: -1}
	i.content = &content{dir: &directory{}}
	return i
}

// impliedDir is a directory that no entry has described.
func (t *Tree) impliedDir() *Inode {
	i := t.newDir()
	i.content.dir.implied = true
	return i
}

// What a set and each of its attributes take beside their bytes, and what all
// sets may take: signatures of a million files. A compressed archive of a few MB
// can ask for as many GB.
const (
	xattrSetSize  = 96
	xattrSize     = 32
	maxXattrBytes = 512 << 20
)

// xattrSet gives equal lists one set.
func (t *Tree) xattrSet(list []tarstream.Xattr) *XattrSet {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b tarstream.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	var b []byte
	for _, x := range list {
		// Names have no NUL; values are told apart by their length.
		b = append(append(b, x.Name...), 0)
		b = binary.AppendUvarint(b, uint64(len(x.Value)))
		b = append(b, x.Value...)
	}
	if s, ok := t.sets[string(b)]; ok {
		return s
	}
	// The key holds all there is: keep nothing twice.
	key := string(b)
	rest := key
	for k, x := range list {
		list[k].Name = rest[:len(x.Name)]
		rest = rest[len(x.Name)+1:]
		_, n := binary.Uvarint([]byte(rest[:min(len(rest), binary.MaxVarintLen64)]))
		list[k].Value = rest[n : n+len(x.Value)]
		rest = rest[n+len(x.Value):]
	}
	s := &XattrSet{List: list}
	t.sets[key] = s
	t.setSize += int64(len(key)) + xattrSetSize + xattrSize*int64(len(list))
	return s
}
