package inflate

import (
	"encoding/binary"
	"io"
)

// state is what comes next in the input.
type state uint8

const (
	stHeader  state = iota // a member's header
	stBlock                // a block's header
	stStored               // data of a stored block
	stHuffman              // data of a compressed block
	stTrailer              // a member's trailer
	stNext                 // another member, padding, or the end
)

// step does the next piece of work: a header, or block data until the output
// limit or the end of the block.
func (z *Reader) step() error {
	switch z.state {
	case stHeader:
		return z.header()
	case stBlock:
		return z.blockHeader()
	case stStored:
		return z.storedData()
	case stHuffman:
		return z.huffmanData()
	case stTrailer:
		return z.trailer()
	default:
		return z.nextMember()
	}
}

// boundary tells the hook where we are. The bit buffer may hold whole bytes:
// those are given back in the account.
func (z *Reader) boundary(member bool) {
	if z.hook != nil {
		z.hook(Boundary{
			In:     z.base + int64(z.ip) - int64(z.n>>3),
			Out:    z.obase + int64(z.op),
			Bits:   uint8(z.n & 7),
			Member: member,
		})
	}
}

// blockHeader reads a block's header, RFC 1951 section 3.2.3.
func (z *Reader) blockHeader() error {
	z.refill()
	kind := z.b >> 1 & 3
	z.final = z.b&1 != 0
	z.drop(3)
	if z.overrun() {
		return z.truncated()
	}
	switch kind {
	case 0:
		z.align()
		var b [4]byte // LEN, NLEN
		if !z.readFull(b[:]) {
			return z.truncated()
		}
		n := binary.LittleEndian.Uint16(b[:])
		if n != ^binary.LittleEndian.Uint16(b[2:]) {
			return z.fail("the length of a stored block does not match its complement")
		}
		z.stored = int(n)
		z.state = stStored
	case 1:
		z.lit, z.dist = &fixedLit, &fixedDist
		z.litMask, z.distMask = fixedLitMask, fixedDistMask
		z.state = stHuffman
	case 2:
		if err := z.dynamicHeader(); err != nil {
			return err
		}
		z.lit, z.dist = &z.dynLit, &z.dynDist
		z.state = stHuffman
	default:
		return z.fail("invalid block type")
	}
	return nil
}

// endBlock decides what follows a block.
func (z *Reader) endBlock() {
	if z.final {
		z.state = stTrailer
		return
	}
	z.state = stBlock
	z.boundary(false)
}

// storedData copies what there is of a stored block.
func (z *Reader) storedData() error {
	for z.stored > 0 {
		if z.op >= z.olim {
			return nil
		}
		if z.ip >= z.iend {
			if z.fill(); z.ip >= z.iend {
				return z.truncated()
			}
		}
		n := min(z.stored, z.olim-z.op, z.iend-z.ip)
		copy(z.out[z.op:z.op+n], z.in[z.ip:z.ip+n])
		z.op += n
		z.ip += n
		z.stored -= n
	}
	z.endBlock()
	return nil
}

// preOrder is the order in which the lengths of the code length code come.
var preOrder = [numPre]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicHeader reads the codes of a block, RFC 1951 section 3.2.7.
func (z *Reader) dynamicHeader() error {
	z.refill()
	nlit := int(z.b&31) + 257
	ndist := int(z.b>>5&31) + 1
	npre := int(z.b>>10&15) + 4
	z.drop(14)
	if nlit > 286 || ndist > 30 {
		return z.fail("too many length or distance codes")
	}
	var preLens [numPre]uint8
	for i := range npre {
		if i == 14 { // 14 + 14*3 of 56 bits are gone
			z.refill()
		}
		preLens[preOrder[i]] = uint8(z.b & 7)
		z.drop(3)
	}
	// The distance table is built last: until then it holds this one.
	n, ok := buildTable(z.dynDist[:], preBits, preEntry[:], preLens[:], false, &z.sorted)
	if !ok {
		return z.fail("invalid code of code lengths")
	}

	preMask := uint64(1)<<n - 1
	lens := &z.lens
	total := nlit + ndist
	for i := 0; i < total; {
		z.refill()
		e := z.dynDist[z.b&preMask&(distSize-1)]
		if e&entExceptional != 0 {
			return z.fail("invalid code in code lengths")
		}
		z.drop(uint(e & 0xff))
		sym := e >> 16
		if sym < 16 {
			lens[i] = uint8(sym)
			i++
			continue
		}
		var val uint8
		var n int
		switch sym {
		case 16:
			if i == 0 {
				return z.fail("code length repeat without a length before it")
			}
			val = lens[i-1]
			n = 3 + int(z.b&3)
			z.drop(2)
		case 17:
			n = 3 + int(z.b&7)
			z.drop(3)
		default:
			n = 11 + int(z.b&127)
			z.drop(7)
		}
		rep := lens[i : i+n]
		for j := range rep {
			rep[j] = val
		}
		i += n
		if i > total {
			return z.fail("code length repeat past the end")
		}
	}
	if z.overrun() {
		return z.truncated()
	}
	if lens[256] == 0 {
		return z.fail("no code for the end of the block")
	}
	if n, ok = buildTable(z.dynLit[:], litBits, litEntry[:], lens[:nlit], true, &z.sorted); !ok {
		return z.fail("invalid literal and length code")
	}
	z.litMask = 1<<n - 1
	if n, ok = buildTable(z.dynDist[:], distBits, distEntry[:], lens[nlit:total], true, &z.sorted); !ok {
		return z.fail("invalid distance code")
	}
	z.distMask = 1<<n - 1
	return nil
}

// result is why an inner loop has stopped.
type result uint8

const (
	resLimit   result = iota // of input or output
	resEnd                   // of the block
	resSymbol                // invalid literal or length code
	resDist                  // invalid distance code
	resTooFar                // distance too far back
	resOverrun               // out of input
)

// huffmanData decodes block data until the block or the room for output ends.
func (z *Reader) huffmanData() error {
	for z.op < z.olim {
		if z.ip > z.ilim {
			z.fill()
		}
		var res result
		if z.ip > z.ilim || z.trace != nil && z.op < z.tend {
			res = z.plainLoop()
		} else if z.slower > 1 {
			res = z.safeLoop()
		} else {
			res = z.loop()
		}
		switch res {
		case resEnd:
			if z.overrun() {
				return z.truncated()
			}
			z.endBlock()
			return nil
		case resOverrun:
			return z.truncated()
		case resSymbol:
			return z.fail("invalid literal or length code")
		case resDist:
			return z.fail("invalid distance code")
		case resTooFar:
			return z.fail("distance reaches before the start of the data")
		}
	}
	return nil
}

// trailer reads a member's trailer, RFC 1952 section 2.3.1.
func (z *Reader) trailer() error {
	z.align()
	if z.raw {
		return io.EOF
	}
	sum := z.Sum()
	var b [8]byte // CRC32, ISIZE
	if !z.readFull(b[:]) {
		return z.truncated()
	}
	m := MemberEnd{
		In:      z.base + int64(z.ip),
		Out:     z.obase + int64(z.op),
		CRC:     binary.LittleEndian.Uint32(b[:]),
		Size:    binary.LittleEndian.Uint32(b[4:]),
		Partial: z.crcSkip,
		Sum:     sum,
	}
	if !z.crcSkip {
		if err := z.verify(m); err != nil {
			return err
		}
	}
	if z.onMember != nil {
		z.onMember(m)
	}
	z.state = stNext
	return nil
}
