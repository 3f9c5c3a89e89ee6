package erofs

import (
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// MicroLZMA is LZMA with almost nothing around it: no header, no end marker, no
// sizes. Its first byte, which in LZMA is always zero, is the inverted byte of
// properties.
//
// Libraries read .lzma files. One can be made to read this by inventing a
// header, but it cannot tell whether the data ends where the extent does, which
// the kernel insists on, nor stop in the middle of it, which shared extents
// want; and what makes it fit for any stream (a dictionary beside the output, a
// reader that gives bytes one by one) costs more than half of its time. Here
// input and output are slices, and the output is the dictionary.
//
// The algorithm, and its names, are those of the LZMA specification.

const (
	lzmaProbBits   = 11
	lzmaProbInit   = 1 << lzmaProbBits / 2
	lzmaMoveBits   = 5
	lzmaTop        = 1 << 24 // below it the range wants another byte
	lzmaUp         = 1<<32 - 1<<lzmaProbBits + 1<<lzmaMoveBits - 1
	lzmaStates     = 12
	lzmaLitStates  = 7      // states below it come after a literal
	lzmaMaxLcLp    = 4      // as in the kernel: literal coders have up to 2^4 contexts
	lzmaLitSize    = 0x300  // probabilities of one literal context
	lzmaMinMatch   = 2      // bytes
	lzmaLenStates  = 4      // distance slots have a coder for each length up to 5
	lzmaAlignBits  = 4      // of a far distance, which have a coder of their own
	lzmaEndPosSlot = 14     // slots from here on are far distances
	lzmaFullDist   = 1 << 7 // distances below it have coders for all their bits
)

// lzmaLen decodes lengths: 2..9 and 10..17 by position, 18..273 without.
type lzmaLen struct {
	choice, choice2 uint16
	low, mid        [16][8]uint16
	high            [256]uint16
}

// lzmaProbs are the adaptive probabilities that a zero bit comes.
type lzmaProbs struct {
	isMatch    [lzmaStates][16]uint16
	isRep      [lzmaStates]uint16
	isRepG0    [lzmaStates]uint16
	isRepG1    [lzmaStates]uint16
	isRepG2    [lzmaStates]uint16
	isRep0Long [lzmaStates][16]uint16
	posSlot    [lzmaLenStates][64]uint16
	pos        [1 + lzmaFullDist - lzmaEndPosSlot]uint16
	align      [1 << lzmaAlignBits]uint16
	len, rep   lzmaLen
	literal    [lzmaLitSize << lzmaMaxLcLp]uint16
}

// lzmaDecoder is the range decoder and its probabilities, 29 KB.
type lzmaDecoder struct {
	in        []byte
	next      int // of in; behind its end when more was wanted than there is
	rng, code uint32
	lzmaProbs
}

var errLZMA = fmt.Errorf("malformed LZMA stream: %w", fault.ErrCorrupt)

// decode fills out from a MicroLZMA stream. With partial, what in holds beyond
// out is no error.
func (d *lzmaDecoder) decode(in, out []byte, partial bool) error {
	lc, lp, pb, err := d.reset(in)
	if err != nil {
		return err
	}
	state := 0
	var reps [4]int // the last distances, less one
	n := 0
	for n < len(out) && d.next <= len(in) {
		posState := n & (1<<pb - 1)
		if d.bit(&d.isMatch[state][posState]) == 0 {
			prev := byte(0)
			if n > 0 {
				prev = out[n-1]
			}
			context := n&(1<<lp-1)<<lc | int(prev)>>(8-lc)
			probs := (*[lzmaLitSize]uint16)(d.literal[lzmaLitSize*context:])
			if state < lzmaLitStates {
				out[n] = byte(d.tree(probs[:], 8))
			} else {
				if reps[0] >= n {
					return errLZMA
				}
				out[n] = d.matched(probs, out[n-1-reps[0]])
			}
			n++
			switch {
			case state < 4:
				state = 0
			case state < 10:
				state -= 3
			default:
				state -= 6
			}
			continue
		}
		length := 0
		if d.bit(&d.isRep[state]) == 0 {
			reps[3], reps[2], reps[1] = reps[2], reps[1], reps[0]
			length = d.length(&d.len, posState)
			reps[0] = d.distance(length)
			state = afterLZMA(state, 7)
		} else if length = d.repeat(&reps, state, posState); length == 1 {
			state = afterLZMA(state, 9)
		} else {
			state = afterLZMA(state, 8)
		}
		if reps[0] >= n {
			return errLZMA
		}
		if length > len(out)-n {
			if !partial {
				return errLZMA
			}
			length = len(out) - n
		}
		for from, end := n-1-reps[0], n+length; n < end; {
			n += copy(out[n:end], out[from:n]) // all that is there to repeat, twice as much each time
		}
	}
	d.normalize()
	if d.next > len(in) || !partial && (d.next < len(in) || d.code != 0) {
		return errLZMA
	}
	return nil
}

// reset begins a stream.
func (d *lzmaDecoder) reset(in []byte) (lc, lp, pb int, err error) {
	if len(in) < 5 {
		return 0, 0, 0, errLZMA
	}
	props := int(^in[0])
	lc, lp, pb = props%9, props/9%5, props/45
	if pb > 4 || lc+lp > lzmaMaxLcLp {
		return 0, 0, 0, errLZMA
	}
	*d = lzmaDecoder{
		in: in, next: 5, rng: 1<<32 - 1,
		code:      uint32(in[1])<<24 | uint32(in[2])<<16 | uint32(in[3])<<8 | uint32(in[4]),
		lzmaProbs: freshLZMA,
	}
	return lc, lp, pb, nil
}

// freshLZMA are the probabilities that a stream begins with.
var freshLZMA = func() (p lzmaProbs) {
	fill := func(lists ...[]uint16) {
		for _, l := range lists {
			for i := range l {
				l[i] = lzmaProbInit
			}
		}
	}
	for i := range lzmaStates {
		fill(p.isMatch[i][:], p.isRep0Long[i][:])
	}
	fill(p.isRep[:], p.isRepG0[:], p.isRepG1[:], p.isRepG2[:], p.pos[:], p.align[:], p.literal[:])
	for i := range p.posSlot {
		fill(p.posSlot[i][:])
	}
	for _, l := range []*lzmaLen{&p.len, &p.rep} {
		l.choice, l.choice2 = lzmaProbInit, lzmaProbInit
		fill(l.high[:])
		for i := range l.low {
			fill(l.low[i][:], l.mid[i][:])
		}
	}
	return p
}()

// afterLZMA is the state after a match, a repeated match or a short one: a
// number that is 3 higher where no literal came before it.
func afterLZMA(state, next int) int {
	if state >= lzmaLitStates {
		if next == 9 {
			return 11
		}
		return next + 3
	}
	return next
}

// repeat decodes a match at one of the last distances, which it moves to the
// front. It returns its length; 1 is a match of one byte.
func (d *lzmaDecoder) repeat(reps *[4]int, state, posState int) int {
	if d.bit(&d.isRepG0[state]) == 0 {
		if d.bit(&d.isRep0Long[state][posState]) == 0 {
			return 1
		}
	} else {
		dist := reps[1]
		if d.bit(&d.isRepG1[state]) != 0 {
			dist = reps[2]
			if d.bit(&d.isRepG2[state]) != 0 {
				dist, reps[3] = reps[3], reps[2]
			}
			reps[2] = reps[1]
		}
		reps[1], reps[0] = reps[0], dist
	}
	return d.length(&d.rep, posState)
}

func (d *lzmaDecoder) length(l *lzmaLen, posState int) int {
	if d.bit(&l.choice) == 0 {
		return lzmaMinMatch + d.tree(l.low[posState][:], 3)
	}
	if d.bit(&l.choice2) == 0 {
		return lzmaMinMatch + 8 + d.tree(l.mid[posState][:], 3)
	}
	return lzmaMinMatch + 16 + d.tree(l.high[:], 8)
}

// distance decodes how far back a new match of a length is, less one. The end
// marker is a distance that no extent has.
func (d *lzmaDecoder) distance(length int) int {
	slot := d.tree(d.posSlot[min(length-lzmaMinMatch, lzmaLenStates-1)][:], 6)
	if slot < 4 {
		return slot
	}
	extra := slot>>1 - 1
	dist := uint32(2|slot&1) << extra
	if slot < lzmaEndPosSlot {
		return int(dist) + d.reverse(d.pos[int(dist)-slot:], extra)
	}
	dist += d.direct(extra-lzmaAlignBits)<<lzmaAlignBits + uint32(d.reverse(d.align[:], lzmaAlignBits))
	return int(min(dist, 1<<31-1)) // an int may have 32 bits
}

// more is the next byte of the input. Zeros stand for those beyond its end, so
// that decode need not look after each bit.
func (d *lzmaDecoder) more() (b uint32) {
	if d.next < len(d.in) {
		b = uint32(d.in[d.next])
	}
	d.next++
	return b
}

// normalize takes another byte where the range is small. It is done before a
// bit is decoded.
func (d *lzmaDecoder) normalize() {
	if d.rng < lzmaTop {
		d.rng, d.code = d.rng<<8, d.code<<8|d.more()
	}
}

// lzmaBit decodes a bit with a probability from a range and a code. Which way it
// goes is what a processor cannot foresee, so there is no branch.
func lzmaBit(rng, code uint32, p *uint16) (uint32, uint32, int) {
	v := uint32(*p)
	bound := rng >> lzmaProbBits * v
	rest := int64(code) - int64(bound)
	zero := uint32(rest >> 63) // all ones for a zero bit, which is the likelier the larger v is
	*p = uint16(int32(v) - int32(v+zero&lzmaUp)>>lzmaMoveBits)
	return bound&zero | (rng-bound)&^zero, uint32(rest) + bound&zero, int(zero + 1)
}

// bit decodes a bit with a probability.
func (d *lzmaDecoder) bit(p *uint16) (b int) {
	d.normalize()
	d.rng, d.code, b = lzmaBit(d.rng, d.code, p)
	return b
}

// tree decodes bits, the highest first, each with the probability that those
// before it lead to.
func (d *lzmaDecoder) tree(probs []uint16, bits int) int {
	rng, code := d.rng, d.code
	m := 1
	for range bits {
		if rng < lzmaTop {
			rng, code = rng<<8, code<<8|d.more()
		}
		var b int
		rng, code, b = lzmaBit(rng, code, &probs[m])
		m = m<<1 | b
	}
	d.rng, d.code = rng, code
	return m - 1<<bits
}

// reverse decodes bits, the lowest first.
func (d *lzmaDecoder) reverse(probs []uint16, bits int) int {
	m, v := 1, 0
	for i := range bits {
		b := d.bit(&probs[m])
		m = m<<1 | b
		v |= b << i
	}
	return v
}

// direct decodes bits that are as likely as not.
func (d *lzmaDecoder) direct(bits int) (v uint32) {
	for range bits {
		d.normalize()
		d.rng >>= 1
		v <<= 1
		if d.code >= d.rng {
			d.code -= d.rng
			v |= 1
		}
	}
	return v
}

// matched decodes a byte that comes after a match. It differs from the one at
// the match's distance, so that one's bits are the context until they do.
func (d *lzmaDecoder) matched(probs *[lzmaLitSize]uint16, match byte) byte {
	rng, code := d.rng, d.code
	m, offset, bits := 1, 0x100, int(match)
	for m < 0x100 {
		if rng < lzmaTop {
			rng, code = rng<<8, code<<8|d.more()
		}
		bits <<= 1
		want := bits & offset
		var b int
		rng, code, b = lzmaBit(rng, code, &probs[offset+want+m])
		m = m<<1 | b
		offset &= bits ^ (b - 1)
	}
	d.rng, d.code = rng, code
	return byte(m)
}
