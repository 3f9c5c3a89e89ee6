package erofs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// contents checks where an inode's contents are: that the map can be decoded,
// that extents lie within their devices; and, where asked to, that the bytes
// can be read.
func (c *checker) contents(ino *inode, at *pathNode) {
	d, err := c.f.data(ino)
	if err != nil {
		c.problem(RuleExtent, ino.Nid, at, "%v", err)
		return
	}
	if _, ok := d.m.(*zExtents); ok && !c.f.has(ondisk.Incompat48Bit) {
		c.problem(RuleExtent, ino.Nid, at, "encoded extents without the 48BIT feature, which Linux before 6.15 takes for an index")
	}
	if t, ok := d.m.(interface{ index() (off, n int64) }); ok {
		off, n := t.index()
		if size := c.f.metaSize(); n > size {
			c.problem(RuleExtent, ino.Nid, at, "an index of %d bytes, in an image that has %d for all", n, size)
			return
		}
		// Indexes share no bytes, so sound ones fit in; going through others
		// could take the square of the image's size.
		if c.indexes -= n; c.indexes < 0 {
			c.problem(RuleOverlap, ino.Nid, at, "indexes take up more bytes than there are")
			return
		}
		c.note(ino.space, off, n, ino.Nid, true)
	}
	var failed error
	err = c.f.extents(ino, func(e FileExtent) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		c.extent(ino, at, &e)
		if c.o.Data && failed == nil {
			failed = c.read(d, &e)
		}
		return nil
	})
	if c.ctx.Err() != nil {
		return
	}
	if err != nil {
		c.problem(RuleExtent, ino.Nid, at, "%v", err)
	}
	if failed != nil && !errors.Is(failed, ErrNoDevice) {
		c.problem(RuleData, ino.Nid, at, "%v", failed)
	}
}

// extent checks one extent's place, and notes it.
func (c *checker) extent(ino *inode, at *pathNode, e *FileExtent) {
	switch {
	case e.Kind == ExtentHole:
		return
	case e.Kind == ExtentInline, e.Kind == ExtentEncoded && e.Meta:
		c.note(ino.space, e.Addr, e.AddrLen, ino.Nid, true)
		return
	case e.Kind == ExtentFragment:
		if size := c.f.packed.Size(); e.Addr+e.AddrLen > size {
			c.problem(RuleBounds, ino.Nid, at, "fragment at %#x of %d bytes, in a packed inode of %d", e.Addr, e.AddrLen, size)
		}
		return
	}
	if size := c.f.devices[e.Device].size; e.Addr+e.AddrLen > size {
		c.problem(RuleBounds, ino.Nid, at, "extent at %#x of %d bytes, on device %d of %d", e.Addr, e.AddrLen, e.Device, size)
		return
	}
	if e.Kind == ExtentEncoded {
		c.notePcluster(ino, e)
	}
	if e.Device == 0 {
		// What describes other files counts as metadata.
		c.note(c.f.meta, e.Addr, e.AddrLen, ino.Nid, ino.isDir())
	}
}

// read reads one extent's bytes.
func (c *checker) read(d *fileData, e *FileExtent) error {
	if e.Kind == ExtentHole {
		return nil // there may be 2^60 bytes of it
	}
	// A whole extent at once, where that is not too much, is decoded in place.
	if n := int(min(e.Length, 1<<20)); len(c.buf) < n {
		c.buf = make([]byte, n)
	}
	for off, end := e.Offset, e.Offset+e.Length; off < end; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := d.ReadAt(c.buf[:min(int64(len(c.buf)), end-off)], off)
		if n == 0 {
			return err
		}
		off += int64(n)
		c.seen.Bytes += int64(n)
	}
	return nil
}

// sharedXattrs notes the places of an inode's shared attributes.
func (c *checker) sharedXattrs(ino *inode, h *ondisk.XattrHeader) {
	space := c.f.sharedXattrSpace()
	b, err := ino.space.read(ino.Offset+ino.isize+ondisk.XattrHeaderSize, ondisk.XattrSharedIDSize*int(h.SharedCount))
	if err != nil {
		return // read before
	}
	for ; len(b) > 0; b = b[ondisk.XattrSharedIDSize:] {
		id := binary.LittleEndian.Uint32(b)
		if c.shared[id] {
			continue
		}
		c.shared[id] = true
		off := c.f.sharedXattrOffset(id)
		if eb, err := space.read(off, ondisk.XattrEntrySize); err == nil {
			var e ondisk.XattrEntry
			e.Decode(eb)
			c.note(space, off, int64(e.Size()), noNid, true)
		}
	}
}

// byteRange is a range of a space that something takes up.
type byteRange struct {
	start, end int64
	nid        uint64
	meta       bool
}

// noNid stands for what belongs to no inode.
const noNid = ^uint64(0)

// note notes that a range is taken.
func (c *checker) note(s *metaSpace, off, n int64, nid uint64, meta bool) {
	if n <= 0 || off < 0 {
		return
	}
	list := &c.ranges[0]
	if s != c.f.meta {
		list = &c.ranges[1]
	}
	if k := len(*list); k > 0 {
		// An inode, its inline data and its index follow one another.
		if last := &(*list)[k-1]; last.nid == nid && last.meta == meta && last.end == off {
			last.end += n
			return
		}
	}
	*list = append(*list, byteRange{off, off + n, nid, meta})
}

// overlaps reports metadata that shares bytes with anything. Data may be
// shared: that is what deduplication does.
func (c *checker) overlaps() {
	for _, list := range c.ranges {
		slices.SortFunc(list, func(a, b byteRange) int {
			return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end), cmp.Compare(a.nid, b.nid))
		})
		var meta, data byteRange // of each kind the one that reaches farthest
		for _, r := range list {
			other := meta
			if r.meta && data.end > other.end {
				other = data
			}
			if r.start < other.end {
				c.problem(RuleOverlap, r.nid, c.named(describeNid(r.nid)), "bytes %#x..%#x are also those of %s", r.start, min(r.end, other.end), describeNid(other.nid))
			}
			switch {
			case r.meta && r.end > meta.end:
				meta = r
			case !r.meta && r.end > data.end:
				data = r
			}
		}
	}
}

func describeNid(nid uint64) string {
	if nid == noNid {
		return "the superblock or a table"
	}
	return "nid " + FormatNid(nid)
}

// index is where the chunk table is.
func (m *chunkTable) index() (off, n int64) {
	unit := int64(ondisk.BlockMapEntrySize)
	if m.indexes {
		unit = ondisk.ChunkIndexSize
	}
	return m.table, ((m.ino.Size-1)>>m.bits + 1) * unit
}

// index is where the map header and the cluster indexes are.
func (m *zMap) index() (off, n int64) {
	if m.count == 0 {
		return m.header, ondisk.MapHeaderSize
	}
	var c zCursor
	last, err := m.load(&c, m.count-1)
	if err != nil {
		return m.header, ondisk.MapHeaderSize + 2*m.count // at least; reported with the extents
	}
	return m.header, last.next - m.header
}

// index is where the map header and the records are.
func (x *zExtents) index() (off, n int64) {
	return x.header, x.table + x.count*x.size - x.header
}
