package inflate

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Flags of a member's header, RFC 1952 section 2.3.1.
const (
	flagText = 1 << iota
	flagHCRC
	flagExtra
	flagName
	flagComment
	flagReserved = 0xe0
)

// maxName bounds FNAME and FCOMMENT, which have no bound of their own: without
// one, a header could be as long as the file, and no checkpoint within it.
const maxName = 1 << 20

// headerReader reads a member's header and sums it up for FHCRC.
type headerReader struct {
	z   *Reader
	sum uint32
}

// next reads n (at most 10) bytes.
func (h *headerReader) next(n int) ([]byte, bool) {
	p := h.z.hbuf[:n]
	if !h.z.readFull(p) {
		return nil, false
	}
	h.sum = crc32.Update(h.sum, crc32.IEEETable, p)
	return p, true
}

// header reads a member's header, RFC 1952 section 2.3.
func (z *Reader) header() error {
	begin := z.base + int64(z.ip)
	h := headerReader{z: z}
	b, ok := h.next(2)
	if !ok {
		if begin == 0 && z.ip == 0 && z.iend == 0 && z.serr == nil {
			return &Error{0, "the input is empty", errTruncated}
		}
		return z.truncated()
	}
	if b[0] != 0x1f || b[1] != 0x8b {
		return &Error{begin, "not gzip data", fault.ErrCorrupt}
	}
	if b, ok = h.next(8); !ok {
		return z.truncated()
	}
	flags := b[1]
	if b[0] != 8 {
		return &Error{begin + 2, fmt.Sprintf("unknown compression method %d", b[0]), fault.ErrCorrupt}
	}
	if flags&flagReserved != 0 {
		return &Error{begin + 3, "reserved header flags are set", fault.ErrCorrupt}
	}
	if flags&flagExtra != 0 {
		if b, ok = h.next(2); !ok {
			return z.truncated()
		}
		for n := int(binary.LittleEndian.Uint16(b)); n > 0; {
			k := min(n, len(h.z.hbuf))
			if _, ok = h.next(k); !ok {
				return z.truncated()
			}
			n -= k
		}
	}
	for _, f := range []byte{flagName, flagComment} {
		if flags&f == 0 {
			continue
		}
		for n := 0; ; n++ {
			if n == maxName {
				return &Error{begin, "a name or comment of over 1 MiB in the header", fault.ErrCorrupt}
			}
			if b, ok = h.next(1); !ok {
				return z.truncated()
			}
			if b[0] == 0 {
				break
			}
		}
	}
	if flags&flagHCRC != 0 {
		want := uint16(h.sum)
		if b, ok = h.next(2); !ok {
			return z.truncated()
		}
		if got := binary.LittleEndian.Uint16(b); got != want {
			return &Error{begin, fmt.Sprintf("header checksum is %04x, not %04x", want, got), fault.ErrIntegrity}
		}
	}
	// A member begins with a clean slate: no history, no references.
	z.floor = z.op
	z.crc, z.crcPos, z.crcSkip = 0, z.op, false
	z.start = z.obase + int64(z.op)
	z.trace, z.tend = nil, 0
	z.state = stBlock
	z.boundary(true)
	return nil
}

// verify compares a trailer with what was decoded.
func (z *Reader) verify(m MemberEnd) error {
	if m.Sum != m.CRC {
		return &Error{m.In - 8, fmt.Sprintf("checksum is %08x, not %08x as the trailer says", m.Sum, m.CRC), fault.ErrIntegrity}
	}
	if size := m.Out - z.start; uint32(size) != m.Size {
		return &Error{m.In - 4, fmt.Sprintf("size is %d, not %d as the trailer says (modulo 2^32)", size, m.Size), fault.ErrIntegrity}
	}
	return nil
}

// nextMember looks at what follows a member: another one, zeros up to the end
// of the input (tapes and block devices pad with them), or the end.
func (z *Reader) nextMember() error {
	if z.ip >= z.iend {
		if z.fill(); z.ip >= z.iend {
			return z.end()
		}
	}
	if z.in[z.ip] != 0 {
		if z.in[z.ip] != 0x1f {
			return &Error{z.base + int64(z.ip), "garbage after the end of the gzip data", fault.ErrCorrupt}
		}
		z.state = stHeader
		return nil
	}
	for {
		for _, c := range z.in[z.ip:z.iend] {
			if c != 0 {
				return &Error{z.base + int64(z.ip), "garbage after the zeros that follow the gzip data", fault.ErrCorrupt}
			}
			z.ip++
		}
		if z.fill(); z.ip >= z.iend {
			return z.end()
		}
	}
}

// end is the error at the end of the input.
func (z *Reader) end() error {
	if z.serr != nil {
		return z.serr
	}
	return io.EOF
}
