package spancache

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func openDisk(t *testing.T, dir string, max int64) *Disk {
	t.Helper()
	d := OpenDisk(dir, max, func(err error) { t.Errorf("warning: %v", err) })
	t.Cleanup(func() { d.Close() })
	return d
}

func blob(seed uint64, n int) ([32]byte, []byte) {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return sha256.Sum256(p), p
}

// files are those in a cache directory, temporary ones included, and their size.
func files(t *testing.T, dir string) (names []string, size int64) {
	t.Helper()
	filepath.WalkDir(filepath.Join(dir, diskDir), func(name string, e fs.DirEntry, err error) error {
		if st, err := os.Stat(name); err == nil && st.Mode().IsRegular() && e.Name() != "CACHEDIR.TAG" {
			names = append(names, name)
			size += st.Size()
		}
		return nil
	})
	return names, size
}

// TestDisk: what one saved another finds, in the same process or a later one,
// and only under its name and with its size.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	a, b := openDisk(t, dir, 1<<20), openDisk(t, dir, 1<<20)
	name, p := blob(1, 10000)
	q := make([]byte, len(p))
	if a.Has(name, 10000) || a.Load(name, q) {
		t.Error("an empty cache has something")
	}
	a.Save(name, p)
	a.Close()
	for _, d := range []*Disk{b, openDisk(t, dir, 1<<20)} {
		clear(q)
		if !d.Has(name, 10000) || !d.Load(name, q) || !bytes.Equal(p, q) {
			t.Error("not found, or other bytes")
		}
		if d.Has(name, 9999) || d.Load(name, q[1:]) || d.Load([32]byte{1}, q) {
			t.Error("found with another size or name")
		}
	}
	if s := b.Stats(); s.Hits != 1 || s.Misses != 2 || s.Read != 10000 {
		t.Errorf("%+v", s)
	}
	b.Drop(name, make([]byte, 10000)) // those of another are better
	if !b.Has(name, 10000) {
		t.Error("dropped although it has other bytes")
	}
	b.Drop(name, p)
	if b.Has(name, 10000) {
		t.Error("dropped, and there")
	}
	if a.Load(name, q) {
		t.Error("closed, and gives something")
	}
	a.Save(name, p) // no more than nothing
	if b.Has(name, 10000) {
		t.Error("closed, and saves something")
	}
}

// TestDiskBound: two processes that write without knowing of each other keep
// the bound, and what was used goes last.
func TestDiskBound(t *testing.T) {
	dir := t.TempDir()
	const max = 1 << 20
	used, p := blob(0, 40000)
	first := openDisk(t, dir, max)
	first.Save(used, p)
	first.Close()
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(first.path(used), old, old); err != nil {
		t.Fatal(err)
	}
	unused, p2 := blob(99, 40000)
	second := openDisk(t, dir, max)
	second.Save(unused, p2)
	second.Close()
	if err := os.Chtimes(second.path(unused), old, old); err != nil {
		t.Fatal(err)
	}
	if d := openDisk(t, dir, max); !d.Load(used, make([]byte, 40000)) { // which makes it young
		t.Fatal("lost")
	}
	if st, err := os.Stat(first.path(used)); err != nil || time.Since(st.ModTime()) > time.Minute {
		t.Error("a use does not count")
	}
	ds := []*Disk{openDisk(t, dir, max), openDisk(t, dir, max)}
	for i := range uint64(60) {
		name, p := blob(i+1, 40000)
		ds[i%2].save(name, p)
		if _, size := files(t, dir); size > max+max/4 {
			t.Fatalf("%d bytes in a cache of %d", size, max)
		}
	}
	if ds[0].Stats().Evicted+ds[1].Stats().Evicted == 0 {
		t.Error("nothing was evicted")
	}
	if ds[0].Has(unused, 40000) {
		t.Error("what was not used for longest is there")
	}
	name, p := blob(1000, max+1)
	ds[0].Save(name, p)
	ds[0].Close()
	if ds[0].Has(name, max+1) {
		t.Error("a file larger than the cache")
	}
}

// TestDiskBoundAtOnce: the bound holds in the end, however many write at the
// same time.
func TestDiskBoundAtOnce(t *testing.T) {
	for round := range uint64(20) {
		d := openDisk(t, t.TempDir(), 100_000)
		var wg sync.WaitGroup
		for i := range uint64(16) {
			wg.Go(func() {
				name, p := blob(round*100+i, 30_000)
				d.Save(name, p)
			})
		}
		wg.Wait()
		d.Close()
		if _, size := files(t, d.dir+"/.."); size > 100_000 {
			t.Fatalf("round %d: %d bytes", round, size)
		}
	}
}

// TestDiskLeftovers: what killed processes left goes, when it is old; what a
// living one is writing, and what is not ours, stays.
func TestDiskLeftovers(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, diskDir, "ab")
	if err := os.MkdirAll(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".tmp-old", ".tmp-new", "theirs"} {
		if err := os.WriteFile(filepath.Join(sub, name), make([]byte, 50000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * tempAge)
	os.Chtimes(filepath.Join(sub, ".tmp-old"), old, old)
	os.Chtimes(filepath.Join(sub, "theirs"), old, old)
	d := openDisk(t, dir, 10000)
	d.evict()
	var left []string
	names, _ := files(t, dir)
	for _, n := range names {
		left = append(left, filepath.Base(n))
	}
	if got := strings.Join(left, " "); got != ".tmp-new theirs" {
		t.Errorf("left: %s", got)
	}
}

// TestDiskUnwritable: a directory that cannot be, or that becomes one that
// cannot be written to, is one warning and no error.
func TestDiskUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	warnings := 0
	warn := func(error) { warnings++ }
	name, p := blob(1, 1000)
	d := OpenDisk(file, 1<<20, warn)
	d.Save(name, p)
	d.Close()
	if warnings != 1 || d.Load(name, p) {
		t.Errorf("%d warnings", warnings)
	}

	warnings = 0
	dir := t.TempDir()
	d = OpenDisk(dir, 1<<20, warn)
	d.jobs.Wait()
	// A file where a directory has to be: root is not stopped by modes.
	if err := os.RemoveAll(d.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		d.rest.Store(0)
		d.save([32]byte{byte(i)}, p)
	}
	d.Close()
	if s := d.Stats(); warnings != 1 || s.Failed != 3 || s.Used != 0 {
		t.Errorf("%d warnings, %+v", warnings, s)
	}
}

// TestDiskShared: several processes' worth of savers, loaders and evictions at
// once give only what was saved.
func TestDiskShared(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for g := range 4 {
		d := openDisk(t, dir, 300_000)
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 2))
			for range 200 {
				n := r.IntN(20)
				name, p := blob(uint64(n), 20000+n)
				q := make([]byte, len(p))
				if d.Load(name, q) {
					if !bytes.Equal(p, q) {
						t.Error("other bytes")
					}
				} else {
					d.Save(name, p)
				}
			}
			d.Close()
		})
	}
	wg.Wait()
	for _, name := range func() []string { n, _ := files(t, dir); return n }() {
		if strings.HasPrefix(filepath.Base(name), tempPrefix) {
			t.Errorf("%s is left", name)
		}
		b, err := os.ReadFile(name)
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		if err != nil || sum != filepath.Base(filepath.Dir(name))+filepath.Base(name) {
			t.Errorf("%s: %v, or other bytes", name, err)
		}
	}
}
