package erofs

import (
	"cmp"
	"container/heap"
	"io"
	"slices"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

// A run is a stretch of blocks in the data area: a file's, or a hole.
type run struct {
	start, blocks int64
	inode         *rootfs.Inode
}

func (r run) end() int64 { return r.start + r.blocks }

// compact fills the holes that deleted and replaced files left in the data
// area with the last files of it, and returns the offset where the data ends
// then and how many bytes it has moved. What fits into no hole is cut up: its
// inode gets a chunk table in place of one address. Only what lies behind the
// new end moves, so no more bytes than were dead. Holes that stay are wiped:
// whoever deleted a file does not want to find it in the image.
func (p *plan) compact() (end, moved int64, err error) {
	w := p.w
	limit := w.first >> w.bits // the new end, in blocks
	files := 0
	for _, i := range p.inodes {
		if n := p.dataBlocks(i); n > 0 {
			limit += n
			files++
		}
	}
	if limit == w.data.off>>w.bits {
		return w.data.off, 0, nil
	}
	runs := make([]run, 0, files)
	for _, i := range p.inodes {
		if n := p.dataBlocks(i); n > 0 {
			runs = append(runs, run{i.Offset >> w.bits, n, i})
		}
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.start, b.start) })
	c := compactor{plan: p}
	c.settle(runs, limit)
	if err := c.moveSparse(); err != nil {
		return 0, 0, err
	}
	// Large ones first: they are the ones that might fit nowhere later.
	slices.SortStableFunc(runs, func(a, b run) int { return cmp.Compare(b.blocks, a.blocks) })
	for _, r := range runs {
		if stays := c.next - r.start; stays < r.blocks && !isSparse(r.inode) {
			if err := c.move(r, max(stays, 0)); err != nil {
				return 0, 0, err
			}
		}
	}
	if err := c.wipe(); err != nil {
		return 0, 0, err
	}
	for _, i := range c.cut {
		if err := c.finish(i); err != nil {
			return 0, 0, err
		}
	}
	return c.next << w.bits, c.moved << w.bits, nil
}

func isSparse(i *rootfs.Inode) bool {
	_, ok := i.Sparse()
	return ok
}

// dataBlocks is how many blocks of the data area a file has.
func (p *plan) dataBlocks(i *rootfs.Inode) int64 {
	switch {
	case !i.IsRegular() || i.Device != 0 || i.Offset < 0:
		return 0
	case isSparse(i):
		runs, _ := i.Sparse()
		m, _, err := p.w.sparseInImage(i.Size, runs)
		if err != nil {
			return 0 // cannot be: Add has mapped it
		}
		return m.storedBlocks(i.Size, p.w.bits)
	case i.Tail != noTail:
		return i.Size >> p.w.bits
	}
	return p.w.roundUp(i.Size) >> p.w.bits
}

// cutCost is about what cutting up a file adds to the image, in bytes: the
// table, and a block for what was inline.
func cutCost(r run, bs int64) int64 { return r.blocks*ondisk.BlockMapEntrySize + bs }

// A compactor moves runs into holes.
type compactor struct {
	plan  *plan
	holes holeHeap
	cut   []*rootfs.Inode // files in pieces, in the order they were cut
	chunk []chunkMove     // of sparse files
	next  int64           // the block behind the data
	moved int64           // blocks
	buf   []byte
}

// move takes the blocks of a run from the given one on to the largest holes.
func (c *compactor) move(r run, from int64) error {
	i := r.inode
	if from == 0 && c.holes[0].blocks >= r.blocks {
		to := c.fill(r.blocks)
		i.Offset = to.start << c.plan.w.bits
		return c.copy(r.start, to)
	}
	m := &chunkLayout{blocks: make([]int64, r.blocks)}
	for b := range from {
		m.blocks[b] = r.start + b
	}
	for from < r.blocks {
		to := c.fill(r.blocks - from)
		if err := c.copy(r.start+from, to); err != nil {
			return err
		}
		for b := range to.blocks {
			m.blocks[from+b] = to.start + b
		}
		from += to.blocks
	}
	c.plan.setSplit(i, m)
	c.cut = append(c.cut, i)
	return nil
}

