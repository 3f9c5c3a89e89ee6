package tarstream

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A sparseHeader collects the GNU.sparse.* records of PAX formats 0.0, 0.1
// and 1.0.
type sparseHeader struct {
	major, minor string
	name         []byte // of the file, where path is a made-up one
	realSize     int64
	hasSize      bool
	half         bool // 0.0: an offset was read, its numbytes not yet
	sparseMap    []Extent
}

func (sp *sparseHeader) apply(r record) (err error) {
	switch string(r.key) {
	case "GNU.sparse.major":
		sp.major = string(r.value)
	case "GNU.sparse.minor":
		sp.minor = string(r.value)
	case "GNU.sparse.name":
		sp.name = r.value
	case "GNU.sparse.size", "GNU.sparse.realsize":
		sp.realSize, err = parseSize(r)
		sp.hasSize = true
	case "GNU.sparse.offset":
		var n int64
		if n, err = parseSize(r); sp.half {
			return fmt.Errorf("%s twice in a row: %w", r.key, fault.ErrCorrupt)
		}
		sp.sparseMap = append(sp.sparseMap, Extent{Offset: n})
		sp.half = true
	case "GNU.sparse.numbytes":
		if !sp.half {
			return fmt.Errorf("%s without an offset: %w", r.key, fault.ErrCorrupt)
		}
		sp.sparseMap[len(sp.sparseMap)-1].Length, err = parseSize(r)
		sp.half = false
	case "GNU.sparse.map":
		return sp.parseMap(r)
	}
	return err
}

// parseMap reads format 0.1's map: offset,length,offset,length...
func (sp *sparseHeader) parseMap(r record) error {
	sp.sparseMap = make([]Extent, 0, bytes.Count(r.value, []byte(","))/2+1)
	var x Extent
	fields := 0
	for f := range bytes.SplitSeq(r.value, []byte(",")) {
		n, err := parseSize(record{r.key, f})
		if err != nil {
			return err
		}
		if fields++; fields%2 == 1 {
			x.Offset = n
			continue
		}
		x.Length = n
		sp.sparseMap = append(sp.sparseMap, x)
	}
	if fields%2 != 0 {
		return fmt.Errorf("%s: odd number of fields: %w", r.key, fault.ErrCorrupt)
	}
	return nil
}

// sparse finds the entry's sparse map, if it has one, in whichever of the four
// places its format puts it, and leaves the archive at the first stored byte.
func (r *Reader) sparse(b *block, e *Entry, sp *sparseHeader) (err error) {
	switch {
	case b.typeflag() == 'S' && b.dialect() == gnu:
		if sp.sparseMap, err = r.oldSparseMap(b); err != nil {
			return err
		}
		if sp.realSize, err = parseNumber(b.gnuRealSize()); err != nil {
			return fmt.Errorf("real size: %w", err)
		}
		e.DataOffset = r.off // behind the map's extension blocks
	case b.typeflag() == 'S':
		return fmt.Errorf("sparse file in a dialect other than GNU's: %w", fault.ErrUnsupported)
	case sp.major == "1" && sp.minor == "0":
		if sp.sparseMap, err = r.inlineSparseMap(e); err != nil {
			return err
		}
	case sp.major != "" && sp.major != "0":
		return fmt.Errorf("GNU sparse format %q.%q: %w", sp.major, sp.minor, fault.ErrUnsupported)
	case sp.sparseMap == nil && !sp.hasSize:
		return nil
	}
	if sp.half {
		return fmt.Errorf("sparse map ends with half an entry: %w", fault.ErrCorrupt)
	}
	if sp.realSize < 0 || sp.realSize > maxFileSize {
		return fmt.Errorf("sparse file of %d bytes: %w", sp.realSize, fault.ErrCorrupt)
	}
	if e.Type != TypeRegular {
		return fmt.Errorf("sparse map of what is no regular file: %w", fault.ErrCorrupt)
	}
	e.Size = sp.realSize
	e.Sparse, err = checkSparse(sp.sparseMap, e.Size, e.Stored)
	return err
}

