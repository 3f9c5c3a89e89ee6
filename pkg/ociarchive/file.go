package ociarchive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// A File is an archive that can be read at any offset: nothing is spooled. It
// is safe for many callers at once.
type File struct {
	mu sync.Mutex // Resolve finds out about blobs that docker gave no digest
	s  *store
}

// OpenFile reads the headers of an archive of size bytes.
func OpenFile(r io.ReaderAt, size int64) (*File, error) {
	sr := io.NewSectionReader(r, 0, size)
	sc := newFileScanner(sr)
	f := &File{s: newStore()}
	for {
		h, err := sc.Next()
		if err == io.EOF {
			return f, nil
		}
		if err != nil {
			return nil, err
		}
		regular, err := f.s.note(h)
		if err != nil {
			return nil, err
		}
		if name := cleanName(h.Name); regular && f.s.files[name] == nil {
			// archive/tar has read the headers and not a byte more.
			f.s.files[name] = io.NewSectionReader(r, sc.src.off, h.Size)
		}
	}
}

// Resolve finds the image with a tag ("" where there is only one) for a
// platform (nil: the default one).
func (f *File) Resolve(ctx context.Context, tag string, p *ocispec.Platform) (*ociimage.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.s.resolveWhole(ctx, tag, p)
}

// ResolveAll finds all that a tag ("" where there is only one) names.
func (f *File) ResolveAll(ctx context.Context, tag string) (*ociimage.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.s.file(ocispec.ImageIndexFile); ok {
		b, err := f.s.small(ocispec.ImageIndexFile)
		if err != nil {
			return nil, err
		}
		set, err := ociimage.ResolveLayoutAll(ctx, f.s, b, tag)
		if errors.Is(err, errMissing) {
			err = missing(err)
		}
		return set, err
	}
	// docker save writes one platform.
	img, err := f.s.resolveWhole(ctx, tag, nil)
	if err != nil {
		return nil, err
	}
	f.s.blobs[img.Manifest.Digest] = section(img.ManifestBytes)
	set, err := ociimage.ResolveAll(ctx, f.s, img.Manifest, img.ManifestBytes)
	if err != nil {
		return nil, err
	}
	f.s.blobs[img.Config.Digest] = section(img.ConfigBytes)
	set.Tag, set.FullName = img.Tag, img.FullName
	return set, nil
}

// Blob gives a blob's bytes, of the descriptor's size but not verified. A size
// of 0 or less is found out.
func (f *File) Blob(d ocispec.Descriptor) (*io.SectionReader, error) {
	if err := ociimage.CheckDigest(d.Digest); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.Size <= 0 {
		if b, ok := f.s.blobs[d.Digest]; ok {
			d.Size = b.Size()
		} else if b, ok := f.s.file(ociimage.BlobPath(d.Digest)); ok {
			d.Size = b.Size()
		}
	}
	b, err := f.s.blob(d)
	if err != nil {
		return nil, fmt.Errorf("blob %w", missing(err))
	}
	return b, nil
}
