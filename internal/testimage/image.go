// Package testimage makes container images without a network: a three-layer
// "golang" image out of this machine's Go toolchain, a few system files, and
// an upper layer that deletes, replaces, hides and links; an image that lists
// one blob twice; and any image of a test's own layers. The same inputs give
// the same bytes.
package testimage

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Compression is how a layer's blob is packed.
type Compression int

const (
	Gzip       Compression = iota // one member, fast
	Plain                         // the tar as it is
	Zstd                          // one frame
	ZstdFrames                    // a frame each MiB
)

var mediaTypes = map[Compression]string{
	Gzip:       ocispec.MediaTypeImageLayerGzip,
	Plain:      ocispec.MediaTypeImageLayer,
	Zstd:       ocispec.MediaTypeImageLayerZstd,
	ZstdFrames: ocispec.MediaTypeImageLayerZstd,
}

// A Layer is what to put into one layer.
type Layer struct {
	Write       func(*Builder) // fills a tar
	Compression Compression
	// File, if set, is the blob as it is, of type MediaType; there is no tar
	// then.
	File, MediaType string
}

// Options chooses what Golang makes; the zero value is the whole image with
// gzip layers.
type Options struct {
	// Parts limits the toolchain layer to these paths below GOROOT, with
	// slashes; "VERSION" must be among them. nil: all of it.
	Parts []string
	// NoSystem leaves this machine's own files out of the base layer.
	NoSystem bool
	// Compression is the layers', from the lowest up; the last one given holds
	// for the rest. nil: gzip.
	Compression []Compression
}

// Small is the golang image in a few MB, for quick tests.
var Small = Options{Parts: []string{"VERSION", "src/net", "src/archive", "bin/gofmt"}, NoSystem: true}

// With is o with other compressions.
func (o Options) With(c ...Compression) Options {
	o.Compression = c
	return o
}

// An Image is an OCI image layout on disk.
type Image struct {
	Dir      string // the layout
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Layers   []ocispec.Descriptor // from the lowest up
	DiffIDs  []digest.Digest      // of the uncompressed tars
	kinds    []Compression
}

// Tag is the name the image has in its layout.
const Tag = "latest"

// Ref names the image to layerpipe, skopeo and umoci ("oci:DIR:latest").
func (im *Image) Ref() string { return "oci:" + im.Dir + ":" + Tag }

// Golang makes the three-layer image in dir, which must not have a layout yet.
func Golang(dir string, o Options) (*Image, error) {
	layers := []Layer{
		{Write: func(b *Builder) { Base(b, !o.NoSystem) }},
		{Write: func(b *Builder) { Toolchain(b, o.Parts) }},
		{Write: Upper},
	}
	for i := range layers {
		if len(o.Compression) > 0 {
			layers[i].Compression = o.Compression[min(i, len(o.Compression)-1)]
		}
	}
	return Build(dir, layers)
}

// Repeated is the layers of the image A, B, A: its lowest and highest layer are
// one blob, whose files B had replaced and deleted.
func Repeated(c Compression) []Layer {
	a := Layer{Compression: c, Write: func(b *Builder) {
		b.Dir("dir/", 0o755)
		b.File("dir/file", 0o644, "of A\n")
		b.File("dir/deleted-by-b", 0o644, pattern(100_000))
		b.Link("dir/link", "dir/deleted-by-b")
		b.Symlink("both", "dir")
		b.Whiteout("", "only-in-b")
	}}
	b := Layer{Compression: c, Write: func(b *Builder) {
		b.File("dir/file", 0o600, "of B\n")
		b.Whiteout("dir/", "deleted-by-b")
		b.File("dir/of-b", 0o644, pattern(50_000))
		b.File("only-in-b", 0o644, "A deletes this the second time\n")
		b.Dir("both/", 0o755)
		b.File("both/in-b", 0o644, "a directory for a while\n")
	}}
	return []Layer{a, b, a}
}

