// Package inflate decodes gzip and DEFLATE streams (RFC 1952, RFC 1951) in
// constant memory, and says at which places decoding can be resumed.
//
// It differs from compress/gzip in four ways. It is several times faster. It
// calls a hook at every block boundary, from which an index of checkpoints
// can be made (package zinfo). It resumes at such a boundary, given the 32 KiB
// of output before it. And it is as strict as zlib and gzip(1) where those are:
// header checksums are verified, zeros may follow the last member, and
// anything else that follows is an error. Every error says at which offset of
// the input it was found.
//
// # Structure
//
// One Reader is a state machine (run in step.go): member header, block header,
// block data, trailer. It decodes into a private buffer, which holds the
// 32 KiB of history in front and is handed out or copied from once full, so
// that the inner loop may write a little past its limit and has no slow path.
//
// The inner loop exists four times: loop_amd64.s for processors with BMI2,
// loop_unsafe.go for the machines that have unaligned little-endian loads,
// loop_safe.go for the others and under the build tag inflate_safe, and plain.go,
// for the last bytes of the input and for tracing what is copied from where. All
// share the tables of huffman.go, and every test and fuzz target runs them all.
package inflate

import (
	"hash/crc32"
	"io"
)

// WindowSize is how far back a match may reach, in bytes of output: what must
// be known of the past to resume.
const WindowSize = 32 << 10

const (
	// outEnd bounds the positions in the output buffer. It is a power of two, so
	// that in safeLoop a mask can take the place of bounds checks, and small
	// enough for the buffer to stay in the L2 cache.
	outEnd = 256 << 10
	// outSlack is what the inner loop may write past its limit: two literals
	// and a match that it began just below it (2+258), and what a match copied
	// in words of 16 bytes spills over.
	outSlack = 512
	// outSize is how much is decoded before the buffer is handed out and the
	// history moved to its front.
	outSize = outEnd - WindowSize - outSlack

	inSize = 64 << 10 // a power of two, too
	// inMargin is what one round of the inner loop may read: three refills at
	// most, each of which moves up to 7 bytes and loads 8, and some to spare.
	inMargin = 40
	// inSlack is how many zeros follow the end of the input: refill moves up to
	// 15 bytes into them.
	inSlack = 16
	// outPast is what lies behind any position in out, for the same purpose.
	outPast = 32
)

// A Boundary is a place where decoding can be resumed: the end of a member's
// header, or the end of a block that is not the last of its member.
type Boundary struct {
	// In is the offset of the first input byte that is wholly behind the
	// boundary, and Out the offset of the next output byte. Both count from
	// the start of the file, through all members.
	In, Out int64
	// Bits (0 to 7) is how many bits at the top of the byte at In-1 are still
	// to be decoded. The boundary is at bit 8*In - Bits.
	Bits uint8
	// Member says that the boundary is the end of a member's header: nothing
	// before it is needed.
	Member bool
}

// A Reader decompresses a gzip file of any number of members, or a raw DEFLATE
// stream. After an error it gives that error for ever. It is not safe for
// concurrent use.
type Reader struct {
	// The bit buffer: b holds at least n bits, the next one lowest. Bits of b
	// above n are either zero or the right ones already.
	b uint64
	n uint

	ip   int   // next byte of in to load
	iend int   // end of the valid bytes of in
	ilim int   // the bit buffer may be refilled while ip <= ilim
	base int64 // input offset of in[0]
	src  io.Reader
	eof  bool  // src is done; zeros follow iend
	serr error // why, if not io.EOF

	op      int   // where the next byte of output goes
	rp      int   // next byte to hand out
	floor   int   // matches must not reach below
	olim    int   // decode until op >= olim
	obase   int64 // output offset of out[0]
	crcPos  int   // bytes below are in crc
	crc     uint32
	crcSkip bool  // resumed within this member: crc and size mean nothing
	start   int64 // output offset of the member's first byte

	state  state
	raw    bool // no gzip wrapping
	final  bool // in the last block of its member
	stored int  // bytes of the stored block left
	err    error

	slower int // for tests: run loop without assembly (1), or safeLoop (2)
	hook   func(Boundary)
	trace  *Trace
	tpos   int // where in out the traced window ends
	tend   int // where in out tracing ends

	onMember func(MemberEnd)

	// The tables of the block at hand, and what to mask the input with for an
	// index: less than 1<<litBits and 1<<distBits.
	lit               *[litSize]uint32
	dist              *[distSize]uint32
	litMask, distMask uint64

	in      [inSize + inSlack]byte
	out     [outEnd + outPast]byte
	dynLit  [litSize]uint32
	dynDist [distSize]uint32
	hbuf    [10]byte                      // bytes of a header
	lens    [maxLit + maxDist + 138]uint8 // one repeat may overshoot
	sorted  [maxLit]uint16
}

