package ociarchive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// ReaderOptions are for NewReader. The zero value is useful.
type ReaderOptions struct {
	Platform *ocispec.Platform // nil: the default one, if there is a choice
	Tag      string            // which image, if there are several
	SpoolDir string            // for blobs that come too early; "": os.TempDir
}

// A Reader gives the layers of one image from the lowest up, whatever order
// the archive has them in.
type Reader struct {
	img   *ociimage.Image
	next  int // layer that NextLayer gives next
	store *store
	spool spool
	sc    *scanner // nil: the archive has been seen to its end
	err   error    // sticky
}

// NewReader reads as much of an archive as is needed to know the image. A
// regular file is read where its offset is, and seeked; anything else is read
// once, from front to back.
func NewReader(r io.Reader, o ReaderOptions) (_ *Reader, err error) {
	a := &Reader{store: newStore(), spool: spool{dir: o.SpoolDir}}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	ctx := context.Background() // nothing below waits for anything but r
	if f, size, ok := regular(r); ok {
		file, err := OpenFile(f, size)
		if err != nil {
			return nil, err
		}
		a.store = file.s
		a.img, err = a.store.resolveWhole(ctx, o.Tag, o.Platform)
		return a, err
	}
	a.sc = newScanner(r)
	waiting := ocispec.ImageIndexFile // the file that the image cannot be known without
	for {
		name, _, err := a.step(func(string) bool { return true })
		if err == io.EOF {
			a.img, err = a.store.resolveWhole(ctx, o.Tag, o.Platform)
			return a, err
		}
		if err != nil {
			return nil, err
		}
		if name != waiting {
			continue
		}
		img, err := a.store.resolve(ctx, o.Tag, o.Platform)
		if err == nil {
			a.img = img
			return a, nil
		}
		gap, ok := errors.AsType[*missingError](err)
		if !ok {
			return nil, err
		}
		waiting = gap.name
		if _, ok := a.store.file(waiting); ok {
			return nil, err // found by its name, not by what it should be
		}
	}
}

// regular reports whether r is a regular file, and gives what lies after its
// offset.
func regular(r io.Reader) (io.ReaderAt, int64, bool) {
	f, ok := r.(interface {
		io.ReaderAt
		io.Seeker
		Stat() (os.FileInfo, error)
	})
	if !ok {
		return nil, 0, false
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, 0, false
	}
	off, err := f.Seek(0, io.SeekCurrent)
	if err != nil || off > st.Size() {
		return nil, 0, false
	}
	return io.NewSectionReader(f, off, st.Size()-off), st.Size() - off, true
}

// step goes to the next entry. A regular file that keep wants is stored; of
// another the name and the size are returned and the caller may read it. name
// is "" for other kinds of entries. At the end marker the rest of the stream is
// drained, so that its writer ends well, and step returns io.EOF.
func (a *Reader) step(keep func(name string) bool) (name string, size int64, err error) {
	h, err := a.sc.Next()
	if err == io.EOF {
		_, err = io.Copy(io.Discard, a.sc.src)
		if err == nil {
			err = io.EOF
		}
		a.sc = nil
		return "", 0, err
	}
	if err != nil {
		return "", 0, err
	}
	isFile, err := a.store.note(h)
	if err != nil || !isFile {
		return "", 0, err
	}
	name = cleanName(h.Name)
	if a.store.files[name] != nil || !keep(name) {
		return name, h.Size, nil
	}
	if a.store.files[name], err = a.spool.add(a.sc, h.Size); err != nil {
		return "", 0, fmt.Errorf("%s: %w", name, err)
	}
	return name, h.Size, nil
}

// Image is the image that the archive holds.
func (a *Reader) Image() *ociimage.Image { return a.img }

// NextLayer gives the next layer's descriptor and its raw bytes, exactly as
// many as the descriptor says, but not verified: that is for whoever reads
// them. What is left unread of one layer is skipped by the next call. After the
// last layer comes io.EOF, once the archive has proved to be whole.
func (a *Reader) NextLayer() (ocispec.Descriptor, io.Reader, error) {
	d, r, err := a.nextLayer()
	if err != nil {
		a.err = err
		if err != io.EOF {
			err = fmt.Errorf("layer %d: %w", a.next, err)
		}
		return ocispec.Descriptor{}, nil, err
	}
	a.next++
	return d, r, nil
}

func (a *Reader) nextLayer() (d ocispec.Descriptor, r io.Reader, err error) {
	if a.err != nil {
		return d, nil, a.err
	}
	if a.next == len(a.img.Layers) {
		for a.sc != nil {
			if _, _, err := a.step(func(string) bool { return false }); err != nil {
				return d, nil, err
			}
		}
		return d, nil, io.EOF
	}
	d = a.img.Layers[a.next]
	later := a.img.Layers[a.next+1:]
	again := slices.ContainsFunc(later, sameAs(d.Digest))
	want := ociimage.BlobPath(d.Digest)
	for {
		if b, err := a.store.blob(d); err == nil {
			if !again {
				// Nothing else will ask for it: forget what memory it holds.
				delete(a.store.files, want)
			}
			return d, b, nil
		} else if !errors.Is(err, errMissing) {
			return d, nil, err
		}
		if a.sc == nil {
			return d, nil, missing(fmt.Errorf("%s: %w", d.Digest, errMissing))
		}
		// This layer passes straight through unless it is needed again; one
		// that belongs above it has to wait.
		name, size, err := a.step(func(name string) bool {
			return name == want && again ||
				slices.ContainsFunc(later, func(l ocispec.Descriptor) bool { return l.Digest != d.Digest && name == ociimage.BlobPath(l.Digest) })
		})
		switch {
		case err == io.EOF:
			return d, nil, missing(fmt.Errorf("%s: %w", d.Digest, errMissing))
		case err != nil:
			return d, nil, err
		case name == want && !again:
			if size != d.Size {
				return d, nil, fmt.Errorf("%s: %d bytes in the archive, want %d: %w", d.Digest, size, d.Size, fault.ErrIntegrity)
			}
			return d, a.sc, nil
		}
	}
}

func sameAs(want digest.Digest) func(ocispec.Descriptor) bool {
	return func(d ocispec.Descriptor) bool { return d.Digest == want }
}

// Close gives up the spool. It does not close the input.
func (a *Reader) Close() error {
	return a.spool.close()
}
