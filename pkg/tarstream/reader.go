package tarstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// ErrNoEndMarker is what Next returns, in place of io.EOF, when the archive
// ends on an entry's edge without the two zero blocks that end a tar. On a
// pipe that is how a failed writer looks.
var ErrNoEndMarker = errors.New("archive ends without the end marker")

const (
	// maxMeta bounds the body of an extended header or a long name, in bytes:
	// the xattrs of one file take at most 64 KiB on most filesystems, but a
	// directory's names (GNU.dumpdir) and a sparse map come this way as well.
	maxMeta = 16 << 20
	// keepMeta is how much of a buffer stays for the next such body.
	keepMeta = 1 << 20
	// maxSparse bounds the map of one sparse file: 16 bytes of memory each.
	maxSparse = 1 << 22
	// maxLookahead is how far a Source must be able to peek.
	maxLookahead = 64 << 10
	// maxFileSize keeps offsets and sizes, and their sums, within int64.
	maxFileSize = 1 << 62
)

// A Reader gives the entries of an archive one after the other.
type Reader struct {
	src    Source
	off    int64 // in the archive, of src's next byte
	lent   int64 // bytes that Data has handed out; consumed by the next call
	left   int64 // stored bytes of the current entry behind those
	pad    int64 // bytes behind them up to the next header
	global []record
	some   bool // an entry was read
	err    error

	// Kept from call to call, not to be allocated for each entry.
	blk      block
	local    []record
	paxBuf   []byte // body of the last 'x', which local points into
	otherBuf []byte // of the last 'g' or 'V'
	nameBuf  []byte // of the last 'L'
	linkBuf  []byte // of the last 'K'
	joined   []byte // prefix and name

	// Warn, if set, is told of what is read in a way the archive's writer may
	// not have meant, or left out because no filesystem holds it.
	Warn func(msg string)
}

// NewReader reads an archive from src.
func NewReader(src Source) *Reader { return &Reader{src: src} }

// Offset is the position in the archive, bytes from its start.
func (r *Reader) Offset() int64 { return r.off }

// Next skips what is left of the current entry and returns the next one.
// It returns io.EOF behind the end marker, and ErrNoEndMarker where the
// archive ends without one.
func (r *Reader) Next() (*Entry, error) {
	if r.err != nil {
		return nil, r.err
	}
	e, err := r.next()
	if err != nil {
		r.err = err
		return nil, err
	}
	return e, nil
}

// Data returns the next run of the current entry's stored bytes, without
// copying them; the slice is valid until the next call of Next or Data.
// It returns io.EOF when there are no more.
func (r *Reader) Data() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	p, err := r.data()
	if err != nil && err != io.EOF {
		r.err = err
	}
	return p, err
}

func (r *Reader) data() ([]byte, error) {
	// What was handed out before stayed the caller's until now.
	lent := r.lent
	r.lent = 0
	if err := r.skip(lent); err != nil {
		return nil, err
	}
	if r.left == 0 {
		return nil, io.EOF
	}
	p, err := r.src.Peek(1)
	if len(p) == 0 {
		return nil, r.cut(err)
	}
	n := min(max(int64(r.src.Buffered()), 1), r.left)
	if p, err = r.src.Peek(int(n)); int64(len(p)) < n {
		return nil, r.cut(err)
	}
	r.lent = n
	r.left -= n
	return p, nil
}

// cut turns the end of the input in the middle of something into an error
// that says where.
func (r *Reader) cut(err error) error {
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("tar: offset %d: %w", r.off, err)
}

func (r *Reader) bad(at int64, format string, args ...any) error {
	return fmt.Errorf("tar: offset %d: %w", at, fmt.Errorf(format, args...))
}

func (r *Reader) warn(format string, args ...any) {
	if r.Warn != nil {
		r.Warn(fmt.Sprintf("tar: "+format, args...))
	}
}

func (r *Reader) skip(n int64) error {
	if n == 0 {
		return nil
	}
	done, err := r.src.Discard(n)
	r.off += done
	if done < n {
		return r.cut(err)
	}
	return nil
}

// readBlock reads the next 512 bytes. atEdge says that the archive may end
// before them.
func (r *Reader) readBlock(b *block, atEdge bool) error {
	p, err := r.src.Peek(blockSize)
	if len(p) == 0 && atEdge && (err == nil || err == io.EOF) {
		return ErrNoEndMarker
	}
	if len(p) < blockSize {
		r.off += int64(len(p))
		return r.cut(err)
	}
	copy(b[:], p)
	return r.skip(blockSize)
}

