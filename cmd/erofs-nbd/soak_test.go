package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// TestSoak: clients that read at random while the registry does what it likes
// get the right bytes or EIO; when it behaves again, so does all.
func TestSoak(t *testing.T) {
	f := newFixture(t)
	for name, args := range map[string][]string{
		"memory":   nil,
		"disk":     {"--cache-dir", t.TempDir(), "--cache-dir-size", "3MiB"},
		"prefetch": {"--cache-dir", t.TempDir(), "--prefetch", "all", "--cache-dir-size", "3MiB"},
	} {
		t.Run(name, func(t *testing.T) { soak(t, f, args...) })
	}
}

func soak(t *testing.T, f *fixture, args ...string) {
	reg, ref := serveLayout(t, f.im.Dir)
	s := start(t, f.lazyArgs(ref, append(args, "--cache-size", "2MiB")...)...)

	// Each request for a blob counts, and each kind of fault has its turns.
	var count atomic.Int64
	turn := func(every, n int64) func(*http.Request) bool {
		return func(req *http.Request) bool { return testregistry.Blobs(req) && count.Add(1)%every == n }
	}
	faults := map[string]*testregistry.Fault{}
	for name, fault := range map[string]*testregistry.Fault{
		"unavailable": {Match: turn(17, 1), Serve: testregistry.Status(http.StatusServiceUnavailable, "Retry-After", "0")},
		"cut":         {Match: turn(19, 2), Serve: testregistry.Cut(1000)},
		"flipped":     {Match: turn(13, 3), Serve: testregistry.Flip(500)},
		"other range": {Match: turn(23, 4), Serve: testregistry.Header(func(h http.Header) { h.Set("Content-Range", "bytes 0-9/10") })},
		"not found":   {Match: turn(29, 5), Serve: testregistry.Status(http.StatusNotFound)},
	} {
		faults[name] = reg.Inject(fault)
	}
	var good, bad atomic.Int64
	var wg sync.WaitGroup
	for g := range uint64(8) {
		c := dial(t, s.uri)
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 1))
			for range 40 {
				off := rng.Int64N(int64(len(f.disk)))
				p := make([]byte, min(1+rng.Int64N(300_000), int64(len(f.disk))-off))
				_, err := c.ReadAt(p, off)
				switch {
				case errors.Is(err, nbdclient.EIO):
					bad.Add(1)
				case err != nil:
					t.Errorf("%d bytes at %d: %v", len(p), off, err)
					return
				case !bytes.Equal(p, f.disk[off:][:len(p)]):
					t.Errorf("%d bytes at %d: wrong bytes", len(p), off)
				default:
					good.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d reads were good, %d EIO", good.Load(), bad.Load())
	for name, fault := range faults {
		if fault.Delivered() == 0 {
			t.Errorf("no answer was %s", name)
		}
	}
	if good.Load() == 0 || bad.Load() == 0 {
		t.Errorf("%d reads were good, %d EIO", good.Load(), bad.Load())
	}
	reg.ClearFaults()
	f.same(t, readAll(t, s.uri))
}

// TestNoRanges: a registry that cannot serve parts is an error that says so,
// when it starts, not a download for each read.
func TestNoRanges(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	reg.NoRanges()
	code, out, errs := invoke(t, "--index", f.index, "--blob", ref, "--plain-http")
	if code != 1 || out != "" || !strings.Contains(errs, "does not support ranges") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errs)
	}
}
