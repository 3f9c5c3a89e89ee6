package erofs

import (
	"fmt"
	"math"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// ExtentKind says where an extent's bytes come from.
type ExtentKind uint8

const (
	ExtentHole     ExtentKind = iota // nowhere: they are zeros
	ExtentRaw                        // as they are, on a device
	ExtentInline                     // as they are, beside the inode
	ExtentFragment                   // in the packed inode
	ExtentEncoded                    // compressed (or rotated) on a device, or inline
)

func (k ExtentKind) String() string {
	switch k {
	case ExtentHole:
		return "hole"
	case ExtentRaw:
		return "raw"
	case ExtentInline:
		return "inline"
	case ExtentFragment:
		return "fragment"
	case ExtentEncoded:
		return "encoded"
	}
	return fmt.Sprintf("ExtentKind(%d)", k)
}

// Algorithm is how an encoded extent is encoded.
type Algorithm uint8

const (
	AlgLZ4        = Algorithm(ondisk.AlgLZ4)
	AlgLZMA       = Algorithm(ondisk.AlgLZMA)
	AlgDeflate    = Algorithm(ondisk.AlgDeflate)
	AlgZstd       = Algorithm(ondisk.AlgZstd)
	AlgPlain      = Algorithm(ondisk.AlgMax)     // not compressed
	AlgInterlaced = Algorithm(ondisk.AlgMax + 1) // not compressed, and rotated within its blocks
)

func (a Algorithm) String() string {
	names := [...]string{"lz4", "lzma", "deflate", "zstd", "plain", "interlaced"}
	if int(a) < len(names) {
		return names[a]
	}
	return fmt.Sprintf("Algorithm(%d)", a)
}

// FileExtent is a piece of a file and where its bytes are.
type FileExtent struct {
	Offset, Length int64 // in the file
	Kind           ExtentKind
	Device         int   // raw, encoded: the device, 0 is the primary one
	Addr           int64 // raw, encoded: offset in the device; fragment: in the packed inode; inline: in the image or metabox
	AddrLen        int64 // bytes there; differs from Length in encoded extents alone
	Algorithm      Algorithm
	Partial        bool // more is encoded than this file uses
	Meta           bool // encoded: inline, beside the inode
}

// A mapper knows where a file's bytes are.
type mapper interface {
	// extentAt gives the extent that covers off, which is within the file. It
	// may begin before off if it is encoded; it ends behind off.
	extentAt(off int64) (FileExtent, error)
}

// mapper makes the mapper for an inode that has data.
func (f *FS) mapper(ino *inode) (mapper, error) {
	switch ino.Layout {
	case ondisk.LayoutFlatPlain, ondisk.LayoutFlatInline:
		return &flatMap{f, ino}, nil
	case ondisk.LayoutChunkBased:
		return f.newChunkTable(ino)
	default:
		return f.zMap(ino)
	}
}

// flatMap is one run of blocks; with the inline layout the last, shorter one
// lies behind the inode.
type flatMap struct {
	f   *FS
	ino *inode
}

func (m *flatMap) extentAt(off int64) (FileExtent, error) {
	ino, bits := m.ino, m.f.blkBits
	body := ino.Size
	if ino.Layout == ondisk.LayoutFlatInline {
		body = (ino.Size - 1) >> bits << bits
	}
	if off >= body {
		e := FileExtent{Offset: body, Length: ino.Size - body, Kind: ExtentInline, Addr: ino.end(), AddrLen: ino.Size - body}
		if e.Addr&m.f.blockMask()+e.Length > m.f.BlockSize() {
			return e, ino.corrupt(e.Addr, "inline data of %d bytes crosses its block", e.Length)
		}
		return e, nil
	}
	if ino.startblk < 0 {
		return FileExtent{Offset: 0, Length: body, Kind: ExtentHole}, nil
	}
	return m.f.rawExtent(ino, off, body-off, 0, ino.startblk<<bits+off)
}

// rawExtent is n bytes of a file at off that are stored as they are, or those
// of them that lie on one device.
func (f *FS) rawExtent(ino *inode, off, n int64, id int, addr int64) (FileExtent, error) {
	dev, at, avail, err := f.mapAddr(id, addr, n)
	if err != nil {
		return FileExtent{}, ino.fail(ino.Offset, err)
	}
	return FileExtent{Offset: off, Length: avail, Kind: ExtentRaw, Device: dev, Addr: at, AddrLen: avail}, nil
}

// chunkTable is a table of chunks of one size, of which each is somewhere.
type chunkTable struct {
	f       *FS
	ino     *inode
	bits    uint8 // log2 of the chunk's size in bytes
	indexes bool  // 8-byte entries with device numbers
	wide    bool  // addresses of 48 bits
	table   int64 // offset in the inode's space
}

func (f *FS) newChunkTable(ino *inode) (*chunkTable, error) {
	format := ino.u & math.MaxUint16
	if format&^ondisk.ChunkAll != 0 {
		return nil, ino.fail(ino.Offset, fmt.Errorf("chunk format %#x: %w", format, fault.ErrUnsupported))
	}
	m := &chunkTable{
		f:       f,
		ino:     ino,
		bits:    f.blkBits + uint8(format&ondisk.ChunkBlkBitsMask),
		indexes: format&ondisk.ChunkIndexes != 0,
		wide:    format&ondisk.Chunk48Bit != 0,
	}
	unit := int64(ondisk.BlockMapEntrySize)
	if m.indexes {
		unit = ondisk.ChunkIndexSize
	}
	m.table = (ino.end() + unit - 1) &^ (unit - 1)
	return m, nil
}

// chunk reads one entry. addr is a byte address, -1 for a hole.
func (m *chunkTable) chunk(no int64) (id int, addr int64, err error) {
	if m.indexes {
		b, err := m.ino.space.read(m.table+no*ondisk.ChunkIndexSize, ondisk.ChunkIndexSize)
		if err != nil {
			return 0, 0, m.ino.wrap(err)
		}
		var c ondisk.ChunkIndex
		c.Decode(b)
		blk, hole := int64(c.StartblkLo), c.StartblkLo == math.MaxUint32
		if m.wide {
			blk |= int64(c.StartblkHi) << 32
			hole = hole && c.StartblkHi == math.MaxUint16
		}
		if hole {
			return 0, -1, nil
		}
		// The device number's high bits are reserved: as many count as the
		// number of devices needs.
		return int(c.DeviceID) & m.f.deviceMask(), blk << m.f.blkBits, nil
	}
	b, err := m.ino.space.read(m.table+no*ondisk.BlockMapEntrySize, ondisk.BlockMapEntrySize)
	if err != nil {
		return 0, 0, m.ino.wrap(err)
	}
	blk := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
	if blk == math.MaxUint32 {
		return 0, -1, nil
	}
	return 0, int64(blk) << m.f.blkBits, nil
}

// deviceMask is the least mask of ones that holds every device number.
func (f *FS) deviceMask() int {
	mask := 0
	for mask < len(f.devices)-1 {
		mask = mask<<1 | 1
	}
	return mask
}

// extentAt joins chunks that follow one another, so that a large file in
// small chunks is read in large pieces.
func (m *chunkTable) extentAt(off int64) (FileExtent, error) {
	const enough = 1 << 20
	no := off >> m.bits
	id, addr, err := m.chunk(no)
	if err != nil {
		return FileExtent{}, err
	}
	start := no << m.bits
	end := start
	for {
		end = min(end+1<<m.bits, m.ino.Size)
		if end >= m.ino.Size || end-off >= enough {
			break
		}
		no++
		nextID, next, err := m.chunk(no)
		if err != nil || addr < 0 && next >= 0 || addr >= 0 && (next != addr+end-start || nextID != id) {
			break // an error is reported when that chunk is asked for
		}
	}
	if addr < 0 {
		return FileExtent{Offset: start, Length: end - start, Kind: ExtentHole}, nil
	}
	return m.f.rawExtent(m.ino, off, end-off, id, addr+off-start)
}
