package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/nbd"
)

// TestExtents: holes are told, and only where zeros are.
func TestExtents(t *testing.T) {
	const unit = 1 << 20 // larger than any filesystem's block
	name := filepath.Join(t.TempDir(), "sparse")
	w, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, at := range []int64{1, 3} {
		if _, err := w.WriteAt(bytes.Repeat([]byte{1}, unit), at*unit); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Truncate(5 * unit); err != nil {
		t.Fatal(err)
	}
	f, err := openFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d := &Disk{ReaderAtContext: f}
	defer f.Close()
	got, err := d.Extents(t.Context(), 0, 5*unit, 100)
	if err != nil {
		t.Fatal(err)
	}
	var at int64
	data := make([]byte, unit)
	for _, e := range got {
		if e.Length <= 0 || e.Hole != e.Zero {
			t.Fatalf("%+v", got)
		}
		for ; e.Zero && e.Length > 0; e.Length -= unit {
			n, err := d.ReadAtContext(t.Context(), data[:min(unit, e.Length)], at)
			if err != nil || len(bytes.Trim(data[:n], "\x00")) != 0 {
				t.Errorf("a hole at %d has data in it, or %v", at, err)
			}
			at += int64(n)
		}
		if !e.Zero {
			at += e.Length
		}
	}
	if at != 5*unit {
		t.Errorf("%+v do not cover the file", got)
	}
	if runtime.GOOS != "linux" {
		return
	}
	if len(got) == 1 {
		t.Skip("this filesystem tells no holes")
	}
	hole, full := nbd.Extent{Length: unit, Hole: true, Zero: true}, nbd.Extent{Length: unit}
	if want := []nbd.Extent{hole, full, hole, full, hole}; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	got, err = d.Extents(t.Context(), unit+100, 3*unit, 1)
	if want := []nbd.Extent{{Length: unit - 100}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	// One who asks about the last hole gets no more than was asked for.
	got, err = d.Extents(t.Context(), 4*unit+100, 300, 8)
	if want := []nbd.Extent{{Length: 300, Hole: true, Zero: true}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

// TestReadReady: what was just written is in the page cache, where the system
// can tell.
func TestReadReady(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	want := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openFile(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := &Disk{ReaderAtContext: f}
	p := make([]byte, 5000)
	if d.ReadReady(p, 3) {
		if !bytes.Equal(p, want[3:5003]) {
			t.Error("wrong bytes")
		}
	} else if runtime.GOOS == "linux" {
		t.Log("nothing is ready: this filesystem does not tell")
	}
	if d.ReadReady(p, int64(len(want))-4999) || d.ReadReady(p, -1) {
		t.Error("ready outside of the file")
	}
}

func TestIsNative(t *testing.T) {
	for mediaType, want := range map[string]bool{
		"application/vnd.erofs":                         true,
		"application/vnd.erofs.layer.v1":                true,
		"application/vnd.oci.image.layer.v1.erofs":      true,
		"application/vnd.oci.image.layer.v1.tar+gzip":   false,
		"application/vnd.oci.image.layer.v1.erofs+zstd": false,
		"application/x.vnd.erofs":                       true,
		".erofs":                                        false,
		"":                                              false,
	} {
		if got := IsNative(mediaType); got != want {
			t.Errorf("%q: %v", mediaType, got)
		}
	}
}
