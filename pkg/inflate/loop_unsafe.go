//go:build !inflate_safe && (amd64 || arm64)

package inflate

import "unsafe"

// loop decodes block data until the block ends, or a limit of input or output
// is reached.
//
// This is where all the time goes: two thirds of the symbols are literals, and
// the mean match is 11 bytes long. What makes it fast:
//
//   - The bit buffer is refilled without a branch: eight bytes are or-ed in
//     above the n bits there are, and ip moves by the whole bytes among those
//     that are now counted (n becomes 56 to 63). The bits above n are the
//     right ones already, and or-ing them in again does no harm.
//   - A table entry is used as it is to shift and to subtract: its low byte is
//     the number of bits to drop. Of n only the low byte means anything.
//   - Up to three literals are decoded for one refill.
//   - The next entry is loaded before a match is copied, so that the two
//     overlap.
//   - Matches are copied in words that may spill over their end.
//
// Bits: after a refill there are 56 or more. Two literals from the root table
// (11 each) and a length (15 and 5 extra) take at most 42. A distance takes at
// most 15 and 13 extra, or 8 and 13 if its code needs no subtable: so where
// there are 31 it is decoded without a refill, and the next entry looked up with
// what is left, 10 bits and one more, since a refill makes b whole, 64 bits, and
// counts no more than 63.
//
// Bounds, which the compiler cannot see and so pointers are used:
//
//   - in: a round starts at ip <= ilim and refills up to three times, moving up
//     to 7 bytes and loading 8: it reads below ilim+inMargin, where the valid
//     bytes end.
//   - out: a round starts at op < olim <= WindowSize+outSize and writes 2
//     literals and a match of 258 bytes that spills up to 31 bytes, or three
//     literals: less than outSlack.
//   - a match's source is not below floor, which is checked, and below op. Before
//     the check it may be up to 32 KiB below out, which is in in: a pointer into
//     the same Reader all the while.
func (z *Reader) loop() (res result) {
	var ip, op unsafe.Pointer
	var n uint64
	inner := fastest
	if z.slower > 0 {
		inner = loop
	}
	z.b, n, ip, op, res = inner(z.b, uint64(z.n),
		unsafe.Pointer(&z.in[z.ip]), unsafe.Pointer(&z.out[z.op]),
		unsafe.Pointer(z.lit), z.litMask, unsafe.Pointer(z.dist),
		unsafe.Pointer(&z.in[z.ilim]), unsafe.Pointer(&z.out[z.olim]),
		z.distMask, unsafe.Pointer(&z.out[z.floor]))
	z.n = uint(n & 63)
	z.ip = int(uintptr(ip) - uintptr(unsafe.Pointer(&z.in)))
	z.op = int(uintptr(op) - uintptr(unsafe.Pointer(&z.out)))
	return res
}

// fastest is loop, or what does the same on this machine in less time.
var fastest = loop

