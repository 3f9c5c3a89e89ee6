// Package source opens an image where it lies: in a registry, in an OCI layout
// directory, or in an archive file.
package source

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
	"github.com/layerpipe/layerpipe/pkg/registry"
)

// Image is one image of one platform, resolved.
type Image = ociimage.Image

// Set is all that a reference names.
type Set = ociimage.Set

// A Source is a place that holds an image and its blobs. It is safe for many
// callers at once.
type Source interface {
	// Name is the reference as the user gave it, for messages.
	Name() string
	// Resolve finds the image for a platform. nil is linux on the host's
	// architecture; an image that is no choice among several is then taken
	// whatever it is for.
	Resolve(ctx context.Context, p *ocispec.Platform) (*Image, error)
	// ResolveAll finds the images for all platforms.
	ResolveAll(ctx context.Context) (*Set, error)
	// Blob streams a blob. io.EOF comes only if size and digest match.
	Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
	// BlobAt gives random access to a blob, unverified. A descriptor's size of
	// 0 or less is found out.
	BlobAt(ctx context.Context, d ocispec.Descriptor) (BlobReader, error)
	Close() error
}

// A BlobReader reads a blob at any offset; many callers may do so at once.
type BlobReader interface {
	// ReadAtContext fills p or returns an error, io.EOF as io.ReaderAt does.
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
	Size() int64 // bytes
	io.Closer
}

// Options are for Open. Local sources use none of them.
type Options = registry.Options

// Prefixes of the references that are not a registry's.
const (
	layoutPrefix  = "oci:"
	archivePrefix = "oci-archive:"
)

// Open opens oci:DIR[:TAG], oci-archive:FILE[:TAG], or a registry's reference
// in docker's grammar.
func Open(ref string, o Options) (Source, error) {
	if name, ok := strings.CutPrefix(ref, layoutPrefix); ok {
		return openLayout(ref, name)
	}
	if name, ok := strings.CutPrefix(ref, archivePrefix); ok {
		return openArchive(ref, name)
	}
	r, err := registry.Open(ref, o)
	switch meant := meansFile(ref); {
	case err != nil && meant:
		return nil, fmt.Errorf("%w; %s", err, filesAre)
	case err != nil:
		return nil, err
	case meant && r.Reference().Domain == "docker.io" && o.Notify != nil:
		o.Notify(fmt.Sprintf("%s is taken for an image on Docker Hub; %s", ref, filesAre))
	}
	return remote{r}, nil
}

const filesAre = "a file is given as " + archivePrefix + "FILE, a directory as " + layoutPrefix + "DIR"

// meansFile reports whether a reference looks like a file, or like what other
// tools call one. In docker's grammar some of that is an image all the same.
func meansFile(ref string) bool {
	transport, _, _ := strings.Cut(ref, ":")
	switch transport {
	case "docker-archive", "dir", "oci-layout", "docker-daemon", "containers-storage":
		return true
	}
	return strings.HasPrefix(ref, ".") || strings.HasPrefix(ref, "/") || strings.HasSuffix(ref, ".tar")
}

// IsLocal reports whether ref names a directory or a file rather than a
// registry.
func IsLocal(ref string) bool {
	return strings.HasPrefix(ref, layoutPrefix) || strings.HasPrefix(ref, archivePrefix)
}

// SplitTag splits PATH[:TAG] or PATH[@DIGEST], which oci: and oci-archive: stand
// before. A path that exists as it is has no tag, whatever is in it.
func SplitTag(s string) (path, tag string, err error) {
	if s == "" {
		return "", "", fault.Usagef("no path")
	}
	if _, err := os.Stat(s); err == nil {
		return s, "", nil
	}
	// What an image is called may have colons of its own: registry/name:tag. So the
	// path is the longest one that leads to something.
	for i := len(s) - 1; i > 0; i-- {
		if s[i] != ':' && !(s[i] == '@' && digest.Digest(s[i+1:]).Validate() == nil) {
			continue
		}
		if _, err := os.Stat(s[:i]); err == nil {
			return s[:i], s[i+1:], nil
		}
	}
	if i := strings.LastIndexByte(s, '@'); i > 0 {
		if d := digest.Digest(s[i+1:]); d.Validate() == nil {
			return s[:i], s[i+1:], nil
		}
	}
	if i := strings.LastIndexByte(s, ':'); i > 0 && !strings.ContainsAny(s[i:], `/\`) {
		return s[:i], s[i+1:], nil
	}
	return s, "", nil
}

// notFound makes a missing file what a missing image is elsewhere.
func notFound(err error) error {
	if os.IsNotExist(err) {
		return fmt.Errorf("%w: %w", err, fault.ErrNotFound)
	}
	return err
}

// Blobs opens blobs in the order of a list.
type Blobs interface {
	Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
	io.Closer
}

// Ahead opens blobs, such as an image's layers, for reading one after another.
// From a registry they are downloaded ahead, over so many connections at once;
// with one, each is a stream.
func Ahead(ctx context.Context, s Source, list []ocispec.Descriptor, connections int) Blobs {
	if c, ok := s.(*cached); ok {
		return cachedBlobs{Ahead(ctx, c.Source, c.c.missing(list), connections), c.c}
	}
	if r, ok := s.(remote); ok && connections > 1 {
		return r.Ahead(ctx, list, connections)
	}
	return streams{s}
}

// ResolveManifest is s.Resolve, but where the config would cost a round trip of
// its own, Image.ConfigBytes may be nil: Blob has it.
func ResolveManifest(ctx context.Context, s Source, p *ocispec.Platform) (*Image, error) {
	if c, ok := s.(*cached); ok {
		s = c.Source
	}
	if r, ok := s.(remote); ok {
		return r.Repository.ResolveManifest(ctx, p)
	}
	return s.Resolve(ctx, p)
}

// Referrers lists what a registry has attached to what the source names, or to
// its image for p, if that is not nil; of an artifact type, if that is not "".
func Referrers(ctx context.Context, s Source, p *ocispec.Platform, artifactType string) (subject ocispec.Descriptor, list []ocispec.Descriptor, err error) {
	if c, ok := s.(*cached); ok {
		s = c.Source
	}
	r, ok := s.(remote)
	if !ok {
		return subject, nil, fmt.Errorf("%s: referrers of what is not in a registry: %w", s.Name(), fault.ErrUnsupported)
	}
	if p == nil {
		subject, _, err = r.Manifest(ctx)
	} else {
		var img *Image
		if img, err = r.Resolve(ctx, p); err == nil {
			subject = img.Manifest
		}
	}
	if err != nil {
		return subject, nil, err
	}
	list, err = r.Repository.Referrers(ctx, subject.Digest, artifactType)
	return subject, list, err
}

// streams opens a stream for each blob.
type streams struct{ Source }

// Close leaves the source open.
func (streams) Close() error { return nil }

// remote makes a registry's repository a Source.
type remote struct{ *registry.Repository }

func (r remote) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return r.Repository.Blob(ctx, d)
}

func (r remote) BlobAt(ctx context.Context, d ocispec.Descriptor) (BlobReader, error) {
	return r.Repository.BlobAt(ctx, d)
}
