package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// A Repository is a repository of a registry, and one image in it by a tag or a
// digest. It is safe for many callers at once.
type Repository struct {
	name  string
	ref   Reference
	all   []*client     // of the mirrors, then the registry's own
	slots chan struct{} // random reads under way
}

// Open makes a Repository of a reference in docker's grammar, where the
// configuration of mirrors says that it is. Nothing is sent yet.
func Open(ref string, o Options) (*Repository, error) {
	o.setDefaults()
	o.takeAuthPipe()
	conf, err := o.registriesConf()
	if err != nil {
		return nil, err
	}
	full, aliased := conf.alias(ref)
	parsed, err := ParseReference(full)
	if err != nil {
		return nil, err
	}
	r := &Repository{name: ref, ref: parsed, slots: make(chan struct{}, o.Concurrency)}
	places, err := o.places(conf, parsed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	for _, p := range places {
		c, err := newClient(p, o)
		if err != nil {
			return nil, err
		}
		r.all = append(r.all, c)
	}
	if parsed.Warning != "" {
		r.own().notify("%s", parsed.Warning)
	}
	if aliased {
		r.own().verbose("%s stands for %s", ref, parsed)
	}
	return r, nil
}

// Name is the reference as it was given.
func (r *Repository) Name() string { return r.name }

// Reference is the reference in full.
func (r *Repository) Reference() Reference { return r.ref }

// named makes err an error about the repository. What a registry says of an
// image, and what an image says of itself, may hold what the registry was sent.
func (r *Repository) named(err error) error {
	for _, c := range r.all {
		err = c.secrets.scrub(err)
	}
	return fmt.Errorf("%s: %w", r.name, err)
}

// Close drops the idle connections.
func (r *Repository) Close() error {
	for _, c := range r.all {
		c.transport.CloseIdleConnections()
		c.elsewhere.CloseIdleConnections()
	}
	return nil
}

// Resolve finds the image for a platform; nil is the default one, see
// ociimage.Resolve.
func (r *Repository) Resolve(ctx context.Context, p *ocispec.Platform) (*ociimage.Image, error) {
	return r.resolve(ctx, p, ociimage.Resolve)
}

// ResolveManifest is Resolve without the config, see ociimage.ResolveManifest.
func (r *Repository) ResolveManifest(ctx context.Context, p *ocispec.Platform) (*ociimage.Image, error) {
	return r.resolve(ctx, p, ociimage.ResolveManifest)
}

func (r *Repository) resolve(ctx context.Context, p *ocispec.Platform,
	how func(context.Context, ociimage.Fetcher, ocispec.Descriptor, []byte, *ocispec.Platform) (*ociimage.Image, error)) (*ociimage.Image, error) {
	d, b, err := r.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	img, err := how(ctx, r, d, b, p)
	if err != nil {
		return nil, r.named(err)
	}
	img.Name, img.Tag, img.FullName = r.name, r.ref.Tag, r.fullName()
	return img, nil
}

// ResolveAll finds the images for all platforms.
func (r *Repository) ResolveAll(ctx context.Context) (*ociimage.Set, error) {
	d, b, err := r.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	set, err := ociimage.ResolveAll(ctx, r, d, b)
	if err != nil {
		return nil, r.named(err)
	}
	set.Name, set.Tag, set.FullName = r.name, r.ref.Tag, r.fullName()
	return set, nil
}

// fullName is the reference without its digest, "" if it has no tag.
func (r *Repository) fullName() string {
	if r.ref.Tag == "" {
		return ""
	}
	return r.ref.Domain + "/" + r.ref.Repository + ":" + r.ref.Tag
}

// Manifest fetches what the reference names, an index or a manifest.
func (r *Repository) Manifest(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	kind := byTag
	if r.ref.Digest != "" {
		kind = byDigest
	}
	d, b, err := r.manifest(ctx, kind, r.ref.identifier(), ocispec.Descriptor{Digest: r.ref.Digest})
	if err != nil {
		return d, nil, r.named(err)
	}
	return d, b, nil
}

// manifest asks one place after another.
func (r *Repository) manifest(ctx context.Context, k kind, id string, want ocispec.Descriptor) (d ocispec.Descriptor, b []byte, err error) {
	err = r.each(ctx, k, func(c *client) error {
		d, b, err = c.manifest(ctx, id, want)
		return err
	})
	return d, b, err
}

// FetchManifest implements ociimage.Fetcher.
func (r *Repository) FetchManifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := ociimage.CheckDescriptor(d); err != nil {
		return nil, err
	}
	_, b, err := r.manifest(ctx, byDigest, d.Digest.String(), d)
	return b, err
}