// checkSparse drops empty runs (GNU tar ends a map with one to say how long
// the file is), joins adjacent ones, and holds a map to its promises. The map
// of a file without holes becomes nil.
func checkSparse(m []Extent, size, stored int64) ([]Extent, error) {
	out := make([]Extent, 0, len(m)) // not nil, which would say that there are no holes
	var end, sum int64
	for _, x := range m {
		// Subtracting cannot overflow, as adding could.
		if x.Offset < 0 || x.Length < 0 || x.Offset > size || x.Length > size-x.Offset {
			return nil, fmt.Errorf("sparse map: %d+%d is outside of the file's %d bytes: %w", x.Offset, x.Length, size, fault.ErrCorrupt)
		}
		if x.Length == 0 {
			continue
		}
		if x.Offset < end {
			return nil, fmt.Errorf("sparse map: runs overlap or are out of order at %d: %w", x.Offset, fault.ErrCorrupt)
		}
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length == x.Offset {
			out[n-1].Length += x.Length
		} else {
			out = append(out, x)
		}
		end = x.Offset + x.Length
		sum += x.Length
	}
	if sum != stored {
		return nil, fmt.Errorf("sparse map has %d bytes, the archive stores %d: %w", sum, stored, fault.ErrCorrupt)
	}
	if sum == size {
		return nil, nil // no holes
	}
	return out, nil
}

// oldSparseMap reads the map of a GNU 'S' entry: 4 runs in the header and 21
// in each extension block behind it.
func (r *Reader) oldSparseMap(b *block) ([]Extent, error) {
	m, err := sparseEntries(nil, b.gnuSparse())
	if err != nil {
		return nil, err
	}
	for extended := b.gnuExtended(); extended; {
		var ext block
		if err := r.readBlock(&ext, false); err != nil {
			return nil, err
		}
		if m, err = sparseEntries(m, ext[:504]); err != nil {
			return nil, err
		}
		if len(m) > maxSparse {
			return nil, fmt.Errorf("sparse map of more than %d runs: %w", maxSparse, fault.ErrUnsupported)
		}
		extended = ext[504] != 0
	}
	return m, nil
}

// sparseEntries appends {offset[12], length[12]} pairs up to an empty one.
func sparseEntries(m []Extent, f []byte) ([]Extent, error) {
	for ; len(f) >= 24; f = f[24:] {
		if f[0] == 0 {
			return m, nil
		}
		off, err1 := parseNumber(f[:12])
		length, err2 := parseNumber(f[12:24])
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("sparse map: bad number: %w", fault.ErrCorrupt)
		}
		m = append(m, Extent{off, length})
	}
	return m, nil
}

// inlineSparseMap reads the map of PAX sparse format 1.0, which comes before
// the data and counts as part of it: decimal numbers, one a line (how many
// runs, then offset and length of each), padded to a block.
func (r *Reader) inlineSparseMap(e *Entry) ([]Extent, error) {
	start, limit := r.off, e.Stored
	var (
		m      []Extent
		want   int64 = -1 // numbers still to come; -1: how many is the first of them
		offset int64
		line   []byte // a number that crosses blocks
		b      block
	)
	for want != 0 {
		if r.off-start+blockSize > (limit+blockSize-1)&^(blockSize-1) {
			return nil, fmt.Errorf("sparse map is longer than the entry: %w", fault.ErrCorrupt)
		}
		if err := r.readBlock(&b, false); err != nil {
			return nil, err
		}
		rest := b[:]
		for want != 0 {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				line = append(line, rest...)
				if len(line) > 20 {
					return nil, fmt.Errorf("sparse map: endless number: %w", fault.ErrCorrupt)
				}
				break
			}
			line = append(line, rest[:i]...)
			rest = rest[i+1:]
			n, err := strconv.ParseInt(string(line), 10, 64)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("sparse map: %q is no number: %w", line, fault.ErrCorrupt)
			}
			line = line[:0]
			switch {
			case want < 0:
				if n > maxSparse {
					return nil, fmt.Errorf("sparse map of %d runs (at most %d): %w", n, maxSparse, fault.ErrUnsupported)
				}
				want = 2 * n
				continue
			case want%2 == 0:
				offset = n
			default:
				m = append(m, Extent{offset, n})
			}
			want--
		}
	}
	used := r.off - start
	e.DataOffset = r.off
	e.Stored -= used
	if e.Stored < 0 {
		return nil, fmt.Errorf("sparse map is longer than the entry: %w", fault.ErrCorrupt)
	}
	return m, nil
}
