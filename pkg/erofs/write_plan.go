package erofs

import (
	"cmp"
	"fmt"
	"math"
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

	meta    int64 // offset of nid 0, a multiple of the block size
	xattrAt int64 // offset of the shared xattrs, too
	metaEnd int64
	head    []byte // the superblock's block from there on, but for what is written last
	batch   []packItem
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
	chunks   *chunkLayout // instead of inline
	flat     chunkLayout  // where chunks may point to
}

func (f *form) inodeSize() int64 {
	if f.extended {
		return ondisk.InodeExtendedSize
	}
	return ondisk.InodeCompactSize
}

// bodyAt is where data or chunk table begin, from the inode's start. A table is
// aligned to its entries.
func (f *form) bodyAt() int64 {
	n := f.inodeSize() + f.xattrs
	if f.chunks != nil {
		unit := f.chunks.entrySize()
		n = (n + unit - 1) &^ (unit - 1)
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
	f.xattrs = p.xattrs.size(i.Xattrs)
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
			return nil, fault.Usagef("erofs: sparse file is not aligned on device %d", i.Device)
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
	if len(p.inodes) > fewInodes {
		return p.placeInodes(at, headOrder{})
	}
	// A block more or less is a good part of a small image: there the best of
	// several ways to fill the superblock's block is taken.
	inodes := slices.Clone(p.inodes)
	place := func(o headOrder) error {
		copy(p.inodes, inodes)
		return p.placeInodes(at, o)
	}
	best, least := headOrder{}, int64(math.MaxInt64)
	for _, o := range []headOrder{{}, {largest: true}, {noRoot: true}, {noRoot: true, largest: true}} {
		if err := place(o); err != nil {
			return err
		}
		if p.metaEnd < least {
			best, least = o, p.metaEnd
		}
	}
	return place(best)
}

// fewInodes is up to how many a tree is small.
const fewInodes = 64

// A headOrder says what goes into the superblock's block; of the zero value the
// root first, and then what fits in the tree's order.
type headOrder struct {
	noRoot  bool // the root stays out
	largest bool // large ones before small ones
}

// placeInodes gives inodes their numbers, behind the offset at.
func (p *plan) placeInodes(at int64, o headOrder) error {
	p.meta = 0
	from, rootToo, err := p.placeHead(at, o)
	if err != nil {
		return err
	}
	if from == 0 {
		// The first inode must not be number 0: readdir gives the numbers out
		// as d_ino, and the C library takes entries that have 0 for deleted
		// ones. So counting starts in the block before, whatever that holds.
		p.meta = (at - 1) &^ (p.w.bs - 1)
	}
	pack := newPacker(p.w.bs, at-p.meta)
	if !rootToo {
		if _, err := p.placeBatch(pack, 0); err != nil {
			return err
		}
		from++
	}
	for from < len(p.inodes) {
		if from, err = p.placeBatch(pack, from); err != nil {
			return err
		}
	}
	p.metaEnd = p.meta + pack.end()
	return nil
}

// placeHead puts what fits of the first inodes into the rest of the superblock's
// block, moves those to the front, the root before all, and returns how many
// they are and whether the root is one. Numbers then count from the image's
// beginning, so that an image whose metadata begins too far from there must do
// without, and sooner if the root, whose number has 16 bits, does not fit.
func (p *plan) placeHead(at int64, o headOrder) (n int, rootToo bool, err error) {
	const (
		reach     = math.MaxUint32 / 2 * ondisk.SlotSize
		rootReach = math.MaxUint16 * ondisk.SlotSize
	)
	next := alignSlot(p.w.headEnd())
	if at > reach {
		return 0, false, nil
	}
	var f form
	put := func(i *rootfs.Inode) (fits bool, err error) {
		if err := p.form(&f, i); err != nil || next+f.size() > p.w.first {
			return false, err
		}
		i.Nid = uint32(next / ondisk.SlotSize)
		next = alignSlot(next + f.size())
		return true, nil
	}
	if !o.noRoot {
		rootToo, err = put(p.inodes[0])
	}
	if err != nil || !rootToo && at+2*p.w.bs > rootReach {
		return 0, false, err
	}
	if o.largest {
		size := make(map[*rootfs.Inode]int64)
		for _, i := range p.inodes {
			if err := p.form(&f, i); err != nil {
				return 0, false, err
			}
			size[i] = f.size()
		}
		slices.SortStableFunc(p.inodes[1:], func(a, b *rootfs.Inode) int { return cmp.Compare(size[b], size[a]) })
	}
	var fit, rest []*rootfs.Inode
	looked := int64(0)
	for _, i := range p.inodes[1:] {
		if next == p.w.first || looked > batchSize {
			break
		}
		fits, err := put(i)
		if err != nil {
			return 0, false, err
		}
		if fits {
			fit = append(fit, i)
		} else {
			rest = append(rest, i)
		}
		looked += f.size()
	}
	copy(p.inodes[1:], fit)
	copy(p.inodes[1+len(fit):], rest)
	if n = len(fit); rootToo {
		n++
	}
	return n, rootToo, nil
}

// batchSize is how many bytes of inodes are packed at a time: more packs better,
// less keeps a directory's inodes closer together.
const batchSize = 1 << 20

type packItem struct {
	inode *rootfs.Inode
	size  int64
	whole bool
}

// placeBatch places some inodes from the given one on and returns the next. The
// large ones that have to stay whole go first, the smaller ones fill what those
// leave of their blocks. The root goes before all: its number has 16 bits.
func (p *plan) placeBatch(pack *packer, from int) (next int, err error) {
	p.batch = p.batch[:0]
	var f form
	total := int64(0)
	for next = from; next < len(p.inodes) && total < batchSize; next++ {
		if err := p.form(&f, p.inodes[next]); err != nil {
			return 0, err
		}
		p.batch = append(p.batch, packItem{p.inodes[next], f.size(), f.inline > 0})
		if total += f.size(); next == 0 {
			next++
			break
		}
	}
	slices.SortStableFunc(p.batch, func(a, b packItem) int {
		if a.whole != b.whole {
			if a.whole {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.size, a.size)
	})
	for _, item := range p.batch {
		nid := pack.place(item.size, item.whole) / ondisk.SlotSize
		if nid > math.MaxUint32 {
			return 0, fmt.Errorf("metadata of %d bytes: %w", nid*ondisk.SlotSize, fault.ErrUnsupported)
		}
		item.inode.Nid = uint32(nid)
	}
	return next, nil
}

func (p *plan) inodeOffset(i *rootfs.Inode) int64 { return p.meta + int64(i.Nid)*ondisk.SlotSize }
