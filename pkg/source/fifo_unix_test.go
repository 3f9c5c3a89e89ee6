//go:build unix

package source

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociarchive"
)

// TestFIFO: nobody waits for who may write into a file of a layout.
func TestFIFO(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	fifo := func(name string) {
		t.Helper()
		if err := errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	fifo(im.Blob(0))
	s, err := Open(im.Ref(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Blob(t.Context(), img.Layers[0]); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("a blob: %v", err)
	}
	l, err := ociarchive.CreateLayout(im.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if missing, err := l.Missing(t.Context(), img.Layers[:1]); err != nil || len(missing) != 1 {
		t.Errorf("the layout lacks %d blobs, %v", len(missing), err)
	}
	for _, name := range []string{ocispec.ImageIndexFile, ocispec.ImageLayoutFile} {
		fifo(filepath.Join(im.Dir, name))
		s, err := Open(im.Ref(), Options{})
		if err == nil {
			_, err = s.Resolve(t.Context(), nil)
		}
		if !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open("oci-archive:"+im.Blob(0), Options{}); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("an archive: %v", err)
	}
}
