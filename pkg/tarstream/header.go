package tarstream

import (
	"bytes"
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// blockSize is the unit of every tar dialect, in bytes.
const blockSize = 512

// A block is one 512-byte tar header. The methods name its fields at the
// offsets of POSIX.1-1988 (ustar); the dialects differ only behind byte 345.
type block [blockSize]byte

func (b *block) name() []byte     { return cstring(b[0:100]) }
func (b *block) mode() []byte     { return b[100:108] }
func (b *block) uid() []byte      { return b[108:116] }
func (b *block) gid() []byte      { return b[116:124] }
func (b *block) size() []byte     { return b[124:136] }
func (b *block) mtime() []byte    { return b[136:148] }
func (b *block) chksum() []byte   { return b[148:156] }
func (b *block) typeflag() byte   { return b[156] }
func (b *block) linkname() []byte { return cstring(b[157:257]) }
func (b *block) devmajor() []byte { return b[329:337] }
func (b *block) devminor() []byte { return b[337:345] }

// GNU tar's old sparse header ('S') in place of ustar's prefix.
func (b *block) gnuSparse() []byte   { return b[386:482] } // 4 entries
func (b *block) gnuExtended() bool   { return b[482] != 0 }
func (b *block) gnuRealSize() []byte { return b[483:495] }

// Dialects, as far as reading differs.
type dialect uint8

const (
	v7    dialect = iota // no magic: nothing behind linkname means anything
	ustar                // POSIX; PAX is ustar with 'x' and 'g' entries
	star                 // Schily star: a shorter prefix, then atime and ctime
	gnu                  // GNU and old GNU: no prefix, times and sparse maps there
)

func (b *block) dialect() dialect {
	switch {
	case string(b[257:265]) == "ustar  \x00":
		return gnu
	case string(b[257:263]) != "ustar\x00":
		return v7 // as GNU tar and archive/tar have it; libarchive looks at five bytes
	case string(b[508:512]) == "tar\x00":
		return star
	// xstar has no trailer; what marks it is a NUL at the end of its prefix
	// and two octal times, each ended by a blank.
	case b[475] == 0 && isOctalDigit(b[476]) && b[487] == ' ' && isOctalDigit(b[488]) && b[499] == ' ':
		return star
	}
	return ustar
}

// prefix is what the dialect puts before the name, or nothing.
func (b *block) prefix() []byte {
	switch b.dialect() {
	case ustar:
		return cstring(b[345:500])
	case star:
		return cstring(b[345:476])
	case gnu:
		// GNU has atime and ctime there. Go before 1.8, and so many an old
		// image layer, put ustar's prefix under GNU's magic: what is no time
		// but ASCII is taken for that, as Go's own reader does to this day.
		if isTime(b[345:357]) && isTime(b[357:369]) {
			return nil
		}
		p := cstring(b[345:500])
		if bytes.IndexFunc(p, func(r rune) bool { return r >= 0x80 }) < 0 {
			return p
		}
	}
	return nil
}

// isTime tells whether a field may be one of GNU's times, which may be left
// out. It is stricter than parseNumber: the field is nothing but the number.
func isTime(f []byte) bool {
	if f[0] == 0 {
		return true
	}
	if f[0]&0x80 == 0 {
		for _, c := range cstring(bytes.Trim(f, " \x00")) {
			if !isOctalDigit(c) {
				return false
			}
		}
	}
	_, err := parseNumber(f)
	return err == nil
}

func isOctalDigit(c byte) bool { return '0' <= c && c <= '7' }

func (b *block) isZero() bool { return *b == block{} }

// checksumOK accepts both sums that are in use: POSIX adds unsigned bytes,
// some historical writers added signed ones.
func (b *block) checksumOK() bool {
	want, err := parseNumber(b.chksum())
	if err != nil {
		return false
	}
	var sum, high int64 // of the bytes; how many of them have the top bit
	for _, c := range b {
		sum += int64(c)
		high += int64(c >> 7)
	}
	for _, c := range b.chksum() { // the field itself counts as blanks
		sum += ' ' - int64(c)
		high -= int64(c >> 7)
	}
	return want == sum || want == sum-256*high
}

// cstring is the part of a field before its first NUL, if any.
func cstring(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// parseNumber reads a numeric field: octal digits behind blanks and NULs, up
// to a blank or NUL (all blank is 0: that is how old writers leave out what
// does not apply), or GNU's base-256, marked by the top bit, a big-endian two's
// complement. As GNU tar and libarchive do, it ignores what stands behind the
// blank or NUL that ends the digits.
func parseNumber(f []byte) (int64, error) {
	if f[0]&0x80 != 0 {
		return parseBase256(f)
	}
	i := 0
	for i < len(f) && (f[i] == ' ' || f[i] == 0) {
		i++
	}
	var x int64
	for ; i < len(f) && f[i] != ' ' && f[i] != 0; i++ {
		if !isOctalDigit(f[i]) || x > 1<<59 {
			return 0, fmt.Errorf("number %q: %w", f, fault.ErrCorrupt)
		}
		x = x<<3 | int64(f[i]-'0')
	}
	return x, nil
}

func parseBase256(f []byte) (int64, error) {
	// Bit 7 of the first byte is the marker and bit 6 the sign.
	var x uint64
	inv := byte(0)
	if f[0]&0x40 != 0 {
		inv = 0xff
	}
	for i, c := range f {
		c ^= inv
		if i == 0 {
			c &= 0x7f
		}
		if x>>55 != 0 {
			return 0, fmt.Errorf("base-256 number beyond 64 bits: %w", fault.ErrCorrupt)
		}
		x = x<<8 | uint64(c)
	}
	if inv == 0xff {
		return ^int64(x), nil
	}
	return int64(x), nil
}
