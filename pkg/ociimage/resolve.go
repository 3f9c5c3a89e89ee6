package ociimage

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A Fetcher gives small blobs, verified against their descriptors: manifests
// (and indexes) and configs are kept apart because registries do.
type Fetcher interface {
	FetchManifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
	FetchConfig(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
}

// Resolve follows root, whose bytes are given and verified, through nested
// indexes to the manifest for platform p, and fetches its config. p nil means
// the default platform; a manifest that no index chose is then taken whatever
// it is for, as there is nothing to choose from.
func Resolve(ctx context.Context, f Fetcher, root ocispec.Descriptor, rootBytes []byte, p *ocispec.Platform) (*Image, error) {
	img, err := ResolveManifest(ctx, f, root, rootBytes, p)
	if err != nil || img.ConfigBytes != nil {
		return img, err
	}
	if img.ConfigBytes, err = f.FetchConfig(ctx, img.Config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return img, nil
}

// ResolveManifest is Resolve, but ConfigBytes is nil where the config was not
// needed to tell the platform: who wants it can fetch it with the layers.
func ResolveManifest(ctx context.Context, f Fetcher, root ocispec.Descriptor, rootBytes []byte, p *ocispec.Platform) (*Image, error) {
	r := &resolver{f: f, explicit: p != nil, want: DefaultPlatform(), seen: make(map[digest.Digest]bool)}
	if p != nil {
		r.want = *p
	}
	doc, err := Parse(root.MediaType, rootBytes)
	if err != nil {
		return nil, err
	}
	root.MediaType = doc.MediaType
	if doc.Manifest != nil {
		if r.explicit && root.Platform != nil && rank(r.want, *root.Platform) == 0 {
			r.other(*root.Platform)
			return nil, r.noPlatform()
		}
		return r.image(ctx, root, rootBytes, doc.Manifest)
	}
	r.seen[root.Digest] = true
	best, err := r.index(ctx, doc.Index, nil, 1)
	if err != nil {
		return nil, err
	}
	if best != nil {
		return best, nil
	}
	// What an index does not say about its images, their configs do.
	var artifact *Image
	for _, d := range r.unnamed {
		b, doc, err := r.fetch(ctx, d)
		if err != nil {
			return nil, err
		}
		d.MediaType = doc.MediaType
		if len(r.unnamed) == 1 && len(r.others) == 0 {
			return r.image(ctx, d, b, doc.Manifest)
		}
		img, err := r.checked(ctx, d, b, doc.Manifest)
		switch {
		case errors.Is(err, errPlatform):
		case err == nil && img.IsArtifact():
			artifact = cmp.Or(artifact, img)
		default:
			return img, err
		}
	}
	// What is kept beside images is not an image for a platform that they lack.
	if artifact != nil && len(r.others) == 0 {
		return artifact, nil
	}
	return nil, r.noPlatform()
}

// resolver is the state of one Resolve.
type resolver struct {
	f        Fetcher
	want     ocispec.Platform
	explicit bool // want was asked for by name
	seen     map[digest.Digest]bool
	fetches  int
	unnamed  []ocispec.Descriptor // manifests whose index entry names no platform
	others   []string             // platforms there are
}

// errPlatform marks an image of another platform.
var errPlatform = fmt.Errorf("no such platform: %w", fault.ErrNotFound)

// index looks for the best manifest among an index's own entries, and only if
// there is none in the indexes it names. It returns nil if nothing fits.
func (r *resolver) index(ctx context.Context, x *ocispec.Index, inherited *ocispec.Platform, depth int) (*Image, error) {
	var best *ocispec.Descriptor
	bestRank := 0
	var nested []ocispec.Descriptor
	for _, m := range x.Manifests {
		if m.Platform == nil {
			m.Platform = inherited
		}
		switch {
		case isAttestation(m):
		case IsIndex(m.MediaType):
			nested = append(nested, m)
		case !IsManifest(m.MediaType) && m.MediaType != "":
			// Something else kept beside the images.
		case m.Platform == nil || m.Platform.OS == "" && m.Platform.Architecture == "":
			r.unnamed = append(r.unnamed, m)
		default:
			r.other(*m.Platform)
			if k := rank(r.want, *m.Platform); k > bestRank {
				best, bestRank = &m, k
			}
		}
	}
	if best != nil {
		b, doc, err := r.fetch(ctx, *best)
		if err != nil {
			return nil, err
		}
		if doc.Manifest == nil {
			return nil, fmt.Errorf("manifest %s is an index, its entry says %s: %w", best.Digest, best.MediaType, fault.ErrCorrupt)
		}
		best.MediaType = doc.MediaType
		return r.image(ctx, *best, b, doc.Manifest)
	}
	for _, n := range nested {
		if n.Platform != nil && n.Platform.Architecture != "" && rank(r.want, *n.Platform) == 0 {
			r.other(*n.Platform)
			continue
		}
		if depth >= maxDepth {
			return nil, fmt.Errorf("index %s: over %d indexes within each other: %w", n.Digest, maxDepth, fault.ErrCorrupt)
		}
		if r.seen[n.Digest] {
			continue // listed twice: nothing new in it
		}
		r.seen[n.Digest] = true
		_, doc, err := r.fetch(ctx, n)
		if err != nil {
			return nil, err
		}
		if doc.Index == nil {
			return nil, fmt.Errorf("manifest %s is no index, its entry says %s: %w", n.Digest, n.MediaType, fault.ErrCorrupt)
		}
		if img, err := r.index(ctx, doc.Index, n.Platform, depth+1); img != nil || err != nil {
			return img, err
		}
	}
	return nil, nil
}

// fetch gets and parses one manifest or index, within the bounds.
func (r *resolver) fetch(ctx context.Context, d ocispec.Descriptor) ([]byte, *Document, error) {
	if r.fetches++; r.fetches > maxFetches {
		return nil, nil, fmt.Errorf("over %d manifests to look at: %w", maxFetches, fault.ErrCorrupt)
	}
	if d.Size > MaxManifestSize {
		return nil, nil, fmt.Errorf("manifest %s of %d bytes, over %d: %w", d.Digest, d.Size, MaxManifestSize, fault.ErrCorrupt)
	}
	b, err := r.f.FetchManifest(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	doc, err := Parse(d.MediaType, b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	return b, doc, nil
}

// image completes an image that is the right one, unless a platform was asked
// for by name and its config says another.
func (r *resolver) image(ctx context.Context, d ocispec.Descriptor, b []byte, m *ocispec.Manifest) (*Image, error) {
	if m == nil {
		return nil, fmt.Errorf("manifest %s is an index where an image was expected: %w", d.Digest, fault.ErrCorrupt)
	}
	if r.explicit && d.Platform == nil {
		img, err := r.checked(ctx, d, b, m)
		if errors.Is(err, errPlatform) {
			err = r.noPlatform()
		}
		return img, err
	}
	return &Image{Manifest: d, ManifestBytes: b, Config: m.Config, Layers: m.Layers}, nil
}

// checked is image for a manifest whose platform only its config tells.
func (r *resolver) checked(ctx context.Context, d ocispec.Descriptor, b []byte, m *ocispec.Manifest) (*Image, error) {
	if m == nil {
		return nil, fmt.Errorf("manifest %s is an index where an image was expected: %w", d.Digest, fault.ErrCorrupt)
	}
	img := &Image{Manifest: d, ManifestBytes: b, Config: m.Config, Layers: m.Layers}
	if img.IsArtifact() {
		return img, nil // for no platform, hence for each
	}
	config, err := r.f.FetchConfig(ctx, m.Config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	img.ConfigBytes = config
	var have ocispec.Platform
	if err := json.Unmarshal(config, &have); err != nil {
		return nil, JSONError("config "+m.Config.Digest.String(), err)
	}
	if have.OS == "" && have.Architecture == "" {
		return img, nil
	}
	if rank(r.want, have) == 0 {
		r.other(have)
		return nil, errPlatform
	}
	return img, nil
}

func (r *resolver) other(p ocispec.Platform) {
	s := FormatPlatform(p)
	if len(p.OSFeatures) > 0 {
		s += " with " + strings.Join(p.OSFeatures, " and ")
	}
	if s = clip(s); !slices.Contains(r.others, s) {
		r.others = append(r.others, s)
	}
}

// noPlatform says what was wanted and what there is.
func (r *resolver) noPlatform() error {
	if len(r.others) == 0 {
		return fmt.Errorf("no image for %s, nor for any platform: %w", FormatPlatform(r.want), fault.ErrNotFound)
	}
	const most = 20
	have := r.others
	more := ""
	if len(have) > most {
		have, more = have[:most], fmt.Sprintf(" and %d more", len(r.others)-most)
	}
	return fmt.Errorf("no image for %s, only for %s%s: %w", FormatPlatform(r.want), strings.Join(have, ", "), more, fault.ErrNotFound)
}

// isAttestation tells the provenance that BuildKit lists among the images.
func isAttestation(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}
