package ociimage

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A Set is all that a reference names: an image for each of its platforms, and
// what is kept beside them, such as provenance.
type Set struct {
	Name     string             // the reference it came from, for messages
	FullName string             // as Image has it
	Tag      string             // as Image has it
	Root     ocispec.Descriptor // what the reference names, mostly an index
	// Manifests are the indexes and manifests, the root first, each before what
	// it names.
	Manifests []Raw
	// Images are those manifests that are no index, without their configs'
	// bytes.
	Images []Image
	// Blobs are the configs, then the layers, each digest once.
	Blobs []ocispec.Descriptor
}

// Raw is a manifest as it was published.
type Raw struct {
	Descriptor ocispec.Descriptor
	Bytes      []byte
}

// Bounds of a Set. Its manifests are held in memory, so what counts is their
// size in sum.
const (
	maxSetManifests = 1024
	maxSetBytes     = 16 << 20
	maxSetBlobs     = 1 << 16
)

// ResolveAll follows root, whose bytes are given and verified, to all that it
// names. Nothing is left out: what cannot be had is an error.
func ResolveAll(ctx context.Context, f Fetcher, root ocispec.Descriptor, rootBytes []byte) (*Set, error) {
	w := &walker{f: f, seen: make(map[digest.Digest]bool)}
	if err := w.add(ctx, root, rootBytes, 1); err != nil {
		return nil, err
	}
	w.set.Root = w.set.Manifests[0].Descriptor
	blobs := make(map[digest.Digest]int64)
	blob := func(d ocispec.Descriptor) error {
		size, ok := blobs[d.Digest]
		switch {
		case ok && size != d.Size:
			return fmt.Errorf("%s has two sizes, %d and %d: %w", d.Digest, size, d.Size, fault.ErrCorrupt)
		case !ok && w.seen[d.Digest]:
			return nil // a manifest that is also a blob is in the set already
		case !ok && len(blobs) == maxSetBlobs:
			return fmt.Errorf("over %d blobs: %w", maxSetBlobs, fault.ErrCorrupt)
		case !ok:
			blobs[d.Digest] = d.Size
			w.set.Blobs = append(w.set.Blobs, d)
		}
		return nil
	}
	for _, img := range w.set.Images {
		if err := blob(img.Config); err != nil {
			return nil, err
		}
	}
	for _, img := range w.set.Images {
		for _, l := range img.Layers {
			if err := blob(l); err != nil {
				return nil, err
			}
		}
	}
	return &w.set, nil
}

// walker is the state of one ResolveAll.
type walker struct {
	f     Fetcher
	set   Set
	seen  map[digest.Digest]bool
	bytes int
}

func (w *walker) add(ctx context.Context, d ocispec.Descriptor, b []byte, depth int) error {
	doc, err := Parse(d.MediaType, b)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	d.MediaType = doc.MediaType
	w.seen[d.Digest] = true
	w.bytes += len(b)
	if w.bytes > maxSetBytes || len(w.set.Manifests) == maxSetManifests {
		return fmt.Errorf("over %d manifests, or %d bytes of them: %w", maxSetManifests, maxSetBytes, fault.ErrCorrupt)
	}
	w.set.Manifests = append(w.set.Manifests, Raw{d, b})
	if m := doc.Manifest; m != nil {
		w.set.Images = append(w.set.Images, Image{Manifest: d, ManifestBytes: b, Config: m.Config, Layers: m.Layers})
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("index %s: over %d indexes within each other: %w", d.Digest, maxDepth, fault.ErrCorrupt)
	}
	for _, m := range doc.Index.Manifests {
		if w.seen[m.Digest] {
			continue
		}
		if m.Size > MaxManifestSize {
			return fmt.Errorf("manifest %s of %d bytes, over %d: %w", m.Digest, m.Size, MaxManifestSize, fault.ErrCorrupt)
		}
		b, err := w.f.FetchManifest(ctx, m)
		if err != nil {
			return err
		}
		if m.Platform == nil {
			m.Platform = d.Platform
		}
		if err := w.add(ctx, m, b, depth+1); err != nil {
			return err
		}
	}
	return nil
}
