package ociimage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestResolveAll(t *testing.T) {
	m := make(memory)
	shared := m.put(ocispec.MediaTypeImageLayer, "shared")
	image := func(platform string) ocispec.Descriptor {
		p := mustPlatform(platform)
		man := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
			Config: m.put(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: *p}),
			Layers: []ocispec.Descriptor{shared, m.put(ocispec.MediaTypeImageLayer, platform), shared}}
		man.SchemaVersion = 2
		d := m.put(ocispec.MediaTypeImageManifest, man)
		d.Platform = p
		return d
	}
	a, b, attestation := image("linux/amd64"), image("linux/arm64/v8"), image("unknown/unknown")
	inner := m.index(b, attestation)
	root := m.index(a, inner, a)
	set, err := ResolveAll(context.Background(), m, root, m[root.Digest])
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, r := range set.Manifests {
		order = append(order, r.Descriptor.Digest.String())
		if VerifyBytes(r.Bytes, r.Descriptor) != nil {
			t.Errorf("%s has other bytes", r.Descriptor.Digest)
		}
	}
	if want := []string{root.Digest.String(), a.Digest.String(), inner.Digest.String(), b.Digest.String(), attestation.Digest.String()}; strings.Join(order, " ") != strings.Join(want, " ") {
		t.Errorf("manifests %v, want %v", order, want)
	}
	// Three configs, then the shared layer once and three of their own.
	if set.Root.Digest != root.Digest || len(set.Images) != 3 || len(set.Blobs) != 7 || set.Blobs[3].Digest != shared.Digest {
		t.Errorf("%+v", set)
	}
	// A single manifest is a set as well.
	if set, err := ResolveAll(context.Background(), m, b, m[b.Digest]); err != nil || len(set.Images) != 1 || len(set.Blobs) != 3 {
		t.Errorf("%+v, %v", set, err)
	}
}

func TestResolveAllBounds(t *testing.T) {
	m := make(memory)
	a := m.image("linux/amd64", "a")
	fails := func(name string, root ocispec.Descriptor, want error) {
		t.Helper()
		if _, err := ResolveAll(context.Background(), m, root, m[root.Digest]); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	missing := a
	missing.Digest = "sha256:" + missing.Digest[7+2:] + "00"
	fails("a manifest that is not there", m.index(a, missing), fault.ErrNotFound)
	other := m.put("application/vnd.something", "x")
	fails("something else among the images", m.index(a, other), fault.ErrCorrupt)
	deep := m.index(a)
	for range maxDepth {
		deep = m.index(deep)
	}
	fails("indexes within indexes", deep, fault.ErrCorrupt)
	huge := a
	huge.Digest, huge.Size = "sha256:"+huge.Digest[7+2:]+"01", MaxManifestSize+1
	fails("a huge manifest", m.index(huge), fault.ErrCorrupt)
	var many []ocispec.Descriptor
	for i := range maxSetManifests {
		many = append(many, m.image("linux/amd64", fmt.Sprint(i)))
	}
	fails("many manifests", m.index(many...), fault.ErrCorrupt)

	// One blob with two sizes.
	l := m.put(ocispec.MediaTypeImageLayer, "l")
	sized := func(n int64) ocispec.Descriptor {
		d := l
		d.Size = n
		man := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: m.put(ocispec.MediaTypeImageConfig, n), Layers: []ocispec.Descriptor{d}}
		return m.put(ocispec.MediaTypeImageManifest, man)
	}
	fails("a blob of two sizes", m.index(sized(3), sized(4)), fault.ErrCorrupt)
}
