package ociarchive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// testImage is an image of the given layers, and the means to write it.
type testImage struct {
	*ociimage.Image
	blobs map[digest.Digest][]byte
}

func newImage(layers ...string) *testImage {
	ti := &testImage{&ociimage.Image{FullName: "example.com/test/app:v1", Tag: "v1"}, make(map[digest.Digest][]byte)}
	add := func(mt string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mt, Digest: digest.FromBytes(b), Size: int64(len(b))}
		ti.blobs[d.Digest] = b
		return d
	}
	var diffIDs []digest.Digest
	for _, l := range layers {
		ti.Layers = append(ti.Layers, add(ocispec.MediaTypeImageLayer, []byte(l)))
		diffIDs = append(diffIDs, digest.FromString(l))
	}
	ti.ConfigBytes, _ = json.Marshal(ocispec.Image{
		Platform: ociimage.DefaultPlatform(),
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	ti.Config = add(ocispec.MediaTypeImageConfig, ti.ConfigBytes)
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ti.Config, Layers: ti.Layers}
	m.SchemaVersion = 2
	ti.ManifestBytes, _ = json.Marshal(m)
	ti.Manifest = add(ocispec.MediaTypeImageManifest, ti.ManifestBytes)
	return ti
}

func (ti *testImage) open(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b, ok := ti.blobs[d.Digest]
	if !ok {
		return nil, fault.ErrNotFound
	}
	return io.NopCloser(ociimage.NewVerifier(bytes.NewReader(b), d)), nil
}

func (ti *testImage) archive(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := WriteImage(t.Context(), &buf, ti.Image, ti.open, nil); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// entry is a file or a link of a tar that a test makes.
type entry struct{ name, data, link string }

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Size: int64(len(e.data)), Mode: 0o644, Linkname: e.link, Typeflag: tar.TypeReg}
		if e.link != "" {
			h.Typeflag = tar.TypeSymlink
		}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(tw, e.data)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// entries takes an archive apart.
func entries(t testing.TB, archive []byte) (list []entry) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, entry{name: h.Name, data: string(b)})
	}
}

// readLayers reads an archive as tar2erofs does, and verifies the layers.
func readLayers(r io.Reader, o ReaderOptions) (layers []string, err error) {
	a, err := NewReader(r, o)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	for {
		d, lr, err := a.NextLayer()
		if err == io.EOF {
			return layers, nil
		}
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(ociimage.NewVerifier(lr, d))
		if err != nil {
			return nil, err
		}
		layers = append(layers, string(b))
	}
}

// pipe hides that a reader could seek.
func pipe(b []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(b)} }

func file(t testing.TB, b []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func wantLayers(t *testing.T, how string, r io.Reader, o ReaderOptions, want ...string) {
	t.Helper()
	got, err := readLayers(r, o)
	if err != nil {
		t.Errorf("%s: %v", how, err)
		return
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d layers, want %d", how, len(got), len(want))
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s: layer %d has %d bytes, want %d", how, i, len(got[i]), len(want[i]))
		}
	}
}

var (
	layerA = strings.Repeat("A", 700)
	layerB = strings.Repeat("B", 1<<17+1) // spooled to a file where it must wait
	layerC = "C"
)

func TestWriteOrder(t *testing.T) {
	ti := newImage(layerA, layerB, layerA, layerC)
	b := ti.archive(t)
	if !bytes.Equal(b, ti.archive(t)) {
		t.Error("two archives of one image differ")
	}
	want := []string{
		"oci-layout", "index.json", ociimage.BlobPath(ti.Manifest.Digest), ociimage.BlobPath(ti.Config.Digest),
		ociimage.BlobPath(ti.Layers[0].Digest), ociimage.BlobPath(ti.Layers[1].Digest), ociimage.BlobPath(ti.Layers[3].Digest),
	}
	var got []string
	for _, e := range entries(t, b) {
		got = append(got, e.name)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("entries %q, want %q", got, want)
	}
	wantLayers(t, "pipe", pipe(b), ReaderOptions{}, layerA, layerB, layerA, layerC)
	wantLayers(t, "file", file(t, b), ReaderOptions{}, layerA, layerB, layerA, layerC)
}