// NewReader returns a Reader of the gzip file that r gives. It reads ahead of
// what it decodes, and r to its end.
func NewReader(r io.Reader) *Reader {
	z := new(Reader)
	z.Reset(r)
	return z
}

// Reset makes z as good as new, to read a gzip file from r.
func (z *Reader) Reset(r io.Reader) {
	z.reset(r)
	z.state = stHeader
}

// ResetRaw makes z read one raw DEFLATE stream from r. What follows the stream
// is not looked at, though some of it may have been read; InputOffset tells
// where it begins.
func (z *Reader) ResetRaw(r io.Reader) {
	z.reset(r)
	z.raw = true
	z.state = stBlock
}

// Resume makes z continue a gzip file at the boundary b. r gives the file from
// offset b.In on, or from b.In-1 on if b.Bits is not 0. The window is the
// 32 KiB of output before the boundary, oldest first; nil stands for zeros, and
// at the start of a member it is not used.
//
// The checksum of a member that was resumed half-way cannot be verified; those
// of the members that follow are.
func (z *Reader) Resume(r io.Reader, b Boundary, window []byte) {
	z.reset(r)
	z.state = stBlock
	z.base = b.In
	z.obase = b.Out - WindowSize
	z.start = b.Out
	if !b.Member {
		z.crcSkip = true
		z.floor = int(WindowSize - min(max(b.Out, 0), WindowSize)) // there is nothing before byte 0
		if window == nil {
			clear(z.out[:WindowSize])
		} else if len(window) != WindowSize {
			panic("inflate: a window that is not 32 KiB")
		} else {
			copy(z.out[:], window)
		}
	}
	if bits := b.Bits & 7; bits != 0 {
		z.base--
		if z.fill(); z.iend > 0 {
			z.b = uint64(z.in[0]) >> (8 - bits)
			z.n = uint(bits)
			z.ip = 1
		}
	}
}

// ResumeRaw is Resume for a raw DEFLATE stream.
func (z *Reader) ResumeRaw(r io.Reader, b Boundary, window []byte) {
	z.Resume(r, b, window)
	z.raw = true
}

// reset leaves the big arrays as they are: nothing above floor, and nothing of
// the input beyond iend, is read before it is written.
func (z *Reader) reset(r io.Reader) {
	z.b, z.n = 0, 0
	z.ip, z.iend, z.ilim, z.base = 0, 0, -1, 0
	z.src, z.eof, z.serr = r, false, nil
	z.op, z.rp, z.floor, z.olim = WindowSize, WindowSize, WindowSize, WindowSize
	z.obase = -WindowSize
	z.crcPos, z.crc, z.crcSkip, z.start = WindowSize, 0, false, 0
	z.raw, z.final, z.stored, z.err = false, false, 0, nil
	z.hook, z.trace, z.tend, z.onMember = nil, nil, 0, nil
	z.lit, z.dist = nil, nil
}

// OnBoundary sets a function to be called at every boundary, in order, while
// Read or WriteTo run and before the output behind the boundary is decoded.
// It may call z.Window, z.Sum and z.StartTrace and nothing else of z.
func (z *Reader) OnBoundary(f func(Boundary)) { z.hook = f }

// A MemberEnd describes a member that has just been read to its end.
type MemberEnd struct {
	In, Out int64  // offsets behind its trailer, and behind its last byte
	CRC     uint32 // the trailer's checksum of the member
	Size    uint32 // the trailer's size of the member, modulo 2^32
	Partial bool   // resumed half-way: CRC and Size were not verified
	Sum     uint32 // checksum of what was decoded of the member, from where it was resumed
}

