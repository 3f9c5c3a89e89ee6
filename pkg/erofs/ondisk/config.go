package ondisk

// With COMPR_CFGS a record follows the superblock for each algorithm in
// SuperBlock.ComprAlgs, in the order of their numbers: a size of 16 bits and
// as many bytes of configuration.

// Sizes in bytes, without the size field.
const (
	LZ4CfgSize     = 14
	LZMACfgSize    = 14
	DeflateCfgSize = 6
	ZstdCfgSize    = 6
)

// Bounds of their fields.
const (
	DeflateMaxWindowBits = 15
	ZstdMaxWindowLog     = 10 // of ZstdMaxWindow, in ZstdCfg's way
)

// LZ4Cfg is struct z_erofs_lz4_cfgs.
type LZ4Cfg struct {
	MaxDistance     uint16 // 00 max_distance: 0 is 64 KiB
	MaxPclusterBlks uint16 // 02 max_pclusterblks
}

// Append appends LZ4CfgSize bytes.
func (c *LZ4Cfg) Append(dst []byte) []byte {
	dst = le.AppendUint16(dst, c.MaxDistance)
	dst = le.AppendUint16(dst, c.MaxPclusterBlks)
	return append(dst, make([]byte, 10)...)
}

// Decode reads LZ4CfgSize bytes.
func (c *LZ4Cfg) Decode(b []byte) {
	_ = b[LZ4CfgSize-1]
	*c = LZ4Cfg{MaxDistance: le.Uint16(b), MaxPclusterBlks: le.Uint16(b[2:])}
}

// LZMACfg is struct z_erofs_lzma_cfgs.
type LZMACfg struct {
	DictSize uint32 // 00 dict_size: bytes
	Format   uint16 // 04 format: 0 is MicroLZMA
}

// Append appends LZMACfgSize bytes.
func (c *LZMACfg) Append(dst []byte) []byte {
	dst = le.AppendUint32(dst, c.DictSize)
	dst = le.AppendUint16(dst, c.Format)
	return append(dst, make([]byte, 8)...)
}

// Decode reads LZMACfgSize bytes.
func (c *LZMACfg) Decode(b []byte) {
	_ = b[LZMACfgSize-1]
	*c = LZMACfg{DictSize: le.Uint32(b), Format: le.Uint16(b[4:])}
}

// DeflateCfg is struct z_erofs_deflate_cfgs.
type DeflateCfg struct {
	WindowBits uint8 // 00 windowbits: 8..15
}

// Append appends DeflateCfgSize bytes.
func (c *DeflateCfg) Append(dst []byte) []byte {
	return append(dst, c.WindowBits, 0, 0, 0, 0, 0)
}

// Decode reads DeflateCfgSize bytes.
func (c *DeflateCfg) Decode(b []byte) {
	_ = b[DeflateCfgSize-1]
	*c = DeflateCfg{WindowBits: b[0]}
}

// ZstdCfg is struct z_erofs_zstd_cfgs.
type ZstdCfg struct {
	Format    uint8 // 00 format: 0
	WindowLog uint8 // 01 windowlog: log2(window) - 10
}

// Append appends ZstdCfgSize bytes.
func (c *ZstdCfg) Append(dst []byte) []byte {
	return append(dst, c.Format, c.WindowLog, 0, 0, 0, 0)
}

// Decode reads ZstdCfgSize bytes.
func (c *ZstdCfg) Decode(b []byte) {
	_ = b[ZstdCfgSize-1]
	*c = ZstdCfg{Format: b[0], WindowLog: b[1]}
}
