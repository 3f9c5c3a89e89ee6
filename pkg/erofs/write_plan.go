package erofs

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

// A plan is the layout of an image's metadata. It is made in full before
// anything of it is written, since directories refer to inodes by position.
type plan struct {
	w      *Writer
	inodes []*rootfs.Inode // in image order; the root is first
	epoch  mtime
	xattrs *xattrTable
	split  map[*rootfs.Inode]*chunkLayout // files in pieces, see compact

	meta     int64 // offset of nid 0, a multiple of the block size
	xattrAt  int64 // offset of the shared xattrs, too
	metaUsed int64 // bytes from meta on that the shared xattrs take
	metaEnd  int64
}

type mtime struct {
	sec  int64
	nsec uint32
}

func mtimeOf(i *rootfs.Inode) mtime { return mtime{i.Mtime, i.MtimeNsec} }

// gather lists the inodes that can be reached from the root. A directory's
// entries stand together, so that listing them reads few blocks.
func (p *plan) gather(t *rootfs.Tree) error {
	if t.Count() > math.MaxUint32-1 {
		return fmt.Errorf("%d files: %w", t.Count(), fault.ErrUnsupported)
	}
	p.inodes = make([]*rootfs.Inode, 0, t.Count())
	add := func(i *rootfs.Inode) {
		i.Nid = uint32(len(p.inodes)) + 1 // marks it as seen, until place
		p.inodes = append(p.inodes, i)
	}
	add(t.Root())
	stack := []*rootfs.Inode{t.Root()}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		dir.Sort()
		below := len(stack)
		for k := range dir.Len() {
			_, i := dir.Entry(k)
			switch {
			case i.IsDir():
				stack = append(stack, i)
				add(i)
			case i.Nlink == 1 || !p.seen(i):
				add(i)
			}
		}
		slices.Reverse(stack[below:])
	}
	return nil
}

// seen tells whether gather has listed an inode; whatever an earlier Writer
// left in Nid does not count.
func (p *plan) seen(i *rootfs.Inode) bool {
	return i.Nid > 0 && int64(i.Nid) <= int64(len(p.inodes)) && p.inodes[i.Nid-1] == i
}

// chooseEpoch takes the most frequent mtime: inodes that have it can be
// compact. Sorted, a million different ones take less memory than a map.
//
// The superblock has the build time as a distance from the epoch of 32 bits, so
// that a time which cannot be told so has to be the epoch itself.
func (p *plan) chooseEpoch(buildTime *int64) {
	all := make([]mtime, len(p.inodes))
	for k, i := range p.inodes {
		all[k] = mtimeOf(i)
	}
	slices.SortFunc(all, func(a, b mtime) int {
		return cmp.Or(cmp.Compare(a.sec, b.sec), cmp.Compare(a.nsec, b.nsec))
	})
	best := 0
	for from := 0; from < len(all); {
		to := from + 1
		for to < len(all) && all[to] == all[from] {
			to++
		}
		if to-from > best { // of equals the oldest
			best, p.epoch = to-from, all[from]
		}
		from = to
	}
	if b := buildTime; b != nil && (*b < p.epoch.sec || uint64(*b)-uint64(p.epoch.sec) > math.MaxUint32) {
		p.epoch = mtime{sec: *b}
	}
}

// A form is how an inode looks on disk.
type form struct {
	extended bool
	layout   uint16
	xattrs   int64        // bytes between the inode and what follows
	inline   int64        // bytes of data behind those
	chunks   *chunkLayout // instead of inline; its table begins at a multiple of 8
	flat     chunkLayout  // where chunks may point to
}

func (f *form) inodeSize() int64 {
	if f.extended {
		return ondisk.InodeExtendedSize
	}
	return ondisk.InodeCompactSize
}

// bodyAt is where data or chunk table begin, from the inode's start.
func (f *form) bodyAt() int64 {
	n := f.inodeSize() + f.xattrs
	if f.chunks != nil {
		n = (n + 7) &^ 7
	}
	return n
}

func (f *form) size() int64 {
	if f.chunks != nil {
		return f.bodyAt() + f.chunks.tableSize()
	}
	return f.bodyAt() + f.inline
}

// form decides an inode's, into f; it depends on nothing that place changes.
func (p *plan) form(f *form, i *rootfs.Inode) (err error) {
	*f = form{}
	f.extended = i.UID > 0xffff || i.GID > 0xffff || i.Nlink > 0xffff ||
		i.Size > 0xffffffff || mtimeOf(i) != p.epoch
	f.xattrs = int64(len(p.xattrs.body(i.Xattrs)))
	switch {
	case i.IsRegular() && i.Size == 0:
	case i.IsRegular():
		if f.chunks, err = p.chunksOf(i, &f.flat); err != nil {
			return err
		}
		if f.chunks == nil && i.Tail != noTail {
			f.inline = i.Size & (p.w.bs - 1)
		}
	case i.IsDir(), i.IsSymlink():
		// What is left behind whole blocks goes inline if it fits.
		tail := i.Size & (p.w.bs - 1)
		if f.bodyAt()+tail <= p.w.bs {
			f.inline = tail
		}
	}
	switch {
	case f.chunks != nil:
		f.layout = ondisk.LayoutChunkBased
	case f.inline > 0:
		f.layout = ondisk.LayoutFlatInline
	default:
		f.layout = ondisk.LayoutFlatPlain
	}
	return nil
}

