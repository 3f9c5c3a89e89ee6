package inflate

import (
	"encoding/binary"
	"io"
)

// fill moves the rest of the input to the front of the buffer and reads more
// behind it, until there is enough for a few rounds of the inner loop or src
// has no more.
func (z *Reader) fill() {
	if z.eof {
		return
	}
	// Of the bytes before ip, seven may be in the bit buffer and be given back.
	keep := min(z.ip, 7)
	used := z.ip - keep
	copy(z.in[:], z.in[used:z.iend])
	z.base += int64(used)
	z.iend -= used
	z.ip = keep
	for empty := 0; z.iend <= 3*inMargin; {
		n, err := z.src.Read(z.in[z.iend:inSize])
		z.iend += n
		if n > 0 {
			empty = 0
		} else if empty++; empty == 100 && err == nil {
			err = errNoInput
		}
		if err != nil {
			if err != io.EOF {
				z.serr = err
			}
			z.eof = true
			clear(z.in[z.iend : z.iend+inSlack])
			break
		}
	}
	z.ilim = z.iend - inMargin
}

// overrun reports that more bits were used than there were.
func (z *Reader) overrun() bool {
	return z.eof && 8*z.ip-int(z.n) > 8*z.iend
}

// refill makes at least 56 bits available. Past the end of the input they are
// zeros; the caller asks overrun once it knows how many it used.
func (z *Reader) refill() {
	if z.ip > z.ilim {
		z.fill()
		if z.ip > z.iend+8 {
			z.n |= 56 // overrun holds and goes on to: ip is 9 past the end
			return
		}
	}
	z.b |= binary.LittleEndian.Uint64(z.in[z.ip:]) << (z.n & 63)
	z.ip += int(7 - z.n>>3&7)
	z.n |= 56
}

// drop uses up k bits.
func (z *Reader) drop(k uint) {
	z.b >>= k & 63
	z.n -= k
}

// align drops what is left of the byte at hand and gives all whole bytes back,
// so that bytes can be read at ip.
func (z *Reader) align() {
	z.ip -= int(z.n >> 3)
	z.b, z.n = 0, 0
}

// readByte reads a byte of the input, which is aligned.
func (z *Reader) readByte() (byte, bool) {
	if z.ip >= z.iend {
		if z.fill(); z.ip >= z.iend {
			return 0, false
		}
	}
	c := z.in[z.ip]
	z.ip++
	return c, true
}

// readFull fills p from the input, which is aligned.
func (z *Reader) readFull(p []byte) bool {
	for i := range p {
		c, ok := z.readByte()
		if !ok {
			return false
		}
		p[i] = c
	}
	return true
}
