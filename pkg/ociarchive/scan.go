package ociarchive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// source is the stream below a tar.Reader: it knows how far the tar.Reader has
// read, and whether it ever ran into the end of the input.
type source struct {
	r   io.Reader
	off int64 // bytes given so far
	end bool  // a Read found no more
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil // the next Read will say so, if it is asked
	}
	if err == io.EOF {
		s.end = true
	}
	return n, err
}

// seekSource is a source over a regular file: archive/tar seeks over what is
// not read.
type seekSource struct {
	source
	s io.ReadSeeker
}

func (s *seekSource) Seek(offset int64, whence int) (int64, error) {
	n, err := s.s.Seek(offset, whence)
	if err == nil {
		s.off = n
	}
	return n, err
}

// scanner reads the entries of a tar stream and insists on its end marker:
// archive/tar takes an input that just stops between two entries for whole, and
// so would a cut download be.
type scanner struct {
	*tar.Reader
	src *source
}

func newScanner(r io.Reader) *scanner {
	src := &source{r: r}
	return &scanner{tar.NewReader(src), src}
}

func newFileScanner(r io.ReadSeeker) *scanner {
	src := &seekSource{source{r: r}, r}
	return &scanner{tar.NewReader(src), &src.source}
}

// Next is the next entry, or io.EOF at the end marker.
func (s *scanner) Next() (*tar.Header, error) {
	h, err := s.Reader.Next()
	switch {
	case err == nil:
		if h.Size < 0 {
			return nil, fmt.Errorf("archive, byte %d: %q has a negative size: %w", s.src.off, h.Name, fault.ErrCorrupt)
		}
		return h, nil
	case err == io.EOF && !s.src.end:
		return nil, io.EOF
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, s.cut()
	case errors.Is(err, tar.ErrHeader):
		return nil, fmt.Errorf("archive, byte %d: not a tar header: %w", s.src.off, fault.ErrCorrupt)
	}
	return nil, fmt.Errorf("archive, byte %d: %w", s.src.off, err)
}

// Read reads from the current entry; a cut within it is an error of its own
// kind, everything else passes.
func (s *scanner) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = s.cut()
	}
	return n, err
}

func (s *scanner) cut() error {
	return fmt.Errorf("archive ends at byte %d without an end marker: %w: %w", s.src.off, fault.ErrIntegrity, io.ErrUnexpectedEOF)
}
