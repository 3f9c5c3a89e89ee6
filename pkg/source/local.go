package source

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/ociarchive"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// layout is an OCI image layout directory.
type layout struct {
	ref, dir, tag string
}

func openLayout(ref, name string) (Source, error) {
	dir, tag, err := SplitTag(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	b, err := ociarchive.ReadSmall(filepath.Join(dir, ocispec.ImageLayoutFile))
	if err != nil {
		return nil, fmt.Errorf("%s is no image layout: %w", dir, notFound(err))
	}
	if err := ociimage.CheckLayout(b); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &layout{ref, dir, tag}, nil
}

func (l *layout) Name() string { return l.ref }
func (l *layout) Close() error { return nil }

func (l *layout) Resolve(ctx context.Context, p *ocispec.Platform) (*Image, error) {
	b, err := ociarchive.ReadSmall(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, notFound(err)
	}
	img, err := ociimage.ResolveLayout(ctx, fetcher{l}, b, l.tag, p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.ref, err)
	}
	img.Name = l.ref
	return img, nil
}

func (l *layout) ResolveAll(ctx context.Context) (*Set, error) {
	b, err := ociarchive.ReadSmall(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, notFound(err)
	}
	set, err := ociimage.ResolveLayoutAll(ctx, fetcher{l}, b, l.tag)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.ref, err)
	}
	set.Name = l.ref
	return set, nil
}

// open opens a blob's file, of the descriptor's size.
func (l *layout) open(d ocispec.Descriptor) (*os.File, int64, error) {
	if err := ociimage.CheckDigest(d.Digest); err != nil {
		return nil, 0, err
	}
	f, err := ociarchive.OpenRegular(filepath.Join(l.dir, filepath.FromSlash(ociimage.BlobPath(d.Digest))))
	if err != nil {
		return nil, 0, notFound(err)
	}
	st, err := f.Stat()
	if err == nil && d.Size > 0 && st.Size() != d.Size {
		err = fmt.Errorf("%s: %d bytes, want %d: %w", f.Name(), st.Size(), d.Size, fault.ErrIntegrity)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (l *layout) Blob(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	f, size, err := l.open(d)
	if err != nil {
		return nil, err
	}
	if d.Size <= 0 {
		d.Size = size
	}
	return verified{ociimage.NewVerifier(f, d), f}, nil
}

func (l *layout) BlobAt(_ context.Context, d ocispec.Descriptor) (BlobReader, error) {
	f, size, err := l.open(d)
	if err != nil {
		return nil, err
	}
	return readerAt{io.NewSectionReader(f, 0, size), f}, nil
}

// archive is an OCI archive, or one of docker save, in a regular file.
type archive struct {
	ref, tag string
	f        *os.File
	a        *ociarchive.File
}

func openArchive(ref, name string) (Source, error) {
	path, tag, err := SplitTag(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	f, err := ociarchive.OpenRegular(path)
	if err != nil {
		return nil, notFound(err)
	}
	st, err := f.Stat()
	if err == nil {
		err = notCompressed(f)
	}
	var a *ociarchive.File
	if err == nil {
		a, err = ociarchive.OpenFile(f, st.Size())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &archive{ref, tag, f, a}, nil
}

// notCompressed refuses what cannot be read at any offset, by its first bytes.
func notCompressed(r io.ReaderAt) error {
	var head [layer.SniffSize]byte
	n, err := r.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return err
	}
	if layer.Sniff(head[:n]) != layer.Plain || strings.HasPrefix(string(head[:n]), "BZh") { // bzip2
		return fmt.Errorf("a compressed archive, decompress it first: %w", fault.ErrUnsupported)
	}
	return nil
}

func (a *archive) Name() string { return a.ref }
func (a *archive) Close() error { return a.f.Close() }

func (a *archive) Resolve(ctx context.Context, p *ocispec.Platform) (*Image, error) {
	img, err := a.a.Resolve(ctx, a.tag, p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.ref, err)
	}
	img.Name = a.ref
	return img, nil
}

func (a *archive) ResolveAll(ctx context.Context) (*Set, error) {
	set, err := a.a.ResolveAll(ctx, a.tag)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.ref, err)
	}
	set.Name = a.ref
	return set, nil
}

func (a *archive) Blob(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := a.a.Blob(d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.ref, err)
	}
	if d.Size <= 0 {
		d.Size = b.Size()
	}
	return verified{ociimage.NewVerifier(b, d), nopCloser{}}, nil
}

func (a *archive) BlobAt(_ context.Context, d ocispec.Descriptor) (BlobReader, error) {
	b, err := a.a.Blob(d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.ref, err)
	}
	return readerAt{b, nopCloser{}}, nil
}

// verified is a blob's stream and what to close.
type verified struct {
	io.Reader
	io.Closer
}

// readerAt is a blob in a file. Reading a file does not wait for anything that
// a context could interrupt.
type readerAt struct {
	*io.SectionReader
	io.Closer
}

func (r readerAt) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return r.ReadAt(p, off)
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// fetcher reads a layout's small blobs whole.
type fetcher struct{ s Source }

func (f fetcher) FetchManifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return f.FetchConfig(ctx, d)
}

func (f fetcher) FetchConfig(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	r, err := f.s.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return ociimage.ReadAll(r, d)
}
