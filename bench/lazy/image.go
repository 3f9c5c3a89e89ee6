package main

import (
	"bytes"
	"cmp"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// An image is what the index says.
type image struct {
	index  string
	layers []seek.Layer
	starts []int64 // of the layers on the disk
	files  []file  // regular ones, in the order of their paths
}

type file struct {
	path string
	size int64
}

func openImage(index string) (*image, error) {
	b, err := os.ReadFile(index)
	if err != nil {
		return nil, err
	}
	s, err := seek.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	im := &image{index: index, layers: s.Layers}
	at := int64(len(b))
	for i := range s.Layers {
		im.starts = append(im.starts, at)
		at += (s.Layers[i].Size + 511) / 512 * 512
	}
	fsys, err := erofs.Open(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return im, fs.WalkDir(fsys, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		if err == nil && st.Size() > 0 {
			im.files = append(im.files, file{p, st.Size()})
		}
		return err
	})
}

// in are the files directly in a directory.
func (im *image) in(dir string) []file {
	return slices.DeleteFunc(slices.Clone(im.files), func(f file) bool { return path.Dir(f.path) != dir })
}

// sized is the file whose size is nearest to n.
func (im *image) sized(n int64) file {
	return slices.MinFunc(im.files, func(a, b file) int { return cmp.Compare(max(a.size-n, n-a.size), max(b.size-n, n-b.size)) })
}

// A unit is what is fetched as a whole: a span, or a piece of a plain layer.
type unit struct {
	layer int
	in    int64
	end   int64
}

// unit finds what has the disk's byte at off; ok is false for the index itself.
func (im *image) unit(off int64) (u unit, next int64, ok bool) {
	i, found := slices.BinarySearch(im.starts, off)
	if !found {
		i--
	}
	if i < 0 {
		return u, im.starts[0], false
	}
	l := &im.layers[i]
	if off -= im.starts[i]; off >= l.Size {
		return u, im.starts[i] + (l.Size+511)/512*512, false
	}
	if l.Kind == seek.Plain {
		in := off / seek.PieceSize * seek.PieceSize
		end := min(in+seek.PieceSize, l.Size)
		return unit{i, in, end}, im.starts[i] + end, true
	}
	k, found := slices.BinarySearchFunc(l.Spans, off, func(s seek.Span, off int64) int { return cmp.Compare(s.Out, off) })
	if !found {
		k--
	}
	in, inEnd, _, outEnd := l.Range(k)
	return unit{i, in, inEnd}, im.starts[i] + outEnd, true
}

// touched notes which units are read.
type touched struct {
	io.ReaderAt
	im    *image
	mu    sync.Mutex
	units map[unit]bool
	bytes int64 // read of layers
}

func (t *touched) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.ReaderAt.ReadAt(p, off)
	t.mu.Lock()
	defer t.mu.Unlock()
	for at, end := off, off+int64(n); at < end; {
		u, next, ok := t.im.unit(at)
		next = min(next, end)
		if ok {
			t.units[u] = true
			t.bytes += next - at
		}
		at = next
	}
	return n, err
}

func (t *touched) sum() (n int64) {
	for u := range t.units {
		n += u.end - u.in
	}
	return n
}

// sources is the directory of a package of some size, of those that there are.
func (im *image) sources() string {
	for _, p := range []string{"net/http", "fmt", "strings"} {
		if dir := "usr/local/go/src/" + p; len(im.in(dir)) > 0 {
			return dir
		}
	}
	// Another image: the directory with the most files.
	count := map[string]int{}
	best := ""
	for _, f := range im.files {
		d := path.Dir(f.path)
		if count[d]++; count[d] > count[best] || count[d] == count[best] && strings.Compare(d, best) < 0 {
			best = d
		}
	}
	return best
}