// TestWriteDocker: an archive for docker is one with its OCI files and without.
func TestWriteDocker(t *testing.T) {
	ti := newImage(layerA, layerB, layerA)
	ti.FullName = "reg.io:5000/team/app:v2"
	var buf bytes.Buffer
	if err := WriteDocker(t.Context(), &buf, ti.Image, ti.open, nil); err != nil {
		t.Fatal(err)
	}
	wantLayers(t, "both", pipe(buf.Bytes()), ReaderOptions{}, layerA, layerB, layerA)
	var list []entry
	for _, e := range entries(t, buf.Bytes()) {
		if e.name != "oci-layout" && e.name != "index.json" {
			list = append(list, e)
		}
	}
	b := tarOf(t, list...)
	wantLayers(t, "pipe", pipe(b), ReaderOptions{}, layerA, layerB, layerA)
	wantLayers(t, "file", file(t, b), ReaderOptions{Tag: "v2"}, layerA, layerB, layerA)
	ti.Config.MediaType = ocispec.MediaTypeEmptyJSON
	if err := WriteDocker(t.Context(), io.Discard, ti.Image, ti.open, nil); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("an artifact: %v", err)
	}
}

// TestWriteConfigLater: a config that was not fetched before comes out of the
// blobs, to the same archive.
func TestWriteConfigLater(t *testing.T) {
	ti := newImage(layerA, layerB)
	want := ti.archive(t)
	ti.ConfigBytes = nil
	if got := ti.archive(t); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want the same %d", len(got), len(want))
	}
	delete(ti.blobs, ti.Config.Digest)
	if err := WriteImage(t.Context(), io.Discard, ti.Image, ti.open, nil); !errors.Is(err, fault.ErrNotFound) || !strings.HasPrefix(err.Error(), "config: ") {
		t.Error(err)
	}
}

func TestWriteProgress(t *testing.T) {
	ti := newImage(layerA, layerB)
	last := map[int]int64{}
	if err := WriteImage(t.Context(), io.Discard, ti.Image, ti.open, func(i int, n int64) { last[i] = n }); err != nil {
		t.Fatal(err)
	}
	if last[0] != int64(len(layerA)) || last[1] != int64(len(layerB)) {
		t.Errorf("progress ended at %v", last)
	}
}

// TestWriteError: what is wrong with a layer leaves an archive that no reader
// takes for whole.
func TestWriteError(t *testing.T) {
	for name, spoil := range map[string]func(*testImage){
		"digest":  func(ti *testImage) { ti.blobs[ti.Layers[1].Digest] = []byte(strings.Repeat("X", len(layerB))) },
		"short":   func(ti *testImage) { ti.blobs[ti.Layers[1].Digest] = []byte(layerB[1:]) },
		"long":    func(ti *testImage) { ti.blobs[ti.Layers[1].Digest] = []byte(layerB + "x") },
		"missing": func(ti *testImage) { delete(ti.blobs, ti.Layers[1].Digest) },
	} {
		ti := newImage(layerA, layerB)
		spoil(ti)
		var buf bytes.Buffer
		err := WriteImage(t.Context(), &buf, ti.Image, ti.open, nil)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := readLayers(pipe(buf.Bytes()), ReaderOptions{}); err == nil {
			t.Errorf("%s: what was written reads as whole", name)
		}
	}
}

// TestAnyOrder rotates and reverses an archive's entries.
func TestAnyOrder(t *testing.T) {
	es := entries(t, newImage(layerA, layerB, layerC, layerB).archive(t))
	reversed := make([]entry, len(es))
	for i, e := range es {
		reversed[len(es)-1-i] = e
	}
	for _, list := range [][]entry{es, reversed} {
		for i := range list {
			b := tarOf(t, append(append([]entry{}, list[i:]...), list[:i]...)...)
			wantLayers(t, fmt.Sprintf("pipe, rotated by %d", i), pipe(b), ReaderOptions{}, layerA, layerB, layerC, layerB)
			wantLayers(t, fmt.Sprintf("file, rotated by %d", i), file(t, b), ReaderOptions{}, layerA, layerB, layerC, layerB)
		}
	}
}