// loop is apart from the method so that no register is taken by z. Nine of its
// arguments come in registers, and the last two, which only matches need, on
// the stack; that order is worth 2 %.
//
//go:noinline
func loop(b, n uint64, ip, op, lit unsafe.Pointer, litMask uint64, dist, ilim, olim unsafe.Pointer, distMask uint64, floor unsafe.Pointer) (_, _ uint64, _, _ unsafe.Pointer, _ result) {
	b |= *(*uint64)(ip) << (n & 63)
	ip = unsafe.Add(ip, 7-n>>3&7)
	n |= 56
	e := *(*uint32)(unsafe.Add(lit, (b&litMask)*4))
	res := resLimit
	for uintptr(ip) <= uintptr(ilim) && uintptr(op) < uintptr(olim) {
		saved := b
		b >>= e & 63
		n -= uint64(e)
		if int32(e) < 0 {
			*(*byte)(op) = byte(e >> 16)
			op = unsafe.Add(op, 1)
			e = *(*uint32)(unsafe.Add(lit, (b&litMask)*4))
			saved = b
			b >>= e & 63
			n -= uint64(e)
			if int32(e) < 0 {
				*(*byte)(op) = byte(e >> 16)
				op = unsafe.Add(op, 1)
				e = *(*uint32)(unsafe.Add(lit, (b&litMask)*4))
				saved = b
				b >>= e & 63
				n -= uint64(e)
				if int32(e) < 0 {
					*(*byte)(op) = byte(e >> 16)
					op = unsafe.Add(op, 1)
					e = *(*uint32)(unsafe.Add(lit, (b&litMask)*4))
					b |= *(*uint64)(ip) << (n & 63)
					ip = unsafe.Add(ip, 7-n>>3&7)
					n |= 56
					continue
				}
			}
		}
		if e&entExceptional != 0 {
			if e&entSubtable != 0 {
				e = *(*uint32)(unsafe.Add(lit, ((uint64(e>>16)+b&(1<<(e>>8&15)-1))&(litSize-1))*4))
				saved = b
				b >>= e & 63
				n -= uint64(e)
				if int32(e) < 0 {
					*(*byte)(op) = byte(e >> 16)
					op = unsafe.Add(op, 1)
					b |= *(*uint64)(ip) << (n & 63)
					ip = unsafe.Add(ip, 7-n>>3&7)
					n |= 56
					e = *(*uint32)(unsafe.Add(lit, (b&litMask)*4))
					continue
				}
			}
			if e&entEnd != 0 {
				res = resEnd
				break
			}
			if e&entExceptional != 0 {
				res = resSymbol
				break
			}
		}
		length := uintptr(e>>16) + uintptr(saved&(1<<(e&63)-1)>>(e>>8&63))

		e = *(*uint32)(unsafe.Add(dist, (b&distMask)*4))
		if n&0xff < distBits+13+litBits-1 || e&entExceptional != 0 {
			b |= *(*uint64)(ip) << (n & 63)
			ip = unsafe.Add(ip, 7-n>>3&7)
			n |= 56
			e = *(*uint32)(unsafe.Add(dist, (b&distMask)*4))
			if e&entExceptional != 0 {
				if e&entSubtable == 0 {
					res = resDist
					break
				}
				b >>= e & 63
				n -= uint64(e)
				e = *(*uint32)(unsafe.Add(dist, ((uint64(e>>16)+b&(1<<(e>>8&15)-1))&(distSize-1))*4))
				if e&entExceptional != 0 {
					res = resDist
					break
				}
			}
		}
		d := uintptr(e>>16) + uintptr(b&(1<<(e&63)-1)>>(e>>8&63))
		b >>= e & 63
		n -= uint64(e)
		src := unsafe.Add(op, -int(d))
		if uintptr(src) < uintptr(floor) {
			res = resTooFar
			break
		}
		e = *(*uint32)(unsafe.Add(lit, (b&litMask)*4))
		b |= *(*uint64)(ip) << (n & 63)
		ip = unsafe.Add(ip, 7-n>>3&7)
		n |= 56

		dst := op
		op = unsafe.Add(op, length)
		switch {
		case d >= 16:
			*(*[16]byte)(dst) = *(*[16]byte)(src)
			*(*[16]byte)(unsafe.Add(dst, 16)) = *(*[16]byte)(unsafe.Add(src, 16))
			if length > 32 {
				for dst, src = unsafe.Add(dst, 32), unsafe.Add(src, 32); uintptr(dst) < uintptr(op); dst, src = unsafe.Add(dst, 16), unsafe.Add(src, 16) {
					*(*[16]byte)(dst) = *(*[16]byte)(src)
				}
			}
		case d >= 8:
			*(*uint64)(dst) = *(*uint64)(src)
			*(*uint64)(unsafe.Add(dst, 8)) = *(*uint64)(unsafe.Add(src, 8))
			for dst, src = unsafe.Add(dst, 16), unsafe.Add(src, 16); uintptr(dst) < uintptr(op); dst, src = unsafe.Add(dst, 8), unsafe.Add(src, 8) {
				*(*uint64)(dst) = *(*uint64)(src)
			}
		case d == 1:
			run := uint64(*(*byte)(src)) * 0x0101010101010101
			for ; uintptr(dst) < uintptr(op); dst = unsafe.Add(dst, 8) {
				*(*uint64)(dst) = run
			}
		default:
			for ; uintptr(dst) < uintptr(op); dst, src = unsafe.Add(dst, d), unsafe.Add(src, d) {
				*(*uint64)(dst) = *(*uint64)(src)
			}
		}
	}
	return b, n, ip, op, res
}
