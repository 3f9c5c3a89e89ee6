package erofs

import (
	"fmt"
	"math/bits"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// zEntry is an index entry: what it says of its logical cluster.
type zEntry struct {
	lcn     int64
	typ     uint8
	ofs     int64  // head: where in the cluster its extent begins
	blk     uint32 // head: first block
	back    int64  // nonhead: distance to its head, or at least towards it
	blocks  int64  // nonhead: the extent's blocks; 0 if it does not say
	partial bool
	next    int64 // offset behind the entry, or behind its pack
}

// zCursor keeps the pack that was decoded last.
type zCursor struct {
	pack int64 // its offset; 0 is none
	n    int
	lo   [16]uint16
	typ  [16]uint8
	base uint32
}

// load reads the entry of a cluster.
func (m *zMap) load(c *zCursor, lcn int64) (zEntry, error) {
	if lcn < 0 || lcn >= m.count {
		return zEntry{}, m.ino.corrupt(m.header, "cluster %d of %d", lcn, m.count)
	}
	var e zEntry
	var err error
	if m.ino.Layout == ondisk.LayoutCompressedFull {
		e, err = m.loadFull(lcn)
	} else {
		e, err = m.loadCompact(c, lcn)
	}
	if err == nil && e.typ != ondisk.LClusterNonHead && e.ofs >= 1<<m.bits {
		err = m.ino.corrupt(m.header, "cluster %d: offset %d in a cluster of %d", lcn, e.ofs, int64(1)<<m.bits)
	}
	return e, err
}

// algorithm is that of the extents which have a head of this type.
func (m *zMap) algorithm(head uint8) Algorithm {
	if head == ondisk.LClusterHead2 {
		return Algorithm(m.h.AlgorithmType >> 4)
	}
	return Algorithm(m.h.AlgorithmType & 15)
}

func (m *zMap) bigPclusters() bool {
	return m.h.Advise&(ondisk.AdviseBigPcluster1|ondisk.AdviseBigPcluster2) != 0
}

// loadFull reads an entry of 8 bytes. They begin 8 bytes behind the header.
func (m *zMap) loadFull(lcn int64) (zEntry, error) {
	off := m.header + ondisk.MapHeaderSize + 8 + lcn*ondisk.LClusterIndexSize
	b, err := m.ino.space.read(off, ondisk.LClusterIndexSize)
	if err != nil {
		return zEntry{}, m.ino.wrap(err)
	}
	var x ondisk.LClusterIndex
	x.Decode(b)
	e := zEntry{lcn: lcn, typ: uint8(x.Advise & ondisk.LClusterTypeMask), next: off + ondisk.LClusterIndexSize}
	if e.typ != ondisk.LClusterNonHead {
		e.ofs, e.blk, e.partial = int64(x.ClusterOfs), x.U, x.Advise&ondisk.LIPartialRef != 0
		return e, nil
	}
	e.back = int64(x.U & 0xffff)
	if e.back&ondisk.LID0Cblkcnt != 0 {
		if !m.bigPclusters() {
			return e, m.ino.corrupt(off, "a big pcluster in a file without them")
		}
		e.back, e.blocks = 1, e.back&^ondisk.LID0Cblkcnt
	}
	return e, nil
}

// loadCompact reads an entry of 2 or 4 bytes on average: packs of 16 entries
// in 32 bytes, or of 2 in 8. A pack holds the entries' low bits and types side
// by side, and in its last 4 bytes a block address that its heads count from.
func (m *zMap) loadCompact(c *zCursor, lcn int64) (zEntry, error) {
	off := m.header + ondisk.MapHeaderSize
	// Entries of 4 bytes lead up to a multiple of 32, where the large packs
	// begin; what does not fill one of those is in small ones again.
	first := (32 - off%32) / 4 & 7
	large := int64(0)
	if m.h.Advise&ondisk.AdviseCompacted2B != 0 && first < m.count {
		large = (m.count - first) &^ 15
	}
	size, i := int64(4), lcn
	switch {
	case i < first:
	case i < first+large:
		off, size, i = off+first*4, 2, i-first
	default:
		off, i = off+first*4+large*2, i-first-large
	}
	off += i * size
	n := int64(2)
	if size == 2 {
		n = 16
		if m.bits > 12 {
			return zEntry{}, m.ino.fail(m.header, fmt.Errorf("2-byte indexes of clusters of 2^%d bytes: %w", m.bits, fault.ErrUnsupported))
		}
	}
	pack := off &^ (n*size - 1)
	if c.pack != pack {
		if err := m.loadPack(c, pack, int(n), int(n*size)); err != nil {
			return zEntry{}, err
		}
	}
	return m.unpack(c, lcn, int(off-pack)/int(size), pack+n*size)
}

// loadPack decodes a pack of n entries in size bytes.
func (m *zMap) loadPack(c *zCursor, off int64, n, size int) error {
	b, err := m.ino.space.read(off, size)
	if err != nil {
		return m.ino.wrap(err)
	}
	lobits := max(uint(m.bits), uint(bits.Len(ondisk.LID0Cblkcnt)))
	width := uint(size-4) * 8 / uint(n)
	for i := range n {
		at := uint(i) * width
		// Four bytes never reach past the pack, whose last four are the base.
		v := uint32(b[at/8]) | uint32(b[at/8+1])<<8 | uint32(b[at/8+2])<<16 | uint32(b[at/8+3])<<24
		v >>= at % 8
		c.lo[i] = uint16(v & (1<<lobits - 1))
		c.typ[i] = uint8(v >> lobits & ondisk.LClusterTypeMask)
	}
	t := b[size-4:]
	c.base = uint32(t[0]) | uint32(t[1])<<8 | uint32(t[2])<<16 | uint32(t[3])<<24
	c.pack, c.n = off, n
	return nil
}

// unpack makes an entry from element i of the cursor's pack.
func (m *zMap) unpack(c *zCursor, lcn int64, i int, next int64) (zEntry, error) {
	e := zEntry{lcn: lcn, typ: c.typ[i], next: next}
	lo := int64(c.lo[i])
	big := m.h.Advise&ondisk.AdviseBigPcluster1 != 0
	if e.typ != ondisk.LClusterNonHead {
		blocks, err := m.blocksBefore(c, i, big)
		if err != nil {
			return e, err
		}
		e.ofs, e.blk = lo, c.base+blocks
		return e, nil
	}
	switch {
	case lo&ondisk.LID0Cblkcnt != 0:
		if !big {
			return e, m.ino.corrupt(c.pack, "a big pcluster in a file without them")
		}
		e.back, e.blocks = 1, lo&^ondisk.LID0Cblkcnt
	case i+1 < c.n:
		e.back = lo
	default:
		// The last of a pack tells the distance to the next head instead, so
		// the one before it has to say how far back its own is.
		switch p := i - 1; {
		case c.typ[p] != ondisk.LClusterNonHead:
			e.back = 1
		case c.lo[p]&ondisk.LID0Cblkcnt != 0:
			e.back = 2
		default:
			e.back = int64(c.lo[p]) + 1
		}
	}
	return e, nil
}

// blocksBefore counts the blocks that the extents of a pack before element i
// take, which stand between the pack's base and that element's first block.
func (m *zMap) blocksBefore(c *zCursor, i int, big bool) (uint32, error) {
	if !big {
		// Each extent has one block, and the base is that of the extent which
		// ends before the pack: hence one more.
		n := uint32(1)
		for i--; i >= 0; i-- {
			if c.typ[i] == ondisk.LClusterNonHead {
				i -= int(c.lo[i]) // on to its head, in this pack or before it
			}
			if i >= 0 {
				n++
			}
		}
		return n, nil
	}
	n := uint32(0)
	for i--; i >= 0; i-- {
		lo := c.lo[i]
		switch {
		case c.typ[i] != ondisk.LClusterNonHead:
			n++
		case lo&ondisk.LID0Cblkcnt != 0:
			n += uint32(lo &^ ondisk.LID0Cblkcnt)
			i-- // its head, whose blocks these are
		case lo <= 1:
			return 0, m.ino.corrupt(c.pack, "a distance of %d behind a pcluster's block count", lo)
		default:
			i -= int(lo) - 2 // on to the entry that has the count
		}
	}
	return n, nil
}
