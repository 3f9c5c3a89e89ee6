package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// A Cache is a directory that keeps blobs as an OCI layout does. Any number of
// processes may share it: a blob appears whole, by a rename, and is verified
// each time before it is used, so that it does not matter who wrote it. Blobs
// may be private, hence the directory is made for its owner alone.
type Cache struct {
	Dir   string
	Limit int64 // bytes of all blobs, of which the ones not used for longest go first; 0: none
	// Notify, if not nil, gets a line when the cache is of no use: that is not
	// an error of whoever asked for a blob.
	Notify func(line string)
}

const (
	cacheTemp = "tmp" // directory of the blobs on their way
	// staleTemp is how long after its last byte a blob on its way is one that a
	// process left behind.
	staleTemp = 24 * time.Hour
)

// Wrap makes a Source whose blobs are taken from the cache, and put into it as
// they pass.
func (c Cache) Wrap(s Source) (Source, error) {
	for _, dir := range []string{c.Dir, filepath.Join(c.Dir, cacheTemp)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	return &cached{s, c}, nil
}

type cached struct {
	Source
	c Cache
}

func (s *cached) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return s.c.blob(ctx, d, s.Source.Blob)
}

func (s *cached) BlobAt(ctx context.Context, d ocispec.Descriptor) (BlobReader, error) {
	f, err := s.c.open(ctx, d)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return s.Source.BlobAt(ctx, d)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return readerAt{io.NewSectionReader(f, 0, st.Size()), f}, nil
}

// cachedBlobs are an image's layers, those that the cache lacks ahead.
type cachedBlobs struct {
	Blobs
	c Cache
}

func (b cachedBlobs) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return b.c.blob(ctx, d, b.Blobs.Blob)
}

// missing are those of the descriptors that have no file. Whether the others'
// are good shows when they are opened.
func (c Cache) missing(list []ocispec.Descriptor) []ocispec.Descriptor {
	return slices.DeleteFunc(slices.Clone(list), func(d ocispec.Descriptor) bool {
		if ociimage.CheckDigest(d.Digest) != nil {
			return false
		}
		st, err := os.Stat(c.file(d))
		return err == nil && st.Size() == d.Size
	})
}

func (c Cache) file(d ocispec.Descriptor) string {
	return filepath.Join(c.Dir, filepath.FromSlash(ociimage.BlobPath(d.Digest)))
}

func (c Cache) useless(err error) {
	if c.Notify != nil {
		c.Notify(fmt.Sprintf("cache: %v", err))
	}
}

// open opens a blob that the cache has, verified and at its beginning; nil if
// it has none. One that proves bad is removed.
func (c Cache) open(ctx context.Context, d ocispec.Descriptor) (*os.File, error) {
	if err := ociimage.CheckDigest(d.Digest); err != nil {
		return nil, err
	}
	f, err := os.Open(c.file(d))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.useless(err)
		}
		return nil, nil
	}
	// The digest alone decides whether the file is good: a size that differs
	// may be the descriptor's fault.
	v := ociimage.NewVerifier(f, ocispec.Descriptor{Digest: d.Digest, Size: -1})
	buf := make([]byte, 1<<18)
	var n int
	var size int64
	for err == nil {
		n, err = v.Read(buf)
		size += int64(n)
		if ctx.Err() != nil {
			f.Close()
			return nil, context.Cause(ctx)
		}
	}
	if err == io.EOF && d.Size > 0 && d.Size != size {
		f.Close()
		return nil, nil
	}
	if err == io.EOF {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			now := time.Now() // of its last use; failing that it is only forgotten sooner
			os.Chtimes(f.Name(), now, now)
			return f, nil
		}
	}
	c.useless(err)
	f.Close()
	if errors.Is(err, fault.ErrIntegrity) {
		os.Remove(f.Name())
	}
	return nil, nil
}

// blob gives a blob that the cache has, or gets it and keeps it.
func (c Cache) blob(ctx context.Context, d ocispec.Descriptor, get func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)) (io.ReadCloser, error) {
	f, err := c.open(ctx, d)
	if err != nil {
		return nil, err
	}
	if f != nil {
		// Once more as it passes: the file may be changed meanwhile.
		if d.Size <= 0 {
			d.Size = -1
		}
		return verified{ociimage.NewVerifier(f, d), f}, nil
	}
	r, err := get(ctx, d)
	if err != nil {
		return nil, err
	}
	// The name says which process it was, for who finds it left behind.
	f, err = os.CreateTemp(filepath.Join(c.Dir, cacheTemp), fmt.Sprintf("%.12s-%d-*", d.Digest.Encoded(), os.Getpid()))
	if err != nil {
		c.useless(err)
		return r, nil
	}
	return &filler{r, c, d, f}, nil
}

// filler copies a blob into the cache as it passes. It is kept only if it is
// read to its end, which it reaches only if it is right.
type filler struct {
	io.ReadCloser
	c Cache
	d ocispec.Descriptor
	f *os.File // nil: done, or given up
}

func (r *filler) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.f == nil {
		return n, err
	}
	if _, werr := r.f.Write(p[:n]); werr != nil {
		r.c.useless(werr)
		r.drop()
	} else if err == io.EOF {
		r.commit()
	}
	return n, err
}

func (r *filler) Close() error {
	r.drop()
	return r.ReadCloser.Close()
}

func (r *filler) drop() {
	if r.f != nil {
		r.f.Close()
		os.Remove(r.f.Name())
		r.f = nil
	}
}

func (r *filler) commit() {
	tmp, name := r.f.Name(), r.c.file(r.d)
	err := r.f.Close()
	r.f = nil
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o700)
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		os.Remove(tmp)
		r.c.useless(err)
		return
	}
	r.c.prune(name)
}

// prune removes what was not used for longest until the limit holds, but not
// keep. Another process may do the same at the same time; whoever has a blob
// open goes on reading it.
func (c Cache) prune(keep string) {
	type entry struct {
		name string
		size int64
		used time.Time
	}
	var list []entry
	var total int64
	walk := func(dir string, f func(string, fs.FileInfo)) {
		filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			if st, err := d.Info(); err == nil {
				f(name, st)
			}
			return nil
		})
	}
	walk(filepath.Join(c.Dir, cacheTemp), func(name string, st fs.FileInfo) {
		if time.Since(st.ModTime()) > staleTemp {
			os.Remove(name)
		}
	})
	if c.Limit <= 0 {
		return
	}
	walk(filepath.Join(c.Dir, ocispec.ImageBlobsDir), func(name string, st fs.FileInfo) {
		list = append(list, entry{name, st.Size(), st.ModTime()})
		total += st.Size()
	})
	slices.SortFunc(list, func(a, b entry) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.name, b.name)) })
	for _, e := range list {
		if total <= c.Limit {
			return
		}
		if e.name != keep && os.Remove(e.name) == nil {
			total -= e.size
		}
	}
}