// readMeta reads the body of an entry that describes another one into buf.
func (r *Reader) readMeta(b *block, buf *[]byte) ([]byte, error) {
	at := r.off - blockSize
	n, err := parseNumber(b.size())
	if err != nil {
		return nil, r.bad(at, "size: %w", err)
	}
	if n < 0 || n > maxMeta {
		return nil, r.bad(at, "extended header of %d bytes (at most %d): %w", n, maxMeta, fault.ErrUnsupported)
	}
	if cap(*buf) > keepMeta {
		*buf = nil
	}
	// It grows with what really comes, whatever the header claims.
	body := (*buf)[:0]
	for int64(len(body)) < n {
		p, err := r.src.Peek(int(min(n-int64(len(body)), maxLookahead)))
		if len(p) == 0 {
			return nil, r.cut(err)
		}
		body = append(body, p...)
		if err := r.skip(int64(len(p))); err != nil {
			return nil, err
		}
	}
	*buf = body
	return body, r.skip(-n & (blockSize - 1))
}

// next reads headers up to and including one of a file.
func (r *Reader) next() (*Entry, error) {
	rest := r.lent + r.left + r.pad
	r.lent, r.left, r.pad = 0, 0, 0
	if err := r.skip(rest); err != nil {
		return nil, err
	}
	var (
		b                  = &r.blk
		start              = r.off
		longName, longLink []byte
		inEntry            bool // headers of an entry were read, the entry itself not yet
	)
	r.local = r.local[:0]
	for {
		at := r.off
		if err := r.readBlock(b, !inEntry); err != nil {
			return nil, err
		}
		if b.isZero() {
			if inEntry {
				return nil, r.bad(at, "end marker behind an extended header: %w", fault.ErrCorrupt)
			}
			return nil, r.end(at)
		}
		if !b.checksumOK() {
			if at == 0 {
				return nil, r.bad(at, "no tar archive: %w", fault.ErrCorrupt)
			}
			return nil, r.bad(at, "header checksum mismatch: %w", fault.ErrCorrupt)
		}
		var body []byte
		var err error
		switch b.typeflag() {
		case 'L':
			body, err = r.readMeta(b, &r.nameBuf)
			longName, inEntry = cstring(body), true
		case 'K':
			body, err = r.readMeta(b, &r.linkBuf)
			longLink, inEntry = cstring(body), true
		case 'x', 'X': // X is Solaris's name for it
			if body, err = r.readMeta(b, &r.paxBuf); err != nil {
				return nil, err
			}
			if r.local, err = parseRecords(body, r.local[:0]); err != nil {
				err = r.bad(at, "%w", err)
			}
			inEntry = true
		case 'g':
			if body, err = r.readMeta(b, &r.otherBuf); err != nil {
				return nil, err
			}
			if err = r.addGlobal(body); err != nil {
				err = r.bad(at, "%w", err)
			}
		case 'V': // GNU volume label: a name for the tape
			_, err = r.readMeta(b, &r.otherBuf)
		case 'M', 'N':
			err = r.bad(at, "entry type %q (multi-volume or old long names): %w", b.typeflag(), fault.ErrUnsupported)
		default:
			e, err := r.entry(b, longName, longLink)
			if err != nil {
				return nil, r.bad(at, "%w", err)
			}
			e.Offset = start
			r.some = true
			return e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (r *Reader) addGlobal(body []byte) error {
	more, err := parseRecords(body, nil)
	if err != nil {
		return err
	}
	r.global, err = mergeGlobal(r.global, more)
	return err
}

// end is called behind a zero block.
func (r *Reader) end(at int64) error {
	p, err := r.src.Peek(blockSize)
	if len(p) == 0 && err == io.EOF {
		return io.EOF // one zero block and nothing else: some writers stop there
	}
	if len(p) < blockSize {
		r.off += int64(len(p))
		return r.cut(err)
	}
	if b := (*block)(p); !b.isZero() {
		// Readers that stop here lose what follows.
		return r.bad(at, "a lone zero block in mid-archive: %w", fault.ErrCorrupt)
	}
	if err := r.skip(blockSize); err != nil {
		return err
	}
	// What follows is no part of the archive: others' readers leave it unread,
	// too. But file systems and disks begin with zeros, and are no empty
	// archives. An error of the source comes when that is read on.
	p, _ = r.src.Peek(maxLookahead)
	if rest := bytes.TrimLeft(p, "\x00"); len(rest) > 0 {
		at := r.off + int64(len(p)-len(rest))
		if !r.some {
			return r.bad(at, "no tar archive: data behind nothing but zeros: %w", fault.ErrCorrupt)
		}
		r.warn("offset %d: what follows the end of the archive is left out", at)
	}
	return io.EOF
}
