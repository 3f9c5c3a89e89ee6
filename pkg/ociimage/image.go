// Package ociimage knows what an OCI or Docker v2 image is made of: it parses
// manifests and indexes as hostile input, picks the manifest of a platform, and
// verifies content against its descriptor. It fetches nothing by itself, so
// that a registry, a layout directory and an archive share one set of rules.
package ociimage

import (
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image of one platform, resolved.
type Image struct {
	Name          string             // the reference it came from, for messages
	FullName      string             // registry/repository:tag, or "" where there is none
	Tag           string             // the tag of that reference, or ""
	Manifest      ocispec.Descriptor // with its platform when an index gave one
	ManifestBytes []byte             // as they were published; they match Manifest.Digest
	Config        ocispec.Descriptor
	ConfigBytes   []byte // they match Config.Digest; nil: not fetched yet, see ResolveManifest
	Layers        []ocispec.Descriptor
}

// IsArtifact reports whether what has an image's manifest is something else than
// the root filesystem of a container.
func (img *Image) IsArtifact() bool {
	return img.Config.MediaType != ocispec.MediaTypeImageConfig && img.Config.MediaType != MediaTypeDockerConfig
}

// Media types of Docker's formats, which differ from OCI's in name only.
const (
	MediaTypeDockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig       = "application/vnd.docker.container.image.v1+json"
	MediaTypeDockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	MediaTypeDockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	MediaTypeDockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// Bounds on what a registry or an archive may make us do. The sizes are what
// the distribution spec and the other clients use; the counts are several times
// what any known image has.
const (
	MaxManifestSize = 4 << 20 // bytes of a manifest or an index
	MaxConfigSize   = 8 << 20 // bytes of an image's configuration
	MaxLayers       = 1024    // layers of one image
	maxManifests    = 4096    // entries of one index
	maxDepth        = 4       // indexes within indexes
	maxFetches      = 64      // manifests and indexes looked at for one image
	maxBlobSize     = 1 << 50 // bytes of a blob: keeps sums of sizes within int64
)

// ManifestTypes are the media types that Resolve understands, best first, as
// for an Accept header.
var ManifestTypes = []string{
	ocispec.MediaTypeImageIndex,
	ocispec.MediaTypeImageManifest,
	MediaTypeDockerManifestList,
	MediaTypeDockerManifest,
}

// IsIndex reports whether a media type is an index's (Docker: manifest list).
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == MediaTypeDockerManifestList
}

// IsManifest reports whether a media type is an image manifest's.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == MediaTypeDockerManifest
}

// IsForeign reports whether a layer may be absent from the registry and be
// found under its descriptor's URLs instead.
func IsForeign(mediaType string) bool {
	return mediaType == MediaTypeDockerForeignLayer || strings.HasPrefix(mediaType, foreignPrefix)
}

// foreignPrefix begins OCI's media types of such layers. The image-spec has
// deprecated them; they are published all the same.
const foreignPrefix = "application/vnd.oci.image.layer.nondistributable.v1.tar"
