// Package ondisk holds the structures of the EROFS on-disk format: their
// fields in disk order, their sizes, and the constants that go with them.
// It reads and writes bytes and knows nothing of trees or files.
//
// The format is described by the kernel's Documentation/filesystems/erofs.rst
// and fs/erofs/erofs_fs.h, whose field names stand in the comments here.
// Everything is little-endian.
//
// Each structure has a pair of methods:
//
//	Append(dst []byte) []byte   appends exactly the structure's size
//	Decode(b []byte)            reads it from the beginning of b
//
// Decode panics if b is shorter than the structure's size, as indexing does:
// the caller has read that many bytes before. No field is validated here.
package ondisk

import "encoding/binary"

var le = binary.LittleEndian

const (
	Magic       = 0xE0F5E1E2 // EROFS_SUPER_MAGIC_V1
	SuperOffset = 1024       // EROFS_SUPER_OFFSET: bytes before the superblock

	MinBlockBits = 9  // 512 bytes; what Linux 6.4 and later take
	MaxBlockBits = 16 // 64 KiB; the kernel takes no more than a page

	SlotBits = 5             // EROFS_ISLOTBITS: inodes are addressed in slots
	SlotSize = 1 << SlotBits // of 32 bytes

	MaxNameLen = 255 // EROFS_NAME_LEN
	NullAddr   = -1  // EROFS_NULL_ADDR: all ones, in the width of the field; a hole
)

// Sizes in bytes.
const (
	SuperBlockSize    = 128                // without extension slots
	SuperBlockMaxSize = 144                // with the one slot that is defined
	SuperBlockLimit   = 4096 - SuperOffset // Linux wants it within the first page
	ExtSlotSize       = 16                 // EROFS_SB_EXTSLOT_SIZE
	DeviceSlotSize    = 128                // EROFS_DEVT_SLOT_SIZE
	InodeCompactSize  = 32
	InodeExtendedSize = 64
	DirentSize        = 12
	ChunkIndexSize    = 8
	BlockMapEntrySize = 4 // EROFS_BLOCK_MAP_ENTRY_SIZE: chunks without indexes
	XattrHeaderSize   = 12
	XattrEntrySize    = 4
	XattrSharedIDSize = 4
)

// Compatible features: an implementation that does not know them may read on.
const (
	CompatSBChecksum        = 0x01 // SB_CHKSUM: SuperBlock.Checksum is set
	CompatMtime             = 0x02 // MTIME: timestamps are modification times
	CompatXattrFilter       = 0x04 // XATTR_FILTER: XattrHeader.NameFilter is set
	CompatSharedEAInMetabox = 0x08 // SHARED_EA_IN_METABOX: shared xattrs lie in the metabox
	CompatPlainXattrPfx     = 0x10 // PLAIN_XATTR_PFX: long prefixes lie in the plain image
	CompatIshareXattrs      = 0x20 // ISHARE_XATTRS: SuperBlock.IshareXattrID is set
)

// Incompatible features. Some bits carry two meanings: the two came in the
// same kernel release.
const (
	IncompatLZ4ZeroPadding = 0x001 // ZERO_PADDING: compressed data is right-aligned
	IncompatComprCfgs      = 0x002 // COMPR_CFGS: configuration records follow the superblock
	IncompatBigPcluster    = 0x002 // BIG_PCLUSTER: more than one block compressed together
	IncompatChunkedFile    = 0x004 // CHUNKED_FILE
	IncompatDeviceTable    = 0x008 // DEVICE_TABLE
	IncompatComprHead2     = 0x008 // COMPR_HEAD2: a second algorithm in one file
	IncompatZtailpacking   = 0x010 // ZTAILPACKING: compressed tails beside the inode
	IncompatFragments      = 0x020 // FRAGMENTS: tails in the packed inode
	IncompatDedupe         = 0x020 // DEDUPE: compressed extents shared in part
	IncompatXattrPrefixes  = 0x040 // XATTR_PREFIXES: long xattr name prefixes
	Incompat48Bit          = 0x080 // 48BIT: block addresses of 48 bits, encoded extents
	IncompatMetabox        = 0x100 // METABOX: inodes inside a (compressed) inode
	IncompatAll            = 0x1ff // all that are known here
)

