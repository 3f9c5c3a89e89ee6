package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// What a remote block server has to survive, from the client of a disk to the
// registry. Each test asserts that its fault was delivered. Of the other
// faults there are tests elsewhere: bits that flip in TestFlippedBitIsNotCached,
// bad indexes and zinfos in TestHostileIndex and TestHostileZinfo, caches that
// are torn, full or of no use in TestCacheDirUseless, TestCacheDirFull and
// TestCacheDirReadOnly, the disk's edges in TestEdges, hostile clients in
// pkg/nbd, servers that are killed in internal/vm.

// A faultyDisk is a server whose registry can be told to misbehave, and one
// connection to it.
type faultyDisk struct {
	t   *testing.T
	f   *fixture
	reg *testregistry.Registry
	s   *server
	c   *nbdclient.Client
	at  int64 // where to read on the disk, in the middle of the gzip layer
	n   int64
}

func newFaultyDisk(t *testing.T, f *fixture, args ...string) *faultyDisk {
	reg, ref := serveLayout(t, f.im.Dir)
	d := &faultyDisk{t: t, f: f, reg: reg, at: f.starts[1] + 5*spanSize + 1000, n: 5000}
	d.s = start(t, f.lazyArgs(ref, args...)...)
	d.c = dial(t, d.s.uri)
	reg.Reset()
	return d
}

// read reads what nobody has read yet, and says whether that was EIO.
func (d *faultyDisk) read() (eio bool) {
	d.t.Helper()
	p := make([]byte, d.n)
	_, err := d.c.ReadAt(p, d.at)
	switch {
	case errors.Is(err, nbdclient.EIO):
		return true
	case err != nil:
		d.t.Fatal(err)
	case !bytes.Equal(p, d.f.disk[d.at:][:d.n]):
		d.t.Error("wrong bytes")
	}
	return false
}

// answer serves the range that was asked for with another body.
func answer(body func(p []byte) []byte, change func(http.Header)) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, req)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		p := body(rec.Body.Bytes())
		w.Header().Set("Content-Length", fmt.Sprint(len(p)))
		change(w.Header())
		w.WriteHeader(rec.Code)
		http.NewResponseController(w).Flush() // without a length it is chunked, even if it is empty
		w.Write(p)
	}
}

// rangeOf asks the registry for another range than the client did.
func rangeOf(change func(from, to int64) string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		var from, to int64
		fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		req = req.Clone(req.Context())
		req.Header.Set("Range", change(from, to))
		next.ServeHTTP(w, req)
	}
}

// together runs tests that spend their time waiting at the same time, however
// many processors there are.
func together[T any](t *testing.T, tests map[string]T, run func(*testing.T, T)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for name, tt := range tests {
		wg.Go(func() { t.Run(name, func(t *testing.T) { run(t, tt) }) })
	}
}

func zipped(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	w.Close()
	return b.Bytes()
}