// TestDotNames reads what `tar -c .` makes of a layout directory.
func TestDotNames(t *testing.T) {
	list := []entry{{name: "./"}, {name: "./blobs/"}}
	for _, e := range entries(t, newImage(layerA, layerB).archive(t)) {
		e.name = "./" + e.name
		list = append(list, e)
	}
	b := tarOf(t, list...)
	wantLayers(t, "pipe", pipe(b), ReaderOptions{}, layerA, layerB)
	if !IsArchive(b[:4096]) {
		t.Error("not taken for an image")
	}
}

// TestCut cuts an archive at every byte (of one with small layers) in both
// orders, on a pipe and in a file: none reads as complete.
func TestCut(t *testing.T) {
	b := newImage("AAA", "BBB", "AAA").archive(t)
	es := entries(t, b)
	last := tarOf(t, append(append([]entry{}, es[2:]...), es[:2]...)...)
	for _, b := range [][]byte{b, last} {
		f := file(t, b)
		for n := len(b) - 1; n >= 0; n-- {
			if err := os.Truncate(f.Name(), int64(n)); err != nil {
				t.Fatal(err)
			}
			f.Seek(0, io.SeekStart)
			for how, r := range map[string]io.Reader{"pipe": pipe(b[:n]), "file": f} {
				_, err := readLayers(r, ReaderOptions{})
				if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, fault.ErrIntegrity) {
					t.Fatalf("%s: cut at %d of %d: %v", how, n, len(b), err)
				}
			}
		}
	}
}

func TestMissing(t *testing.T) {
	es := entries(t, newImage(layerA, layerB).archive(t))
	for i, e := range es[2:] {
		list := append(append([]entry{}, es[:i+2]...), es[i+3:]...)
		for how, r := range map[string]io.Reader{"pipe": pipe(tarOf(t, list...)), "file": file(t, tarOf(t, list...))} {
			_, err := readLayers(r, ReaderOptions{})
			if !errors.Is(err, fault.ErrIntegrity) || !strings.Contains(err.Error(), "not in the archive") {
				t.Errorf("%s without %s: %v", how, e.name, err)
			}
		}
	}
	for how, list := range map[string][]entry{"nothing": nil, "a layer": {{name: "etc/passwd", data: "x"}}} {
		if _, err := readLayers(pipe(tarOf(t, list...)), ReaderOptions{}); !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("%s: %v", how, err)
		}
	}
}

