package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// Bounds on what a registry can make us ask for, and keep.
const (
	maxReferrerPages = 16
	maxReferrerBytes = 2 * ociimage.MaxManifestSize // of all pages
)

// Referrers lists what is attached to a manifest: indexes, signatures. With an
// artifact type, only what is of it. Registries without the API for it (OCI
// distribution-spec 1.1) keep the list under a tag made of the digest.
func (r *Repository) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if err := ociimage.CheckDigest(subject); err != nil {
		return nil, err
	}
	// What is attached changes, as tags do; and many mirrors hold images alone, so
	// that one knows of nothing does not mean that there is nothing.
	var list []ocispec.Descriptor
	err := r.each(ctx, byTag, func(c *client) (err error) {
		list, err = c.referrers(ctx, subject, artifactType)
		if err == nil && len(list) == 0 && c.place.mirror {
			err = fmt.Errorf("referrers of %s: %w", subject, fault.ErrNotFound)
		}
		return err
	})
	if err != nil {
		return nil, r.named(err)
	}
	// A registry need not have filtered.
	return slices.DeleteFunc(list, func(d ocispec.Descriptor) bool {
		return artifactType != "" && d.ArtifactType != artifactType
	}), nil
}

func (c *client) referrers(ctx context.Context, subject digest.Digest, artifactType string) (list []ocispec.Descriptor, err error) {
	u := c.url("referrers", subject.String())
	if artifactType != "" {
		q := u.Query()
		q.Set("artifactType", artifactType)
		u.RawQuery = q.Encode()
	}
	left := maxReferrerBytes
	for page := 0; u != nil; page++ {
		if page == maxReferrerPages {
			return nil, fmt.Errorf("referrers of %s: over %d pages: %w", subject, maxReferrerPages, fault.ErrCorrupt)
		}
		x, n, next, err := c.referrersPage(ctx, u, "referrers of "+subject.String())
		if errors.Is(err, fault.ErrNotFound) && page == 0 {
			x, err = c.referrersTag(ctx, subject)
		}
		if err != nil {
			return nil, err
		}
		if left -= n; left < 0 {
			return nil, fmt.Errorf("referrers of %s: over %d bytes: %w", subject, maxReferrerBytes, fault.ErrCorrupt)
		}
		list = append(list, x...)
		u = next
	}
	return list, nil
}

// referrersPage gets one answer, of size bytes, and where the next one is.
func (c *client) referrersPage(ctx context.Context, u *url.URL, what string) (list []ocispec.Descriptor, size int, next *url.URL, err error) {
	retry := retrier{c: c}
	for {
		list, size, next, err = c.referrersOnce(ctx, u, what)
		if err == nil {
			return list, size, next, nil
		}
		if err := retry.again(ctx, err); err != nil {
			return nil, 0, nil, err
		}
	}
}

func (c *client) referrersOnce(ctx context.Context, u *url.URL, what string) (list []ocispec.Descriptor, size int, next *url.URL, err error) {
	resp, err := c.get(ctx, http.MethodGet, u, http.Header{"Accept": {ocispec.MediaTypeImageIndex}}, what)
	if err != nil {
		return nil, 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, ociimage.MaxManifestSize+1))
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%s: %w", what, err)
	}
	doc, err := ociimage.Parse(resp.Header.Get("Content-Type"), b)
	if err != nil || doc.Index == nil {
		return nil, 0, nil, fmt.Errorf("%s: not an index: %w", what, fault.ErrCorrupt)
	}
	next, err = nextPage(u, resp.Header.Values("Link"))
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%s: %w", what, err)
	}
	return doc.Index.Manifests, len(b), next, nil
}

// nextPage is where the next page of an answer is, nil if this is the last one.
// The address must be the registry's own; but one behind a proxy may not know
// that it is spoken to by HTTPS. A list must not end where it goes on.
func nextPage(u *url.URL, links []string) (*url.URL, error) {
	target, ok := parseNext(links)
	if !ok {
		return nil, nil
	}
	next, err := u.Parse(target)
	if err == nil && strings.EqualFold(next.Host, u.Host) {
		next.Scheme = u.Scheme
	}
	if err != nil || !sameOrigin(u, next) {
		return nil, fmt.Errorf("the next page is at a bad address: %w", fault.ErrCorrupt)
	}
	next.User = nil
	return next, nil
}

// referrersTag is the list under its tag; there is none if nothing is attached.
func (c *client) referrersTag(ctx context.Context, subject digest.Digest) ([]ocispec.Descriptor, error) {
	// The distribution-spec cuts both parts of the tag.
	algorithm, hex := subject.Algorithm().String(), subject.Encoded()
	tag := algorithm[:min(len(algorithm), 32)] + "-" + hex[:min(len(hex), 64)]
	d, b, err := c.manifest(ctx, tag, ocispec.Descriptor{})
	if errors.Is(err, fault.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := ociimage.Parse(d.MediaType, b)
	if err != nil || doc.Index == nil {
		return nil, fmt.Errorf("tag %s: not an index: %w", tag, fault.ErrCorrupt)
	}
	return doc.Index.Manifests, nil
}
