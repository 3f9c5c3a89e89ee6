package zinfo

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// This file is the reference that the index is compared with: an inflater
// written straight from RFC 1951 and 1952, a bit at a time, with nothing in
// common with pkg/inflate, and SOCI's rule on top of it.

type naive struct {
	in  []byte
	pos int64 // in bits
	out []byte
	// points as SOCI takes them: at output 0, and then where there is more
	// than span between.
	span   int64
	points []Point
}

var errNaive = errors.New("naive: bad data")

func (z *naive) bit() int {
	if z.pos>>3 >= int64(len(z.in)) {
		panic(errNaive)
	}
	b := z.in[z.pos>>3] >> (z.pos & 7) & 1
	z.pos++
	return int(b)
}

func (z *naive) num(width int) (v int) {
	for i := range width {
		v |= z.bit() << i
	}
	return v
}

// boundary takes a point, or does not. The window of a member has nothing of
// the one before.
func (z *naive) boundary(member int) {
	out := int64(len(z.out))
	if n := len(z.points); n > 0 && out != 0 && out-z.points[n-1].Out <= z.span {
		return
	}
	in := (z.pos + 7) >> 3
	w := make([]byte, WindowSize)
	have := z.out[max(member, len(z.out)-WindowSize):]
	copy(w[WindowSize-len(have):], have)
	z.points = append(z.points, Point{In: in, Out: out, Bits: uint8(8*in - z.pos), Window: w})
}

func (z *naive) gunzip() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errNaive
		}
	}()
	for z.pos>>3 < int64(len(z.in)) {
		h := z.in[z.pos>>3:]
		n := 10
		if h[3]&4 != 0 {
			n += 2 + int(binary.LittleEndian.Uint16(h[n:]))
		}
		for _, flag := range []byte{8, 16} {
			if h[3]&flag != 0 {
				n += bytes.IndexByte(h[n:], 0) + 1
			}
		}
		if h[3]&2 != 0 {
			n += 2
		}
		z.pos += 8 * int64(n)
		z.boundary(len(z.out))
		z.inflate(len(z.out))
		z.pos = (z.pos+7)&^7 + 64
	}
	return nil
}

// inflate decodes one member, whose output begins at member.
func (z *naive) inflate(member int) {
	for {
		final := z.bit()
		switch z.num(2) {
		case 0:
			z.pos = (z.pos + 7) &^ 7
			n := z.num(16)
			z.num(16)
			for range n {
				z.out = append(z.out, byte(z.num(8)))
			}
		case 1:
			lit := make([]int, 288)
			for i := range lit {
				lit[i] = []int{8, 9, 7, 8}[b2i(i > 143)+b2i(i > 255)+b2i(i > 279)]
			}
			dist := make([]int, 30)
			for i := range dist {
				dist[i] = 5
			}
			z.block(lit, dist)
		case 2:
			nlit, ndist, npre := z.num(5)+257, z.num(5)+1, z.num(4)+4
			pre := make([]int, 19)
			for _, s := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}[:npre] {
				pre[s] = z.num(3)
			}
			var lens []int
			for len(lens) < nlit+ndist {
				switch s := z.symbol(pre); s {
				case 16:
					last := lens[len(lens)-1]
					for range 3 + z.num(2) {
						lens = append(lens, last)
					}
				case 17:
					lens = append(lens, make([]int, 3+z.num(3))...)
				case 18:
					lens = append(lens, make([]int, 11+z.num(7))...)
				default:
					lens = append(lens, s)
				}
			}
			z.block(lens[:nlit], lens[nlit:])
		}
		if final == 1 {
			return
		}
		z.boundary(member)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// block decodes the data of a compressed block.
func (z *naive) block(lit, dist []int) {
	for {
		s := z.symbol(lit)
		if s < 256 {
			z.out = append(z.out, byte(s))
			continue
		}
		if s == 256 {
			return
		}
		n := 0
		switch s -= 257; {
		case s == 28:
			n = 258
		case s < 8:
			n = 3 + s
		default:
			extra := s/4 - 1
			n = 3 + (4+s%4)<<extra + z.num(extra)
		}
		d := z.symbol(dist)
		if d < 4 {
			d++
		} else {
			extra := d/2 - 1
			d = 1 + (2+d%2)<<extra + z.num(extra)
		}
		for range n {
			z.out = append(z.out, z.out[len(z.out)-d])
		}
	}
}

// symbol decodes one, by counting codes from the shortest on.
func (z *naive) symbol(lens []int) int {
	code, first := 0, 0
	for l := 1; l <= 15; l++ {
		code = code<<1 | z.bit()
		first <<= 1
		for s, sl := range lens {
			if sl == l {
				if code == first {
					return s
				}
				first++
			}
		}
	}
	panic(errNaive)
}