// TestFlip changes a byte of each file: manifest and config fail in NewReader,
// layers when they are verified.
func TestFlip(t *testing.T) {
	es := entries(t, newImage(layerA, layerB).archive(t))
	for i := 2; i < len(es); i++ {
		list := append([]entry{}, es...)
		list[i].data = "\x00" + list[i].data[1:]
		for how, r := range map[string]io.Reader{"pipe": pipe(tarOf(t, list...)), "file": file(t, tarOf(t, list...))} {
			a, err := NewReader(r, ReaderOptions{})
			if i < 4 {
				if !errors.Is(err, fault.ErrIntegrity) {
					t.Errorf("%s, %s: %v", how, es[i].name, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, %s: %v", how, es[i].name, err)
				continue
			}
			a.Close()
		}
		if _, err := readLayers(pipe(tarOf(t, list...)), ReaderOptions{}); !errors.Is(err, fault.ErrIntegrity) {
			t.Errorf("%s: %v", es[i].name, err)
		}
	}
}

// TestSize: an entry of another size than the manifest says is refused before
// any of it is given out.
func TestSize(t *testing.T) {
	es := entries(t, newImage(layerA, layerB).archive(t))
	es[4].data += "x"
	for how, r := range map[string]io.Reader{"pipe": pipe(tarOf(t, es...)), "file": file(t, tarOf(t, es...))} {
		a, err := NewReader(r, ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.NextLayer(); !errors.Is(err, fault.ErrIntegrity) {
			t.Errorf("%s: %v", how, err)
		}
		a.Close()
	}
}

// TestDockerSave reads the layouts that docker save and its likes write
// without an OCI index.
func TestDockerSave(t *testing.T) {
	ti := newImage(layerA, layerB, layerA)
	gz := "\x1f\x8b\x08\x00 not really gzip"
	hexOf := func(s string) string { return digest.FromString(s).Encoded() }
	config := string(ti.ConfigBytes)
	gzConfig := strings.Replace(config, digest.FromString(layerB).String(), digest.FromString("unpacked").String(), 1)
	manifest := func(config string, layers ...string) string {
		b, _ := json.Marshal([]dockerImage{{Config: config, RepoTags: []string{"example.com/app:v1"}, Layers: layers}})
		return string(b)
	}
	for name, tt := range map[string]struct {
		entries []entry
		want    []string
		err     error
	}{
		"v1.2, links": {entries: []entry{
			{name: "1111/"}, {name: "1111/layer.tar", data: layerA}, {name: "2222/layer.tar", data: layerB},
			{name: "3333/layer.tar", link: "../1111/layer.tar"},
			{name: hexOf(config) + ".json", data: config},
			{name: "manifest.json", data: manifest(hexOf(config)+".json", "1111/layer.tar", "2222/layer.tar", "3333/layer.tar")},
		}, want: []string{layerA, layerB, layerA}},
		"manifest first": {entries: []entry{
			{name: "manifest.json", data: manifest("config.json", "a.tar", "b.tar", "a.tar")},
			{name: "config.json", data: config}, {name: "a.tar", data: layerA}, {name: "b.tar", data: layerB},
		}, want: []string{layerA, layerB, layerA}},
		"named after compressed digests": {entries: []entry{
			{name: hexOf(gz) + ".tar.gz", data: gz}, {name: "a.tar", data: layerA}, {name: "sha256:" + hexOf(gzConfig), data: gzConfig},
			{name: "manifest.json", data: manifest("sha256:"+hexOf(gzConfig), "a.tar", hexOf(gz)+".tar.gz", "a.tar")},
		}, want: []string{layerA, gz, layerA}},
		"compressed, no digest": {entries: []entry{
			{name: "b.tar.gz", data: gz}, {name: "a.tar", data: layerA}, {name: "c", data: gzConfig},
			{name: "manifest.json", data: manifest("c", "a.tar", "b.tar.gz", "a.tar")},
		}, err: fault.ErrUnsupported},
		"compressed with xz, no digest": {entries: []entry{
			{name: "b.tar", data: "\xfd7zXZ\x00 not really xz"}, {name: "a.tar", data: layerA}, {name: "c", data: gzConfig},
			{name: "manifest.json", data: manifest("c", "a.tar", "b.tar", "a.tar")},
		}, err: fault.ErrUnsupported},
		"config not of its name": {entries: []entry{
			{name: "a.tar", data: layerA}, {name: "b.tar", data: layerB}, {name: hexOf("x") + ".json", data: config},
			{name: "manifest.json", data: manifest(hexOf("x")+".json", "a.tar", "b.tar", "a.tar")},
		}, err: fault.ErrIntegrity},
		"layer not of its diff_id": {entries: []entry{
			{name: "a.tar", data: layerA}, {name: "b.tar", data: layerC}, {name: "c", data: config},
			{name: "manifest.json", data: manifest("c", "a.tar", "b.tar", "a.tar")},
		}, err: fault.ErrIntegrity},
		"layer missing": {entries: []entry{
			{name: "a.tar", data: layerA}, {name: "c", data: config},
			{name: "manifest.json", data: manifest("c", "a.tar", "b.tar", "a.tar")},
		}, err: fault.ErrIntegrity},
		"links in a circle": {entries: []entry{
			{name: "a.tar", link: "b.tar"}, {name: "b.tar", link: "a.tar"}, {name: "c", data: config},
			{name: "manifest.json", data: manifest("c", "a.tar", "b.tar", "a.tar")},
		}, err: fault.ErrIntegrity},
		"too few layers": {entries: []entry{
			{name: "a.tar", data: layerA}, {name: "c", data: config}, {name: "manifest.json", data: manifest("c", "a.tar")},
		}, err: fault.ErrCorrupt},
		"not JSON":   {entries: []entry{{name: "manifest.json", data: "[{"}}, err: fault.ErrCorrupt},
		"two images": {entries: []entry{{name: "manifest.json", data: `[{"RepoTags":["a:1"]},{"RepoTags":["b:1"]}]`}}, err: fault.ErrUsage},
	} {
		b := tarOf(t, tt.entries...)
		for how, r := range map[string]io.Reader{"pipe": pipe(b), "file": file(t, b)} {
			if tt.err == nil {
				wantLayers(t, name+", "+how, r, ReaderOptions{}, tt.want...)
				continue
			}
			if _, err := readLayers(r, ReaderOptions{}); !errors.Is(err, tt.err) {
				t.Errorf("%s, %s: %v, want %v", name, how, err, tt.err)
			}
		}
	}
}

// TestSeveral: an index.json of several images wants a tag.
func TestSeveral(t *testing.T) {
	one, two := newImage(layerA), newImage(layerB)
	var x ocispec.Index
	x.SchemaVersion = 2
	var list []entry
	for tag, ti := range map[string]*testImage{"one": one, "two": two} {
		d := ti.Manifest
		d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		x.Manifests = append(x.Manifests, d)
		list = append(list, entries(t, ti.archive(t))[2:]...)
	}
	xb, _ := json.Marshal(x)
	b := tarOf(t, append(list, entry{name: "index.json", data: string(xb)})...)
	wantLayers(t, "one", pipe(b), ReaderOptions{Tag: "one"}, layerA)
	wantLayers(t, "two", file(t, b), ReaderOptions{Tag: "two"}, layerB)
	if _, err := readLayers(pipe(b), ReaderOptions{}); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("no tag: %v", err)
	}
	if _, err := readLayers(pipe(b), ReaderOptions{Tag: "three"}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("wrong tag: %v", err)
	}
}

// TestSpoolLeavesNothing: the spool has no name while it is in use.
func TestSpoolLeavesNothing(t *testing.T) {
	es := entries(t, newImage(layerA, layerB).archive(t))
	dir := t.TempDir()
	a, err := NewReader(pipe(tarOf(t, append(es[2:], es[:2]...)...)), ReaderOptions{SpoolDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if a.spool.f == nil {
		t.Error("nothing was spooled to a file: the test tests nothing")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v in the spool directory, %v", left, err)
	}
	a.Close()
}

func TestIsArchive(t *testing.T) {
	hex := strings.Repeat("ab", 32)
	for name, want := range map[string]bool{
		"oci-layout": true, "./oci-layout": true, "index.json": true, "manifest.json": true,
		"blobs/sha256/" + hex: true, hex + "/": true, hex + ".json": true, hex + "/layer.tar": true, hex + ".tar": true,
		"etc/": false, "./etc/passwd": false, "bin": false, "blobs": false, "blobs/x": false, "index.html": false,
	} {
		if got := IsArchive(tarOf(t, entry{name: name})[:512]); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for _, junk := range []string{"", "x", strings.Repeat("x", 1024), "\x1f\x8b\x08"} {
		if IsArchive([]byte(junk)) {
			t.Errorf("%.10q is taken for an image", junk)
		}
	}
}

// FuzzReader: no input makes the reader panic or hang, and what it gives out
// whole can be verified or is refused.
func FuzzReader(f *testing.F) {
	b := newImage("A", "B", "A").archive(f)
	f.Add(b)
	es := entries(f, b)
	f.Add(tarOf(f, append(es[2:], es[:2]...)...))
	f.Add(tarOf(f, entry{name: "manifest.json", data: `[{"Config":"c","Layers":["a"]}]`}, entry{name: "a", link: "a"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		streamed, err1 := readLayers(pipe(b), ReaderOptions{})
		a, err2 := OpenFile(bytes.NewReader(b), int64(len(b)))
		if err2 == nil {
			_, err2 = a.Resolve(t.Context(), "", nil)
		}
		if err1 == nil && err2 != nil {
			t.Errorf("%d layers from a pipe, but as a file: %v", len(streamed), err2)
		}
	})
}