func (p *plan) setSplit(i *rootfs.Inode, m *chunkLayout) {
	if p.split == nil {
		p.split = make(map[*rootfs.Inode]*chunkLayout)
	}
	p.split[i] = m
}

// fill takes at most want blocks of the largest hole.
func (c *compactor) fill(want int64) run {
	h := &c.holes[0]
	got := run{start: h.start, blocks: min(want, h.blocks)}
	h.start += got.blocks
	if h.blocks -= got.blocks; h.blocks == 0 {
		heap.Pop(&c.holes)
	} else {
		heap.Fix(&c.holes, 0)
	}
	return got
}

// copy moves data; source and target do not overlap, since holes lie before
// the limit and what moves behind it.
func (c *compactor) copy(from int64, to run) error {
	const piece = 1 << 20
	if c.buf == nil {
		c.buf = make([]byte, piece)
	}
	w := c.plan.w
	src, dst, left := from<<w.bits, to.start<<w.bits, to.blocks<<w.bits
	for left > 0 {
		n := min(left, piece)
		// The very last block may not have been written up to its end.
		got, err := w.out.ReadAt(c.buf[:n], src)
		if err != nil && err != io.EOF {
			return err
		}
		clear(c.buf[got:n])
		if _, err := w.out.WriteAt(c.buf[:n], dst); err != nil {
			return err
		}
		src, dst, left = src+n, dst+n, left-n
	}
	c.moved += to.blocks
	return nil
}

// wipe writes zeros to the holes that nothing was moved to.
func (c *compactor) wipe() error {
	const piece = 1 << 20
	zeros := make([]byte, piece)
	bits := c.plan.w.bits
	for _, h := range c.holes {
		for at, end := h.start<<bits, h.end()<<bits; at < end; at += piece {
			if _, err := c.plan.w.out.WriteAt(zeros[:min(piece, end-at)], at); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish gives a file in pieces what chunk-based inodes want: no inline tail,
// and as few chunks as the pieces allow.
func (c *compactor) finish(i *rootfs.Inode) error {
	w, m := c.plan.w, c.plan.split[i]
	if i.Tail != noTail {
		b := make([]byte, w.bs)
		if _, err := w.scratch.ReadAt(b[:i.Size&(w.bs-1)], tailOffset(i)); err != nil && err != io.EOF {
			return err
		}
		if _, err := w.out.WriteAt(b, c.next<<w.bits); err != nil {
			return err
		}
		m.blocks = append(m.blocks, c.next)
		c.next++
		i.Tail = noTail
	}
	for len(m.blocks) > 1 && m.bits < maxChunkBits && m.coarsen() {
	}
	return nil
}

// coarsen doubles the chunk size if every pair of chunks is adjacent.
func (m *chunkLayout) coarsen() bool {
	size := int64(1) << m.bits
	for k := 0; k+1 < len(m.blocks); k += 2 {
		if m.blocks[k+1] != m.blocks[k]+size {
			return false
		}
	}
	half := m.blocks[:0]
	for k := 0; k < len(m.blocks); k += 2 {
		half = append(half, m.blocks[k])
	}
	m.blocks = half
	m.bits++
	return true
}

// A holeHeap has the largest hole on top, of equals the first.
type holeHeap []run

func (h holeHeap) Len() int { return len(h) }
func (h holeHeap) Less(i, j int) bool {
	if h[i].blocks != h[j].blocks {
		return h[i].blocks > h[j].blocks
	}
	return h[i].start < h[j].start
}
func (h holeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *holeHeap) Push(x any)   { *h = append(*h, x.(run)) }
func (h *holeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
