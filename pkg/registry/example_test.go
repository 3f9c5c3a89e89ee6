package registry_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/registry"
)

// serve starts a registry with an image of one layer, and gives its host.
func serve() (host string, stop func()) {
	reg := testregistry.New()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	m.Config = reg.AddBlob("team/app", ocispec.MediaTypeImageConfig, []byte(`{"os":"linux","architecture":"amd64"}`))
	m.Layers = []ocispec.Descriptor{reg.AddBlob("team/app", ocispec.MediaTypeImageLayer, []byte("what a layer holds"))}
	reg.AddManifest("team/app", "v1", m.MediaType, m)
	host, stop, err := reg.Listen()
	if err != nil {
		log.Fatal(err)
	}
	return host, stop
}

// An image is resolved, and its layers are streamed. io.EOF comes only once a
// layer's size and digest have proved right.
func ExampleOpen() {
	host, stop := serve()
	defer stop()
	ctx := context.Background()
	r, err := registry.Open(host+"/team/app:v1", registry.Options{PlainHTTP: true, AuthFile: os.DevNull})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	img, err := r.Resolve(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	for i, l := range img.Layers {
		blob, err := r.Blob(ctx, l)
		if err != nil {
			log.Fatal(err)
		}
		b, err := io.ReadAll(blob)
		blob.Close()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("layer %d: %s\n", i, b)
	}
	// Output: layer 0: what a layer holds
}

// A blob is read at an offset, with one request for each read.
func ExampleRepository_BlobAt() {
	host, stop := serve()
	defer stop()
	r, err := registry.Open(host+"/team/app:v1", registry.Options{PlainHTTP: true, AuthFile: os.DevNull})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	// The digest is enough: the registry tells the size.
	blob, err := r.BlobAt(context.Background(), ocispec.Descriptor{Digest: digest.FromString("what a layer holds")})
	if err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 5)
	if _, err := blob.ReadAtContext(context.Background(), p, 7); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s of %d bytes\n", p, blob.Size())
	// Output: layer of 18 bytes
}

// A reference is read as docker reads it.
func ExampleParseReference() {
	for _, s := range []string{"golang", "user/app:v1", "localhost:5000/app"} {
		ref, err := registry.ParseReference(s)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ref)
	}
	// Output:
	// docker.io/library/golang:latest
	// docker.io/user/app:v1
	// localhost:5000/app:latest
}
