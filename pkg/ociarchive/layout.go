package ociarchive

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// WriteLayout writes img as an OCI image layout directory, which must not exist
// yet. The directory appears when it is complete. progress is as for
// WriteImage.
func WriteLayout(ctx context.Context, dir string, img *ociimage.Image, blob BlobFunc, progress func(layer int, n int64)) error {
	c, err := imageContents(img)
	if err != nil {
		return err
	}
	return c.writeDir(ctx, dir, blob, progress)
}

// WriteSetLayout is WriteLayout for all platforms, with WriteSet's progress.
func WriteSetLayout(ctx context.Context, dir string, set *ociimage.Set, blob BlobFunc, progress func(blob int, n int64)) error {
	c, err := setContents(set)
	if err != nil {
		return err
	}
	return c.writeDir(ctx, dir, blob, progress)
}

func (c *contents) writeDir(ctx context.Context, dir string, blob BlobFunc, progress func(int, int64)) (err error) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = &fs.PathError{Op: "create", Path: dir, Err: fs.ErrExist}
		}
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	l := layoutWriter{tmp}
	for _, f := range c.small {
		if err := l.file(f.name, func(w io.Writer) error { _, err := w.Write(f.data); return err }); err != nil {
			return err
		}
	}
	err = c.each(progress, func(d ocispec.Descriptor, report func(int64)) error { return l.blob(ctx, d, blob, report) })
	if err != nil {
		return err
	}
	// MkdirTemp's directory is for its owner alone.
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

type layoutWriter struct{ dir string }

func (l *layoutWriter) file(name string, write func(io.Writer) error) (err error) {
	path := filepath.Join(l.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func (l *layoutWriter) blob(ctx context.Context, d ocispec.Descriptor, open BlobFunc, report func(int64)) error {
	r, err := open(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	return l.file(ociimage.BlobPath(d.Digest), func(w io.Writer) error { return copyBlob(w, r, report) })
}
