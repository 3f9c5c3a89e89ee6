package ociarchive

import (
	"io"
	"os"
)

// spool keeps the blobs of a stream that came before it was known what they
// are good for. Small ones stay in memory, so that the usual archive needs no
// file at all.
type spool struct {
	dir    string
	memory int64 // bytes kept in memory
	f      *os.File
	size   int64
	buf    []byte
}

const (
	maxSmall  = 1 << 17 // bytes of a blob kept in memory
	maxMemory = 4 << 20 // bytes of all of them
)

// add takes all of r, size bytes.
func (s *spool) add(r io.Reader, size int64) (*io.SectionReader, error) {
	if size <= maxSmall && s.memory+size <= maxMemory {
		b := make([]byte, size)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		s.memory += size
		return section(b), nil
	}
	if s.f == nil {
		f, err := os.CreateTemp(s.dir, ".layerpipe-spool-*")
		if err != nil {
			return nil, err
		}
		// Without a name it is gone with us however we end. Where an open file
		// cannot be removed, close does it.
		os.Remove(f.Name())
		s.f, s.buf = f, make([]byte, 1<<18)
	}
	off := s.size
	n, err := io.CopyBuffer(onlyWriter{s.f}, io.LimitReader(r, size), s.buf)
	s.size += n
	if err != nil {
		return nil, err
	}
	if n != size {
		return nil, io.ErrUnexpectedEOF
	}
	return io.NewSectionReader(s.f, off, size), nil
}

func (s *spool) close() error {
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	os.Remove(s.f.Name())
	s.f = nil
	return err
}

// onlyWriter hides os.File's ReadFrom, which would ignore our buffer.
type onlyWriter struct{ io.Writer }
