package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	ociForeign     = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" // deprecated, and still there
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// TestKinds has what registries hold besides plain images: what is fetched of
// each, or why not.
func TestKinds(t *testing.T) {
	reg := testregistry.New()
	elsewhere := testregistry.New()
	far := httptest.NewTLSServer(elsewhere)
	defer far.Close()
	srv := httptest.NewTLSServer(reg)
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "https://")
	add := func(tag, mediaType string, m any) ocispec.Descriptor { return reg.AddManifest("x", tag, mediaType, m) }
	manifest := func(mediaType string, config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
		m := ocispec.Manifest{MediaType: mediaType, Config: config, Layers: layers}
		m.SchemaVersion = 2
		return m
	}
	config := reg.AddBlob("x", ocispec.MediaTypeImageConfig, []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`))
	old := config
	old.MediaType = dockerConfig
	layer := reg.AddBlob("x", ocispec.MediaTypeImageLayerGzip, []byte("the layer"))
	empty := reg.AddBlob("x", ocispec.MediaTypeEmptyJSON, []byte("{}"))

	add("none", ocispec.MediaTypeImageManifest, manifest(ocispec.MediaTypeImageManifest, config))
	artifact := manifest(ocispec.MediaTypeImageManifest, empty, empty)
	artifact.ArtifactType = "application/vnd.test"
	add("empty", ocispec.MediaTypeImageManifest, artifact)
	artifact.Layers = []ocispec.Descriptor{layer}
	add("artifact", ocispec.MediaTypeImageManifest, artifact)
	ofDocker := layer
	ofDocker.MediaType = dockerLayer
	d := add("docker", dockerManifest, manifest(dockerManifest, old, ofDocker))
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	x := ocispec.Index{MediaType: dockerList, Manifests: []ocispec.Descriptor{d}}
	x.SchemaVersion = 2
	add("list", dockerList, x)
	add("schema1", "application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1,"name":"x","fsLayers":[{"blobSum":"`+layer.Digest.String()+`"}],"history":[]}`))

	// A foreign layer: the registry may have it; if not it is at its address,
	// whose server may have something else, or nothing.
	foreign := elsewhere.AddBlob("y", ociForeign, []byte("not to be distributed"))
	foreign.URLs = []string{"ftp://no/such", far.URL + "/v2/y/blobs/" + foreign.Digest.String()}
	add("foreign", ocispec.MediaTypeImageManifest, manifest(ocispec.MediaTypeImageManifest, config, layer, foreign))
	here := reg.AddBlob("x", dockerForeign, []byte("a foreign one that is here"))
	here.URLs = []string{"https://0.0.0.0:1/never"}
	add("foreign-here", dockerManifest, manifest(dockerManifest, old, here))
	forged := foreign
	forged.Digest = layer.Digest[:len(layer.Digest)-2] + "00"
	elsewhere.PutBlob("y", forged.Digest, make([]byte, forged.Size))
	forged.URLs = []string{far.URL + "/v2/y/blobs/" + forged.Digest.String()}
	add("foreign-forged", ocispec.MediaTypeImageManifest, manifest(ocispec.MediaTypeImageManifest, config, forged))
	lost := forged
	lost.Digest = layer.Digest[:len(layer.Digest)-2] + "01"
	lost.URLs = nil
	add("foreign-lost", ocispec.MediaTypeImageManifest, manifest(ocispec.MediaTypeImageManifest, config, lost))
	sent := elsewhere.Inject(&testregistry.Fault{Match: func(req *http.Request) bool { return req.Header.Get("Authorization") != "" }, Serve: testregistry.Status(400)})
	reg.Basic("somebody", "hunter2")
	t.Setenv("LAYERPIPE_PASSWORD", "hunter2")

	for tag, tt := range map[string]struct {
		code   int
		say    string
		layers []string
	}{
		"none":           {0, "", nil},
		"empty":          {0, "", []string{"{}"}},
		"artifact":       {0, "", []string{"the layer"}},
		"docker":         {0, "", []string{"the layer"}},
		"list":           {0, "", []string{"the layer"}},
		"schema1":        {1, "schema 1", nil},
		"foreign":        {0, "", []string{"the layer", "not to be distributed"}},
		"foreign-here":   {0, "", []string{"a foreign one that is here"}},
		"foreign-forged": {5, "content has the digest", nil},
		"foreign-lost":   {4, "404", nil},
	} {
		dir := t.TempDir()
		for _, args := range [][]string{nil, {"-j1"}, {"-o", "oci:" + filepath.Join(dir, "layout")}} {
			var stdout, stderr bytes.Buffer
			env := &cli.Env{Name: "oci-fetch", Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
				Args: append([]string{"--insecure", "--authfile", os.DevNull, "--platform", "linux/amd64", "-u", "somebody", host + "/x:" + tag}, args...)}
			code := cli.Run(context.Background(), env, run)
			if code != tt.code || !strings.Contains(stderr.String(), tt.say) || strings.Count(stderr.String(), "\n") > 1 {
				t.Errorf("%s %q: exit code %d, %q", tag, args, code, stderr.String())
			}
			if code != 0 {
				continue
			}
			has := func(text string) bool {
				if len(args) < 2 {
					return strings.Contains(stdout.String(), text)
				}
				b, err := os.ReadFile(filepath.Join(dir, "layout", "blobs", "sha256", sum(text)))
				return err == nil && string(b) == text
			}
			for _, l := range tt.layers {
				if !has(l) {
					t.Errorf("%s %q: no layer %q", tag, args, l)
				}
			}
			if len(args) == 0 {
				layers(t, stdout.Bytes(), tag) // an archive that our own reader takes
			}
		}
	}
	if sent.Delivered() > 0 {
		t.Error("credentials were sent to where a foreign layer is")
	}
}

func sum(text string) string { return digest.FromString(text).Encoded() }