// TestFaults: answers that are no good are asked for again; if none gets
// better the read is EIO, once, and the connection lives. Once the registry
// answers again, so does the disk.
func TestFaults(t *testing.T) {
	f := newFixture(t)
	whole := func(p []byte) []byte { return p }
	noLength := func(h http.Header) { h.Del("Content-Length") }
	type faulty struct {
		serve func(http.ResponseWriter, *http.Request, http.Handler)
		times int  // how often it may happen and do no harm
		final bool // it is not asked for again
		heals bool // it can go on for ever
	}
	together(t, map[string]faulty{
		// Row 1.
		"500":                   {serve: testregistry.Status(500), times: 2},
		"503 with Retry-After":  {serve: testregistry.Status(503, "Retry-After", "1"), times: 2},
		"429 with Retry-After":  {serve: testregistry.Status(429, "Retry-After", "1"), times: 2},
		"404":                   {serve: testregistry.Status(404), final: true},
		"403":                   {serve: testregistry.Status(403), final: true},
		"401":                   {serve: testregistry.Status(401, "WWW-Authenticate", `Basic realm="x"`), final: true},
		"200 to a range":        {serve: rangeOf(func(_, _ int64) string { return "" }), final: true}, // Row 4.
		"no Content-Range":      {serve: testregistry.Header(func(h http.Header) { h.Del("Content-Range") }), times: 2},
		"wrong Content-Range":   {serve: testregistry.Header(func(h http.Header) { h.Set("Content-Range", "bytes 0-9/10") }), times: 2},
		"another range":         {serve: rangeOf(func(from, to int64) string { return fmt.Sprintf("bytes=%d-%d", from+1, to) }), times: 2},
		"longer range":          {serve: rangeOf(func(from, to int64) string { return fmt.Sprintf("bytes=%d-%d", from, to+1) }), times: 2},
		"longer body":           {serve: answer(func(p []byte) []byte { return append(p, "more"...) }, func(http.Header) {}), times: 2},
		"longer body, chunked":  {serve: answer(func(p []byte) []byte { return append(p, "more"...) }, noLength), heals: true},
		"Content-Encoding":      {serve: answer(zipped, func(h http.Header) { h.Set("Content-Encoding", "gzip") }), times: 2},
		"it, and chunked":       {serve: answer(zipped, func(h http.Header) { noLength(h); h.Set("Content-Encoding", "gzip") }), times: 1},
		"Content-Encoding lies": {serve: answer(whole, func(h http.Header) { h.Set("Content-Encoding", "gzip") }), heals: true},
		// Row 6.
		"short range":         {serve: rangeOf(func(from, to int64) string { return fmt.Sprintf("bytes=%d-%d", from, min(to, from+9_999)) }), heals: true},
		"empty body":          {serve: answer(func([]byte) []byte { return nil }, func(http.Header) {}), times: 2},
		"empty body, chunked": {serve: answer(func([]byte) []byte { return nil }, noLength), times: 2},
		"cut at once":         {serve: testregistry.Cut(0), times: 2},
		"cut in the middle":   {serve: testregistry.Cut(20_000), heals: true},
		"zeros":               {serve: answer(func(p []byte) []byte { clear(p); return p }, func(http.Header) {}), times: 1},
	}, func(t *testing.T, tt faulty) {
		if n := tt.times; n > 0 {
			d := newFaultyDisk(t, f)
			once := d.reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Times: n, Serve: tt.serve})
			if d.read() {
				t.Errorf("EIO: %s", d.s.stderr)
			}
			if got := len(d.reg.Requests()); once.Delivered() != n || got < n+1 || got > n+2 {
				t.Errorf("%d faults of %d, %d requests", once.Delivered(), n, got)
			}
		}
		d := newFaultyDisk(t, f)
		always := d.reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: tt.serve})
		if got := d.read(); got == tt.heals {
			t.Errorf("EIO is %t: %s", got, d.s.stderr)
		}
		n := always.Delivered()
		if !tt.heals {
			d.s.logged("I/O error")
		}
		switch {
		case n == 0, tt.final && n != 1, !tt.heals && n > 20:
			t.Errorf("delivered %d times", n)
		case !tt.heals && strings.Count(d.s.stderr.String(), "I/O error") != 1:
			t.Errorf("stderr: %s", d.s.stderr)
		case n == 1 && tt.final && d.reg.TotalServed() > d.f.im.Layers[1].Size:
			t.Errorf("%d bytes served", d.reg.TotalServed())
		}
		d.reg.ClearFaults()
		if d.read() {
			t.Errorf("EIO although the registry is well again: %s", d.s.stderr)
		}
	})
}

// TestTokenExpires is row 2: many readers need one new token.
func TestTokenExpires(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	tokens := reg.Bearer(&testregistry.Tokens{})
	s := start(t, f.lazyArgs(ref)...)
	const readers = 8
	for round := 1; round <= 3; round++ {
		tokens.Revoke()
		reg.Reset()
		var wg sync.WaitGroup
		for i := range readers {
			c := dial(t, s.uri)
			wg.Go(func() {
				p := make([]byte, 100)
				off := f.starts[1] + int64(i*3+round-1)%11*spanSize
				if _, err := c.ReadAt(p, off); err != nil || !bytes.Equal(p, f.disk[off:][:100]) {
					t.Errorf("at %d: %v, or wrong bytes", off, err)
				}
			})
		}
		wg.Wait()
		refused := 0
		for _, q := range reg.Requests() {
			if q.Status == http.StatusUnauthorized {
				refused++
			}
		}
		if round < 3 && refused == 0 {
			t.Errorf("round %d: no request was refused", round)
		}
		if n := tokens.Issued(); n != 1+round && !(refused == 0 && n < 1+round) {
			t.Errorf("round %d: %d tokens", round, n)
		}
	}
}

