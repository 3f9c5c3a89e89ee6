package ociimage

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// AnnotationContainerdName is where containerd keeps an image's full name in
// a layout's index.json, and what `ctr` and `podman load` give it again.
const AnnotationContainerdName = "io.containerd.image.name"

// BlobPath is a blob's place in an OCI image layout. The digest must have
// passed CheckDigest, which leaves no way out of the layout.
func BlobPath(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// CheckLayout reads an oci-layout file.
func CheckLayout(b []byte) error {
	var l ocispec.ImageLayout
	if err := json.Unmarshal(b, &l); err != nil {
		return JSONError("oci-layout", err)
	}
	if !strings.HasPrefix(l.Version, "1.") {
		return fmt.Errorf("image layout of version %q: %w", clip(l.Version), fault.ErrUnsupported)
	}
	return nil
}

// ResolveLayout is Resolve for a layout's index.json. Such an index lists
// images of different names rather than of different platforms: tag chooses
// among them, by the annotation of the image-spec or by containerd's. It may be
// a digest as well, and "" where there is only one.
func ResolveLayout(ctx context.Context, f Fetcher, indexJSON []byte, tag string, p *ocispec.Platform) (*Image, error) {
	root, b, err := layoutRoot(ctx, f, indexJSON, tag)
	if err != nil {
		return nil, err
	}
	img, err := Resolve(ctx, f, root, b, p)
	if err != nil {
		return nil, err
	}
	img.Tag, img.FullName = layoutNames(root, tag)
	return img, nil
}

// ResolveLayoutAll is ResolveAll for a layout's index.json.
func ResolveLayoutAll(ctx context.Context, f Fetcher, indexJSON []byte, tag string) (*Set, error) {
	root, b, err := layoutRoot(ctx, f, indexJSON, tag)
	if err != nil {
		return nil, err
	}
	set, err := ResolveAll(ctx, f, root, b)
	if err != nil {
		return nil, err
	}
	set.Tag, set.FullName = layoutNames(root, tag)
	return set, nil
}

// layoutNames are what an image is called by its entry in index.json.
func layoutNames(root ocispec.Descriptor, tag string) (short, full string) {
	if short = tag; tag == "" || strings.Contains(tag, ":") {
		short = root.Annotations[ocispec.AnnotationRefName]
	}
	return short, root.Annotations[AnnotationContainerdName]
}

// layoutRoot finds the index or the manifest that tag names. Where index.json
// has several platforms under one name, the root is an index made of them.
func layoutRoot(ctx context.Context, f Fetcher, indexJSON []byte, tag string) (root ocispec.Descriptor, b []byte, err error) {
	doc, err := Parse(ocispec.MediaTypeImageIndex, indexJSON)
	if err != nil {
		return root, nil, fmt.Errorf("index.json: %w", err)
	}
	var names []string
	var found []ocispec.Descriptor
	for _, m := range doc.Index.Manifests {
		name := m.Annotations[ocispec.AnnotationRefName]
		full := m.Annotations[AnnotationContainerdName]
		if tag == "" || tag == name || tag == full || tag == m.Digest.String() {
			found = append(found, m)
		}
		if name == "" {
			name = full
		}
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	switch {
	case len(found) == 0 && tag == "":
		return root, nil, fmt.Errorf("index.json lists no image: %w", fault.ErrNotFound)
	case len(found) == 0:
		return root, nil, fmt.Errorf("index.json lists no image %q, only %s: %w", clip(tag), list(names), fault.ErrNotFound)
	case len(found) > 1 && tag == "" && len(names) > 1:
		return root, nil, fault.Usagef("index.json lists %d images, name one of %s", len(names), list(names))
	}
	if len(found) == 1 {
		root = found[0]
		if root.Size > MaxManifestSize {
			return root, nil, fmt.Errorf("manifest %s of %d bytes, over %d: %w", root.Digest, root.Size, MaxManifestSize, fault.ErrCorrupt)
		}
		b, err = f.FetchManifest(ctx, root)
		return root, b, err
	}
	b, err = json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: found})
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(b), Size: int64(len(b)), Annotations: found[0].Annotations,
	}, b, err
}

// list names a few of many.
func list(names []string) string {
	if len(names) == 0 {
		return "images without names"
	}
	if len(names) > 10 {
		names = append(slices.Clone(names[:10]), "...")
	}
	return clip(strings.Join(names, ", "))
}
