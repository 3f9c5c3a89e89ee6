package tarstream

import (
	"bytes"
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// noID is the one number of 32 bits that is no owner: chown leaves the owner as
// it is, which is root if that is who unpacks.
const noID = 1<<32 - 1

// entry makes an Entry of a header and those that came before it.
func (r *Reader) entry(b *block, longName, longLink []byte) (*Entry, error) {
	d := draft{Entry: &Entry{Type: b.typeflag()}}
	if err := d.fromHeader(b); err != nil {
		return nil, err
	}
	d.name, d.linkname = b.name(), b.linkname()
	if p := b.prefix(); len(p) > 0 {
		r.joined = append(append(append(r.joined[:0], p...), '/'), d.name...)
		d.name = r.joined
	}
	if len(longName) > 0 {
		d.name = longName
	}
	if len(longLink) > 0 {
		d.linkname = longLink
	}
	for _, rec := range r.global {
		if overridden(rec, r.local) {
			continue
		}
		if err := r.apply(&d, rec); err != nil {
			return nil, err
		}
	}
	for _, rec := range r.local {
		if err := r.apply(&d, rec); err != nil {
			return nil, err
		}
	}
	if len(d.sparse.name) > 0 {
		d.name = d.sparse.name
	}
	if d.UID == noID || d.GID == noID {
		r.warn("offset %d: %q: owner or group -1 is nobody's number: read as 0", r.off-blockSize, d.name)
		d.UID, d.GID = d.UID%noID, d.GID%noID
	}
	if bytes.IndexByte(d.name, 0) >= 0 || bytes.IndexByte(d.linkname, 0) >= 0 {
		return nil, fmt.Errorf("name with a NUL: %w", fault.ErrCorrupt)
	}
	e := d.Entry
	e.Name, e.Linkname = string(d.name), string(d.linkname)
	if e.Size < 0 || e.Size > maxFileSize {
		return nil, fmt.Errorf("%q: size %d: %w", e.Name, e.Size, fault.ErrCorrupt)
	}
	e.DataOffset, e.Stored = r.off, e.Size
	if err := r.classify(e); err != nil {
		return nil, fmt.Errorf("%q: %w", e.Name, err)
	}
	if err := e.settleACLs(); err != nil {
		return nil, fmt.Errorf("%q: %w", e.Name, err)
	}
	if err := r.sparse(b, e, &d.sparse); err != nil {
		return nil, fmt.Errorf("%q: %w", e.Name, err)
	}
	r.left = e.Stored
	r.pad = -e.Stored & (blockSize - 1)
	return e, nil
}

// fromHeader reads the block's own numbers.
func (e *Entry) fromHeader(b *block) error {
	mode, err := parseNumber(b.mode())
	if err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	e.Mode = uint16(mode & 0o7777)
	if e.UID, err = headerID("uid", b.uid()); err != nil {
		return err
	}
	if e.GID, err = headerID("gid", b.gid()); err != nil {
		return err
	}
	if e.Size, err = parseNumber(b.size()); err != nil {
		return fmt.Errorf("size: %w", err)
	}
	if e.Mtime, err = parseNumber(b.mtime()); err != nil {
		return fmt.Errorf("mtime: %w", err)
	}
	// Of other types writers leave anything in these.
	if (e.Type == TypeChar || e.Type == TypeBlock) && b.dialect() != v7 {
		if e.Devmajor, err = headerID("devmajor", b.devmajor()); err != nil {
			return err
		}
		e.Devminor, err = headerID("devminor", b.devminor())
	}
	return err
}

func headerID(what string, f []byte) (uint32, error) {
	n, err := parseNumber(f)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	id, err := toID(n)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return id, nil
}

// classify maps the typeflag to one of the seven types, and settles whether
// data follows where writers disagree.
func (r *Reader) classify(e *Entry) error {
	slash := len(e.Name) > 0 && e.Name[len(e.Name)-1] == '/'
	switch e.Type {
	case TypeRegular, '7':
		// Before ustar a directory was a file whose name ends in a slash; GNU
		// tar and libarchive still read it so.
		switch {
		case slash && e.Size == 0:
			e.Type = TypeDir
			return nil
		case slash:
			r.warn("offset %d: %q: a file's name ends in a slash", r.off-blockSize, e.Name)
		}
		e.Type = TypeRegular
	case 0:
		if !slash {
			e.Type = TypeRegular
			return nil
		}
		e.Type = TypeDir
		return r.headerOnly(e)
	case 'S': // GNU sparse
		e.Type = TypeRegular
	case 'D': // GNU incremental: a directory whose data lists its names
		e.Type, e.Size = TypeDir, 0
	case TypeLink, TypeSymlink, TypeDir, TypeChar, TypeBlock, TypeFifo:
		return r.headerOnly(e)
	default:
		// POSIX: what is not known is to be read as a regular file.
		r.warn("offset %d: %q: unknown entry type %q read as a regular file", r.off-blockSize, e.Name, e.Type)
		e.Type = TypeRegular
	}
	return nil
}

// headerOnly is for the types that have no contents. Writers of POSIX.1-1988
// stored a hard link's size without its data, those of 2001 may store the
// data, and of the others both exist too, whatever the dialect: which it is
// only the archive tells.
func (r *Reader) headerOnly(e *Entry) error {
	e.Size = 0
	if e.Stored == 0 {
		return nil
	}
	follows, err := r.dataFollows(e.Stored)
	if err != nil {
		return err
	}
	if !follows {
		e.Stored = 0
	}
	return nil
}

// dataFollows decides for an entry that should not have data but claims size
// bytes of it, size > 0. A header right behind it says that the size is an
// ornament. (Data that is a tar archive itself reads so too. But whoever
// believes the size instead swallows entries, and links with a size and no data
// are what is found in practice.)
func (r *Reader) dataFollows(size int64) (bool, error) {
	p, err := r.src.Peek(blockSize)
	if len(p) < blockSize {
		if err == io.EOF {
			return false, nil // the next call says how the archive is cut
		}
		return false, err
	}
	if here := (*block)(p); !here.isZero() {
		return !here.checksumOK(), nil
	}
	// The end marker, or data that starts with zeros: look at all of it, and
	// behind it.
	data := (size + blockSize - 1) &^ (blockSize - 1)
	want := min(data, maxLookahead) + blockSize
	p, err = r.src.Peek(int(min(want, maxLookahead)))
	if err != nil && err != io.EOF {
		return false, err
	}
	switch {
	case int64(len(p)) >= data+blockSize:
		behind := (*block)(p[data:])
		if behind.isZero() {
			// Either way nothing but the end follows.
			return !allZero(p[:data]), nil
		}
		if behind.checksumOK() {
			return true, nil
		}
	case err == nil && allZero(p):
		return false, fmt.Errorf("cannot tell whether its %d bytes of data follow: %w", size, fault.ErrUnsupported)
	}
	// Junk behind two zero blocks is junk behind the end marker.
	return !allZero(p[:min(len(p), 2*blockSize)]), nil
}

func allZero(p []byte) bool {
	return len(bytes.TrimLeft(p, "\x00")) == 0
}
