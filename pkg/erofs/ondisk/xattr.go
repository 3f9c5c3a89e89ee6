package ondisk

// Indexes of xattr name prefixes, e_name_index.
const (
	XattrIndexUser            = 1 // "user."
	XattrIndexPosixACLAccess  = 2 // "system.posix_acl_access", the whole name
	XattrIndexPosixACLDefault = 3 // "system.posix_acl_default", the whole name
	XattrIndexTrusted         = 4 // "trusted."
	XattrIndexLustre          = 5 // "lustre."
	XattrIndexSecurity        = 6 // "security."

	XattrLongPrefix     = 0x80 // EROFS_XATTR_LONG_PREFIX: the rest of the index counts long prefixes
	XattrLongPrefixMask = 0x7f

	XattrFilterSeed    = 0x25BBE08F // EROFS_XATTR_FILTER_SEED
	XattrFilterDefault = 1<<32 - 1  // EROFS_XATTR_FILTER_DEFAULT: nothing is present
)

// XattrPrefixes are the name prefixes by index. The two ACL ones are complete
// names: the entry's own name is empty.
var XattrPrefixes = [7]string{
	XattrIndexUser:            "user.",
	XattrIndexPosixACLAccess:  "system.posix_acl_access",
	XattrIndexPosixACLDefault: "system.posix_acl_default",
	XattrIndexTrusted:         "trusted.",
	XattrIndexLustre:          "lustre.",
	XattrIndexSecurity:        "security.",
}

// XattrHeader is struct erofs_xattr_ibody_header, behind an inode that has
// xattrs. SharedCount ids of 4 bytes follow it, then the inline entries.
type XattrHeader struct {
	NameFilter  uint32  // 00 h_name_filter: a zero bit says "may be present"; see XattrFilterBit
	SharedCount uint8   // 04 h_shared_count
	_           [7]byte // 05 h_reserved2
}

// Append appends XattrHeaderSize bytes.
func (h *XattrHeader) Append(dst []byte) []byte {
	dst = le.AppendUint32(dst, h.NameFilter)
	return append(dst, h.SharedCount, 0, 0, 0, 0, 0, 0, 0)
}

// Decode reads XattrHeaderSize bytes.
func (h *XattrHeader) Decode(b []byte) {
	_ = b[XattrHeaderSize-1]
	*h = XattrHeader{NameFilter: le.Uint32(b), SharedCount: b[4]}
}

// XattrEntry is struct erofs_xattr_entry. The name without its prefix and the
// value follow; the next entry begins at a multiple of 4.
type XattrEntry struct {
	NameLen   uint8  // 00 e_name_len
	NameIndex uint8  // 01 e_name_index
	ValueSize uint16 // 02 e_value_size
}

// Append appends XattrEntrySize bytes.
func (e *XattrEntry) Append(dst []byte) []byte {
	return le.AppendUint16(append(dst, e.NameLen, e.NameIndex), e.ValueSize)
}

// Decode reads XattrEntrySize bytes.
func (e *XattrEntry) Decode(b []byte) {
	_ = b[XattrEntrySize-1]
	*e = XattrEntry{NameLen: b[0], NameIndex: b[1], ValueSize: le.Uint16(b[2:])}
}

// Size is the entry's size in bytes with name, value and alignment.
func (e *XattrEntry) Size() int {
	return (XattrEntrySize + int(e.NameLen) + int(e.ValueSize) + 3) &^ 3
}

// XattrIbodySize is the size in bytes of an inode's xattr area, from its
// XattrIcount: none, or the header and 4 bytes for each further count.
func XattrIbodySize(icount uint16) int {
	if icount == 0 {
		return 0
	}
	return XattrHeaderSize + 4*(int(icount)-1)
}

// XattrIcount is the inverse of XattrIbodySize for a size that is a multiple
// of 4 and at least XattrHeaderSize, or 0. ok is false if it does not fit.
func XattrIcount(ibodySize int) (icount uint16, ok bool) {
	if ibodySize == 0 {
		return 0, true
	}
	n := (ibodySize-XattrHeaderSize)/4 + 1
	return uint16(n), n <= 0xffff
}

// XattrFilterBit is the bit of XattrHeader.NameFilter that stands for a name:
// the one that a writer clears when the name is present. index and name are
// those of the short prefix, also where the entry uses a long one.
func XattrFilterBit(index uint8, name string) uint32 {
	return 1 << (xxh32(name, XattrFilterSeed+uint32(index)) & 31)
}

// The primes of xxHash32, from its specification.
const (
	xxPrime1 uint32 = 0x9E3779B1
	xxPrime2 uint32 = 0x85EBCA77
	xxPrime3 uint32 = 0xC2B2AE3D
	xxPrime4 uint32 = 0x27D4EB2F
	xxPrime5 uint32 = 0x165667B1
)

// xxh32 is xxHash's 32-bit variant.
func xxh32(s string, seed uint32) uint32 {
	rotl := func(x uint32, n uint) uint32 { return x<<n | x>>(32-n) }
	word := func(s string) uint32 {
		return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
	}
	size := uint32(len(s))
	h := seed + xxPrime5
	if len(s) >= 16 {
		lanes := [4]uint32{seed + xxPrime1 + xxPrime2, seed + xxPrime2, seed, seed - xxPrime1}
		for ; len(s) >= 16; s = s[16:] {
			for i := range lanes {
				lanes[i] = rotl(lanes[i]+word(s[4*i:])*xxPrime2, 13) * xxPrime1
			}
		}
		h = rotl(lanes[0], 1) + rotl(lanes[1], 7) + rotl(lanes[2], 12) + rotl(lanes[3], 18)
	}
	h += size
	for ; len(s) >= 4; s = s[4:] {
		h = rotl(h+word(s)*xxPrime3, 17) * xxPrime4
	}
	for ; len(s) > 0; s = s[1:] {
		h = rotl(h+uint32(s[0])*xxPrime5, 11) * xxPrime1
	}
	h = (h ^ h>>15) * xxPrime2
	h = (h ^ h>>13) * xxPrime3
	return h ^ h>>16
}

// LongPrefix is struct erofs_xattr_long_prefix: a name prefix longer than the
// predefined ones. On disk a length of 16 bits stands before it, which counts
// the base index and the infix, and the next one begins at a multiple of 4.
type LongPrefix struct {
	BaseIndex uint8  // 02 base_index: the predefined prefix that it extends
	Infix     string // 03 infix: what follows that
}

// Append appends the length, the prefix and the alignment.
func (p *LongPrefix) Append(dst []byte) []byte {
	dst = le.AppendUint16(dst, uint16(1+len(p.Infix)))
	dst = append(dst, p.BaseIndex)
	dst = append(dst, p.Infix...)
	for n := 3 + len(p.Infix); n&3 != 0; n++ {
		dst = append(dst, 0)
	}
	return dst
}

// Decode reads what the length counts, without it; b is exactly that long.
func (p *LongPrefix) Decode(b []byte) {
	*p = LongPrefix{BaseIndex: b[0], Infix: string(b[1:])}
}
