package ociarchive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// A BlobFunc opens a blob for reading. What it returns must verify the blob:
// io.EOF comes only if size and digest are right.
type BlobFunc func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)

// WriteImage writes img as an archive in the order of the package's
// description. The same image under the same name gives the same bytes, whenever
// it is written. A digest that is listed twice is one blob. On an error the
// stream is left without the tar end marker, so that no reader takes it for
// whole.
//
// progress, if not nil, is called while a layer passes, with the layer's place
// (0 is the lowest) and the number of its bytes written so far.
func WriteImage(ctx context.Context, w io.Writer, img *ociimage.Image, blob BlobFunc, progress func(layer int, n int64)) error {
	tw := tar.NewWriter(w)
	index, err := indexJSON(img)
	if err != nil {
		return err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{ocispec.ImageLayoutFile, layout},
		{ocispec.ImageIndexFile, index},
		{ociimage.BlobPath(img.Manifest.Digest), img.ManifestBytes},
		{ociimage.BlobPath(img.Config.Digest), img.ConfigBytes},
	} {
		if err := writeHeader(tw, f.name, int64(len(f.data))); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	written := map[digest.Digest]bool{img.Manifest.Digest: true, img.Config.Digest: true}
	for i, l := range img.Layers {
		if written[l.Digest] {
			continue
		}
		written[l.Digest] = true
		report := func(int64) {}
		if progress != nil {
			report = func(n int64) { progress(i, n) }
		}
		if err := writeBlob(ctx, tw, l, blob, report); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return tw.Close()
}

// writeBlob opens the blob before it writes the header: much of what can be
// wrong with a blob shows there.
func writeBlob(ctx context.Context, tw *tar.Writer, d ocispec.Descriptor, open BlobFunc, report func(int64)) error {
	r, err := open(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := writeHeader(tw, ociimage.BlobPath(d.Digest), d.Size); err != nil {
		return err
	}
	if err := copyBlob(tw, r, report); err != nil {
		return err
	}
	// Pads the entry, and fails if it is short.
	return tw.Flush()
}

// copyBlob copies to the end of r, which is where its verdict is.
func copyBlob(w io.Writer, r io.Reader, report func(int64)) error {
	report(0)
	var n int64
	buf := make([]byte, 1<<18)
	for {
		m, err := r.Read(buf)
		if m > 0 {
			if _, err := w.Write(buf[:m]); err != nil {
				return err
			}
			n += int64(m)
			report(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// writeHeader starts a file whose header holds nothing of when and by whom it
// was written.
func writeHeader(tw *tar.Writer, name string, size int64) error {
	return tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg,
		Name:     name,
		Size:     size,
		Mode:     0o644,
		ModTime:  time.Unix(0, 0),
	})
}

// indexJSON lists the one image under its tag. skopeo and umoci find it by the
// tag, containerd and podman by the full name.
func indexJSON(img *ociimage.Image) ([]byte, error) {
	d := ocispec.Descriptor{
		MediaType: img.Manifest.MediaType,
		Digest:    img.Manifest.Digest,
		Size:      img.Manifest.Size,
		Platform:  img.Manifest.Platform,
	}
	d.Annotations = make(map[string]string)
	if img.Tag != "" {
		d.Annotations[ocispec.AnnotationRefName] = img.Tag
	}
	if img.FullName != "" {
		d.Annotations[ociimage.AnnotationContainerdName] = img.FullName
	}
	return json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{d},
	})
}