// TestSignedAddress is row 3: an address that expires is asked for again, and
// gets no credentials.
func TestSignedAddress(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	reg.Bearer(&testregistry.Tokens{})
	var good, expired, leaked, redirects atomic.Int64
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		if req.FormValue("sig") != fmt.Sprint(good.Load()) {
			expired.Add(1)
			http.Error(w, "expired", http.StatusForbidden)
			return
		}
		http.ServeFile(w, req, f.im.Blob(1))
	}))
	defer cdn.Close()
	reg.Inject(&testregistry.Fault{
		Match: func(req *http.Request) bool {
			return strings.HasSuffix(req.URL.Path, f.im.Layers[1].Digest.String()) && req.Header.Get("Authorization") != ""
		},
		Serve: func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
			redirects.Add(1)
			http.Redirect(w, req, fmt.Sprintf("%s/blob?sig=%d", cdn.URL, good.Load()), http.StatusTemporaryRedirect)
		},
	})
	s := start(t, f.lazyArgs(ref)...)
	c := dial(t, s.uri)
	for i := range int64(6) {
		p := make([]byte, 100)
		off := f.starts[1] + i*spanSize
		if _, err := c.ReadAt(p, off); err != nil || !bytes.Equal(p, f.disk[off:][:100]) {
			t.Errorf("at %d: %v, or wrong bytes", off, err)
		}
		if i == 2 {
			good.Add(1)
		}
	}
	if redirects.Load() != 2 || expired.Load() != 1 || leaked.Load() != 0 {
		t.Errorf("%d redirects, %d refused, %d with credentials; want 2, 1, 0", redirects.Load(), expired.Load(), leaked.Load())
	}
}

// TestBlackHole is row 7: a registry that says nothing keeps nobody but those
// who need just that answer, and them only for so long.
func TestBlackHole(t *testing.T) {
	f := newFixture(t)
	silent := func(_ http.ResponseWriter, req *http.Request, _ http.Handler) { <-req.Context().Done() }
	type serve = func(http.ResponseWriter, *http.Request, http.Handler)
	together(t, map[string]serve{"no answer": silent, "no end of it": testregistry.Stall(10_000)}, func(t *testing.T, serve serve) {
		d := newFaultyDisk(t, f)
		hole := d.reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Times: 1, Serve: serve})
		stuck := make(chan bool, 1)
		go func() { stuck <- d.read() }()
		eventually(t, func() bool { return hole.Delivered() == 1 }, func() string { return "no request" })
		other := dial(t, d.s.uri)
		for _, off := range []int64{0, f.starts[0], f.starts[1], f.starts[2]} {
			p := make([]byte, 1000)
			if _, err := other.ReadAt(p, off); err != nil || !bytes.Equal(p, f.disk[off:][:1000]) {
				t.Errorf("at %d: %v, or wrong bytes", off, err)
			}
		}
		select {
		case <-stuck:
			t.Error("the others had to wait")
		default:
		}
		if <-stuck {
			t.Errorf("EIO: %s", d.s.stderr)
		}
	})
	t.Run("for ever", func(t *testing.T) {
		if os.Getenv("SOAK") == "" {
			t.Skip("takes half a minute: wants $SOAK")
		}
		d := newFaultyDisk(t, f)
		hole := d.reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: silent})
		if !d.read() || hole.Delivered() != readFailures {
			t.Errorf("no EIO, or not after %d requests but %d", readFailures, hole.Delivered())
		}
		d.reg.ClearFaults()
		if d.read() {
			t.Errorf("EIO although the registry is well again: %s", d.s.stderr)
		}
	})
	const pauses = 500*time.Millisecond + time.Second + 2*time.Second + 4*time.Second
	if kernel := 30 * time.Second; readFailures*readIdle+pauses >= kernel {
		t.Error("the kernel loses its patience first")
	}
}

// TestReplacedBlob is row 9: another blob in the place of the right one, of the
// same size or another one, is EIO, and so is one that is gone; nothing of it
// is kept.
func TestReplacedBlob(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	blob, err := os.ReadFile(f.im.Blob(1))
	if err != nil {
		t.Fatal(err)
	}
	d := newFaultyDisk(t, f, "--cache-dir", dir)
	for _, other := range [][]byte{bytes.Repeat([]byte("x"), len(blob)), blob[:len(blob)-1], append(bytes.Clone(blob), 0)} {
		d.reg.PutBlob("team/golang", f.im.Layers[1].Digest, other)
		d.reg.Reset()
		if !d.read() || len(d.reg.Requests()) == 0 {
			t.Errorf("%d bytes in place of %d: %d requests, no EIO", len(other), len(blob), len(d.reg.Requests()))
		}
	}
	d.s.logged("do not match their digest")
	d.s.logged(fmt.Sprintf("has %d bytes, want %d", len(blob)-1, len(blob)))
	d.reg.PutBlob("team/golang", f.im.Layers[1].Digest, blob)
	if d.read() {
		t.Errorf("EIO of the right blob: %s", d.s.stderr)
	}
	d.s.stop()
	if n := len(cacheFiles(t, dir)); n != 1 {
		t.Errorf("%d files in the cache, of one good span", n)
	}
}
