package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// testWriter starts an image in temporary files.
func testWriter(t *testing.T, o WriterOptions) (*Writer, *os.File) {
	t.Helper()
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	out := create("image")
	w, err := NewWriter(out, create("tails"), o)
	if err != nil {
		t.Fatal(err)
	}
	return w, out
}

func addEntry(t *testing.T, tree *rootfs.Tree, e *tarstream.Entry) *rootfs.Inode {
	t.Helper()
	e.Type = tarstream.TypeRegular
	i, err := tree.Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// onceData gives data as an entry does.
func onceData(data []byte) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(data) == 0 {
			return nil, io.EOF
		}
		p := data
		data = nil
		return p, nil
	}
}

// TestSparseBudget: headers of a few bytes that ask for gigabytes of chunk
// tables and zeros are refused, one by one and all together.
func TestSparseBudget(t *testing.T) {
	w, _ := testWriter(t, WriterOptions{})
	tree := rootfs.New(rootfs.Options{})
	one := func(k int, size int64) error {
		i := addEntry(t, tree, &tarstream.Entry{Name: fmt.Sprint(k), Size: size, Sparse: []tarstream.Extent{{Offset: size / 2, Length: 1}}})
		return w.Add(i, onceData([]byte("x")))
	}
	if err := one(0, 1<<62); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("a file of 4 EiB: %v", err)
	}
	for k := range 1000 {
		if err := one(k+1, 1<<50); errors.Is(err, fault.ErrUnsupported) {
			if k < 3 || w.data.off > maxSparseTotal {
				t.Errorf("refused the %d-th file, at offset %d", k+1, w.data.off)
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("1000 such files taken")
}

// TestSparseRuns: maps cost memory as long as the tree is there, so that all
// files' maps together are bounded.
func TestSparseRuns(t *testing.T) {
	w, _ := testWriter(t, WriterOptions{})
	runs := make([]tarstream.Extent, maxSparseRuns/2)
	for k := range 2 {
		if err := w.spend(0, runs); err != nil {
			t.Fatalf("file %d: %v", k+1, err)
		}
	}
	if err := w.spend(0, runs[:1]); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("one run more: %v", err)
	}
}

// TestSparseIndexTable: a file that could be mapped, with a table a hundred
// times its data's size, is stored instead.
func TestSparseIndexTable(t *testing.T) {
	w, _ := testWriter(t, WriterOptions{BlockSize: 512, Devices: 1})
	tree := rootfs.New(rootfs.Options{})
	mapped := func(name string, size int64, x tarstream.Extent) (bool, error) {
		i := addEntry(t, tree, &tarstream.Entry{Name: name, Size: size, Sparse: []tarstream.Extent{x}})
		i.Device, i.Offset = 1, 512
		return w.Map(i)
	}
	if ok, err := mapped("f", 4<<30, tarstream.Extent{Offset: 512, Length: 512}); ok || err != nil {
		t.Errorf("mapped with chunks of 512 bytes: %v", err)
	}
	if ok, err := mapped("g", 4<<30, tarstream.Extent{Offset: 1 << 30, Length: 1 << 30}); !ok || err != nil {
		t.Errorf("not mapped with chunks of 1 GiB: %v", err)
	}
}

// TestTailsBeyondReach: where the file of tails gets larger than an inode's
// field can tell, tails are stored in whole blocks.
func TestTailsBeyondReach(t *testing.T) {
	w, out := testWriter(t, WriterOptions{})
	tree := rootfs.New(rootfs.Options{})
	w.tails.off = maxTails - tailUnit
	want := map[string][]byte{}
	for k := range 4 {
		data := bytes.Repeat([]byte{'a' + byte(k)}, 100)
		name := fmt.Sprint(k)
		want[name] = data
		i := addEntry(t, tree, &tarstream.Entry{Name: name, Size: 100})
		if err := w.Add(i, onceData(data)); err != nil {
			t.Fatal(err)
		}
		if inline := i.Tail != noTail; inline != (k == 0) {
			t.Errorf("file %d: inline %t", k, inline)
		}
	}
	if _, err := w.Finish(tree, Final{}); err != nil {
		t.Fatal(err)
	}
	fsys, err := Open(out)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range want {
		if got, err := fs.ReadFile(fsys, name); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
