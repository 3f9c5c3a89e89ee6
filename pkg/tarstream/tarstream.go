// Package tarstream reads tar archives of every dialect as a stream, and says
// of each entry where its data lies: v7, ustar, star, GNU (long names,
// base-256, old sparse files, incremental dumps) and PAX (POSIX.1-2001, with
// GNU's sparse formats 0.0, 0.1 and 1.0).
//
// The standard library's archive/tar hides what an index of an archive needs
// (the offsets of an entry's data and the map of a sparse file), takes a hard
// link's size for 0 even where data follows, and leaves global headers to its
// caller; hence a reader of our own.
//
// Reading is strict where guessing would lose files silently: a bad checksum,
// a number that is none, a cut archive are errors that name the offset.
package tarstream

import (
	"bufio"
	"io"
)

// Entry types, as in the header's typeflag. Next maps historical ones (NUL,
// '7', 'D', 'S', unknown ones) to these.
const (
	TypeRegular = '0'
	TypeLink    = '1' // hard link
	TypeSymlink = '2'
	TypeChar    = '3'
	TypeBlock   = '4'
	TypeDir     = '5'
	TypeFifo    = '6'
)

// An Entry is one member of an archive.
type Entry struct {
	Name     string // as stored: maybe absolute, with "./" or "..", any bytes
	Linkname string // hard link: another entry's name; symlink: the target
	Type     byte
	Mode     uint16 // permission, set-id and sticky bits (07777)
	UID, GID uint32

	Mtime     int64  // seconds since the epoch, maybe negative
	MtimeNsec uint32 // below 1e9, counted forward from Mtime

	Devmajor, Devminor uint32

	Size   int64    // of the file, bytes, holes included
	Sparse []Extent // where the stored bytes belong; nil: all of Size is stored; empty: none is
	Xattrs []Xattr

	Offset     int64 // in the archive, of the entry's first header
	DataOffset int64 // in the archive, of the stored bytes
	Stored     int64 // bytes of data in the archive; some entries without contents have them too
}

// An Extent is a run of a sparse file that is stored; the runs are ascending,
// do not overlap, and lie within the file's size.
type Extent struct{ Offset, Length int64 }

// A Source is a stream that can be looked at before it is consumed.
// pkg/layer's Reader is one.
type Source interface {
	// Peek returns the next n bytes without consuming them; fewer only with
	// an error, which is io.EOF at the end. n up to 64 KiB must work.
	Peek(n int) ([]byte, error)
	// Buffered is how many bytes Peek returns without reading more.
	Buffered() int
	// Discard consumes n bytes; fewer only with an error.
	Discard(n int64) (int64, error)
}

// NewSource makes any reader a Source.
func NewSource(r io.Reader) Source {
	if s, ok := r.(Source); ok {
		return s
	}
	return &bufSource{bufio.NewReaderSize(r, 1<<18)}
}

type bufSource struct{ *bufio.Reader }

func (s *bufSource) Discard(n int64) (done int64, err error) {
	for done < n && err == nil {
		var d int
		d, err = s.Reader.Discard(int(min(n-done, 1<<30)))
		done += int64(d)
	}
	return done, err
}
