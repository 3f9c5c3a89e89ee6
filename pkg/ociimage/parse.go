package ociimage

import (
	_ "crypto/sha256" // go-digest knows only the algorithms that are linked in
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A Document is a parsed manifest or index: exactly one of the two is set.
type Document struct {
	MediaType string
	Manifest  *ocispec.Manifest
	Index     *ocispec.Index
}

// document has what tells the kinds of document apart.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
	History       json.RawMessage      `json:"history"`
	ArtifactType  string               `json:"artifactType"`
	Annotations   map[string]string    `json:"annotations"`
}

// Parse reads a manifest or an index. mediaType is what its descriptor or its
// Content-Type header says, "" if nothing does. What the bytes say about
// themselves must agree with it: a document that is an index to one tool and an
// image to another is refused (CVE-2021-41190).
func Parse(mediaType string, b []byte) (*Document, error) {
	if len(b) > MaxManifestSize {
		return nil, fmt.Errorf("manifest of %d bytes, over %d: %w", len(b), MaxManifestSize, fault.ErrCorrupt)
	}
	var d document
	mt := plainType(mediaType)
	if err := json.Unmarshal(b, &d); err != nil {
		if mt != "" && !IsIndex(mt) && !IsManifest(mt) {
			// A proxy's or a portal's page, say.
			return nil, fmt.Errorf("%q instead of a manifest: %w", clip(mt), fault.ErrCorrupt)
		}
		return nil, JSONError("manifest", err)
	}
	if d.SchemaVersion == 1 || strings.HasPrefix(mt, "application/vnd.docker.distribution.manifest.v1+") {
		return nil, fmt.Errorf("docker schema 1 manifest: %w", fault.ErrUnsupported)
	}
	if d.MediaType != "" {
		if mt != "" && mt != d.MediaType {
			return nil, fmt.Errorf("manifest announced as %q calls itself %q: %w", mt, d.MediaType, fault.ErrCorrupt)
		}
		mt = d.MediaType
	}
	hasIndex, hasImage := d.Manifests != nil, d.Layers != nil || d.Config != nil
	if d.FSLayers != nil || d.History != nil || hasIndex && hasImage {
		return nil, fmt.Errorf("manifest has the fields of more than one kind of document: %w", fault.ErrCorrupt)
	}
	if mt == "" {
		// The media type is optional within OCI documents.
		if mt = ocispec.MediaTypeImageManifest; hasIndex {
			mt = ocispec.MediaTypeImageIndex
		}
	}
	switch {
	case IsIndex(mt):
		if hasImage {
			return nil, fmt.Errorf("index has layers: %w", fault.ErrCorrupt)
		}
		return d.index(mt)
	case IsManifest(mt):
		if hasIndex {
			return nil, fmt.Errorf("image manifest has manifests: %w", fault.ErrCorrupt)
		}
		return d.manifest(mt)
	}
	return nil, fmt.Errorf("manifest of type %q: %w", mt, fault.ErrUnsupported)
}

// JSONError makes an error of encoding/json one of ours about what, without the
// names that things have in this program.
func JSONError(what string, err error) error {
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s has a JSON %s where there should be none, at byte %d: %w", what, clip(te.Value), te.Offset, fault.ErrCorrupt)
	}
	return fmt.Errorf("%s is not valid JSON: %v: %w", what, err, fault.ErrCorrupt)
}

// plainType is a media type without parameters, "" for the types that servers
// send when they know nothing.
func plainType(s string) string {
	mt, _, err := mime.ParseMediaType(s)
	if err != nil {
		mt = strings.ToLower(strings.TrimSpace(s))
	}
	switch mt {
	case "application/json", "application/octet-stream", "text/plain", "binary/octet-stream":
		return ""
	}
	return mt
}

func (d *document) index(mediaType string) (*Document, error) {
	if len(d.Manifests) > maxManifests {
		return nil, fmt.Errorf("index with %d manifests, over %d: %w", len(d.Manifests), maxManifests, fault.ErrCorrupt)
	}
	for i, m := range d.Manifests {
		if err := CheckDescriptor(m); err != nil {
			return nil, fmt.Errorf("index, manifest %d: %w", i, err)
		}
	}
	return &Document{MediaType: mediaType, Index: &ocispec.Index{
		MediaType: mediaType, ArtifactType: d.ArtifactType, Manifests: d.Manifests, Annotations: d.Annotations,
	}}, nil
}

func (d *document) manifest(mediaType string) (*Document, error) {
	if d.Config == nil {
		return nil, fmt.Errorf("image manifest has no config: %w", fault.ErrCorrupt)
	}
	if err := CheckDescriptor(*d.Config); err != nil {
		return nil, fmt.Errorf("manifest, config: %w", err)
	}
	if d.Config.Size > MaxConfigSize {
		return nil, fmt.Errorf("manifest, config of %d bytes, over %d: %w", d.Config.Size, MaxConfigSize, fault.ErrCorrupt)
	}
	if len(d.Layers) > MaxLayers {
		return nil, fmt.Errorf("manifest with %d layers, over %d: %w", len(d.Layers), MaxLayers, fault.ErrCorrupt)
	}
	sizes := make(map[digest.Digest]int64)
	for i, l := range d.Layers {
		if err := CheckDescriptor(l); err != nil {
			return nil, fmt.Errorf("manifest, layer %d: %w", i, err)
		}
		if size, ok := sizes[l.Digest]; ok && size != l.Size {
			return nil, fmt.Errorf("manifest, layer %d: %s has two sizes, %d and %d: %w", i, l.Digest, size, l.Size, fault.ErrCorrupt)
		}
		sizes[l.Digest] = l.Size
	}
	return &Document{MediaType: mediaType, Manifest: &ocispec.Manifest{
		MediaType: mediaType, ArtifactType: d.ArtifactType, Config: *d.Config, Layers: d.Layers, Annotations: d.Annotations,
	}}, nil
}

// CheckDescriptor refuses a descriptor whose digest could not be verified, or
// would not be safe within a URL or a file name, and sizes that make no sense.
func CheckDescriptor(d ocispec.Descriptor) error {
	if err := CheckDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > maxBlobSize {
		return fmt.Errorf("%s has a size of %d bytes: %w", d.Digest, d.Size, fault.ErrCorrupt)
	}
	return nil
}

// CheckDigest refuses what is not a digest of a known algorithm.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %v: %w", clip(string(d)), err, fault.ErrCorrupt)
	}
	return nil
}

// clip keeps a hostile string from filling the terminal.
func clip(s string) string {
	if len(s) > 150 {
		return s[:150] + "..."
	}
	return s
}
