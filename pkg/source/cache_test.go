package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// cacheWorld is a registry with an image, and a cache.
type cacheWorld struct {
	reg  *testregistry.Registry
	im   *testimage.Image
	host string
	dir  string

	mu   sync.Mutex
	said []string
}

func newCacheWorld(t *testing.T) *cacheWorld {
	w := &cacheWorld{reg: testregistry.New(), im: testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...), dir: t.TempDir()}
	if err := w.reg.AddLayout("team/app", w.im.Dir); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(w.reg)
	t.Cleanup(srv.Close)
	w.host = strings.TrimPrefix(srv.URL, "http://")
	return w
}

func (w *cacheWorld) cache() Cache {
	return Cache{Dir: w.dir, Notify: func(line string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.said = append(w.said, line)
	}}
}

// fetch reads all layers through the cache, over so many connections.
func (w *cacheWorld) fetch(t *testing.T, c Cache, connections int) error {
	t.Helper()
	s, err := Open(w.host+"/team/app", Options{PlainHTTP: true, AuthFile: emptyFile(t), RetryWait: time.Millisecond, Retries: 2})
	if err != nil {
		return err
	}
	defer s.Close()
	if s, err = c.Wrap(s); err != nil {
		return err
	}
	img, err := s.Resolve(t.Context(), nil)
	if err != nil {
		return err
	}
	blobs := Ahead(t.Context(), s, img.Layers, connections)
	defer blobs.Close()
	for i, l := range img.Layers {
		want, err := os.ReadFile(w.im.Blob(i))
		if err != nil {
			return err
		}
		b, err := readAll(blobs.Blob(t.Context(), l))
		if err != nil {
			return err
		}
		if !bytes.Equal(b, want) {
			t.Errorf("layer %d: %d bytes are wrong", i, len(b))
		}
	}
	return nil
}

// asked is how many requests for layers the registry has had.
func (w *cacheWorld) asked() (n int) {
	for _, q := range w.reg.Requests() {
		for _, l := range w.im.Layers {
			if strings.HasSuffix(q.Path, l.Digest.String()) {
				n++
			}
		}
	}
	return n
}

