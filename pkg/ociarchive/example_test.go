package ociarchive_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/ociarchive"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// An image is written as an archive and read back, as through a pipe. The blobs
// may come from anywhere, so long as they are verified on their way.
func Example() {
	blobs := make(map[digest.Digest][]byte)
	add := func(mediaType, text string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text))}
		blobs[d.Digest] = []byte(text)
		return d
	}
	layer := add(ocispec.MediaTypeImageLayer, "what a layer holds")
	config := add(ocispec.MediaTypeImageConfig, `{"os":"linux","architecture":"amd64"}`)
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		config.MediaType, config.Digest, config.Size, layer.MediaType, layer.Digest, layer.Size)
	img := &ociimage.Image{
		Tag:           "v1",
		Manifest:      add(ocispec.MediaTypeImageManifest, manifest),
		ManifestBytes: []byte(manifest),
		Config:        config,
		Layers:        []ocispec.Descriptor{layer},
	}
	open := func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		return io.NopCloser(ociimage.NewVerifier(bytes.NewReader(blobs[d.Digest]), d)), nil
	}
	var archive bytes.Buffer
	if err := ociarchive.WriteImage(context.Background(), &archive, img, open, nil); err != nil {
		log.Fatal(err)
	}

	r, err := ociarchive.NewReader(&archive, ociarchive.ReaderOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	for {
		d, blob, err := r.NextLayer()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		b, err := io.ReadAll(blob)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", d.MediaType, b)
	}
	// Output: application/vnd.oci.image.layer.v1.tar: what a layer holds
}