// FetchConfig implements ociimage.Fetcher.
func (r *Repository) FetchConfig(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > ociimage.MaxConfigSize {
		return nil, fmt.Errorf("%s: %d bytes, over %d: %w", d.Digest, d.Size, ociimage.MaxConfigSize, fault.ErrCorrupt)
	}
	b, err := r.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return ociimage.ReadAll(b, d)
}

// manifest fetches a manifest by a tag or a digest. want has what is known of
// it: its digest, and its size with that, or nothing.
func (c *client) manifest(ctx context.Context, id string, want ocispec.Descriptor) (d ocispec.Descriptor, b []byte, err error) {
	what := "manifest " + id
	accept := http.Header{"Accept": {strings.Join(ociimage.ManifestTypes, ", ")}}
	retry := retrier{c: c}
	for {
		d, b, err = c.manifestOnce(ctx, id, accept, what)
		if err == nil {
			break
		}
		if err := retry.again(ctx, err); err != nil {
			return d, nil, err
		}
	}
	if want.Digest != "" {
		if err := ociimage.CheckDigest(want.Digest); err != nil {
			return d, nil, err
		}
		d.Digest = want.Digest
		if want.Size > 0 {
			d.Size = want.Size
		}
	}
	if err := ociimage.VerifyBytes(b, d); err != nil {
		return d, nil, fmt.Errorf("manifest %w", err)
	}
	doc, err := ociimage.Parse(d.MediaType, b)
	if err != nil {
		return d, nil, fmt.Errorf("%s: %w", what, err)
	}
	d.MediaType = doc.MediaType
	return d, b, nil
}

// manifestOnce gets a manifest and says what the registry says about it.
func (c *client) manifestOnce(ctx context.Context, id string, accept http.Header, what string) (d ocispec.Descriptor, b []byte, err error) {
	resp, err := c.get(ctx, http.MethodGet, c.url("manifests", id), accept, what)
	if err != nil {
		return d, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return d, nil, finalError{fmt.Errorf("%s: %s in answer to a plain request", what, resp.Status)}
	}
	if resp.ContentLength > ociimage.MaxManifestSize {
		return d, nil, fmt.Errorf("%s: %d bytes, over %d: %w", what, resp.ContentLength, ociimage.MaxManifestSize, fault.ErrCorrupt)
	}
	b, err = io.ReadAll(io.LimitReader(resp.Body, ociimage.MaxManifestSize+1))
	if err != nil {
		return d, nil, fmt.Errorf("%s: %w", what, err)
	}
	if len(b) > ociimage.MaxManifestSize {
		return d, nil, fmt.Errorf("%s: over %d bytes: %w", what, ociimage.MaxManifestSize, fault.ErrCorrupt)
	}
	d = ocispec.Descriptor{MediaType: resp.Header.Get("Content-Type"), Size: int64(len(b)), Digest: digest.FromBytes(b)}
	// The registry's own word on the digest, if it gives one, must be true.
	if h := digest.Digest(resp.Header.Get("Docker-Content-Digest")); h != "" && h.Validate() == nil {
		d.Digest = h
	}
	return d, b, nil
}

// checkBlob refuses a descriptor that must not get into a URL.
func checkBlob(d ocispec.Descriptor) error {
	if d.Size < 0 {
		d.Size = 0
	}
	return ociimage.CheckDescriptor(d)
}

// Blob streams a blob. io.EOF comes only once size and digest have proved
// right; whatever breaks before is resumed where it broke. With a size of 0 or
// less the registry's word on the size is taken; the digest is verified all the
// same.
func (r *Repository) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if err := checkBlob(d); err != nil {
		return nil, err
	}
	from, err := r.origins(d.Digest)
	if err != nil {
		return nil, r.named(err)
	}
	s, err := newStream(ctx, d, rested(from))
	if errors.Is(err, fault.ErrNotFound) && ociimage.IsForeign(d.MediaType) {
		s, err = r.foreign(ctx, d, err)
	}
	if err != nil {
		return nil, r.named(err)
	}
	return s, nil
}

// maxForeign bounds the addresses tried for one layer.
const maxForeign = 8

// foreign tries the addresses that a layer's descriptor gives. They come with
// the image, not from the registry: they get no credentials.
func (r *Repository) foreign(ctx context.Context, d ocispec.Descriptor, err error) (*stream, error) {
	for _, s := range d.URLs[:min(len(d.URLs), maxForeign)] {
		u, err2 := parseForeign(s)
		if err2 != nil {
			continue
		}
		s, err2 := newStream(ctx, d, []*origin{{c: r.own(), u: u, foreign: true}})
		if err2 == nil {
			return s, nil
		}
		err = err2
	}
	return nil, err
}
