package ociarchive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// addTo adds an image to a layout and returns the digests that were fetched.
func (ti *testImage) addTo(t testing.TB, dir string) (fetched []digest.Digest, err error) {
	t.Helper()
	l, err := CreateLayout(dir)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if _, err := l.Missing(t.Context(), ti.Layers); err != nil {
		return nil, err
	}
	open := func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		fetched = append(fetched, d.Digest)
		return ti.open(ctx, d)
	}
	if err := l.WriteImage(t.Context(), ti.Image, open, nil); err != nil {
		return fetched, err
	}
	return fetched, l.Commit()
}

// named is the image under another name.
func (ti *testImage) named(full, tag string) *testImage {
	img := *ti.Image
	img.FullName, img.Tag = full, tag
	return &testImage{&img, ti.blobs}
}

// tree is the files of a directory and what is in them.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		files[strings.TrimPrefix(filepath.ToSlash(name), filepath.ToSlash(dir)+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// tags are the digests that a layout's index.json names.
func tags(t testing.TB, dir string) map[string]digest.Digest {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var x ocispec.Index
	if err := json.Unmarshal(b, &x); err != nil {
		t.Fatal(err)
	}
	m := make(map[string]digest.Digest)
	for _, d := range x.Manifests {
		m[d.Annotations[ocispec.AnnotationRefName]] = d.Digest
	}
	if len(m) != len(x.Manifests) {
		t.Errorf("%d entries for %d names", len(x.Manifests), len(m))
	}
	return m
}

// wantNoStage fails if a layout, or what is beside it, has temporary files.
func wantNoStage(t testing.TB, dir string) {
	t.Helper()
	for name := range tree(t, filepath.Dir(dir)) {
		if strings.Contains(name, ".tmp") {
			t.Errorf("%s is left", name)
		}
	}
}

// TestLayoutAdd adds one image after another to a layout: what is there already
// is not fetched, and not lost.
func TestLayoutAdd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	one, two := newImage(layerA, layerB), newImage(layerB, layerC)
	add := func(ti *testImage, want ...digest.Digest) {
		t.Helper()
		fetched, err := ti.addTo(t, dir)
		if err != nil || !slices.Equal(fetched, want) {
			t.Errorf("fetched %v, want %v; %v", fetched, want, err)
		}
		wantNoStage(t, dir)
	}
	wantTags := func(want map[string]digest.Digest) {
		t.Helper()
		if got := tags(t, dir); !maps.Equal(got, want) {
			t.Errorf("the layout has %v, want %v", got, want)
		}
	}
	add(one, one.Layers[0].Digest, one.Layers[1].Digest)
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm()&0o055 == 0 && filepath.Separator == '/' {
		t.Errorf("%v, %v: not for everybody", st.Mode(), err)
	}
	before := tree(t, dir)
	add(one)
	if !maps.Equal(before, tree(t, dir)) {
		t.Error("the same image once more changes something")
	}
	add(two.named("example.com/test/app:v2", "v2"), two.Layers[1].Digest)
	wantTags(map[string]digest.Digest{"v1": one.Manifest.Digest, "v2": two.Manifest.Digest})
	// A tag moves; without one, an image is listed once.
	add(two)
	add(one.named("", ""))
	add(one.named("", ""))
	wantTags(map[string]digest.Digest{"": one.Manifest.Digest, "v1": two.Manifest.Digest, "v2": two.Manifest.Digest})
	// A file that is damaged is mended.
	bad := filepath.Join(dir, filepath.FromSlash(ociimage.BlobPath(one.Layers[0].Digest)))
	if err := os.WriteFile(bad, []byte(strings.Repeat("x", len(layerA))), 0o644); err != nil {
		t.Fatal(err)
	}
	add(one, one.Layers[0].Digest)
	for name, text := range tree(t, dir) {
		if _, hex, ok := strings.Cut(name, "blobs/sha256/"); ok && digest.FromString(text).Encoded() != hex {
			t.Errorf("%s is not what it is called", name)
		}
	}
	// A directory that is there and empty will do.
	dir = t.TempDir()
	add(one, one.Layers[0].Digest, one.Layers[1].Digest)
}

// TestLayoutRefused: whatever goes wrong, a directory that was there is as it
// was, and one that was not is not.
func TestLayoutRefused(t *testing.T) {
	one, two := newImage(layerA), newImage(layerA, layerB)
	broken := newImage(layerC)
	delete(broken.blobs, broken.Layers[0].Digest)
	top := t.TempDir()
	good := filepath.Join(top, "good")
	if _, err := one.addTo(t, good); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"other/file": "x", "old/oci-layout": `{"imageLayoutVersion":"0.1"}`, "bad/oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "bad/index.json": "{"} {
		name = filepath.Join(top, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, top)
	for _, tt := range []struct {
		dir string
		ti  *testImage
		err error
		say string
	}{
		{"new", broken, fault.ErrNotFound, "layer 0"},
		{"good", broken, fault.ErrNotFound, "layer 0"},
		{"good", two.named("example.org/other:v1", "v1"), fault.ErrUsage, "has another image as \"v1\", example.com/test/app:v1"},
		{"other", one, fault.ErrUsage, "is no image layout"},
		{"old", one, fault.ErrUnsupported, "version"},
		{"bad", one, fault.ErrCorrupt, "index.json"},
		{"none/new", one, fs.ErrNotExist, "none"},
		{"other/file", one, nil, "file"},
	} {
		_, err := tt.ti.addTo(t, filepath.Join(top, filepath.FromSlash(tt.dir)))
		if err == nil || tt.err != nil && !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: %v, want %v with %q", tt.dir, err, tt.err, tt.say)
		}
	}
	if !maps.Equal(before, tree(t, top)) {
		t.Error("something has changed")
	}
	if list, err := os.ReadDir(top); err != nil || len(list) != 4 {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := os.ReadDir(good); err != nil || len(list) != 3 {
		t.Errorf("%v, %v", list, err)
	}
	// Who insists gets the name.
	l, err := CreateLayout(good)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Replace = true
	two = two.named("example.org/other:v1", "v1")
	if err := errors.Join(l.WriteImage(t.Context(), two.Image, two.open, nil), l.Commit()); err != nil || tags(t, good)["v1"] != two.Manifest.Digest {
		t.Errorf("%v, %v", tags(t, good), err)
	}
}

// TestLayoutAtOnce: many add to one layout at once, which does not exist when
// they begin; each finds its image there.
func TestLayoutAtOnce(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("skipped: no locks for directories here")
	}
	dir := filepath.Join(t.TempDir(), "layout")
	want := make(map[string]digest.Digest)
	var begun, done sync.WaitGroup
	begun.Add(8)
	for i := range 8 {
		tag := fmt.Sprintf("v%d", i)
		ti := newImage(layerA, layerB, tag).named("", tag)
		want[tag] = ti.Manifest.Digest
		done.Go(func() {
			l, err := CreateLayout(dir)
			begun.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Close()
			begun.Wait()
			if err := errors.Join(l.WriteImage(t.Context(), ti.Image, ti.open, nil), l.Commit()); err != nil {
				t.Errorf("%s: %v", tag, err)
			}
		})
	}
	done.Wait()
	if got := tags(t, dir); !maps.Equal(got, want) {
		t.Errorf("the layout has %v, want %v", got, want)
	}
	wantNoStage(t, dir)
	if n := len(tree(t, dir)); n != 2+2+3*8 { // two layers are all images'
		t.Errorf("%d files", n)
	}
}
