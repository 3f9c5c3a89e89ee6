package ondisk

import "hash/crc32"

// SuperBlock is struct erofs_super_block, at byte SuperOffset of the image.
type SuperBlock struct {
	Magic            uint32   // 00 magic
	Checksum         uint32   // 04 checksum: see Checksum
	FeatureCompat    uint32   // 08 feature_compat
	BlkSzBits        uint8    // 0C blkszbits: log2 of the block size
	ExtSlots         uint8    // 0D sb_extslots: the superblock has 128 + 16*ExtSlots bytes
	RootNidOrBlksHi  uint16   // 0E rootnid_2b, or with 48BIT blocks_hi
	Inos             uint64   // 10 inos: inodes in use
	Epoch            int64    // 18 epoch: base of a compact inode's Mtime, seconds
	FixedNsec        uint32   // 20 fixed_nsec: nanoseconds of every compact inode
	BlocksLo         uint32   // 24 blocks_lo: blocks of the primary device
	MetaBlkaddr      uint32   // 28 meta_blkaddr: where nid 0 is
	XattrBlkaddr     uint32   // 2C xattr_blkaddr: where shared xattr 0 is
	UUID             [16]byte // 30 uuid
	VolumeName       [16]byte // 40 volume_name
	FeatureIncompat  uint32   // 50 feature_incompat
	ComprAlgs        uint16   // 54 available_compr_algs (COMPR_CFGS), or lz4_max_distance
	ExtraDevices     uint16   // 56 extra_devices
	DevtSlotOff      uint16   // 58 devt_slotoff: the device table's offset / DeviceSlotSize
	DirBlkBits       uint8    // 5A dirblkbits: log2(directory block / block), zero so far
	XattrPrefixCount uint8    // 5B xattr_prefix_count
	XattrPrefixStart uint32   // 5C xattr_prefix_start: offset / 4
	PackedNid        uint64   // 60 packed_nid: the inode that holds fragments
	XattrFilterRsvd  uint8    // 68 xattr_filter_reserved: nonzero turns the filter off
	IshareXattrID    uint8    // 69 the long prefix of the xattr that identifies shared page cache
	_                [2]byte  // 6A reserved
	BuildTime        uint32   // 6C build_time: when mkfs ran, seconds after Epoch
	RootNid8b        uint64   // 70 rootnid_8b: with 48BIT
	_                uint64   // 78 reserved2

	// Extension slot 1.
	MetaboxNid uint64 // 80 metabox_nid: with METABOX
	_          uint64 // 88 reserved3
}

// Size is the superblock's size in bytes with its extension slots.
func (s *SuperBlock) Size() int { return SuperBlockSize + ExtSlotSize*int(s.ExtSlots) }

// RootNid is the root directory's nid, wherever this superblock keeps it.
func (s *SuperBlock) RootNid() uint64 {
	if s.FeatureIncompat&Incompat48Bit != 0 && s.RootNid8b != 0 {
		return s.RootNid8b
	}
	return uint64(s.RootNidOrBlksHi)
}

// Blocks is the number of blocks of the primary device.
func (s *SuperBlock) Blocks() uint64 {
	if s.FeatureIncompat&Incompat48Bit != 0 && s.RootNid8b != 0 {
		return uint64(s.RootNidOrBlksHi)<<32 | uint64(s.BlocksLo)
	}
	return uint64(s.BlocksLo)
}

// Append appends s.Size() bytes.
func (s *SuperBlock) Append(dst []byte) []byte {
	dst = le.AppendUint32(dst, s.Magic)
	dst = le.AppendUint32(dst, s.Checksum)
	dst = le.AppendUint32(dst, s.FeatureCompat)
	dst = append(dst, s.BlkSzBits, s.ExtSlots)
	dst = le.AppendUint16(dst, s.RootNidOrBlksHi)
	dst = le.AppendUint64(dst, s.Inos)
	dst = le.AppendUint64(dst, uint64(s.Epoch))
	dst = le.AppendUint32(dst, s.FixedNsec)
	dst = le.AppendUint32(dst, s.BlocksLo)
	dst = le.AppendUint32(dst, s.MetaBlkaddr)
	dst = le.AppendUint32(dst, s.XattrBlkaddr)
	dst = append(dst, s.UUID[:]...)
	dst = append(dst, s.VolumeName[:]...)
	dst = le.AppendUint32(dst, s.FeatureIncompat)
	dst = le.AppendUint16(dst, s.ComprAlgs)
	dst = le.AppendUint16(dst, s.ExtraDevices)
	dst = le.AppendUint16(dst, s.DevtSlotOff)
	dst = append(dst, s.DirBlkBits, s.XattrPrefixCount)
	dst = le.AppendUint32(dst, s.XattrPrefixStart)
	dst = le.AppendUint64(dst, s.PackedNid)
	dst = append(dst, s.XattrFilterRsvd, s.IshareXattrID, 0, 0)
	dst = le.AppendUint32(dst, s.BuildTime)
	dst = le.AppendUint64(dst, s.RootNid8b)
	dst = append(dst, make([]byte, 8)...)
	if s.ExtSlots == 0 {
		return dst
	}
	dst = le.AppendUint64(dst, s.MetaboxNid)
	dst = append(dst, make([]byte, 8)...)
	return append(dst, make([]byte, ExtSlotSize*(int(s.ExtSlots)-1))...)
}

