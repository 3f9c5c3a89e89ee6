package main

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// lazyArgs serve a fixture from a registry.
func (f *fixture) lazyArgs(ref string, more ...string) []string {
	return append([]string{"--index", f.index, "--blob", ref, "--plain-http"}, more...)
}

// cacheFiles are those of the spans in a cache directory.
func cacheFiles(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*", "??", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestCacheDir: what one server fetched another one has, at the same time or
// after a restart; a registry that is gone does no harm then.
func TestCacheDir(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	dir := filepath.Join(t.TempDir(), "new", "cache")
	args := f.lazyArgs(ref, "--cache-dir", dir, "--stats")
	first := start(t, args...)
	f.same(t, readAll(t, first.uri))
	second := start(t, args...)
	reg.Reset()
	first.stop() // all is written
	f.same(t, readAll(t, second.uri))
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("%d requests for what the other server had", n)
	}
	second.stop()
	// One byte of a foreign layer is asked for at the start, to find it.
	reg.Inject(&testregistry.Fault{Match: func(r *http.Request) bool { return r.Header.Get("Range") != "bytes=0-0" }, Serve: testregistry.Status(http.StatusNotFound)})
	third := start(t, append(args, "--cache-size", "0", "--prefetch", "all")...)
	f.same(t, readAll(t, third.uri))
	third.stop()
	if got := third.stderr.String(); !strings.Contains(got, "cache directory: ") || !strings.Contains(got, "layers: 0 fetches") {
		t.Errorf("stderr: %s", got)
	}
	// A bound holds.
	small := t.TempDir()
	s := start(t, f.lazyArgs(ref, "--cache-dir", small, "--cache-dir-size", "1MiB")...)
	reg.ClearFaults()
	f.same(t, readAll(t, s.uri))
	s.stop()
	if size := cacheSize(t, small); size == 0 || size > 1<<20 {
		t.Errorf("%d bytes in a cache of 1 MiB", size)
	}
}

// TestCacheDirShared: two servers with a directory that is too small for either,
// at the same time.
func TestCacheDirShared(t *testing.T) {
	f := newFixture(t)
	_, ref := serveLayout(t, f.im.Dir)
	dir := t.TempDir()
	args := f.lazyArgs(ref, "--cache-dir", dir, "--cache-dir-size", "1MiB", "--cache-size", "0")
	servers := []*server{start(t, args...), start(t, args...)}
	var wg sync.WaitGroup
	for _, s := range servers {
		for range 2 {
			wg.Go(func() { f.same(t, readAll(t, s.uri)) })
		}
	}
	wg.Wait()
	for _, s := range servers {
		if code := s.stop(); code != 0 || s.stderr.String() != "" {
			t.Errorf("exit code %d, stderr: %s", code, s.stderr)
		}
	}
	if size := cacheSize(t, dir); size == 0 || size > 1<<20 {
		t.Errorf("%d bytes in a cache of 1 MiB", size)
	}
}

// cacheSize is what the spans in a cache directory take, in bytes.
func cacheSize(t *testing.T, dir string) (size int64) {
	t.Helper()
	for _, name := range cacheFiles(t, dir) {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	return size
}

// TestCacheDirUseless is row 13 of the faults that a server must survive: torn
// and forged files, a directory that cannot be written to, or not even be.
func TestCacheDirUseless(t *testing.T) {
	f := newFixture(t)
	_, ref := serveLayout(t, f.im.Dir)
	dir := t.TempDir()
	s := start(t, f.lazyArgs(ref, "--cache-dir", dir)...)
	f.same(t, readAll(t, s.uri))
	s.stop()
	files := cacheFiles(t, dir)
	if len(files) < 10 {
		t.Fatalf("%d files", len(files))
	}
	for i, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 4 {
		case 0:
			b[len(b)/2] ^= 1
		case 1:
			b = b[:len(b)/2]
		case 2:
			clear(b)
		case 3:
			b = append(b, 0)
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = start(t, f.lazyArgs(ref, "--cache-dir", dir)...)
	f.same(t, readAll(t, s.uri))
	if code := s.stop(); code != 0 || s.stderr.String() != "" {
		t.Errorf("exit code %d, stderr: %s", code, s.stderr)
	}

	// In a directory's place there is a file: at the start, or all of a sudden.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = start(t, f.lazyArgs(ref, "--cache-dir", file)...)
	f.same(t, readAll(t, s.uri))
	if code := s.stop(); code != 0 || strings.Count(s.stderr.String(), "\n") != 1 || !strings.Contains(s.stderr.String(), "warning: --cache-dir: ") {
		t.Errorf("exit code %d, stderr: %s", code, s.stderr)
	}
	gone := t.TempDir()
	s = start(t, f.lazyArgs(ref, "--cache-dir", gone)...)
	dial(t, s.uri)
	ours, err := filepath.Glob(filepath.Join(gone, "layerpipe-*"))
	if err != nil || len(ours) != 1 {
		t.Fatal(ours, err)
	}
	if err := errors.Join(os.RemoveAll(ours[0]), os.WriteFile(ours[0], nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	f.same(t, readAll(t, s.uri))
	if code := s.stop(); code != 0 || strings.Count(s.stderr.String(), "\n") != 1 || !strings.Contains(s.stderr.String(), "warning: --cache-dir: ") {
		t.Errorf("exit code %d, stderr: %s", code, s.stderr)
	}
}

// TestFlippedBitIsNotCached is row 8: a bit that flips on its way once is
// healed by another request, one that stays flipped is EIO, and neither gets
// into the cache.
func TestFlippedBitIsNotCached(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	dir := t.TempDir()
	once := reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Times: 1, Serve: testregistry.Flip(100)})
	s := start(t, f.lazyArgs(ref, "--cache-dir", dir)...)
	c := dial(t, s.uri)
	p := make([]byte, 1000)
	if _, err := c.ReadAt(p, f.starts[1]); err != nil || !bytes.Equal(p, f.disk[f.starts[1]:][:1000]) {
		t.Errorf("flipped once: %v, or wrong bytes", err)
	}
	if once.Delivered() != 1 {
		t.Error("nothing was flipped")
	}
	stays := reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: testregistry.Flip(100)})
	for i := range f.starts {
		if _, err := c.ReadAt(p, f.starts[i]+2<<20); !errors.Is(err, nbdclient.EIO) {
			t.Errorf("layer %d, flipped for good: %v, want EIO", i, err)
		}
	}
	if stays.Delivered() < 2*len(f.starts) {
		t.Errorf("%d answers were flipped", stays.Delivered())
	}
	s.stop()
	if n := len(cacheFiles(t, dir)); n != 1 {
		t.Errorf("%d files in the cache, of one good span", n)
	}
	reg.ClearFaults()
	s = start(t, f.lazyArgs(ref, "--cache-dir", dir)...)
	f.same(t, readAll(t, s.uri))
}

