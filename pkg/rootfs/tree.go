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
	"iter"
	"slices"
	"strings"

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
// files have lies behind pointers.
type Inode struct {
	Mode   uint16 // type and permissions
	Device uint16 // of the data: 0 is the image itself, n the n-th layer's blob
	Nlink  uint32 // names; of a directory 2 and one for each subdirectory
	UID    uint32
	GID    uint32

	MtimeNsec uint32
	Rdev      uint32 // device nodes; see pkg/erofs/ondisk.EncodeRdev
	Mtime     int64  // seconds since the epoch

	Size   int64  // bytes; of a symlink the target's length
	Offset int64  // of the data on its device, or -1 where there is none
	Tail   int64  // writer's: where the part behind the last whole block waits
	Nid    uint64 // writer's: the number that directory entries refer to

	Extents *[]tarstream.Extent // sparse files: the runs that are stored, back to back from Offset
	Xattrs  *XattrSet
	content *content
}

// content is what directories and symlinks have and files do not.
type content struct {
	target   string
	children map[string]dirent
	implied  bool // a directory that no entry has described
	opaque   bool // OverlayWhiteouts: hides the lower layers' directory
	whiteout bool // OverlayWhiteouts: a character device that hides a name
}

// A dirent is a name's meaning in a directory. The layer belongs to the name,
// not to the inode: an upper layer may link a lower layer's file.
type dirent struct {
	inode *Inode
	layer int32 // that last put an entry here or below
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

// Len is the number of a directory's entries.
func (i *Inode) Len() int {
	if i.content == nil {
		return 0
	}
	return len(i.content.children)
}

// An Entry is a directory's entry.
type Entry struct {
	Name  string
	Inode *Inode
}

// Entries appends a directory's entries in bytewise order of their names.
func (i *Inode) Entries(dst []Entry) []Entry {
	if i.content == nil {
		return dst
	}
	from := len(dst)
	for name, d := range i.content.children {
		dst = append(dst, Entry{name, d.inode})
	}
	slices.SortFunc(dst[from:], func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return dst
}

// Lookup finds a directory's entry, or nil.
func (i *Inode) Lookup(name string) *Inode {
	if i.content == nil {
		return nil
	}
	return i.content.children[name].inode
}

func (i *Inode) child(name string) (dirent, bool) {
	d, ok := i.content.children[name]
	return d, ok
}

// An XattrSet is the extended attributes of an inode, ordered by name. Sets
// are shared between inodes and not changed.
type XattrSet struct {
	List []tarstream.Xattr
}

// Tree is a root filesystem. The zero value is not ready: see New.
type Tree struct {
	root  *Inode
	layer int32
	opts  Options

	forward []forwardLink
	sets    map[string]*XattrSet

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
			path    string
			entries []Entry
		}
		if !yield("", t.root) {
			return
		}
		stack := []dir{{"", t.root.Entries(nil)}}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if len(top.entries) == 0 {
				stack = stack[:len(stack)-1]
				continue
			}
			e := top.entries[0]
			top.entries = top.entries[1:]
			if !e.Inode.IsDir() && e.Inode.Nlink > 1 {
				if _, ok := seen[e.Inode]; ok {
					continue
				}
				seen[e.Inode] = struct{}{}
			}
			path := e.Name
			if top.path != "" {
				path = top.path + "/" + e.Name
			}
			if !yield(path, e.Inode) {
				return
			}
			if e.Inode.IsDir() {
				stack = append(stack, dir{path, e.Inode.Entries(nil)})
			}
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
	return i
}

// impliedDir is a directory that no entry has described.
func (t *Tree) impliedDir() *Inode {
	i := t.newInode()
	*i = Inode{Mode: ModeDir | 0o755, Nlink: 2, Offset: -1}
	i.content = &content{children: map[string]dirent{}, implied: true}
	return i
}

// xattrSet gives equal lists one set.
func (t *Tree) xattrSet(list []tarstream.Xattr) *XattrSet {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b tarstream.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	var key strings.Builder
	for _, x := range list {
		// Names have no NUL; values are told apart by their length.
		key.WriteString(x.Name)
		key.WriteByte(0)
		for n := len(x.Value); ; n >>= 8 {
			key.WriteByte(byte(n))
			if n < 256 {
				break
			}
		}
		key.WriteByte(0)
		key.WriteString(x.Value)
	}
	if s, ok := t.sets[key.String()]; ok {
		return s
	}
	s := &XattrSet{list}
	t.sets[key.String()] = s
	return s
}
