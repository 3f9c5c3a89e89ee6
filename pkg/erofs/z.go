package erofs

import (
	"fmt"

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
	// Both, even if no cluster uses the second.
	for _, a := range []Algorithm{m.algorithm(ondisk.LClusterHead1), m.algorithm(ondisk.LClusterHead2)} {
		if a >= ondisk.AlgMax {
			return nil, ino.fail(m.header, fmt.Errorf("compression algorithm %d: %w", a, fault.ErrUnsupported))
		}
	}
	const max = 14 // as the kernel: what a compact index has bits for
	if m.bits > max && ino.Layout == ondisk.LayoutCompressedCompact || m.bits > 20 {
		return nil, ino.fail(m.header, fmt.Errorf("logical clusters of 2^%d bytes: %w", m.bits, fault.ErrUnsupported))
	}
	big1, big2 := m.h.Advise&ondisk.AdviseBigPcluster1 != 0, m.h.Advise&ondisk.AdviseBigPcluster2 != 0
	if (big1 || big2) && !f.has(ondisk.IncompatBigPcluster) {
		return nil, ino.corrupt(m.header, "big pclusters without their feature")
	}
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
	if head.typ == ondisk.LClusterPlain { // Linux looks for its block then
		return m.ino.corrupt(m.header, "a fragment that is marked as not compressed")
	}
	for lcn := head.lcn + 1; lcn < m.count; lcn++ {
		e, err := m.load(&c, lcn)
		if err == nil && e.typ == ondisk.LClusterNonHead {
			err = m.checkBack(e, head)
		}
		if err != nil {
			return err
		}
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
	last := end == m.count<<m.bits // no other head: it ends with the file
	if last && head.lcn == m.count-1 && m.h.Advise&ondisk.AdviseInline != 0 {
		end = m.ino.Size
	}
	// Otherwise Linux does not look at the file's size here, so nor do the checks.
	x := FileExtent{Offset: start, Length: end - start, Kind: ExtentEncoded, Partial: head.partial}
	switch {
	case head.typ != ondisk.LClusterPlain:
		x.Algorithm = m.algorithm(head.typ)
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
		err = m.f.checkEncoded(m.ino, &x)
	} else {
		err = m.f.placeEncoded(m.ino, &x, int64(head.blk)<<m.f.blkBits, blocks<<m.f.blkBits)
	}
	if last {
		x.Length = m.ino.Size - start
	}
	return x, err
}

// extentEnd looks ahead for the next head, where an extent ends, and for the
// number of blocks that the extent has. Without another head it ends with the
// last cluster.
func (m *zMap) extentEnd(c *zCursor, head zEntry, start int64) (end, blocks int64, err error) {
	big := m.h.Advise&ondisk.AdviseBigPcluster2 != 0
	if head.typ == ondisk.LClusterHead1 {
		big = m.h.Advise&ondisk.AdviseBigPcluster1 != 0
	}
	blocks = 1
	for lcn := head.lcn + 1; ; lcn++ {
		if lcn >= m.count {
			return lcn << m.bits, blocks, nil
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
		if err := m.checkBack(e, head); err != nil {
			return 0, 0, err
		}
		switch {
		case lcn == head.lcn+1 && big:
			if blocks = e.blocks; blocks == 0 {
				return 0, 0, m.ino.corrupt(m.header, "cluster %d: no block count for a big pcluster", lcn)
			}
		case e.blocks > 0: // who reads from here on takes it for the extent's
			return 0, 0, m.ino.corrupt(m.header, "cluster %d: a block count in the middle of an extent", lcn)
		}
	}
}

// checkBack holds a cluster of an extent to leading to its head: who reads from
// there on finds that by it.
func (m *zMap) checkBack(e, head zEntry) error {
	if e.back <= 0 || e.lcn-e.back < head.lcn {
		return m.ino.corrupt(m.header, "cluster %d: its head is %d clusters before it, not %d", e.lcn, e.lcn-head.lcn, e.back)
	}
	return nil
}

func fragmentExtent(start, end, addr int64) FileExtent {
	return FileExtent{Offset: start, Length: end - start, Kind: ExtentFragment, Addr: addr, AddrLen: end - start}
}
