package inflate

import "encoding/binary"

// safeLoop is loop without pointers, a tenth slower; see loop_unsafe.go for
// what it does and why it is so. It is what other machines
// run, and all of them under the build tag inflate_safe. It is always compiled,
// so that each test compares the two.
func (z *Reader) safeLoop() result {
	lit, dist := z.lit, z.dist
	litMask, distMask := z.litMask&(1<<litBits-1), z.distMask&(1<<distBits-1)
	in, out := &z.in, &z.out
	ip, op := uint(z.ip), uint(z.op)
	ilim, olim, floor := uint(z.ilim), uint(z.olim), uint(z.floor)
	b, n := z.b, uint64(z.n)

	b |= load64(in, ip) << (n & 63)
	ip += uint(7 - n>>3&7)
	n |= 56
	e := lit[b&litMask]
	res := resLimit
	for ip <= ilim && op < olim {
		saved := b
		b >>= e & 63
		n -= uint64(e)
		if int32(e) < 0 {
			out[op&outMask] = byte(e >> 16)
			op++
			e = lit[b&litMask]
			saved = b
			b >>= e & 63
			n -= uint64(e)
			if int32(e) < 0 {
				out[op&outMask] = byte(e >> 16)
				op++
				e = lit[b&litMask]
				saved = b
				b >>= e & 63
				n -= uint64(e)
				if int32(e) < 0 {
					out[op&outMask] = byte(e >> 16)
					op++
					e = lit[b&litMask]
					b |= load64(in, ip) << (n & 63)
					ip += uint(7 - n>>3&7)
					n |= 56
					continue
				}
			}
		}
		if e&entExceptional != 0 {
			if e&entSubtable != 0 {
				e = lit[(uint64(e>>16)+b&(1<<(e>>8&15)-1))&(litSize-1)]
				saved = b
				b >>= e & 63
				n -= uint64(e)
				if int32(e) < 0 {
					out[op&outMask] = byte(e >> 16)
					op++
					b |= load64(in, ip) << (n & 63)
					ip += uint(7 - n>>3&7)
					n |= 56
					e = lit[b&litMask]
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
		length := uint(e>>16) + uint(saved&(1<<(e&63)-1)>>(e>>8&63))

		e = dist[b&distMask]
		if n&0xff < distBits+13+litBits-1 || e&entExceptional != 0 {
			b |= load64(in, ip) << (n & 63)
			ip += uint(7 - n>>3&7)
			n |= 56
			e = dist[b&distMask]
			if e&entExceptional != 0 {
				if e&entSubtable == 0 {
					res = resDist
					break
				}
				b >>= e & 63
				n -= uint64(e)
				e = dist[(uint64(e>>16)+b&(1<<(e>>8&15)-1))&(distSize-1)]
				if e&entExceptional != 0 {
					res = resDist
					break
				}
			}
		}
		d := uint(e>>16) + uint(b&(1<<(e&63)-1)>>(e>>8&63))
		b >>= e & 63
		n -= uint64(e)
		if d > op-floor {
			res = resTooFar
			break
		}
		e = lit[b&litMask]
		b |= load64(in, ip) << (n & 63)
		ip += uint(7 - n>>3&7)
		n |= 56

		src, dst := op-d, op
		op += length
		switch {
		case d >= 16:
			copy16(out, dst, src)
			copy16(out, dst+16, src+16)
			if length > 32 {
				for dst, src = dst+32, src+32; dst < op; dst, src = dst+16, src+16 {
					copy16(out, dst, src)
				}
			}
		case d >= 8:
			for ; dst < op; dst, src = dst+8, src+8 {
				copy8(out, dst, src)
			}
		case d == 1:
			run := uint64(out[src&outMask]) * 0x0101010101010101
			for ; dst < op; dst += 8 {
				at := dst & outMask
				binary.LittleEndian.PutUint64(out[at:at+8], run)
			}
		default:
			// The first d of 8 bytes are right each time.
			for ; dst < op; dst, src = dst+d, src+d {
				copy8(out, dst, src)
			}
		}
	}
	z.b, z.n = b, uint(n&63)
	z.ip, z.op = int(ip), int(op)
	return res
}

// Positions are within the buffers as it is, see loop_unsafe.go. The masks show
// the compiler that they are, and change none.
const (
	inMask  = inSize - 1
	outMask = outEnd - 1
)

func load64(in *[inSize + inSlack]byte, i uint) uint64 {
	i &= inMask
	return binary.LittleEndian.Uint64(in[i : i+8])
}

func copy8(out *[outEnd + outPast]byte, dst, src uint) {
	dst, src = dst&outMask, src&outMask
	*(*[8]byte)(out[dst : dst+8]) = *(*[8]byte)(out[src : src+8])
}

func copy16(out *[outEnd + outPast]byte, dst, src uint) {
	dst, src = dst&outMask, src&outMask
	*(*[16]byte)(out[dst : dst+16]) = *(*[16]byte)(out[src : src+16])
}