// files are the names in the cache, those under way included.
func (w *cacheWorld) files(t *testing.T) (list []string) {
	t.Helper()
	for _, pattern := range []string{"blobs/*/*", "tmp/*"} {
		names, err := filepath.Glob(filepath.Join(w.dir, filepath.FromSlash(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, names...)
	}
	return list
}

func TestCache(t *testing.T) {
	for _, connections := range []int{1, 3} {
		w := newCacheWorld(t)
		must := func(what string, c Cache, served bool) {
			t.Helper()
			w.reg.Reset()
			if err := w.fetch(t, c, connections); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if n := w.asked(); (n > 0) != served {
				t.Errorf("%s: %d requests for layers", what, n)
			}
			for _, name := range w.files(t) {
				if filepath.Base(filepath.Dir(name)) == cacheTemp {
					t.Errorf("%s: %s is left", what, name)
				}
			}
		}
		must("first", w.cache(), true)
		must("second", w.cache(), false)
		if len(w.said) > 0 {
			t.Errorf("%q", w.said)
		}
		// A file that is damaged is fetched again; nobody gets it, as a whole
		// or at random.
		l := w.im.Layers[1]
		name := filepath.Join(w.dir, filepath.FromSlash(ociimage.BlobPath(l.Digest)))
		damage := func(change func([]byte) []byte) {
			b, err := os.ReadFile(name)
			if err == nil {
				err = os.WriteFile(name, change(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		damage(func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		must("flipped", w.cache(), true)
		must("mended", w.cache(), false)
		damage(func(b []byte) []byte { return b[:100] })
		must("cut", w.cache(), true)
		must("mended again", w.cache(), false)
		if len(w.said) != 2 || !strings.Contains(w.said[0], l.Digest.String()) {
			t.Errorf("%q", w.said)
		}
	}
}

// TestCacheAtOffset: random reads come from a cached blob, never from a bad one.
func TestCacheAtOffset(t *testing.T) {
	w := newCacheWorld(t)
	if err := w.fetch(t, w.cache(), 1); err != nil {
		t.Fatal(err)
	}
	l := w.im.Layers[0]
	name := filepath.Join(w.dir, filepath.FromSlash(ociimage.BlobPath(l.Digest)))
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(w.host+"/team/app", Options{PlainHTTP: true, AuthFile: emptyFile(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s, err = w.cache().Wrap(s); err != nil {
		t.Fatal(err)
	}
	w.reg.Reset()
	testBlobAt(t, s, l, want)
	if n := len(w.reg.Requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	if err := os.WriteFile(name, make([]byte, len(want)), 0o600); err != nil {
		t.Fatal(err)
	}
	testBlobAt(t, s, l, want)
	if n := len(w.reg.Requests()); n == 0 {
		t.Error("no requests")
	}
}

// TestCacheShared has many that fill and use one cache at once, while it is
// also too small for all.
func TestCacheShared(t *testing.T) {
	w := newCacheWorld(t)
	c := w.cache()
	c.Limit = w.im.Layers[0].Size
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for range 3 {
				if err := w.fetch(t, c, 1+i%3); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, line := range w.said {
		t.Error(line)
	}
}

// TestCacheKeepsNoPart: a download that fails leaves nothing behind.
func TestCacheKeepsNoPart(t *testing.T) {
	w := newCacheWorld(t)
	bad := w.im.Layers[1].Digest.String()
	f := w.reg.Inject(&testregistry.Fault{Match: testregistry.Path(bad), Serve: testregistry.Flip(5)})
	if err := w.fetch(t, w.cache(), 1); !errors.Is(err, fault.ErrIntegrity) || f.Delivered() == 0 {
		t.Errorf("%v, %d faults", err, f.Delivered())
	}
	for _, name := range w.files(t) {
		if strings.Contains(name, w.im.Layers[1].Digest.Encoded()[:12]) {
			t.Errorf("%s is kept", name)
		}
	}
	// Nor does one that nobody reads to its end.
	w.reg.ClearFaults()
	r, err := w.cache().blob(t.Context(), w.im.Layers[1], func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		return os.Open(w.im.Blob(1))
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Read(make([]byte, 10))
	r.Close()
	if n := len(w.files(t)); n != 1 {
		t.Errorf("%q", w.files(t))
	}
}

// TestCacheLimit: what was not used for longest goes first, and what others
// left behind goes once it is old.
func TestCacheLimit(t *testing.T) {
	w := newCacheWorld(t)
	c := w.cache()
	var total int64
	seen := map[string]bool{}
	for _, l := range w.im.Layers {
		if !seen[l.Digest.String()] {
			seen[l.Digest.String()] = true
			total += l.Size
		}
	}
	if err := w.fetch(t, c, 1); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-48 * time.Hour)
	first := c.file(w.im.Layers[0])
	stale, young := filepath.Join(w.dir, cacheTemp, "left"), filepath.Join(w.dir, cacheTemp, "under-way")
	for _, name := range []string{stale, young} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{first, stale} {
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	c.Limit = total - 1
	c.prune(c.file(w.im.Layers[1]))
	for name, want := range map[string]bool{first: false, c.file(w.im.Layers[1]): true, stale: false, young: true} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCacheUseless: a cache that cannot be written is said and does no harm;
// one that cannot be made is an error.
func TestCacheUseless(t *testing.T) {
	w := newCacheWorld(t)
	c := w.cache()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Cache{Dir: filepath.Join(file, "x")}).Wrap(nil); err == nil {
		t.Error("no error")
	}
	// A file where the blobs should be.
	if err := os.WriteFile(filepath.Join(w.dir, "blobs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.fetch(t, c, 2); err != nil {
		t.Error(err)
	}
	if len(w.said) == 0 {
		t.Error("nothing was said")
	}
}
