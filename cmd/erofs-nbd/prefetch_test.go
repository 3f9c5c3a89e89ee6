package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// TestRecordPrefetch: what was read once is there at the next start before it
// is read; the reads then ask the registry for nothing.
func TestRecordPrefetch(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	list := filepath.Join(t.TempDir(), "list")
	reads := func(uri string) {
		c := dial(t, uri)
		rng := rand.New(rand.NewPCG(3, 4))
		for range 12 {
			p := make([]byte, 20_000)
			off := f.starts[0] + rng.Int64N(int64(len(f.disk))-f.starts[0]-int64(len(p)))
			if _, err := c.ReadAt(p, off); err != nil || !bytes.Equal(p, f.disk[off:][:len(p)]) {
				t.Errorf("at %d: %v, or wrong bytes", off, err)
			}
		}
	}
	s := start(t, f.lazyArgs(ref, "--record", list)...)
	reads(s.uri)
	if _, err := os.Stat(list); err == nil {
		t.Error("the list is there before the end")
	}
	s.stop()
	want, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	all, served := len(reg.Requests()), reg.TotalServed()
	for _, more := range [][]string{
		{"--recorded", list},
		{"--record", list}, // and anew
		{"--recorded", list, "--cache-dir", t.TempDir(), "--cache-size", "1MiB"},
	} {
		reg.Reset()
		s := start(t, f.lazyArgs(ref, append(more, "--prefetch=recorded")...)...)
		settle(t, reg, served)
		if n := len(reg.Requests()); n == 0 || n > all {
			t.Errorf("%v: %d requests to prefetch what took %d", more, n, all)
		}
		reg.Reset()
		reads(s.uri)
		if n := len(reg.Requests()); n != 0 {
			t.Errorf("%v: %d requests for what was prefetched", more, n)
		}
		if code := s.stop(); code != 0 || s.stderr.String() != "" {
			t.Errorf("%v: exit code %d, %s", more, code, s.stderr)
		}
		if got, err := os.ReadFile(list); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: the list is another one: %v", more, err)
		}
	}
	// A list that is no good, or of another image, is no reason not to serve.
	for _, text := range []string{"rubbish", "layerpipe-reads 1\nsha256:" + strings.Repeat("0", 64) + " 0 4096\n", strings.Replace(string(want), " 0 ", " 999999999999 ", 1)} {
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := start(t, f.lazyArgs(ref, "--prefetch=recorded", "--recorded", list)...)
		f.same(t, readAll(t, s.uri))
		if code := s.stop(); code != 0 || strings.Contains(s.stderr.String(), "nothing is prefetched") != (text == "rubbish") {
			t.Errorf("%.30q: exit code %d, %s", text, code, s.stderr)
		}
	}
}

// settle waits until a registry is asked for nothing any more, after it has
// served nine tenths of least bytes.
func settle(t *testing.T, reg *testregistry.Registry, least int64) {
	t.Helper()
	last, since := int64(-1), time.Now()
	eventually(t, func() bool {
		n := reg.TotalServed() + int64(len(reg.Requests()))
		if n != last {
			last, since = n, time.Now()
		}
		return reg.TotalServed() >= least*9/10 && time.Since(since) >= 300*time.Millisecond
	}, func() string { return fmt.Sprintf("%d bytes of %d were asked for", reg.TotalServed(), least) })
}

// TestPrefetchAll fills the cache, slowly where that was asked for.
func TestPrefetchAll(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	var blobs int64
	for _, l := range f.im.Layers {
		blobs += l.Size
	}
	for _, more := range [][]string{{"--cache-dir", t.TempDir()}, {"--cache-size", "64MiB"}} {
		reg.Reset()
		s := start(t, f.lazyArgs(ref, append(more, "--prefetch=all")...)...)
		settle(t, reg, blobs)
		if n := reg.TotalServed(); n < blobs*9/10 || n > blobs*11/10 {
			t.Errorf("%v: %d bytes of %d", more, n, blobs)
		}
		reg.Reset()
		f.same(t, readAll(t, s.uri))
		if n := len(reg.Requests()); n != 0 {
			t.Errorf("%v: %d requests after all", more, n)
		}
		s.stop()
	}
	reg.Reset()
	began := time.Now()
	s := start(t, f.lazyArgs(ref, "--prefetch=all", "--bandwidth", "1MB", "--cache-dir", t.TempDir())...)
	eventually(t, func() bool { return reg.TotalServed() > 0 }, func() string { return "nothing is fetched" })
	time.Sleep(500 * time.Millisecond)
	n, took := reg.TotalServed(), time.Since(began).Seconds()
	// One span more may be under way.
	if float64(n) > took*1e6+2e6 {
		t.Errorf("%d bytes in %.1f s at 1 MB/s", n, took)
	}
	if code := s.stop(); code != 0 {
		t.Errorf("stopped in the middle: exit code %d, %s", code, s.stderr)
	}
}

// TestPrefetchAgain: a registry that is gone ends prefetching for a while only.
func TestPrefetchAgain(t *testing.T) {
	defer func(d time.Duration) { fillAgain = d }(fillAgain)
	fillAgain = 20 * time.Millisecond
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	gone := reg.Inject(&testregistry.Fault{Match: func(r *http.Request) bool { return r.Header.Get("Range") != "bytes=0-0" && testregistry.Blobs(r) }, Serve: testregistry.Status(http.StatusForbidden)})
	s := start(t, f.lazyArgs(ref, "--prefetch=all", "--cache-dir", t.TempDir())...)
	s.logged("again in")
	if gone.Delivered() == 0 {
		t.Error("no request failed")
	}
	reg.Reset()
	reg.ClearFaults()
	var blobs int64
	for _, l := range f.im.Layers {
		blobs += l.Size
	}
	settle(t, reg, blobs)
	reg.Reset()
	f.same(t, readAll(t, s.uri))
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("%d requests after all", n)
	}
	s.stop()
}

// TestRecordNothing: a list of nothing is one.
func TestRecordNothing(t *testing.T) {
	f := newFixture(t)
	_, ref := serveLayout(t, f.im.Dir)
	list := filepath.Join(t.TempDir(), "list")
	for _, args := range [][]string{{"--record", list}, {"--prefetch=recorded", "--recorded", list}} {
		s := start(t, f.lazyArgs(ref, args...)...)
		if code := s.stop(); code != 0 || s.stderr.String() != "" {
			t.Errorf("%v: exit code %d, %s", args, code, s.stderr)
		}
	}
}