// Decode reads the first SuperBlockSize bytes, and the extension slot that is
// defined where ExtSlots says that it is there and b is long enough.
func (s *SuperBlock) Decode(b []byte) {
	_ = b[SuperBlockSize-1]
	*s = SuperBlock{
		Magic:            le.Uint32(b[0x00:]),
		Checksum:         le.Uint32(b[0x04:]),
		FeatureCompat:    le.Uint32(b[0x08:]),
		BlkSzBits:        b[0x0c],
		ExtSlots:         b[0x0d],
		RootNidOrBlksHi:  le.Uint16(b[0x0e:]),
		Inos:             le.Uint64(b[0x10:]),
		Epoch:            int64(le.Uint64(b[0x18:])),
		FixedNsec:        le.Uint32(b[0x20:]),
		BlocksLo:         le.Uint32(b[0x24:]),
		MetaBlkaddr:      le.Uint32(b[0x28:]),
		XattrBlkaddr:     le.Uint32(b[0x2c:]),
		UUID:             [16]byte(b[0x30:]),
		VolumeName:       [16]byte(b[0x40:]),
		FeatureIncompat:  le.Uint32(b[0x50:]),
		ComprAlgs:        le.Uint16(b[0x54:]),
		ExtraDevices:     le.Uint16(b[0x56:]),
		DevtSlotOff:      le.Uint16(b[0x58:]),
		DirBlkBits:       b[0x5a],
		XattrPrefixCount: b[0x5b],
		XattrPrefixStart: le.Uint32(b[0x5c:]),
		PackedNid:        le.Uint64(b[0x60:]),
		XattrFilterRsvd:  b[0x68],
		IshareXattrID:    b[0x69],
		BuildTime:        le.Uint32(b[0x6c:]),
		RootNid8b:        le.Uint64(b[0x70:]),
	}
	if s.ExtSlots > 0 && len(b) >= SuperBlockMaxSize {
		s.MetaboxNid = le.Uint64(b[0x80:])
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ChecksumLen is how many bytes from SuperOffset on the checksum covers: the
// rest of the superblock's block, or one whole block where blocks are so small
// that the superblock does not lie in the first.
func ChecksumLen(blkSzBits uint8) int {
	if n := 1 << blkSzBits; n > SuperOffset {
		return n - SuperOffset
	}
	return 1 << blkSzBits
}

// Checksum computes a superblock's checksum over b, the ChecksumLen bytes from
// SuperOffset on. The checksum's own field counts as zero, whatever it holds;
// the CompatSBChecksum bit is covered, so set it first.
func Checksum(b []byte) uint32 {
	// crc32c that starts with all ones and is not inverted at the end.
	c := crc32.Update(0, castagnoli, b[:4])
	c = crc32.Update(c, castagnoli, []byte{0, 0, 0, 0})
	return ^crc32.Update(c, castagnoli, b[8:])
}

// DeviceSlot is struct erofs_deviceslot: one extra device.
type DeviceSlot struct {
	Tag       [64]byte // 00 tag: anything that identifies the device, a digest say
	BlocksLo  uint32   // 40 blocks_lo
	UniaddrLo uint32   // 44 uniaddr_lo: where it begins in the one address space, in blocks
	BlocksHi  uint16   // 48 blocks_hi: with 48BIT
	UniaddrHi uint16   // 4A uniaddr_hi: with 48BIT
	_         [52]byte // 4C reserved
}

// Append appends DeviceSlotSize bytes.
func (d *DeviceSlot) Append(dst []byte) []byte {
	dst = append(dst, d.Tag[:]...)
	dst = le.AppendUint32(dst, d.BlocksLo)
	dst = le.AppendUint32(dst, d.UniaddrLo)
	dst = le.AppendUint16(dst, d.BlocksHi)
	dst = le.AppendUint16(dst, d.UniaddrHi)
	return append(dst, make([]byte, 52)...)
}

// Decode reads DeviceSlotSize bytes.
func (d *DeviceSlot) Decode(b []byte) {
	_ = b[DeviceSlotSize-1]
	*d = DeviceSlot{
		Tag:       [64]byte(b),
		BlocksLo:  le.Uint32(b[0x40:]),
		UniaddrLo: le.Uint32(b[0x44:]),
		BlocksHi:  le.Uint16(b[0x48:]),
		UniaddrHi: le.Uint16(b[0x4a:]),
	}
}