// New makes the golang image in a directory of the test's.
func New(t testing.TB, o Options) *Image {
	t.Helper()
	im, err := Golang(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// NewLayers makes an image of the given layers in a directory of the test's.
func NewLayers(t testing.TB, layers ...Layer) *Image {
	t.Helper()
	im, err := Build(t.TempDir(), layers)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// Build makes an image of any layers, from the lowest up.
func Build(dir string, layers []Layer) (*Image, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	im := &Image{Dir: dir}
	for i, l := range layers {
		desc, diffID, err := im.addLayer(l)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		im.Layers = append(im.Layers, desc)
		im.DiffIDs = append(im.DiffIDs, diffID)
		im.kinds = append(im.kinds, l.Compression)
	}
	config := ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/local/go/bin:/usr/bin:/bin"},
			Cmd: []string{"bash"},
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: im.DiffIDs},
	}
	for range layers {
		config.History = append(config.History, ocispec.History{Created: &epoch, CreatedBy: "layerpipe's tests"})
	}
	var err error
	if im.Config, err = im.addJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return nil, err
	}
	im.Manifest, err = im.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    im.Config,
		Layers:    im.Layers,
	})
	if err != nil {
		return nil, err
	}
	listed := im.Manifest
	listed.Annotations = map[string]string{ocispec.AnnotationRefName: Tag}
	listed.Platform = &config.Platform
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{listed},
	})
	if err != nil {
		return nil, err
	}
	return im, errors.Join(
		os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), index, 0o644),
		os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`), 0o644))
}

// addLayer streams a layer's tar through its compressor into the layout.
func (im *Image) addLayer(l Layer) (ocispec.Descriptor, digest.Digest, error) {
	none := ocispec.Descriptor{}
	if l.File != "" {
		return im.addFile(l)
	}
	f, err := os.CreateTemp(im.Dir, "layer-*")
	if err != nil {
		return none, "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	blob := &counter{w: f, h: sha256.New()}
	pack, err := compressor(blob, l.Compression)
	if err != nil {
		return none, "", err
	}
	plain := &counter{w: pack, h: sha256.New()}
	b := NewBuilder(plain)
	l.Write(b)
	if err := errors.Join(b.Close(), pack.Close(), f.Chmod(0o644)); err != nil {
		return none, "", err
	}
	desc := ocispec.Descriptor{MediaType: mediaTypes[l.Compression], Digest: blob.digest(), Size: blob.n}
	return desc, plain.digest(), os.Rename(f.Name(), im.path(desc.Digest))
}

// addFile copies a layer's blob into the layout.
func (im *Image) addFile(l Layer) (ocispec.Descriptor, digest.Digest, error) {
	data, err := os.ReadFile(l.File)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	desc := ocispec.Descriptor{MediaType: l.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, desc.Digest, os.WriteFile(im.path(desc.Digest), data, 0o644)
}

func (im *Image) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, os.WriteFile(im.path(desc.Digest), data, 0o644)
}

func (im *Image) path(d digest.Digest) string {
	return filepath.Join(im.Dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// Blob is the file of layer i as it is stored, compressed or not.
func (im *Image) Blob(i int) string { return im.path(im.Layers[i].Digest) }

// Tar writes layer i, decompressed, into a file.
func (im *Image) Tar(i int, name string) error {
	in, err := os.Open(im.Blob(i))
	if err != nil {
		return err
	}
	defer in.Close()
	var r io.Reader = in
	switch im.kinds[i] {
	case Gzip:
		if r, err = gzip.NewReader(in); err != nil {
			return err
		}
	case Zstd, ZstdFrames:
		d, err := zstd.NewReader(in)
		if err != nil {
			return err
		}
		defer d.Close()
		r = d
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return errors.Join(err, out.Close())
}

// counter hashes and counts what passes.
type counter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	return n, err
}

func (c *counter) digest() digest.Digest { return digest.NewDigest(digest.SHA256, c.h) }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func compressor(w io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return kgzip.NewWriterLevel(w, kgzip.DefaultCompression)
	case Plain:
		return nopCloser{w}, nil
	case Zstd:
		// One goroutine: the bytes must not depend on the number of cores.
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	case ZstdFrames:
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		return &frames{w: w, enc: enc}, err
	}
	return nil, fmt.Errorf("unknown compression %d", c)
}

// frames writes each MiB as a zstd frame of its own.
type frames struct {
	w   io.Writer
	enc *zstd.Encoder
	buf bytes.Buffer
}

const frameSize = 1 << 20

func (f *frames) Write(p []byte) (int, error) {
	f.buf.Write(p)
	for f.buf.Len() >= frameSize {
		if _, err := f.w.Write(f.enc.EncodeAll(f.buf.Next(frameSize), nil)); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (f *frames) Close() error {
	_, err := f.w.Write(f.enc.EncodeAll(f.buf.Bytes(), nil))
	return errors.Join(err, f.enc.Close())
}
