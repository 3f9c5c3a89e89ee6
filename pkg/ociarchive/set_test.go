package ociarchive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// TestSet writes an image of two platforms that share a layer, and reads each
// of them back, from a pipe and from a file.
func TestSet(t *testing.T) {
	one, two := newImage(layerA, layerB), newImage(layerB, layerC)
	one.Manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	two.Manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{one.Manifest, two.Manifest}}
	x.SchemaVersion = 2
	xb, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	// The store of an archive is a Fetcher: put both into one.
	root := ocispec.Descriptor{MediaType: x.MediaType, Digest: digest.FromBytes(xb), Size: int64(len(xb))}
	s := newStore()
	for _, ti := range []*testImage{one, two} {
		s.blobs[ti.Manifest.Digest], s.blobs[ti.Config.Digest] = section(ti.ManifestBytes), section(ti.ConfigBytes)
	}
	set, err := ociimage.ResolveAll(t.Context(), s, root, xb)
	if err != nil {
		t.Fatal(err)
	}
	set.Tag = "both"
	open := func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		for _, ti := range []*testImage{one, two} {
			if r, err := ti.open(ctx, d); err == nil {
				return r, nil
			}
		}
		t.Errorf("%s was asked for", d.Digest)
		return nil, io.ErrUnexpectedEOF
	}
	var buf bytes.Buffer
	seen := make(map[int]int64)
	if err := WriteSet(t.Context(), &buf, set, open, func(i int, n int64) { seen[i] = n }); err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, e := range entries(t, buf.Bytes()) {
		if names[e.name] {
			t.Errorf("%s comes twice", e.name)
		}
		names[e.name] = true
	}
	// Two files, an index, two manifests, two configs, three layers.
	if len(names) != 10 || len(seen) != len(set.Blobs) || len(set.Blobs) != 5 {
		t.Errorf("%d entries, %d blobs: %v", len(names), len(set.Blobs), names)
	}
	for platform, want := range map[string][]string{"linux/amd64": {layerA, layerB}, "linux/s390x": {layerB, layerC}} {
		p, err := ociimage.ParsePlatform(platform)
		if err != nil {
			t.Fatal(err)
		}
		o := ReaderOptions{Platform: p, SpoolDir: t.TempDir()}
		wantLayers(t, platform+" from a pipe", pipe(buf.Bytes()), o, want...)
		wantLayers(t, platform+" from a file", file(t, buf.Bytes()), o, want...)
	}

	// From itself it is written the same again; as a directory it has the same
	// files.
	f, err := OpenFile(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.ResolveAll(t.Context(), "both")
	if err != nil {
		t.Fatal(err)
	}
	fromFile := func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		b, err := f.Blob(d)
		return io.NopCloser(b), err
	}
	var copied bytes.Buffer
	if err := WriteSet(t.Context(), &copied, again, fromFile, nil); err != nil || !bytes.Equal(copied.Bytes(), buf.Bytes()) {
		t.Errorf("written again: %d bytes of %d, %v", copied.Len(), buf.Len(), err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.WriteSet(t.Context(), again, fromFile, nil), l.Commit()); err != nil {
		t.Fatal(err)
	}
	for name := range names {
		if m, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(name))); err != nil || len(m) != 1 {
			t.Errorf("%s is not in the layout", name)
		}
	}
	// Where index.json itself lists the platforms, the index is made.
	for i := range x.Manifests {
		x.Manifests[i].Annotations = map[string]string{ocispec.AnnotationRefName: "both"}
	}
	flat, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	list := []entry{{name: "index.json", data: string(flat)}}
	for _, e := range entries(t, buf.Bytes()) {
		if strings.HasPrefix(e.name, "blobs/") && !strings.Contains(e.name, root.Digest.Encoded()) {
			list = append(list, e)
		}
	}
	b := tarOf(t, list...)
	if f, err = OpenFile(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if again, err = f.ResolveAll(t.Context(), ""); err != nil || len(again.Images) != 2 || again.Tag != "both" || ociimage.VerifyBytes(again.Manifests[0].Bytes, again.Root) != nil {
		t.Errorf("%+v, %v", again, err)
	}
}
