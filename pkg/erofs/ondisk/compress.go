package ondisk

// Algorithms, z_erofs_map_header.h_algorithmtype and bits of ComprAlgs.
const (
	AlgLZ4     = 0
	AlgLZMA    = 1
	AlgDeflate = 2
	AlgZstd    = 3
	AlgMax     = 4
)

const (
	PclusterMaxSize  = 1 << 20  // Z_EROFS_PCLUSTER_MAX_SIZE: encoded bytes of one extent
	PclusterMaxDSize = 12 << 20 // Z_EROFS_PCLUSTER_MAX_DSIZE: decoded bytes of one extent
	LZMAMinDictSize  = 4 << 10
	LZMAMaxDictSize  = 8 << 20 // Z_EROFS_LZMA_MAX_DICT_SIZE
	ZstdMaxWindow    = 1 << 20 // Z_EROFS_ZSTD_MAX_DICT_SIZE
)

// Sizes in bytes.
const (
	MapHeaderSize     = 8
	LClusterIndexSize = 8
	ExtentMaxSize     = 32
)

// MapHeader.Advise.
const (
	AdviseCompacted2B  = 0x01 // compact indexes: 2-byte packs amid the 4-byte ones
	AdviseExtents      = 0x01 // full indexes: Extent records instead
	AdviseBigPcluster1 = 0x02 // HEAD1 clusters may have more than one block
	AdviseBigPcluster2 = 0x04 // HEAD2 ones
	AdviseInline       = 0x08 // the last cluster lies behind the indexes
	AdviseInterlaced   = 0x10 // plain clusters are rotated, not shifted
	AdviseFragment     = 0x20 // the tail lies in the packed inode

	AdviseExtRecSzBit  = 1 // with AdviseExtents: log2(record size / 4)
	AdviseExtRecSzMask = 3
)

// MapHeader is struct z_erofs_map_header, behind a compressed inode and its
// xattrs at a multiple of 8. If the top bit of ClusterBits is set, the whole
// file is a fragment, and the other 63 bits of the header are its offset in
// the packed inode.
type MapHeader struct {
	FragmentOff   uint32 // 00 h_fragmentoff; or u16 reserved, u16 h_idata_size; or h_extents_lo
	Advise        uint16 // 04 h_advise
	AlgorithmType uint8  // 06 h_algorithmtype: HEAD1 in bits 0..3, HEAD2 in 4..7; or h_extents_hi
	ClusterBits   uint8  // 07 h_clusterbits: log2(logical cluster / block)
}

// MapHeaderFragment is the bit of ClusterBits for a file in the packed inode.
const MapHeaderFragment = 0x80 // 1 << Z_EROFS_FRAGMENT_INODE_BIT

// IdataSize is the encoded size of the inline cluster in bytes.
func (h *MapHeader) IdataSize() uint16 { return uint16(h.FragmentOff >> 16) }

// Extents is the number of Extent records.
func (h *MapHeader) Extents() uint64 {
	return uint64(h.FragmentOff) | uint64(h.AlgorithmType)<<32 | uint64(h.ClusterBits)<<40
}

// WholeFragment says whether the file is a fragment, and where.
func (h *MapHeader) WholeFragment() (off uint64, ok bool) {
	off = uint64(h.FragmentOff) | uint64(h.Advise)<<32 | uint64(h.AlgorithmType)<<48 |
		uint64(h.ClusterBits&^MapHeaderFragment)<<56
	return off, h.ClusterBits&MapHeaderFragment != 0
}

// ExtentRecordSize is the size of an Extent record in bytes: 4, 8, 16 or 32.
func (h *MapHeader) ExtentRecordSize() int {
	return 4 << (h.Advise >> AdviseExtRecSzBit & AdviseExtRecSzMask)
}

// Append appends MapHeaderSize bytes.
func (h *MapHeader) Append(dst []byte) []byte {
	dst = le.AppendUint32(dst, h.FragmentOff)
	dst = le.AppendUint16(dst, h.Advise)
	return append(dst, h.AlgorithmType, h.ClusterBits)
}

