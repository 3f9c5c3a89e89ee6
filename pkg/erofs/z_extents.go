package erofs

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// zExtents maps a compressed file with encoded extents: records with byte
// addresses instead of one index entry for each cluster.
//
// Records of 4 and 8 bytes are for extents of one cluster each; those of 4
// have no addresses, so all lie behind one another. Records of 16 and 32 bytes
// tell where in the file they begin.
type zExtents struct {
	*zMap
	table int64
	size  int64 // of a record

	// Where the search for an address left off, with records of 4 bytes.
	mu   sync.Mutex
	no   int64
	addr int64
}

func newZExtents(m *zMap) (*zExtents, error) {
	x := &zExtents{zMap: m, size: int64(m.h.ExtentRecordSize())}
	x.table = (m.header + ondisk.MapHeaderSize + x.size - 1) &^ (x.size - 1)
	if x.size >= 16 {
		x.count = int64(m.h.Extents())
		return x, nil
	}
	if m.bits > 30 { // an extent of data is far smaller, but a hole need not be
		return nil, m.ino.fail(m.header, fmt.Errorf("logical clusters of 2^%d bytes: %w", m.bits, fault.ErrUnsupported))
	}
	x.count = (m.ino.Size + 1<<m.bits - 1) >> m.bits
	if x.size == 4 {
		b, err := m.ino.space.read(x.table, 8)
		if err != nil {
			return nil, m.ino.wrap(err)
		}
		if first := binary.LittleEndian.Uint64(b); first > maxAddr {
			return nil, m.ino.corrupt(x.table, "address %#x", first)
		} else {
			x.addr = int64(first)
		}
		x.table += 8
	}
	return x, nil
}

func (x *zExtents) record(no int64) (ondisk.Extent, error) {
	var e ondisk.Extent
	b, err := x.ino.space.read(x.table+no*x.size, int(x.size))
	if err != nil {
		return e, x.ino.wrap(err)
	}
	e.Decode(b)
	return e, nil
}

// start is where in the file a record of 16 or 32 bytes begins.
func (x *zExtents) start(e *ondisk.Extent) (int64, error) {
	off := int64(e.LstartLo)
	if x.size > 16 {
		if e.LstartHi > maxAddr>>32 {
			return 0, x.ino.corrupt(x.table, "an extent at %#x of the file", e.LstartHi)
		}
		off |= int64(e.LstartHi) << 32
	}
	return off, nil
}

// extentAt implements mapper.
func (x *zExtents) extentAt(off int64) (FileExtent, error) {
	if x.size < 16 {
		return x.clusterAt(off)
	}
	// The record sought is the last that begins at or before off.
	var found ondisk.Extent
	start, end := int64(-1), x.ino.Size
	lo, hi := int64(0), x.count
	for lo < hi {
		mid := lo + (hi-lo)/2
		e, err := x.record(mid)
		if err != nil {
			return FileExtent{}, err
		}
		at, err := x.start(&e)
		if err != nil {
			return FileExtent{}, err
		}
		if at > off {
			if at > end {
				return FileExtent{}, x.ino.corrupt(x.table, "extents are not in order")
			}
			hi, end = mid, at
		} else {
			if at < start {
				return FileExtent{}, x.ino.corrupt(x.table, "extents are not in order")
			}
			lo, found, start = mid+1, e, at
		}
	}
	if start < 0 {
		// Nothing describes the file's beginning: a hole.
		return FileExtent{Length: end, Kind: ExtentHole}, nil
	}
	addr := uint64(found.PstartHi)<<32 | uint64(found.PstartLo)
	return x.extent(found.Plen, addr, start, end, lo == x.count)
}

// clusterAt is extentAt for records of 4 and 8 bytes.
func (x *zExtents) clusterAt(off int64) (FileExtent, error) {
	no := off >> x.bits
	start := no << x.bits
	end := min(start+1<<x.bits, x.ino.Size)
	e, err := x.record(no)
	if err != nil {
		return FileExtent{}, err
	}
	addr := uint64(e.PstartLo)
	if x.size == 4 {
		at, err := x.sum(no)
		if err != nil {
			return FileExtent{}, err
		}
		addr = uint64(at)
	}
	return x.extent(e.Plen, addr, start, end, no == x.count-1)
}

// sum is the address of a record that has none: it adds up the lengths of
// those before it, from the last one asked for where that is before it.
func (x *zExtents) sum(no int64) (int64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i, addr := x.no, x.addr
	if no < i {
		b, err := x.ino.space.read(x.table-8, 8)
		if err != nil {
			return 0, x.ino.wrap(err)
		}
		i, addr = 0, int64(binary.LittleEndian.Uint64(b))
	}
	for ; i < no; i++ {
		e, err := x.record(i)
		if err != nil {
			return 0, err
		}
		if addr += int64(e.Plen & ondisk.ExtentPlenMask); addr > maxAddr {
			return 0, x.ino.corrupt(x.table, "address %#x", addr)
		}
	}
	x.no, x.addr = i, addr
	return addr, nil
}

// extent makes the extent of a record.
func (x *zExtents) extent(plen uint32, addr uint64, start, end int64, last bool) (FileExtent, error) {
	e := FileExtent{Offset: start, Length: end - start}
	if last && x.h.Advise&ondisk.AdviseFragment != 0 {
		at := uint64(plen)
		if x.size > 4 {
			at |= addr << 32
		}
		if at > maxAddr {
			return e, x.ino.corrupt(x.table, "fragment at %#x", at)
		}
		return fragmentExtent(start, end, int64(at)), x.checkFragment()
	}
	n := int64(plen & ondisk.ExtentPlenMask)
	if n == 0 {
		e.Kind = ExtentHole
		return e, nil
	}
	e.Kind, e.Partial = ExtentEncoded, plen&ondisk.ExtentPlenPartial != 0
	switch alg := plen >> ondisk.ExtentPlenFmtBit; {
	case alg > 0:
		e.Algorithm = Algorithm(alg - 1)
	case x.h.Advise&ondisk.AdviseInterlaced != 0 && (int64(addr)|n)&x.f.blockMask() == 0:
		e.Algorithm = AlgInterlaced
	default:
		e.Algorithm = AlgPlain
	}
	if addr > maxAddr {
		return e, x.ino.corrupt(x.table, "address %#x", addr)
	}
	return e, x.f.placeEncoded(x.ino, &e, int64(addr), n)
}
