package ondisk

// InodeCompact is struct erofs_inode_compact: ids of 16 bits, a size of 32,
// and a time that is an unsigned distance from the superblock's epoch.
type InodeCompact struct {
	Format      uint16 // 00 i_format
	XattrIcount uint16 // 02 i_xattr_icount: see XattrIbodySize
	Mode        uint16 // 04 i_mode
	Nb          uint16 // 06 i_nb: nlink; with FormatNlink1 startblk_hi or blocks_hi
	Size        uint32 // 08 i_size: bytes
	Mtime       uint32 // 0C i_mtime: seconds after SuperBlock.Epoch
	U           uint32 // 10 i_u: startblk_lo (flat), blocks_lo (compressed), rdev, or chunk format
	Ino         uint32 // 14 i_ino: for 32-bit stat alone
	UID         uint16 // 18 i_uid
	GID         uint16 // 1A i_gid
	_           uint32 // 1C i_reserved
}

// Append appends InodeCompactSize bytes.
func (i *InodeCompact) Append(dst []byte) []byte {
	dst = le.AppendUint16(dst, i.Format)
	dst = le.AppendUint16(dst, i.XattrIcount)
	dst = le.AppendUint16(dst, i.Mode)
	dst = le.AppendUint16(dst, i.Nb)
	dst = le.AppendUint32(dst, i.Size)
	dst = le.AppendUint32(dst, i.Mtime)
	dst = le.AppendUint32(dst, i.U)
	dst = le.AppendUint32(dst, i.Ino)
	dst = le.AppendUint16(dst, i.UID)
	dst = le.AppendUint16(dst, i.GID)
	return append(dst, 0, 0, 0, 0)
}

// Decode reads InodeCompactSize bytes.
func (i *InodeCompact) Decode(b []byte) {
	_ = b[InodeCompactSize-1]
	*i = InodeCompact{
		Format:      le.Uint16(b[0x00:]),
		XattrIcount: le.Uint16(b[0x02:]),
		Mode:        le.Uint16(b[0x04:]),
		Nb:          le.Uint16(b[0x06:]),
		Size:        le.Uint32(b[0x08:]),
		Mtime:       le.Uint32(b[0x0c:]),
		U:           le.Uint32(b[0x10:]),
		Ino:         le.Uint32(b[0x14:]),
		UID:         le.Uint16(b[0x18:]),
		GID:         le.Uint16(b[0x1a:]),
	}
}

// InodeExtended is struct erofs_inode_extended: everything in full width.
type InodeExtended struct {
	Format      uint16   // 00 i_format
	XattrIcount uint16   // 02 i_xattr_icount: see XattrIbodySize
	Mode        uint16   // 04 i_mode
	Nb          uint16   // 06 i_nb: startblk_hi or blocks_hi
	Size        uint64   // 08 i_size: bytes
	U           uint32   // 10 i_u: as InodeCompact.U
	Ino         uint32   // 14 i_ino: for 32-bit stat alone
	UID         uint32   // 18 i_uid
	GID         uint32   // 1C i_gid
	Mtime       int64    // 20 i_mtime: seconds since 1970, absolute
	MtimeNsec   uint32   // 28 i_mtime_nsec
	Nlink       uint32   // 2C i_nlink
	_           [16]byte // 30 i_reserved2
}

// Append appends InodeExtendedSize bytes.
func (i *InodeExtended) Append(dst []byte) []byte {
	dst = le.AppendUint16(dst, i.Format)
	dst = le.AppendUint16(dst, i.XattrIcount)
	dst = le.AppendUint16(dst, i.Mode)
	dst = le.AppendUint16(dst, i.Nb)
	dst = le.AppendUint64(dst, i.Size)
	dst = le.AppendUint32(dst, i.U)
	dst = le.AppendUint32(dst, i.Ino)
	dst = le.AppendUint32(dst, i.UID)
	dst = le.AppendUint32(dst, i.GID)
	dst = le.AppendUint64(dst, uint64(i.Mtime))
	dst = le.AppendUint32(dst, i.MtimeNsec)
	dst = le.AppendUint32(dst, i.Nlink)
	return append(dst, make([]byte, 16)...)
}

// Decode reads InodeExtendedSize bytes.
func (i *InodeExtended) Decode(b []byte) {
	_ = b[InodeExtendedSize-1]
	*i = InodeExtended{
		Format:      le.Uint16(b[0x00:]),
		XattrIcount: le.Uint16(b[0x02:]),
		Mode:        le.Uint16(b[0x04:]),
		Nb:          le.Uint16(b[0x06:]),
		Size:        le.Uint64(b[0x08:]),
		U:           le.Uint32(b[0x10:]),
		Ino:         le.Uint32(b[0x14:]),
		UID:         le.Uint32(b[0x18:]),
		GID:         le.Uint32(b[0x1c:]),
		Mtime:       int64(le.Uint64(b[0x20:])),
		MtimeNsec:   le.Uint32(b[0x28:]),
		Nlink:       le.Uint32(b[0x2c:]),
	}
}

// Dirent is struct erofs_dirent. A directory block begins with its entries;
// the names follow, back to back, the last one ended by a NUL or the block.
type Dirent struct {
	Nid      uint64 // 00 nid
	NameOff  uint16 // 08 nameoff: of the name, in the block
	FileType uint8  // 0A file_type: FTRegular...
	_        uint8  // 0B reserved
}

// Append appends DirentSize bytes.
func (d *Dirent) Append(dst []byte) []byte {
	dst = le.AppendUint64(dst, d.Nid)
	dst = le.AppendUint16(dst, d.NameOff)
	return append(dst, d.FileType, 0)
}

// Decode reads DirentSize bytes.
func (d *Dirent) Decode(b []byte) {
	_ = b[DirentSize-1]
	*d = Dirent{Nid: le.Uint64(b), NameOff: le.Uint16(b[8:]), FileType: b[10]}
}

// ChunkIndex is struct erofs_inode_chunk_index: where one chunk of a
// chunk-based inode begins. All ones in StartblkLo (with Chunk48Bit in
// StartblkHi as well) is a hole.
type ChunkIndex struct {
	StartblkHi uint16 // 00 startblk_hi: with Chunk48Bit
	DeviceID   uint16 // 02 device_id: 0 is the primary device or the one address space
	StartblkLo uint32 // 04 startblk_lo
}

// Append appends ChunkIndexSize bytes.
func (c *ChunkIndex) Append(dst []byte) []byte {
	dst = le.AppendUint16(dst, c.StartblkHi)
	dst = le.AppendUint16(dst, c.DeviceID)
	return le.AppendUint32(dst, c.StartblkLo)
}

// Decode reads ChunkIndexSize bytes.
func (c *ChunkIndex) Decode(b []byte) {
	_ = b[ChunkIndexSize-1]
	*c = ChunkIndex{StartblkHi: le.Uint16(b), DeviceID: le.Uint16(b[2:]), StartblkLo: le.Uint32(b[4:])}
}

// EncodeRdev packs a device number as the kernel's new_encode_dev does. Only
// the low 12 bits of major and 20 of minor have room.
func EncodeRdev(major, minor uint32) uint32 {
	return minor&0xff | major&0xfff<<8 | minor&0xfff00<<12
}

// DecodeRdev is the inverse of EncodeRdev.
func DecodeRdev(rdev uint32) (major, minor uint32) {
	return rdev >> 8 & 0xfff, rdev&0xff | rdev>>12&0xfff00
}