// OnMember sets a function to be called at the end of every member.
func (z *Reader) OnMember(f func(MemberEnd)) { z.onMember = f }

// Window fills dst, of WindowSize bytes, with the output before the boundary
// at hand, oldest first. Where the member has less, zeros come first. It
// returns how many bytes are not such zeros.
func (z *Reader) Window(dst []byte) int {
	have := min(z.op-z.floor, WindowSize)
	clear(dst[:WindowSize-have])
	copy(dst[WindowSize-have:WindowSize], z.out[z.op-have:z.op])
	return have
}

// Sum is the checksum (CRC-32) of what has been decoded of the member at hand.
func (z *Reader) Sum() uint32 {
	z.sum()
	return z.crc
}

// OutputOffset is the offset of the byte that Read gives next.
func (z *Reader) OutputOffset() int64 { return z.obase + int64(z.rp) }

// InputOffset is the offset of the byte at which decoding goes on: the last
// one looked at if some of its bits are left.
func (z *Reader) InputOffset() int64 { return z.base + int64(z.ip) - int64(z.n+7)>>3 }

// Read gives up to len(p) bytes. io.EOF means that the last member was
// complete and that nothing but zeros followed it.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if z.rp == z.op {
		z.decode(max(len(p), 32<<10))
	}
	n := copy(p, z.out[z.rp:z.op])
	z.rp += n
	if n == 0 {
		return 0, z.err
	}
	return n, nil
}

// ReadFull fills p, or says why it cannot. Unlike Read it decodes nothing ahead,
// so that input which ends where p does is no error.
func (z *Reader) ReadFull(p []byte) (n int, err error) {
	for n < len(p) {
		if z.rp == z.op {
			if z.err != nil {
				return n, z.err
			}
			z.decode(len(p) - n)
		}
		k := copy(p[n:], z.out[z.rp:z.op])
		z.rp += k
		n += k
	}
	return n, nil
}

// Discard skips n bytes of output without copying them. If there are fewer it
// returns how many there were, and why.
func (z *Reader) Discard(n int64) (int64, error) {
	left := n
	for left > 0 {
		if z.rp == z.op {
			if z.err != nil {
				return n - left, z.err
			}
			z.decode(int(min(left, outSize)))
		}
		skip := int(min(left, int64(z.op-z.rp)))
		z.rp += skip
		left -= int64(skip)
	}
	return n, nil
}

// WriteTo writes everything to w. It saves the copy that Read makes.
func (z *Reader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if z.rp < z.op {
			n, err := w.Write(z.out[z.rp:z.op])
			z.rp += n
			total += int64(n)
			if err != nil {
				return total, err
			}
			if z.rp < z.op {
				return total, io.ErrShortWrite
			}
		}
		if z.err == io.EOF {
			return total, nil
		}
		if z.err != nil {
			return total, z.err
		}
		z.decode(outSize)
	}
}

// decode decodes want bytes or slightly more, or what room there is for; fewer
// if there is an error, which is put into z.err. All output must have been
// handed out.
func (z *Reader) decode(want int) {
	if z.op >= WindowSize+outSize {
		z.slide()
	}
	z.olim = min(z.op+want, WindowSize+outSize)
	for z.err == nil && z.op < z.olim {
		z.err = z.step()
	}
	if !z.crcSkip || z.onMember != nil {
		z.sum()
	}
}

// sum brings the checksum up to date: in large pieces, and while they are in
// the cache.
func (z *Reader) sum() {
	z.crc = crc32.Update(z.crc, crc32.IEEETable, z.out[z.crcPos:z.op])
	z.crcPos = z.op
}

// slide moves the history to the front of the buffer.
func (z *Reader) slide() {
	shift := z.op - WindowSize
	copy(z.out[:WindowSize], z.out[shift:z.op])
	z.op = WindowSize
	z.rp -= shift
	z.crcPos = WindowSize
	z.floor = max(z.floor-shift, 0)
	z.tpos -= shift
	z.tend -= shift
	z.obase += int64(shift)
}
