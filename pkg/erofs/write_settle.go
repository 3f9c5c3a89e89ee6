package erofs

import (
	"container/heap"
	"slices"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

// A chunkMove is one chunk of a sparse file on its way to a hole.
type chunkMove struct {
	from int64
	to   run
}

const (
	// maxMovedChunks bounds the chunk tables of the sparse files that move,
	// which stay in memory until they are written.
	maxMovedChunks = 1 << 20
	// maxSettles bounds how often the end is set anew because of a sparse file
	// that finds no hole.
	maxSettles = 4
)

// settle decides where the data ends, not before limit, finds the holes before
// that, and plans where the chunks of sparse files behind it go; runs are in
// order. A sparse file has a chunk table already, whose chunks move: one that
// finds no hole of its size, and is not worth a finer table, keeps its file
// where it is, and the end behind it.
func (c *compactor) settle(runs []run, limit int64) {
	for try := 0; ; try++ {
		c.next = c.plan.pastCrossing(runs, limit)
		c.findHoles(runs)
		stuck, moved := c.planSparse(runs)
		if stuck == 0 {
			for i, m := range moved {
				c.plan.setSplit(i, m)
			}
			return
		}
		if limit = stuck; try == maxSettles {
			for _, r := range runs {
				if isSparse(r.inode) {
					limit = max(limit, r.end())
				}
			}
		}
	}
}

// pastCrossing moves the end behind what crosses it and is not to be cut there:
// a chunk, or a file whose table would take more than the cut saves.
func (p *plan) pastCrossing(runs []run, limit int64) int64 {
	k := slices.IndexFunc(runs, func(r run) bool { return r.start < limit && limit < r.end() })
	if k < 0 {
		return limit
	}
	r := runs[k]
	if !isSparse(r.inode) {
		if (r.end()-limit)<<p.w.bits <= cutCost(r, p.w.bs) {
			return r.end()
		}
		return limit
	}
	m, err := p.chunksOf(r.inode, nil)
	if err != nil {
		return r.end() // cannot be: Add has mapped it
	}
	for k, b := range m.blocks {
		if end := b + m.chunkBlocks(k, r.inode.Size, p.w.bits); b >= 0 && b < limit && limit < end {
			return end
		}
	}
	return limit
}

// findHoles lists what is free between the runs before the end.
func (c *compactor) findHoles(runs []run) {
	c.holes = c.holes[:0]
	pos := c.plan.w.first >> c.plan.w.bits
	add := func(to int64) {
		if pos < to {
			c.holes = append(c.holes, run{start: pos, blocks: to - pos})
		}
	}
	for _, r := range runs {
		if r.start < c.next {
			add(r.start)
			pos = r.end()
		}
	}
	add(c.next)
	heap.Init(&c.holes)
}

// planSparse takes holes for the chunks of sparse files that lie behind the
// end. It returns the files' new tables, and the end of the last file that
// cannot move, or 0.
func (c *compactor) planSparse(runs []run) (stuck int64, moved map[*rootfs.Inode]*chunkLayout) {
	c.chunk = c.chunk[:0]
	moved = make(map[*rootfs.Inode]*chunkLayout)
	budget := int64(maxMovedChunks)
	for _, r := range runs {
		if r.end() <= c.next || !isSparse(r.inode) {
			continue
		}
		m, err := c.plan.chunksOf(r.inode, nil)
		if err != nil || m.len() > budget {
			stuck = r.end()
			continue
		}
		if !c.planFile(r, m, budget) {
			stuck = r.end()
			continue
		}
		budget -= m.len()
		moved[r.inode] = m
	}
	return stuck, moved
}

// planFile takes holes for those chunks of a file that lie behind the end, and
// halves chunks that are too large for them as long as that is worth it.
func (c *compactor) planFile(r run, m *chunkLayout, budget int64) bool {
	w := c.plan.w
	budget = min(budget, m.len()+r.blocks<<w.bits/ondisk.BlockMapEntrySize/16)
	for k := 0; k < len(m.blocks); k++ {
		b, n := m.blocks[k], m.chunkBlocks(k, r.inode.Size, w.bits)
		if b < 0 || b+n <= c.next {
			continue
		}
		for len(c.holes) > 0 && c.holes[0].blocks < n && m.bits > 0 && 2*m.len() <= budget {
			m.halve(r.inode.Size, w.bits)
			k *= 2
			n = m.chunkBlocks(k, r.inode.Size, w.bits)
		}
		if len(c.holes) == 0 || c.holes[0].blocks < n {
			return false
		}
		to := c.fill(n)
		c.chunk = append(c.chunk, chunkMove{b, to})
		m.blocks[k] = to.start
	}
	return true
}

// halve makes two chunks of each.
func (m *chunkLayout) halve(size int64, blockBits uint8) {
	m.bits--
	fine := make([]int64, chunks(size, blockBits+m.bits))
	for k := range fine {
		if fine[k] = m.blocks[k/2]; fine[k] >= 0 && k&1 == 1 {
			fine[k] += 1 << m.bits
		}
	}
	m.blocks = fine
}

// moveSparse does what planSparse has planned.
func (c *compactor) moveSparse() error {
	for _, m := range c.chunk {
		if err := c.copy(m.from, m.to); err != nil {
			return err
		}
	}
	return nil
}
