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
// A config whose bytes img does not have is taken from blob, before the layers.
//
// progress, if not nil, is called before a layer is asked for and while it
// passes, with the layer's place (0 is the lowest) and the number of its bytes
// written so far.
func WriteImage(ctx context.Context, w io.Writer, img *ociimage.Image, blob BlobFunc, progress func(layer int, n int64)) error {
	return imageContents(img).writeTar(ctx, w, blob, progress)
}

// WriteSet is WriteImage for all platforms: index.json lists the set's root,
// and the manifests come before the configs, and those before the layers.
// progress gets the place of a blob in set.Blobs.
func WriteSet(ctx context.Context, w io.Writer, set *ociimage.Set, blob BlobFunc, progress func(blob int, n int64)) error {
	return setContents(set).writeTar(ctx, w, blob, progress)
}

// contents is what goes into an archive or a layout, in order.
type contents struct {
	entry  ocispec.Descriptor // of index.json
	docker []byte             // manifest.json; nil: none
	small  []smallBlob        // manifests, and a config if its bytes are known
	blobs  []part             // each digest once
}

type smallBlob struct {
	d    ocispec.Descriptor
	data []byte
}

// part is a blob that is streamed.
type part struct {
	name string // for errors
	n    int    // for progress; -1: none is wanted
	d    ocispec.Descriptor
}

func imageContents(img *ociimage.Image) *contents {
	c := &contents{entry: indexEntry(img.Manifest, img.Tag, img.FullName)}
	c.small = append(c.small, smallBlob{img.Manifest, img.ManifestBytes})
	if img.ConfigBytes == nil {
		c.blobs = append(c.blobs, part{"config", -1, img.Config})
	} else {
		c.small = append(c.small, smallBlob{img.Config, img.ConfigBytes})
	}
	seen := map[digest.Digest]bool{img.Manifest.Digest: true, img.Config.Digest: true}
	for i, l := range img.Layers {
		if !seen[l.Digest] {
			seen[l.Digest] = true
			c.blobs = append(c.blobs, part{fmt.Sprintf("layer %d", i), i, l})
		}
	}
	return c
}

func setContents(set *ociimage.Set) *contents {
	c := &contents{entry: indexEntry(set.Root, set.Tag, set.FullName)}
	for _, m := range set.Manifests {
		c.small = append(c.small, smallBlob{m.Descriptor, m.Bytes})
	}
	for i, d := range set.Blobs {
		c.blobs = append(c.blobs, part{fmt.Sprintf("blob %d", i), i, d})
	}
	return c
}

// each calls f with each blob, and with the function that wants to know how
// far it is.
func (c *contents) each(progress func(int, int64), f func(ocispec.Descriptor, func(int64)) error) error {
	for _, b := range c.blobs {
		report := func(int64) {}
		if progress != nil && b.n >= 0 {
			report = func(n int64) { progress(b.n, n) }
		}
		if err := f(b.d, report); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	return nil
}

func (c *contents) writeTar(ctx context.Context, w io.Writer, blob BlobFunc, progress func(int, int64)) error {
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{c.entry},
	})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	file := func(name string, b []byte) error {
		if err := writeHeader(tw, name, int64(len(b))); err != nil {
			return err
		}
		_, err := tw.Write(b)
		return err
	}
	if err := file(ocispec.ImageLayoutFile, layoutJSON); err != nil {
		return err
	}
	if err := file(ocispec.ImageIndexFile, index); err != nil {
		return err
	}
	if c.docker != nil {
		if err := file(dockerManifest, c.docker); err != nil {
			return err
		}
	}
	for _, m := range c.small {
		if err := file(ociimage.BlobPath(m.d.Digest), m.data); err != nil {
			return err
		}
	}
	err = c.each(progress, func(d ocispec.Descriptor, report func(int64)) error { return writeBlob(ctx, tw, d, blob, report) })
	if err != nil {
		return err
	}
	return tw.Close()
}

// writeBlob opens the blob before it writes the header: much of what can be
// wrong with a blob shows there.
func writeBlob(ctx context.Context, tw *tar.Writer, d ocispec.Descriptor, open BlobFunc, report func(int64)) error {
	report(0)
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

// layoutJSON is the file that says what kind of directory a layout is.
var layoutJSON = []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)

// indexEntry is what index.json says of an image. skopeo and umoci find it by
// the tag, containerd and podman by the full name.
func indexEntry(root ocispec.Descriptor, tag, fullName string) ocispec.Descriptor {
	d := ocispec.Descriptor{
		MediaType:   root.MediaType,
		Digest:      root.Digest,
		Size:        root.Size,
		Platform:    root.Platform,
		Annotations: make(map[string]string),
	}
	if tag != "" {
		d.Annotations[ocispec.AnnotationRefName] = tag
	}
	if fullName != "" {
		d.Annotations[ociimage.AnnotationContainerdName] = fullName
	}
	return d
}