// chunksOf is the chunk map of a file that has one; flat has room for it.
func (p *plan) chunksOf(i *rootfs.Inode, flat *chunkLayout) (*chunkLayout, error) {
	if m := p.split[i]; m != nil {
		return m, nil
	}
	runs, sparse := i.Sparse()
	switch {
	case i.Device > 0 && sparse:
		m, ok := p.w.sparseOnDevice(i, runs)
		if !ok {
			return nil, fmt.Errorf("erofs: sparse file is not aligned on device %d: %w", i.Device, fault.ErrUsage)
		}
		return m, nil
	case i.Device > 0:
		*flat = p.w.contiguous(i)
		return flat, nil
	case sparse:
		m, _, err := p.w.sparseInImage(i.Size, runs)
		if err != nil {
			return nil, err
		}
		for c := range m.blocks {
			if m.blocks[c] >= 0 {
				m.blocks[c] += i.Offset >> p.w.bits
			}
		}
		return m, nil
	}
	return nil, nil
}

// place gives every directory and long symlink its blocks, and every inode its
// position, from the offset at on, which is a multiple of the block size.
func (p *plan) place(at int64) error {
	var f form
	for _, i := range p.inodes {
		switch {
		case i.IsDir():
			list := listOf(i)
			i.Size = list.size(p.w.bs)
		case !i.IsSymlink():
			continue
		}
		if err := p.form(&f, i); err != nil {
			return err
		}
		if whole := p.w.roundUp(i.Size - f.inline); whole > 0 {
			i.Offset = at
			at += whole
		}
	}
	p.xattrAt = at
	at += int64(len(p.xattrs.area))
	// The first inode must not be number 0: readdir gives the numbers out as
	// d_ino, and the C library takes entries that have 0 for deleted ones. So
	// counting starts in the block before, whatever that holds.
	p.meta = (at - 1) &^ (p.w.bs - 1)
	p.metaUsed = at - p.meta
	pack := newPacker(p.w.bs, p.metaUsed)
	for _, i := range p.inodes {
		if err := p.form(&f, i); err != nil {
			return err
		}
		nid := pack.place(f.size()) / ondisk.SlotSize
		if nid > math.MaxUint32 {
			return fmt.Errorf("metadata of %d bytes: %w", nid*ondisk.SlotSize, fault.ErrUnsupported)
		}
		i.Nid = uint32(nid)
	}
	p.metaEnd = p.meta + pack.end()
	return nil
}

func (p *plan) inodeOffset(i *rootfs.Inode) int64 { return p.meta + int64(i.Nid)*ondisk.SlotSize }

// A packer finds places for inodes in blocks: the fullest open block that has
// room. Only the newest blocks stay open, so that whoever writes what was
// planned needs a window, not the whole.
type packer struct {
	bs     int64
	blocks int64     // begun so far
	byFree [][]int64 // blocks by how many slots of 32 bytes they have left
	some   []uint64  // bitmap of those that are not empty
}

// packWindow is how many bytes of blocks stay open.
const packWindow = 4 << 20

func newPacker(bs, used int64) *packer {
	p := &packer{bs: bs, byFree: make([][]int64, bs/ondisk.SlotSize+1)}
	p.some = make([]uint64, len(p.byFree)/64+1)
	if used > 0 {
		p.blocks = 1
		p.put(0, alignSlot(used))
	}
	return p
}

func alignSlot(n int64) int64 { return (n + ondisk.SlotSize - 1) &^ (ondisk.SlotSize - 1) }

func (p *packer) put(block, used int64) {
	free := (p.bs - used) / ondisk.SlotSize
	if free == 0 {
		return
	}
	p.byFree[free] = append(p.byFree[free], block)
	p.some[free/64] |= 1 << (free % 64)
}

// take finds an open block with at least that many bytes, and how many bytes
// of it are used.
func (p *packer) take(need int64) (block, used int64, ok bool) {
	oldest := p.blocks - max(packWindow/p.bs, 16)
	slots := alignSlot(need) / ondisk.SlotSize
	for word := slots / 64; word < int64(len(p.some)); {
		set := p.some[word]
		if word == slots/64 {
			set &= ^uint64(0) << (slots % 64)
		}
		if set == 0 {
			word++
			continue
		}
		free := word*64 + int64(bits.TrailingZeros64(set))
		list := p.byFree[free]
		block = list[len(list)-1]
		if p.byFree[free] = list[:len(list)-1]; len(list) == 1 {
			p.some[word] &^= 1 << (free % 64)
		}
		if block >= oldest {
			return block, p.bs - free*ondisk.SlotSize, true
		}
	}
	return 0, 0, false
}

// place finds room for an inode and what follows it, and returns the offset
// from the first block. What fits into a block does not cross one: inode
// headers and inline tails must not. The larger ones are those with many
// xattrs or a chunk table, which may; they begin a block.
func (p *packer) place(size int64) int64 {
	if size <= p.bs {
		block, used, ok := p.take(size)
		if !ok {
			block, used = p.blocks, 0
			p.blocks++
		}
		p.put(block, alignSlot(used+size))
		return block*p.bs + used
	}
	start := p.blocks * p.bs
	p.blocks += (size + p.bs - 1) / p.bs
	p.put(p.blocks-1, alignSlot(size-(p.blocks*p.bs-start-p.bs)))
	return start
}

// end is the size of what was placed, in whole blocks.
func (p *packer) end() int64 { return p.blocks * p.bs }
