package ociarchive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// dockerManifest is the file that docker save describes its images in.
const dockerManifest = "manifest.json"

// maxEntries bounds the names remembered of one archive: eight times an image
// of the most layers in docker's oldest format.
const maxEntries = 1 << 15

// store is what has been seen of an archive: for each file, where its bytes
// can be read again.
type store struct {
	files map[string]*io.SectionReader
	links map[string]string // docker's archives name one layer twice this way
	blobs map[digest.Digest]*io.SectionReader
}

func newStore() *store {
	return &store{
		files: make(map[string]*io.SectionReader),
		links: make(map[string]string),
		blobs: make(map[digest.Digest]*io.SectionReader),
	}
}

// section is a file that is kept in memory.
func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// full reports an archive of more names than an image can have.
func (s *store) full() error {
	if len(s.files)+len(s.links) >= maxEntries {
		return fmt.Errorf("archive of over %d entries is no image: %w", maxEntries, fault.ErrCorrupt)
	}
	return nil
}

// file finds a file by its name, through links.
func (s *store) file(name string) (*io.SectionReader, bool) {
	for range 8 {
		if f, ok := s.files[name]; ok {
			return io.NewSectionReader(f, 0, f.Size()), true
		}
		target, ok := s.links[name]
		if !ok {
			break
		}
		name = target
	}
	return nil, false
}

// small reads a whole file that describes an image.
func (s *store) small(name string) ([]byte, error) {
	f, ok := s.file(name)
	if !ok {
		return nil, &missingError{name, name}
	}
	if f.Size() > ociimage.MaxManifestSize {
		return nil, fmt.Errorf("%s of %d bytes, over %d: %w", name, f.Size(), ociimage.MaxManifestSize, fault.ErrCorrupt)
	}
	b := make([]byte, f.Size())
	_, err := io.ReadFull(f, b)
	return b, err
}

// errMissing is what a name gives that has not been seen, not yet or never.
var errMissing = errors.New("not in the archive")

// missingError is errMissing with the name that would help.
type missingError struct{ name, what string }

func (e *missingError) Error() string { return e.what + ": " + errMissing.Error() }
func (e *missingError) Unwrap() error { return errMissing }

// missing is errMissing as the caller of the package sees it.
func missing(err error) error {
	return fmt.Errorf("%w: %w", err, fault.ErrIntegrity)
}

// blob finds a blob by its digest and checks its size.
func (s *store) blob(d ocispec.Descriptor) (*io.SectionReader, error) {
	f, ok := s.blobs[d.Digest]
	if ok {
		f = io.NewSectionReader(f, 0, f.Size())
	} else if f, ok = s.file(ociimage.BlobPath(d.Digest)); !ok {
		return nil, &missingError{ociimage.BlobPath(d.Digest), d.Digest.String()}
	}
	if f.Size() != d.Size {
		return nil, fmt.Errorf("%s: %d bytes in the archive, want %d: %w", d.Digest, f.Size(), d.Size, fault.ErrIntegrity)
	}
	return f, nil
}

// FetchManifest implements ociimage.Fetcher.
func (s *store) FetchManifest(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	f, err := s.blob(d)
	if err != nil {
		return nil, fmt.Errorf("manifest %w", err)
	}
	b, err := ociimage.ReadAll(f, d)
	if err != nil {
		return nil, fmt.Errorf("manifest %w", err)
	}
	return b, nil
}

// FetchConfig implements ociimage.Fetcher.
func (s *store) FetchConfig(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	f, err := s.blob(d)
	if err != nil {
		return nil, err
	}
	return ociimage.ReadAll(f, d)
}

// resolve finds the image. index.json wins over docker's manifest.json: newer
// versions of docker save write both, and only the first has the digests.
func (s *store) resolve(ctx context.Context, tag string, p *ocispec.Platform) (*ociimage.Image, error) {
	if b, err := s.small(ocispec.ImageLayoutFile); err == nil {
		if err := ociimage.CheckLayout(b); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, errMissing) {
		return nil, err
	}
	b, err := s.small(ocispec.ImageIndexFile)
	if err != nil {
		return nil, err
	}
	return ociimage.ResolveLayout(ctx, s, b, tag, p)
}

// resolveWhole is resolve for an archive that has been seen to its end.
func (s *store) resolveWhole(ctx context.Context, tag string, p *ocispec.Platform) (img *ociimage.Image, err error) {
	_, isOCI := s.file(ocispec.ImageIndexFile)
	_, isDocker := s.file(dockerManifest)
	switch {
	case isOCI:
		img, err = s.resolve(ctx, tag, p)
	case isDocker:
		img, err = s.resolveDocker(tag, p)
	default:
		return nil, fmt.Errorf("archive has neither index.json nor manifest.json, it is no image: %w", fault.ErrCorrupt)
	}
	if errors.Is(err, errMissing) {
		err = missing(err)
	}
	return img, err
}

// cleanName brings "./blobs/x", "/blobs/x" and "blobs/x/" to one spelling.
func cleanName(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// note remembers an entry that is not a regular file; it reports whether the
// entry is one.
func (s *store) note(h *tar.Header) (regular bool, err error) {
	name := cleanName(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return false, fmt.Errorf("%s is a sparse file: %w", name, fault.ErrUnsupported)
			}
		}
		if err := s.full(); err != nil {
			return false, err
		}
		if _, twice := s.files[name]; twice && !strings.Contains(name, "/") {
			return false, fmt.Errorf("%s comes twice: %w", name, fault.ErrCorrupt)
		}
		return true, nil
	case tar.TypeSymlink, tar.TypeLink:
		if err := s.full(); err != nil {
			return false, err
		}
		target := h.Linkname
		if h.Typeflag == tar.TypeSymlink && !path.IsAbs(target) {
			target = path.Join("/"+path.Dir(name), target)
		}
		s.links[name] = cleanName(target)
	case tar.TypeGNUSparse:
		return false, fmt.Errorf("%s is a sparse file: %w", name, fault.ErrUnsupported)
	}
	return false, nil
}
