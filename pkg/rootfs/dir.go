package rootfs

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/maphash"
	"math"
	"slices"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A directory has its names back to back in one slice and a table of hashes
// beside them: a map of strings takes three times the memory, which a million
// files do notice.
type directory struct {
	parent  *Inode // of the root the root itself
	names   []byte // of all entries, and of some that are gone
	dead    int    // bytes of names that are gone
	list    []dirent
	index   []uint32 // open addressing: position in list + 1, or slotFree, slotGone; nil: not made yet
	gone    int      // slots of index that are slotGone
	sorted  bool     // list is in order
	implied bool     // no entry has described the directory
	opaque  bool     // OverlayWhiteouts: hides the lower layers' directory
	touched uint16   // the last layer that put an entry here or below
	cleared uint16   // the last layer that took away what lower ones had in here
}

// A dirent is a name's meaning in a directory. The layer belongs to the name,
// not to the inode: an upper layer may link a lower layer's file.
type dirent struct {
	inode  *Inode
	name   uint32 // offset in names
	layer  uint16 // that put the entry here; of a directory see touched
	length uint8  // of the name
}

const (
	slotFree = 0
	slotGone = math.MaxUint32
	// maxEntries of one directory, so that positions and offsets fit.
	maxEntries = math.MaxUint32 / 256
	// fewEntries are searched one by one: most directories need no table.
	fewEntries = 8
)

// newest is the last layer that put an entry here or below.
func (e *dirent) newest() uint16 {
	if e.inode.IsDir() {
		return e.inode.content.dir.touched
	}
	return e.layer
}

// seed keeps hostile names from being made to collide.
var seed = maphash.MakeSeed()

func (d *directory) nameOf(e *dirent) []byte {
	return d.names[e.name : int(e.name)+int(e.length)]
}

// find is the position of a name, or -1. Positions hold until names are added,
// removed or sorted.
func (d *directory) find(name string) int {
	if len(d.list) <= fewEntries {
		for k := range d.list {
			if string(d.nameOf(&d.list[k])) == name {
				return k
			}
		}
		return -1
	}
	if d.index == nil {
		d.reindex()
	}
	_, k := d.probe(name)
	return k
}

// probe is where in the index a name is, and its position; or -1, -1.
func (d *directory) probe(name string) (slot, k int) {
	mask := uint64(len(d.index) - 1)
	for at := maphash.String(seed, name) & mask; ; at = (at + 1) & mask {
		switch v := d.index[at]; v {
		case slotFree:
			return -1, -1
		case slotGone:
		default:
			if string(d.nameOf(&d.list[v-1])) == name {
				return int(at), int(v - 1)
			}
		}
	}
}

// reindex makes the index anew, at most half full.
func (d *directory) reindex() {
	size := 4 * fewEntries
	for size < 2*len(d.list) {
		size *= 2
	}
	d.index, d.gone = make([]uint32, size), 0
	for k := range d.list {
		d.enter(k)
	}
}

func (d *directory) enter(k int) {
	mask := uint64(len(d.index) - 1)
	at := maphash.Bytes(seed, d.nameOf(&d.list[k])) & mask
	for d.index[at] != slotFree {
		at = (at + 1) & mask
	}
	d.index[at] = uint32(k + 1)
}

// add enters a name that is not there.
func (d *directory) add(name string, i *Inode, layer uint16) error {
	if len(name) > maxName {
		return nameTooLong(name)
	}
	if len(d.list) == maxEntries || int64(len(d.names)) > math.MaxUint32-maxName {
		return fmt.Errorf("directory of %d names: %w", len(d.list), fault.ErrUnsupported)
	}
	d.list = append(d.list, dirent{inode: i, name: uint32(len(d.names)), length: uint8(len(name)), layer: layer})
	d.names = append(d.names, name...)
	d.sorted = false
	if d.index != nil {
		// Beyond three quarters, with the slots of what is gone, runs get long.
		if 4*(len(d.list)+d.gone) > 3*len(d.index) {
			d.reindex()
		} else {
			d.enter(len(d.list) - 1)
		}
	}
	return nil
}

// remove takes the entry at a position away; the last one takes its place.
func (d *directory) remove(k int) {
	last := len(d.list) - 1
	if d.index != nil {
		slot, _ := d.probe(string(d.nameOf(&d.list[k])))
		if k != last {
			moved, _ := d.probe(string(d.nameOf(&d.list[last])))
			d.index[moved] = uint32(k + 1)
		}
		d.index[slot] = slotGone
		d.gone++
	}
	d.dead += int(d.list[k].length)
	d.list[k] = d.list[last]
	d.list[last] = dirent{}
	d.list = d.list[:last]
	d.sorted = false
	if d.dead > 4096 && d.dead > len(d.names)/2 {
		d.compactNames()
	}
}

// compactNames drops the names that are gone.
func (d *directory) compactNames() {
	names := make([]byte, 0, len(d.names)-d.dead)
	for k := range d.list {
		e := &d.list[k]
		name := d.nameOf(e)
		e.name = uint32(len(names))
		names = append(names, name...)
	}
	d.names, d.dead = names, 0
}

// sort puts the list in bytewise order of the names.
func (d *directory) sort() {
	if d.sorted {
		return
	}
	d.index = nil // positions change; find makes a new one
	slices.SortFunc(d.list, func(a, b dirent) int { return bytes.Compare(d.nameOf(&a), d.nameOf(&b)) })
	d.sorted = true
}

// Len is the number of a directory's entries.
func (i *Inode) Len() int {
	if !i.IsDir() {
		return 0
	}
	return len(i.content.dir.list)
}

// Sort puts a directory's entries in bytewise order of their names, for Entry
// and Search.
func (i *Inode) Sort() {
	if i.IsDir() {
		i.content.dir.sort()
	}
}

// Entry is a directory's k-th entry, k < Len. The name is not to be changed,
// and valid until the tree changes.
func (i *Inode) Entry(k int) (name []byte, child *Inode) {
	d := i.content.dir
	return d.nameOf(&d.list[k]), d.list[k].inode
}

// Search is how many of a sorted directory's names come before name.
func (i *Inode) Search(name string) int {
	d := i.content.dir
	k, _ := slices.BinarySearchFunc(d.list, name, func(e dirent, name string) int {
		return cmp.Compare(string(d.nameOf(&e)), name)
	})
	return k
}

// Parent is the directory that a directory is in; of the root it is the root,
// of anything else nil.
func (i *Inode) Parent() *Inode {
	if !i.IsDir() {
		return nil
	}
	return i.content.dir.parent
}

// Lookup finds a directory's entry, or nil.
func (i *Inode) Lookup(name string) *Inode {
	if !i.IsDir() {
		return nil
	}
	if e := i.child(name); e != nil {
		return e.inode
	}
	return nil
}

// child is a directory's entry, or nil; to be used before the directory
// changes.
func (i *Inode) child(name string) *dirent {
	d := i.content.dir
	if k := d.find(name); k >= 0 {
		return &d.list[k]
	}
	return nil
}
