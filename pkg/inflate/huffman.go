package inflate

import (
	"encoding/binary"
	"math/bits"
)

// Table entries. Each is a uint32:
//
//	bit  31     literal
//	bits 16..30 the literal, the base of the length or distance, or where the
//	            subtable starts
//	bit  15     exceptional: one of the next two, or else an invalid code
//	bit  14     points to a subtable
//	bit  13     end of block
//	bits 8..11  length of the code, or of the part that indexes the subtable; the
//	            two bits above are zero where it is the former, so that it can be
//	            a shift count (of 6 bits) as it is
//	bits 0..7   bits to drop: code and extra bits
//
// So that the inner loop can use an entry as a shift count as it is, nothing
// but the lowest byte is left of it after masking.
const (
	entLiteral     = 1 << 31
	entExceptional = 1 << 15
	entSubtable    = 1 << 14
	entEnd         = 1 << 13
	entInvalid     = entExceptional
)

const (
	maxBits = 15 // longest code, RFC 1951 section 3.2.7

	litBits  = 11 // at most
	distBits = 8
	// Sizes of the tables with all their subtables. The most that a complete
	// code needs is 2342 of 288 symbols at 11 bits and 402 of 32 at 8 bits;
	// powers of two let the compiler see that a masked index is in bounds.
	litSize  = 4096
	distSize = 512

	preBits = 7 // longest code of the code that the code lengths are coded in
	numPre  = 19

	maxLit  = 288 // 286 and 287 have codes in the fixed code only
	maxDist = 32  // likewise 30 and 31
)

// Entries without the length of the code, by symbol.
var (
	litEntry  [maxLit]uint32
	distEntry [maxDist]uint32
	preEntry  [numPre]uint32
)

// The fixed codes, RFC 1951 section 3.2.6.
var (
	fixedLit  [litSize]uint32
	fixedDist [distSize]uint32

	fixedLitMask, fixedDistMask uint64
)

func init() {
	for s := range 256 {
		litEntry[s] = entLiteral | uint32(s)<<16
	}
	litEntry[256] = entExceptional | entEnd
	// Lengths: 8 without extra bits, then 4 with each number of them; 258 has
	// a symbol of its own.
	base := uint32(3)
	for s := 257; s < 285; s++ {
		extra := uint32(0)
		if s >= 265 {
			extra = uint32(s-261) / 4
		}
		litEntry[s] = base<<16 | extra
		base += 1 << extra
	}
	litEntry[285] = 258 << 16
	litEntry[286], litEntry[287] = entInvalid, entInvalid
	// Distances: 4 without extra bits, then 2 with each number of them.
	base = 1
	for s := range 30 {
		extra := uint32(max(s-2, 0)) / 2
		distEntry[s] = base<<16 | extra
		base += 1 << extra
	}
	distEntry[30], distEntry[31] = entInvalid, entInvalid
	for s := range preEntry {
		preEntry[s] = uint32(s) << 16
	}

	var lens [maxLit]uint8
	for s := range lens {
		switch {
		case s < 144:
			lens[s] = 8
		case s < 256:
			lens[s] = 9
		case s < 280:
			lens[s] = 7
		default:
			lens[s] = 8
		}
	}
	var sorted [maxLit]uint16
	n, _ := buildTable(fixedLit[:], litBits, litEntry[:], lens[:], false, &sorted)
	fixedLitMask = 1<<n - 1
	for s := range maxDist {
		lens[s] = 5
	}
	n, _ = buildTable(fixedDist[:], distBits, distEntry[:], lens[:maxDist], false, &sorted)
	fixedDistMask = 1<<n - 1
}

// buildTable makes the table of the canonical code that lens gives, which is
// indexed with the next bits of input: so many as it returns, root at most. It
// reports false for a code that is over-subscribed or incomplete; if partial is
// set, an empty code and one of a single symbol and bit are fine, as they are
// for zlib.
//
// An attacker pays 11 bytes or so for a table. Its size, and so the work, goes by
// the number and the lengths of the codes in it, for which he pays, too; long
// runs of symbols without one are skipped.
func buildTable(table []uint32, root uint, entry []uint32, lens []uint8, partial bool, sorted *[maxLit]uint16) (uint, bool) {
	var count [maxBits + 1]uint16
	for s := nextUsed(lens, 0); s < len(lens); s = nextUsed(lens, s+1) {
		count[lens[s]&15]++
	}
	// Is the code complete? left is how many codes of length l are unused.
	left, total := 1, 0
	longest := uint(0)
	var offs [maxBits + 2]uint16
	for l := 1; l <= maxBits; l++ {
		left = left<<1 - int(count[l])
		if left < 0 {
			return 0, false
		}
		if count[l] != 0 {
			longest = uint(l)
		}
		total += int(count[l])
		offs[l+1] = uint16(total)
	}
	if left > 0 {
		if !partial || total > 1 || total == 1 && count[1] == 0 {
			return 0, false
		}
		table[0], table[1] = entInvalid, entInvalid
		if total == 1 { // its code is 0
			table[0] = entry[nextUsed(lens, 0)] + 1<<8 + 1
		}
		return 1, true
	}

	for s := nextUsed(lens, 0); s < len(lens); s = nextUsed(lens, s+1) {
		l := lens[s] & 15
		sorted[offs[l]] = uint16(s)
		offs[l]++
	}
	syms := sorted[:total]
	// A few symbols make do with a small table even if their codes are long.
	root = min(root, longest, uint(bits.Len(uint(total)))+3)

	// Codes that fit: in a table of 2^l entries each code of length l is one
	// entry, at the code's bits in reverse. From one length to the next the
	// table doubles.
	code := uint(0)
	next := 0 // index in syms
	l := uint(1)
	for ; l <= root; l++ {
		add := uint32(l)<<8 + uint32(l)
		code <<= 1
		for range count[l] {
			table[reverse(code, l)] = entry[syms[next]] + add
			next++
			code++
		}
		if l < root {
			copy(table[1<<l:2<<l], table[:1<<l])
		}
	}
	if next == total {
		return root, true
	}

	// Longer codes share a subtable with all that begin with the same root
	// bits.
	end := 1 << root
	prefix, start, width := -1, 0, uint(0)
	for ; l <= maxBits; l++ {
		sub := l - root
		add := uint32(sub)<<8 + uint32(sub)
		code <<= 1
		for k := count[l]; k > 0; k-- {
			rev := reverse(code, l)
			code++
			if p := int(rev & (1<<root - 1)); p != prefix {
				// As wide as is needed to hold the codes that come next until
				// the prefix is used up.
				prefix, start, width = p, end, sub
				for used := int(k); used < 1<<width; {
					width++
					used = used<<1 + int(count[root+width])
				}
				end += 1 << width
				table[p] = entExceptional | entSubtable | uint32(start)<<16 | uint32(width)<<8 | uint32(root)
			}
			e := entry[syms[next]] + add
			next++
			for i := int(rev >> root); i < 1<<width; i += 1 << sub {
				table[start+i] = e
			}
		}
	}
	return root, true
}

// nextUsed is the first symbol from s on that has a code, or len(lens).
func nextUsed(lens []uint8, s int) int {
	for s < len(lens) && lens[s] == 0 {
		if s+8 <= len(lens) && binary.LittleEndian.Uint64(lens[s:]) == 0 {
			s += 8
		} else {
			s++
		}
	}
	return s
}

// reverse turns round a code of n bits: codes come with the highest bit first,
// all else in the input with the lowest.
func reverse(code, n uint) uint { return uint(bits.Reverse16(uint16(code))) >> ((16 - n) & 15) }