// Decode reads MapHeaderSize bytes.
func (h *MapHeader) Decode(b []byte) {
	_ = b[MapHeaderSize-1]
	*h = MapHeader{
		FragmentOff:   le.Uint32(b),
		Advise:        le.Uint16(b[4:]),
		AlgorithmType: b[6],
		ClusterBits:   b[7],
	}
}

// Types of a logical cluster: bits 0 and 1 of LClusterIndex.Advise, and the
// two bits above the value of a compact index.
const (
	LClusterPlain   = 0 // begins an extent that is not compressed
	LClusterHead1   = 1 // begins a compressed one
	LClusterNonHead = 2 // begins none
	LClusterHead2   = 3 // begins one compressed with the second algorithm

	LClusterTypeMask = 3

	LIPartialRef = 1 << 15 // Z_EROFS_LI_PARTIAL_REF, of Advise: less is used than is encoded
	LID0Cblkcnt  = 1 << 11 // Z_EROFS_LI_D0_CBLKCNT, of delta[0]: a count of blocks instead
)

// LClusterIndex is struct z_erofs_lcluster_index, the full form.
type LClusterIndex struct {
	Advise     uint16 // 00 di_advise: type, LIPartialRef
	ClusterOfs uint16 // 02 di_clusterofs: where in the cluster its extent begins
	U          uint32 // 04 di_u: blkaddr; NONHEAD: delta[0] low, delta[1] high half
}

// Append appends LClusterIndexSize bytes.
func (l *LClusterIndex) Append(dst []byte) []byte {
	dst = le.AppendUint16(dst, l.Advise)
	dst = le.AppendUint16(dst, l.ClusterOfs)
	return le.AppendUint32(dst, l.U)
}

// Decode reads LClusterIndexSize bytes.
func (l *LClusterIndex) Decode(b []byte) {
	_ = b[LClusterIndexSize-1]
	*l = LClusterIndex{Advise: le.Uint16(b), ClusterOfs: le.Uint16(b[2:]), U: le.Uint32(b[4:])}
}

// Bits of Extent.Plen.
const (
	ExtentPlenMask    = PclusterMaxSize<<1 - 1 // Z_EROFS_EXTENT_PLEN_MASK: encoded bytes; 0 is a hole
	ExtentPlenPartial = 1 << 27                // Z_EROFS_EXTENT_PLEN_PARTIAL: less is used than is encoded
	ExtentPlenFmtBit  = 28                     // Z_EROFS_EXTENT_PLEN_FMT_BIT: algorithm + 1; 0 is plain
)

// Extent is struct z_erofs_extent in its longest form of 32 bytes. Shorter
// records (MapHeader.ExtentRecordSize) leave out what stands at the end.
type Extent struct {
	Plen     uint32   // 00 plen
	PstartLo uint32   // 04 pstart_lo: a byte address
	PstartHi uint32   // 08 pstart_hi
	LstartLo uint32   // 0C lstart_lo: offset in the file
	LstartHi uint32   // 10 lstart_hi: for files of 4 GiB and more
	_        [12]byte // 14 reserved
}

// Append appends ExtentMaxSize bytes; cut them to the record size.
func (e *Extent) Append(dst []byte) []byte {
	dst = le.AppendUint32(dst, e.Plen)
	dst = le.AppendUint32(dst, e.PstartLo)
	dst = le.AppendUint32(dst, e.PstartHi)
	dst = le.AppendUint32(dst, e.LstartLo)
	dst = le.AppendUint32(dst, e.LstartHi)
	return append(dst, make([]byte, 12)...)
}

// Decode reads a record of any size: what b does not reach becomes zero.
func (e *Extent) Decode(b []byte) {
	var full [ExtentMaxSize]byte
	copy(full[:], b)
	*e = Extent{
		Plen:     le.Uint32(full[0x00:]),
		PstartLo: le.Uint32(full[0x04:]),
		PstartHi: le.Uint32(full[0x08:]),
		LstartLo: le.Uint32(full[0x0c:]),
		LstartHi: le.Uint32(full[0x10:]),
	}
}