// TestEdges is row 15: reads at every seam of the disk, and at and past its
// end.
func TestEdges(t *testing.T) {
	f := newFixture(t)
	_, ref := serveLayout(t, f.im.Dir)
	s := start(t, f.lazyArgs(ref)...)
	c := dial(t, s.uri)
	size := int64(len(f.disk))
	if c.Size() != size {
		t.Fatalf("%d bytes, want %d", c.Size(), size)
	}
	edges := []int64{0, 512, size}
	for i := range f.layers {
		l := &f.layers[i]
		edges = append(edges, f.starts[i], f.starts[i]+l.Size)
		for k := range l.Spans {
			edges = append(edges, f.starts[i]+l.Spans[k].Out)
		}
		for at := int64(0); l.Kind == seek.Plain && at < l.Size; at += seek.PieceSize {
			edges = append(edges, f.starts[i]+at)
		}
	}
	for _, e := range edges {
		for _, r := range [][2]int64{{e - 1, e + 1}, {e - 1, e}, {e, e + 1}, {e - 700, e + 700}, {e - 300_000, e + 300_000}} {
			from, to := max(r[0], 0), min(r[1], size)
			if from >= to {
				continue
			}
			p := make([]byte, to-from)
			if _, err := c.ReadAt(p, from); err != nil || !bytes.Equal(p, f.disk[from:to]) {
				t.Errorf("bytes %d to %d: %v, or wrong", from, to, err)
			}
		}
	}
	const einval = nbdclient.Error(22)
	for _, r := range [][2]int64{{size, 1}, {size - 1, 2}, {size + 1<<40, 512}, {size - 512, 1 << 20}} {
		if err := c.ReadBeyond(r[0], int(r[1])); err != einval {
			t.Errorf("%d bytes at %d of %d: %v, want EINVAL", r[1], r[0], size, err)
		}
	}
	p := make([]byte, 1)
	if _, err := c.ReadAt(p, size-1); err != nil || p[0] != f.disk[size-1] {
		t.Errorf("the connection is of no use any more: %v", err)
	}
}

func TestCacheUsage(t *testing.T) {
	f := newFixture(t)
	whole := makeImage(t, f.im, build.Options{})
	for _, args := range [][]string{
		{whole, "--record", "list"},
		{whole, "--prefetch", "all"},
		{"--index", f.index, "--blob", f.im.Ref(), "--prefetch", "some"},
		{"--index", f.index, "--blob", f.im.Ref(), "--prefetch", "recorded"},
		{"--index", f.index, "--blob", f.im.Ref(), "--recorded", "list"},
		{"--index", f.index, "--blob", f.im.Ref(), "--bandwidth", "1MB"},
	} {
		if code, _, stderr := invoke(t, args...); code != cli.ExitUsage {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
	list := filepath.Join(t.TempDir(), "list")
	if code, _, stderr := invoke(t, "--index", f.index, "--blob", f.im.Ref(), "--prefetch=recorded", "--recorded", list); code == 0 || !strings.Contains(stderr, list) {
		t.Errorf("a list that is not there: exit code %d, %s", code, stderr)
	}
	// A server that does not get to serve leaves the list as it is.
	if err := os.WriteFile(list, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := invoke(t, "--index", f.index, "--blob", f.im.Blob(0), "--record", list); code != cli.ExitUsage {
		t.Errorf("exit code %d", code)
	}
	if b, err := os.ReadFile(list); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
}

// eventually waits for something to become true.
func eventually(t *testing.T, is func() bool, state func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not happen: %s", state())
		}
	}
}