// Layouts of an inode's data, bits 1..3 of its format.
const (
	LayoutFlatPlain         = 0 // EROFS_INODE_FLAT_PLAIN
	LayoutCompressedFull    = 1 // EROFS_INODE_COMPRESSED_FULL
	LayoutFlatInline        = 2 // EROFS_INODE_FLAT_INLINE
	LayoutCompressedCompact = 3 // EROFS_INODE_COMPRESSED_COMPACT
	LayoutChunkBased        = 4 // EROFS_INODE_CHUNK_BASED
)

// Bits of an inode's format, i_format.
const (
	FormatExtended   = 1 << 0 // EROFS_I_VERSION_BIT: InodeExtended follows, not InodeCompact
	FormatLayoutBit  = 1      // EROFS_I_DATALAYOUT_BIT
	FormatLayoutMask = 7      // EROFS_I_DATALAYOUT_MASK, after shifting
	FormatNlink1     = 1 << 4 // EROFS_I_NLINK_1_BIT: compact non-directories; Nb is no link count
	FormatDotOmitted = 1 << 4 // EROFS_I_DOT_OMITTED_BIT: directories without a "." entry
	FormatAll        = 1<<5 - 1
)

// Format composes an inode's format field of a layout and FormatX bits.
func Format(layout uint16, bits uint16) uint16 { return layout<<FormatLayoutBit | bits }

// Layout takes the layout out of an inode's format field.
func Layout(format uint16) uint16 { return format >> FormatLayoutBit & FormatLayoutMask }

// Bits of a chunk-based inode's U, of which the low half is the chunk format.
const (
	ChunkBlkBitsMask = 0x1f // EROFS_CHUNK_FORMAT_BLKBITS_MASK: log2(chunk size / block size)
	ChunkIndexes     = 0x20 // EROFS_CHUNK_FORMAT_INDEXES: 8-byte ChunkIndex, not 4-byte addresses
	Chunk48Bit       = 0x40 // EROFS_CHUNK_FORMAT_48BIT: ChunkIndex.StartblkHi counts
	ChunkAll         = 0x7f
)

// Bits of a mode: st_mode's own, on every system.
const (
	ModeTypeMask = 0o170000
	ModeFIFO     = 0o010000
	ModeChar     = 0o020000
	ModeDir      = 0o040000
	ModeBlock    = 0o060000
	ModeRegular  = 0o100000
	ModeSymlink  = 0o120000
	ModeSocket   = 0o140000
)

// File types of a directory entry: the generic FT_* values.
const (
	FTUnknown = 0
	FTRegular = 1
	FTDir     = 2
	FTChar    = 3
	FTBlock   = 4
	FTFIFO    = 5
	FTSocket  = 6
	FTSymlink = 7
)

// FileType is the directory entry's type for a mode; FTUnknown for none.
func FileType(mode uint16) uint8 {
	switch mode & ModeTypeMask {
	case ModeRegular:
		return FTRegular
	case ModeDir:
		return FTDir
	case ModeChar:
		return FTChar
	case ModeBlock:
		return FTBlock
	case ModeFIFO:
		return FTFIFO
	case ModeSocket:
		return FTSocket
	case ModeSymlink:
		return FTSymlink
	}
	return FTUnknown
}

// Bits of a Dirent's nid.
const (
	NidMetabox = 1 << 63        // EROFS_DIRENT_NID_METABOX_BIT: the inode lies in the metabox
	NidMask    = NidMetabox - 1 // EROFS_DIRENT_NID_MASK
)
