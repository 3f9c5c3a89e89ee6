package ociarchive

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// dockerImage is one element of docker's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// WriteDocker is WriteImage with a manifest.json besides, behind index.json:
// docker load knows nothing else unless containerd keeps its images. What is no
// image to run is refused.
func WriteDocker(ctx context.Context, w io.Writer, img *ociimage.Image, blob BlobFunc, progress func(layer int, n int64)) error {
	if img.IsArtifact() {
		return fmt.Errorf("docker runs no %s: %w", img.Config.MediaType, fault.ErrUnsupported)
	}
	// It knows layers by the digests in the config, and decompresses what it reads.
	d := dockerImage{Config: ociimage.BlobPath(img.Config.Digest), Layers: []string{}}
	if img.FullName != "" {
		d.RepoTags = []string{img.FullName}
	}
	for _, l := range img.Layers {
		d.Layers = append(d.Layers, ociimage.BlobPath(l.Digest))
	}
	c := imageContents(img)
	var err error
	if c.docker, err = json.Marshal([]dockerImage{d}); err != nil {
		return err
	}
	return c.writeTar(ctx, w, blob, progress)
}

// resolveDocker makes an image of an archive that has no OCI index. Such
// archives give no digests of blobs, but the config lists the digests of the
// uncompressed layers, which is what the layers mostly are. The manifest is
// made here.
func (s *store) resolveDocker(tag string, p *ocispec.Platform) (*ociimage.Image, error) {
	b, err := s.small(dockerManifest)
	if err != nil {
		return nil, err
	}
	var images []dockerImage
	if err := json.Unmarshal(b, &images); err != nil {
		return nil, ociimage.JSONError("manifest.json", err)
	}
	di, err := chooseDocker(images, tag)
	if err != nil {
		return nil, err
	}
	if len(di.Layers) > ociimage.MaxLayers {
		return nil, fmt.Errorf("manifest.json with %d layers, over %d: %w", len(di.Layers), ociimage.MaxLayers, fault.ErrCorrupt)
	}
	configName := cleanName(di.Config)
	config, err := s.small(configName)
	if err != nil {
		return nil, fmt.Errorf("config %w", err)
	}
	configDigest := digest.FromBytes(config)
	if want, ok := nameDigest(configName); ok && want != configDigest {
		return nil, fmt.Errorf("config %s: content has the digest %s: %w", configName, configDigest, fault.ErrIntegrity)
	}
	var c struct {
		ocispec.Platform
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, ociimage.JSONError("config "+configName, err)
	}
	if p != nil && c.OS != "" && !ociimage.Match(*p, c.Platform) {
		return nil, fmt.Errorf("no image for %s, only for %s: %w",
			ociimage.FormatPlatform(*p), ociimage.FormatPlatform(c.Platform), fault.ErrNotFound)
	}
	if len(c.RootFS.DiffIDs) != len(di.Layers) {
		return nil, fmt.Errorf("manifest.json has %d layers, the config %d: %w", len(di.Layers), len(c.RootFS.DiffIDs), fault.ErrCorrupt)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: configDigest, Size: int64(len(config))},
		Layers:    []ocispec.Descriptor{},
	}
	for i, name := range di.Layers {
		l, err := s.dockerLayer(cleanName(name), c.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		m.Layers = append(m.Layers, l)
	}
	mb, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	img := &ociimage.Image{
		Manifest:      ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(mb), Size: int64(len(mb))},
		ManifestBytes: mb,
		Config:        m.Config,
		ConfigBytes:   config,
		Layers:        m.Layers,
	}
	if len(di.RepoTags) > 0 {
		img.FullName = di.RepoTags[0]
		if i := strings.LastIndexByte(img.FullName, ':'); i > strings.LastIndexByte(img.FullName, '/') {
			img.Tag = img.FullName[i+1:]
		}
	}
	return img, nil
}

// chooseDocker picks the image with a tag, which may be given with or without
// its repository; the only one if no tag is given.
func chooseDocker(images []dockerImage, tag string) (*dockerImage, error) {
	var names []string
	for i, im := range images {
		for _, t := range im.RepoTags {
			if tag != "" && (t == tag || strings.HasSuffix(t, ":"+tag)) {
				return &images[i], nil
			}
		}
		names = append(names, im.RepoTags...)
	}
	switch {
	case tag != "":
		return nil, fmt.Errorf("manifest.json lists no image %q: %w", tag, fault.ErrNotFound)
	case len(images) == 0:
		return nil, fmt.Errorf("manifest.json lists no image: %w", fault.ErrNotFound)
	case len(images) > 1:
		return nil, fault.Usagef("manifest.json lists %d images (%s): name one", len(images), strings.Join(names[:min(len(names), 10)], ", "))
	}
	return &images[0], nil
}

// dockerLayer finds what a layer's bytes can be verified against: the digest
// its file is named after where the name is one of a blob, else, for an
// uncompressed layer, the config's.
func (s *store) dockerLayer(name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	f, ok := s.file(name)
	if !ok {
		return ocispec.Descriptor{}, &missingError{name, name}
	}
	var head [layer.SniffSize]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return ocispec.Descriptor{}, err
	}
	kind := layer.Sniff(head[:n])
	d := ocispec.Descriptor{MediaType: kind.MediaType(), Digest: diffID, Size: f.Size()}
	compressed := kind != layer.Plain
	if named, ok := nameDigest(name); compressed && !ok {
		return d, fmt.Errorf("%s: compressed, and nothing gives its digest: %w", name, fault.ErrUnsupported)
	} else if compressed {
		d.Digest = named
	}
	if err := ociimage.CheckDescriptor(d); err != nil {
		return d, err
	}
	s.blobs[d.Digest] = f
	return d, nil
}

// nameDigest is the sha256 that a file is named after: blobs/sha256/HEX,
// HEX.json, HEX.tar.gz, sha256:HEX.
func nameDigest(name string) (digest.Digest, bool) {
	base := strings.TrimPrefix(path.Base(name), "sha256:")
	base, _, _ = strings.Cut(base, ".")
	d := digest.NewDigestFromEncoded(digest.SHA256, base)
	return d, d.Validate() == nil
}
