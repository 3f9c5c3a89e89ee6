package erofs

import (
	"fmt"
	"math/bits"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// zMap maps a compressed file with an index entry for each logical cluster, in
// the full or the compact form. An extent begins at a head cluster's offset
// and reaches to the next head's.
type zMap struct {
	f      *FS
	ino    *inode
	h      ondisk.MapHeader
	header int64 // offset of the map header in the inode's space
	bits   uint8 // log2 of the logical cluster size
	count  int64 // clusters

	// The last extent may lie elsewhere: behind the indexes, or in the packed
	// inode. It is the one that begins in cluster tail; -1 if there is none.
	tail      int64
	inlineOff int64
	fragment  int64
}

// zMap makes the mapper for a compressed inode.
func (f *FS) zMap(ino *inode) (mapper, error) {
	m := &zMap{f: f, ino: ino, tail: -1, header: (ino.end() + 7) &^ 7}
	b, err := ino.space.read(m.header, ondisk.MapHeaderSize)
	if err != nil {
		return nil, ino.wrap(err)
	}
	m.h.Decode(b)
	if off, ok := m.h.WholeFragment(); ok {
		if off > maxAddr {
			return nil, ino.corrupt(m.header, "fragment at %#x", off)
		}
		return m, m.fragmentTail(0, int64(off))
	}
	if m.bits = f.blkBits + m.h.ClusterBits&15; ino.Layout == ondisk.LayoutCompressedFull && m.h.Advise&ondisk.AdviseExtents != 0 {
		return newZExtents(m)
	}
	const max = 14 // as the kernel: what a compact index has bits for
	if m.bits > max && ino.Layout == ondisk.LayoutCompressedCompact || m.bits > 20 {
		return nil, ino.fail(m.header, fmt.Errorf("logical clusters of 2^%d bytes: %w", m.bits, fault.ErrUnsupported))
	}
	big1, big2 := m.h.Advise&ondisk.AdviseBigPcluster1 != 0, m.h.Advise&ondisk.AdviseBigPcluster2 != 0
	if ino.Layout == ondisk.LayoutCompressedCompact && big1 != big2 {
		return nil, ino.corrupt(m.header, "big pclusters of one head alone, in compact indexes")
	}
	m.count = (ino.Size + 1<<m.bits - 1) >> m.bits
	inline := m.h.Advise&ondisk.AdviseInline != 0 && m.h.IdataSize() > 0
	if m.h.Advise&ondisk.AdviseFragment == 0 && !inline {
		return m, nil
	}
	return m, m.findTail()
}

// findTail finds the last extent.
func (m *zMap) findTail() error {
	var c zCursor
	last, err := m.load(&c, (m.ino.Size-1)>>m.bits)
	if err != nil {
		return err
	}
	head, err := m.head(&c, last, m.ino.Size-1)
	if err != nil {
		return err
	}
	if m.h.Advise&ondisk.AdviseFragment == 0 {
		m.tail, m.inlineOff = head.lcn, last.next
		return nil
	}
	off := int64(m.h.FragmentOff)
	if m.ino.Layout == ondisk.LayoutCompressedFull {
		off |= int64(head.blk) << 32 // bounded when it is used
	}
	return m.fragmentTail(head.lcn, off)
}

// fragmentTail notes that the extent of a cluster lies in the packed inode.
func (m *zMap) fragmentTail(lcn, off int64) error {
	m.tail, m.fragment = lcn, off
	return m.checkFragment()
}

func (m *zMap) checkFragment() error {
	if m.f.packed == nil || m.ino.noFragments {
		return m.ino.corrupt(m.header, "a fragment, but no packed inode")
	}
	return nil
}

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

// head finds the head of the extent that covers off, from the entry of off's
// cluster.
func (m *zMap) head(c *zCursor, e zEntry, off int64) (zEntry, error) {
	back := e.back
	if e.typ != ondisk.LClusterNonHead {
		if off&(1<<m.bits-1) >= e.ofs {
			return e, nil
		}
		back = 1 // the extent before this head's
	}
	for lcn := e.lcn; ; {
		if back <= 0 || back > lcn {
			return e, m.ino.corrupt(m.header, "cluster %d has no head", e.lcn)
		}
		if lcn -= back; (e.lcn-lcn)<<m.bits > ondisk.PclusterMaxDSize {
			return e, m.ino.corrupt(m.header, "cluster %d: its head is too far away", e.lcn)
		}
		h, err := m.load(c, lcn)
		if err != nil {
			return e, err
		}
		if h.typ != ondisk.LClusterNonHead {
			return h, nil
		}
		back = h.back
	}
}

// extentAt implements mapper.
func (m *zMap) extentAt(off int64) (FileExtent, error) {
	if m.tail == 0 && m.inlineOff == 0 {
		return fragmentExtent(0, m.ino.Size, m.fragment), nil
	}
	var c zCursor
	e, err := m.load(&c, off>>m.bits)
	if err != nil {
		return FileExtent{}, err
	}
	head, err := m.head(&c, e, off)
	if err != nil {
		return FileExtent{}, err
	}
	start := head.lcn<<m.bits + head.ofs
	if m.tail >= 0 && head.lcn == m.tail && m.inlineOff == 0 {
		return fragmentExtent(start, m.ino.Size, m.fragment), nil
	}
	end, blocks, err := m.extentEnd(&c, head, start)
	if err != nil {
		return FileExtent{}, err
	}
	x := FileExtent{Offset: start, Length: end - start, Kind: ExtentEncoded, Partial: head.partial}
	switch {
	case head.typ == ondisk.LClusterHead1:
		x.Algorithm = Algorithm(m.h.AlgorithmType & 15)
	case head.typ == ondisk.LClusterHead2:
		x.Algorithm = Algorithm(m.h.AlgorithmType >> 4)
	case m.h.Advise&ondisk.AdviseInterlaced != 0:
		x.Algorithm = AlgInterlaced
	default:
		x.Algorithm = AlgPlain
	}
	if m.tail >= 0 && head.lcn == m.tail {
		x.Meta, x.Addr, x.AddrLen = true, m.inlineOff, int64(m.h.IdataSize())
		if x.Addr&m.f.blockMask()+x.AddrLen > m.f.BlockSize() {
			return x, m.ino.corrupt(x.Addr, "inline pcluster of %d bytes crosses its block", x.AddrLen)
		}
		return x, m.f.checkEncoded(m.ino, &x)
	}
	return x, m.f.placeEncoded(m.ino, &x, int64(head.blk)<<m.f.blkBits, blocks<<m.f.blkBits)
}

// extentEnd looks ahead for the next head, where an extent ends, and for the
// number of blocks that the extent has.
func (m *zMap) extentEnd(c *zCursor, head zEntry, start int64) (end, blocks int64, err error) {
	big := m.h.Advise&ondisk.AdviseBigPcluster2 != 0
	if head.typ == ondisk.LClusterHead1 {
		big = m.h.Advise&ondisk.AdviseBigPcluster1 != 0
	}
	blocks = 1
	for lcn := head.lcn + 1; ; lcn++ {
		if lcn >= m.count {
			return m.ino.Size, blocks, nil
		}
		if lcn<<m.bits-start > ondisk.PclusterMaxDSize {
			return 0, 0, m.ino.corrupt(m.header, "cluster %d: no end within %d bytes", head.lcn, ondisk.PclusterMaxDSize)
		}
		e, err := m.load(c, lcn)
		if err != nil {
			return 0, 0, err
		}
		if e.typ != ondisk.LClusterNonHead {
			return lcn<<m.bits + e.ofs, blocks, nil
		}
		if lcn == head.lcn+1 && big {
			if blocks = e.blocks; blocks == 0 {
				return 0, 0, m.ino.corrupt(m.header, "cluster %d: no block count for a big pcluster", lcn)
			}
		}
	}
}

func fragmentExtent(start, end, addr int64) FileExtent {
	return FileExtent{Offset: start, Length: end - start, Kind: ExtentFragment, Addr: addr, AddrLen: end - start}
}
