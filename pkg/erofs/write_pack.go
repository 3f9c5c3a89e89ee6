package erofs

import (
	"math/bits"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// A packer finds places for inodes, and what goes with them, in blocks. An
// inline tail must lie in one block with its inode; what has none is like
// water: it may run on from the end of one block to the next. Whatever fits into
// the rest of a block that was left goes to the fullest such block. Only the
// newest blocks stay open, so that whoever writes what was planned needs a
// window, not the whole.
type packer struct {
	bs     int64
	next   int64     // offset behind all that was placed, a multiple of a slot
	byFree [][]int64 // blocks before that one, by how many slots they have left
	some   []uint64  // bitmap of those that are not empty
}

// packWindow is how many bytes of blocks stay open.
const packWindow = 4 << 20

func newPacker(bs, used int64) *packer {
	p := &packer{bs: bs, next: alignSlot(used), byFree: make([][]int64, bs/ondisk.SlotSize)}
	p.some = make([]uint64, len(p.byFree)/64+1)
	return p
}

func alignSlot(n int64) int64 { return (n + ondisk.SlotSize - 1) &^ (ondisk.SlotSize - 1) }

// leave opens the rest of the last block to what fits there.
func (p *packer) leave() {
	rest := -p.next & (p.bs - 1)
	if rest == 0 {
		return
	}
	free := rest / ondisk.SlotSize
	p.byFree[free] = append(p.byFree[free], p.next)
	p.some[free/64] |= 1 << (free % 64)
	p.next += rest
}

// take finds the least rest of a block that has at least that many slots, but
// less than the given limit, and returns its offset.
func (p *packer) take(slots, limit int64) (off int64, ok bool) {
	oldest := p.next - max(packWindow, 16*p.bs)
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
		if free >= limit {
			return 0, false
		}
		list := p.byFree[free]
		off = list[len(list)-1]
		if p.byFree[free] = list[:len(list)-1]; len(list) == 1 {
			p.some[word] &^= 1 << (free % 64)
		}
		if off < oldest {
			continue
		}
		if left := free - slots; left > 0 {
			p.byFree[left] = append(p.byFree[left], off+slots*ondisk.SlotSize)
			p.some[left/64] |= 1 << (left % 64)
		}
		return off, true
	}
	return 0, false
}

// place finds room for an inode and what follows it, size bytes, and returns
// the offset. What is whole stays within a block; it is not larger than one.
func (p *packer) place(size int64, whole bool) (off int64) {
	size = alignSlot(size)
	slots := size / ondisk.SlotSize
	rest := -p.next & (p.bs - 1)
	limit := p.bs / ondisk.SlotSize
	if size <= rest {
		limit = rest / ondisk.SlotSize // the last block is as good as one that has more
	}
	if off, ok := p.take(slots, limit); ok {
		return off
	}
	if whole && size > rest {
		p.leave()
	}
	off = p.next
	p.next += size
	return off
}

// end is the offset behind all that was placed, in whole blocks.
func (p *packer) end() int64 { return (p.next + p.bs - 1) &^ (p.bs - 1) }
