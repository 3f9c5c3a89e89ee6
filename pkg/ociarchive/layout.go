package ociarchive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// WriteLayout writes img as an OCI image layout directory, which must not exist
// yet. The directory appears when it is complete. progress is as for
// WriteImage.
func WriteLayout(ctx context.Context, dir string, img *ociimage.Image, blob BlobFunc, progress func(layer int, n int64)) (err error) {
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
	l := layoutWriter{tmp, make(map[digest.Digest]bool)}
	index, err := indexJSON(img)
	if err != nil {
		return err
	}
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		ocispec.ImageLayoutFile:                version,
		ocispec.ImageIndexFile:                 index,
		ociimage.BlobPath(img.Manifest.Digest): img.ManifestBytes,
		ociimage.BlobPath(img.Config.Digest):   img.ConfigBytes,
	} {
		if err := l.file(name, func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
			return err
		}
	}
	l.seen[img.Manifest.Digest], l.seen[img.Config.Digest] = true, true
	for i, d := range img.Layers {
		if l.seen[d.Digest] {
			continue
		}
		l.seen[d.Digest] = true
		report := func(int64) {}
		if progress != nil {
			report = func(n int64) { progress(i, n) }
		}
		if err := l.blob(ctx, d, blob, report); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	// MkdirTemp's directory is for its owner alone.
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

type layoutWriter struct {
	dir  string
	seen map[digest.Digest]bool
}

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
