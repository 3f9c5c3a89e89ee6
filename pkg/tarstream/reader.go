package tarstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// ErrNoEndMarker is what Next returns, in place of io.EOF, when the archive
// ends on an entry's edge without the two zero blocks that end a tar. On a
// pipe that is how a failed writer looks.
var ErrNoEndMarker = errors.New("archive ends without the end marker")

const (
	// maxMeta bounds the body of an extended header or a long name: the xattrs
	// of one file take at most 64 KiB on most filesystems, base64 adds a third.
	maxMeta = 16 << 20
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
	err    error

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
// copying them; the slice is valid until the next call of any method.
// It returns io.EOF when there are no more.
func (r *Reader) Data() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	if err := r.giveBack(); err != nil {
		r.err = err
		return nil, err
	}
	if r.left == 0 {
		return nil, io.EOF
	}
	p, err := r.src.Peek(1)
	if len(p) == 0 {
		r.err = r.cut(err)
		return nil, r.err
	}
	n := min(int64(r.src.Buffered()), r.left)
	if p, err = r.src.Peek(int(n)); err != nil {
		r.err = r.cut(err)
		return nil, r.err
	}
	r.lent = n
	r.left -= n
	return p, nil
}

// giveBack consumes what Data handed out; until then it stays the caller's.
func (r *Reader) giveBack() error {
	n := r.lent
	r.lent = 0
	return r.skip(n)
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

func (r *Reader) skip(n int64) error {
	done, err := r.src.Discard(n)
	r.off += done
	if done < n {
		return r.cut(err)
	}
	return nil
}

// readBlock reads the next header. atEdge says that the archive may end here.
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

// readMeta reads the body of an entry that describes the next one.
func (r *Reader) readMeta(b *block) ([]byte, error) {
	at := r.off - blockSize
	n, err := parseNumber(b.size())
	if err != nil {
		return nil, r.bad(at, "size: %w", err)
	}
	if n < 0 || n > maxMeta {
		return nil, r.bad(at, "extended header of %d bytes (at most %d): %w", n, maxMeta, fault.ErrUnsupported)
	}
	body := make([]byte, 0, min(n, maxLookahead))
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
	return body, r.skip(-n & (blockSize - 1))
}

// next reads headers up to and including one of a file.
func (r *Reader) next() (*Entry, error) {
	if err := r.skip(r.lent + r.left); err != nil {
		return nil, err
	}
	r.lent, r.left = 0, 0
	if err := r.skip(r.pad); err != nil {
		return nil, err
	}
	r.pad = 0
	var (
		b                  block
		start              = r.off
		longName, longLink []byte
		local              []record
		hasPax             bool
		inEntry            bool // headers of an entry were read, the entry itself not yet
	)
	for {
		at := r.off
		if err := r.readBlock(&b, !inEntry); err != nil {
			return nil, err
		}
		if b.isZero() {
			if inEntry {
				return nil, r.bad(at, "end marker behind an extended header: %w", fault.ErrCorrupt)
			}
			return nil, r.end(at)
		}
		if !b.checksumOK() {
			return nil, r.bad(at, "header checksum mismatch: %w", fault.ErrCorrupt)
		}
		switch b.typeflag() {
		case 'L', 'K', 'x', 'X', 'g':
			body, err := r.readMeta(&b)
			if err != nil {
				return nil, err
			}
			switch b.typeflag() {
			case 'L':
				longName, inEntry = cstring(body), true
			case 'K':
				longLink, inEntry = cstring(body), true
			case 'x', 'X': // X is Solaris's name for it
				if local, err = parseRecords(body, nil); err != nil {
					return nil, r.bad(at, "%w", err)
				}
				hasPax, inEntry = true, true
			case 'g':
				more, err := parseRecords(body, nil)
				if err != nil {
					return nil, r.bad(at, "%w", err)
				}
				r.global = merge(r.global, more)
			}
			continue
		case 'V': // GNU volume label: a name for the tape
			if _, err := r.readMeta(&b); err != nil {
				return nil, err
			}
			continue
		case 'M', 'N':
			return nil, r.bad(at, "entry type %q (multi-volume or old long names): %w", b.typeflag(), fault.ErrUnsupported)
		}
		e, err := r.entry(&b, longName, longLink, local, hasPax)
		if err != nil {
			return nil, r.bad(at, "%w", err)
		}
		e.Offset = start
		return e, nil
	}
}

// end is called behind a zero block.
func (r *Reader) end(at int64) error {
	p, err := r.src.Peek(blockSize)
	if len(p) == 0 && err == io.EOF {
		return io.EOF // one zero block and nothing else: some writers stop there
	}
	if len(p) < blockSize {
		return r.cut(err)
	}
	if b := (*block)(p); !b.isZero() {
		// Readers that stop here lose what follows.
		return r.bad(at, "a lone zero block in mid-archive: %w", fault.ErrCorrupt)
	}
	if err := r.skip(blockSize); err != nil {
		return err
	}
	return io.EOF
}

// entry makes an Entry of a header and those that came before it.
func (r *Reader) entry(b *block, longName, longLink []byte, local []record, hasPax bool) (*Entry, error) {
	e := &Entry{Type: b.typeflag()}
	if err := e.fromHeader(b); err != nil {
		return nil, err
	}
	if longName != nil {
		e.Name = string(longName)
	}
	if longLink != nil {
		e.Linkname = string(longLink)
	}
	var sp sparseHeader
	for _, rec := range r.global {
		if !slices.ContainsFunc(local, func(l record) bool { return l.key == rec.key }) {
			if err := e.apply(rec, &sp); err != nil {
				return nil, err
			}
		}
	}
	for _, rec := range local {
		if err := e.apply(rec, &sp); err != nil {
			return nil, err
		}
	}
	if e.Size < 0 || e.Size > maxFileSize {
		return nil, fmt.Errorf("size %d: %w", e.Size, fault.ErrCorrupt)
	}
	if strings.IndexByte(e.Name, 0) >= 0 || strings.IndexByte(e.Linkname, 0) >= 0 {
		return nil, fmt.Errorf("name with a NUL: %w", fault.ErrCorrupt)
	}
	e.DataOffset, e.Stored = r.off, e.Size
	if err := r.classify(e, hasPax || len(r.global) > 0); err != nil {
		return nil, err
	}
	if err := r.sparse(b, e, &sp); err != nil {
		return nil, fmt.Errorf("%q: %w", e.Name, err)
	}
	r.left = e.Stored
	r.pad = -(e.DataOffset + e.Stored) & (blockSize - 1)
	return e, nil
}

// fromHeader reads the block's own fields.
func (e *Entry) fromHeader(b *block) (err error) {
	e.Name, e.Linkname = string(b.name()), string(b.linkname())
	if p := b.prefix(); len(p) > 0 {
		e.Name = string(p) + "/" + e.Name
	}
	number := func(what string, f []byte) int64 {
		n, nerr := parseNumber(f)
		if nerr != nil && err == nil {
			err = fmt.Errorf("%s: %w", what, nerr)
		}
		return n
	}
	id := func(what string, f []byte) uint32 {
		n := number(what, f)
		v, iderr := toID(what, n)
		if iderr != nil && err == nil {
			err = iderr
		}
		return v
	}
	e.Mode = uint16(number("mode", b.mode()) & 0o7777)
	e.UID, e.GID = id("uid", b.uid()), id("gid", b.gid())
	e.Size, e.Mtime = number("size", b.size()), number("mtime", b.mtime())
	// Of other types writers leave anything in these.
	if e.Type == TypeChar || e.Type == TypeBlock {
		e.Devmajor, e.Devminor = id("devmajor", b.devmajor()), id("devminor", b.devminor())
	}
	return err
}

// classify maps the typeflag to one of the seven types, and settles whether
// data follows where writers disagree.
func (r *Reader) classify(e *Entry, pax bool) error {
	switch e.Type {
	case TypeRegular, 0, '7', 'S':
		// Before ustar a directory was a file whose name ends in a slash.
		if strings.HasSuffix(e.Name, "/") && e.Type != 'S' {
			e.Type, e.Size = TypeDir, 0
		} else {
			e.Type = TypeRegular
		}
	case 'D': // GNU incremental: a directory whose data lists its names
		e.Type, e.Size = TypeDir, 0
	case TypeLink, TypeSymlink, TypeDir, TypeChar, TypeBlock, TypeFifo:
		if e.Stored != 0 && !(e.Type == TypeLink && pax) {
			data, err := r.dataFollows(e.Stored)
			if err != nil {
				return err
			}
			if !data {
				e.Stored = 0
			}
		}
		e.Size = 0
	default:
		// POSIX: what is not known is to be read as a regular file.
		r.warn("offset %d: %q: unknown entry type %q read as a regular file", r.off-blockSize, e.Name, e.Type)
		e.Type = TypeRegular
	}
	return nil
}

// dataFollows decides for an entry that should not have data but claims size
// bytes of it. POSIX.1-1988 writers stored a link's size without its data,
// later ones store the data; directories and symlinks exist in both ways too.
// What comes next tells: a header (then the size was an ornament) or not.
func (r *Reader) dataFollows(size int64) (bool, error) {
	p, err := r.src.Peek(blockSize)
	if len(p) < blockSize {
		if err == io.EOF {
			return false, nil // the end is then found by the next call
		}
		return false, err
	}
	next := (*block)(p)
	if !next.isZero() {
		return !next.checksumOK(), nil
	}
	// The end marker, or data that starts with zeros: look behind it.
	behind := (size + blockSize - 1) &^ (blockSize - 1)
	p, err = r.src.Peek(int(min(behind+blockSize, maxLookahead)))
	if err != nil && err != io.EOF {
		return false, err
	}
	if int64(len(p)) == behind+blockSize {
		next = (*block)(p[behind:])
		return !next.isZero() && next.checksumOK(), nil
	}
	if allZero(p) && err == nil {
		return false, fmt.Errorf("cannot tell whether %d bytes of data follow: %w", size, fault.ErrUnsupported)
	}
	return !allZero(p), nil
}

func allZero(p []byte) bool {
	return len(bytes.TrimLeft(p, "\x00")) == 0
}

func (r *Reader) warn(format string, args ...any) {
	if r.Warn != nil {
		r.Warn(fmt.Sprintf("tar: "+format, args...))
	}
}
