package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

func (w *world) blobAt(t testing.TB, change ...func(*Options)) *BlobAt {
	t.Helper()
	b, err := w.open(t, change...).BlobAt(t.Context(), w.layer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBlobAt(t *testing.T) {
	w := newWorld(t)
	b := w.blobAt(t)
	if n := len(w.Requests()); n != 0 {
		t.Errorf("%d requests to open", n)
	}
	size := int64(len(w.blob))
	for _, tt := range []struct {
		off int64
		n   int
	}{{0, 1}, {0, 300_000}, {1, 299_999}, {299_999, 1}, {299_990, 20}, {0, 300_001}, {1234, 4096}, {5, 0}, {300_000, 1}, {1 << 40, 1}} {
		p := make([]byte, tt.n)
		n, err := b.ReadAtContext(t.Context(), p, tt.off)
		want := w.blob[min(tt.off, size):min(tt.off+int64(tt.n), size)]
		var wantErr error
		if n < tt.n {
			wantErr = io.EOF
		}
		if err != wantErr || !bytes.Equal(p[:n], want) {
			t.Errorf("%d at %d: %d bytes, %v", tt.n, tt.off, n, err)
		}
	}
	if _, err := b.ReadAtContext(t.Context(), make([]byte, 1), -1); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("negative offset: %v", err)
	}
	for _, q := range w.Requests() {
		if q.Range == "" || strings.HasSuffix(q.Range, "-") {
			t.Errorf("a request with the range %q", q.Range)
		}
	}
}

// TestBlobAtSize finds a size out with a request for one byte.
// TestBlobAtConnection: reads that follow each other share a connection, also
// where the registry sends them elsewhere and where it gives no lengths.
func TestBlobAtConnection(t *testing.T) {
	for name, fault := range map[string]*testregistry.Fault{
		"plain":     {Match: func(*http.Request) bool { return false }},
		"in chunks": {Match: testregistry.Blobs, Serve: chunked},
		"redirected": {Match: testregistry.Blobs, Serve: func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
			if req.URL.RawQuery == "" {
				http.Redirect(rw, req, req.URL.Path+"?sig=x", http.StatusTemporaryRedirect)
				return
			}
			next.ServeHTTP(rw, req)
		}},
	} {
		w := newWorld(t)
		var mu sync.Mutex
		from := make(map[string]bool)
		w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			from[req.RemoteAddr] = true
			return false
		}})
		w.Inject(fault)
		b := w.blobAt(t)
		p := make([]byte, 1000)
		for off := int64(0); off < 20_000; off += 1000 {
			if _, err := b.ReadAtContext(t.Context(), p, off); err != nil || !bytes.Equal(p, w.blob[off:off+1000]) {
				t.Errorf("%s: at %d: %v", name, off, err)
			}
		}
		if len(from) != 1 {
			t.Errorf("%s: %d connections", name, len(from))
		}
	}
}

func TestBlobAtSize(t *testing.T) {
	w := newWorld(t)
	for _, size := range []int64{0, -1} {
		b, err := w.open(t).BlobAt(t.Context(), ocispec.Descriptor{Digest: w.layer.Digest, Size: size})
		if err != nil || b.Size() != int64(len(w.blob)) {
			t.Errorf("%v, %v", b, err)
		}
	}
	if n := w.TotalServed(); n != 2 {
		t.Errorf("%d bytes to find two sizes out", n)
	}
}

func TestBlobAtFaults(t *testing.T) {
	blobs := testregistry.Blobs
	edit := func(rng string) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			req.Header.Set("Range", rng)
			next.ServeHTTP(w, req)
		}
	}
	for name, tt := range map[string]struct {
		fault *testregistry.Fault
		err   error
		say   string
	}{
		"cut":                     {fault: &testregistry.Fault{Match: blobs, Times: 3, Serve: testregistry.Cut(50)}},
		"cut at once":             {fault: &testregistry.Fault{Match: blobs, Serve: testregistry.Cut(0)}, err: io.ErrUnexpectedEOF, say: "tried 4 times"},
		"short range":             {fault: &testregistry.Fault{Match: blobs, Times: 1, Serve: edit("bytes=1000-1009")}},
		"another offset once":     {fault: &testregistry.Fault{Match: blobs, Times: 1, Serve: edit("bytes=1001-1999")}},
		"another offset":          {fault: &testregistry.Fault{Match: blobs, Serve: edit("bytes=1001-1999")}, err: fault.ErrIntegrity},
		"too long":                {fault: &testregistry.Fault{Match: blobs, Serve: edit("bytes=1000-2000")}, err: fault.ErrIntegrity},
		"no Content-Range":        {fault: &testregistry.Fault{Match: blobs, Serve: testregistry.Header(func(h http.Header) { h.Del("Content-Range") })}, err: fault.ErrIntegrity},
		"another size":            {fault: &testregistry.Fault{Match: blobs, Serve: testregistry.Header(func(h http.Header) { h.Set("Content-Range", "bytes 1000-1999/9999999") })}, err: fault.ErrIntegrity},
		"length is not the range": {fault: &testregistry.Fault{Match: blobs, Serve: testregistry.Header(func(h http.Header) { h.Set("Content-Range", "bytes 1000-1998/300000") })}, err: fault.ErrIntegrity},
		"size not told":           {fault: &testregistry.Fault{Match: blobs, Serve: testregistry.Header(func(h http.Header) { h.Set("Content-Range", "bytes 1000-1999/*") })}},
		"range ignored":           {fault: &testregistry.Fault{Match: blobs, Serve: edit("")}, err: fault.ErrUnsupported, say: "the registry does not support ranges"},
		"many parts":              {fault: &testregistry.Fault{Match: blobs, Serve: edit("bytes=1000-1001,1004-1999")}, err: fault.ErrIntegrity},
		"416":                     {fault: &testregistry.Fault{Match: blobs, Serve: edit("bytes=999999-9999999")}, err: errAny, say: "416"},
		"500":                     {fault: &testregistry.Fault{Match: blobs, Times: 2, Serve: testregistry.Status(500)}},
		"429":                     {fault: &testregistry.Fault{Match: blobs, Times: 2, Serve: testregistry.Status(429)}},
		"404":                     {fault: &testregistry.Fault{Match: blobs, Serve: testregistry.Status(404)}, err: fault.ErrNotFound},
		"chunked":                 {fault: &testregistry.Fault{Match: blobs, Serve: chunked}},
		"stall":                   {fault: &testregistry.Fault{Match: blobs, Times: 1, Serve: testregistry.Stall(100)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Inject(tt.fault)
			b := w.blobAt(t, func(o *Options) {
				if name == "stall" {
					o.IdleTimeout = 300 * time.Millisecond
				}
			})
			p := make([]byte, 1000)
			n, err := b.ReadAtContext(t.Context(), p, 1000)
			switch {
			case tt.err == nil && (err != nil || !bytes.Equal(p, w.blob[1000:2000])):
				t.Errorf("%d bytes, %v", n, err)
			case tt.err != nil && (err == nil || tt.err != errAny && !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.say)):
				t.Errorf("%v, want %v with %q", err, tt.err, tt.say)
			}
			if tt.fault.Delivered() == 0 {
				t.Error("the fault was not delivered")
			}
		})
	}
}

// cdn serves a blob under signed addresses that expire.
type cdn struct {
	*httptest.Server
	blob     []byte
	good     atomic.Int64 // the signature that counts
	requests atomic.Int64
	leaked   atomic.Int64 // requests with an Authorization header
}

func newCDN(t testing.TB, blob []byte) *cdn {
	c := &cdn{blob: blob}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		c.requests.Add(1)
		if req.Header.Get("Authorization") != "" {
			c.leaked.Add(1)
		}
		if req.FormValue("sig") != fmt.Sprint(c.good.Load()) {
			http.Error(w, "expired", http.StatusForbidden)
			return
		}
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(c.blob))
	}))
	t.Cleanup(c.Close)
	return c
}

// redirect sends the blob requests that are let in to the cdn.
func (c *cdn) redirect(w *world) *testregistry.Fault {
	return w.Inject(&testregistry.Fault{
		Match: func(req *http.Request) bool {
			return testregistry.Blobs(req) && req.Header.Get("Authorization") != ""
		},
		Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
			http.Redirect(rw, req, fmt.Sprintf("%s/x?sig=%d", c.URL, c.good.Load()), http.StatusTemporaryRedirect)
		},
	})
}

// TestBlobAtRedirect: the registry is asked once for many reads, and once more
// when the signed address has expired.
func TestBlobAtRedirect(t *testing.T) {
	w := newWorld(t)
	w.Basic(user, password)
	c := newCDN(t, w.blob)
	f := c.redirect(w)
	b := w.blobAt(t, withLogin)
	read := func(off int64) {
		t.Helper()
		p := make([]byte, 100)
		if _, err := b.ReadAtContext(t.Context(), p, off); err != nil || !bytes.Equal(p, w.blob[off:off+100]) {
			t.Errorf("at %d: %v", off, err)
		}
	}
	for off := range int64(20) {
		read(off * 1000)
	}
	if f.Delivered() != 1 || c.requests.Load() != 20 {
		t.Errorf("%d redirects and %d requests for 20 reads", f.Delivered(), c.requests.Load())
	}
	c.good.Add(1) // the old signature expires
	for off := range int64(20) {
		read(off * 1000)
	}
	if f.Delivered() != 2 || c.requests.Load() != 41 {
		t.Errorf("%d redirects and %d requests after the address expired", f.Delivered(), c.requests.Load())
	}
	if c.leaked.Load() != 0 {
		t.Error("credentials went to the other host")
	}
	// Nor does an address that is refused right away lead to a loop.
	c.redirect(w)
	w.ClearFaults()
	w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
		http.Redirect(rw, req, c.URL+"/x?sig=never-secret", http.StatusTemporaryRedirect)
	}})
	c.good.Add(1)
	_, err := b.ReadAtContext(t.Context(), make([]byte, 1), 0)
	if !errors.Is(err, fault.ErrUnauthorized) {
		t.Errorf("%v", err)
	}
	noSecret(t, fmt.Sprint(err))
}

// TestBlobAtMany has many readers, a token that expires under them, and cuts.
func TestBlobAtMany(t *testing.T) {
	w := newWorld(t)
	tokens := w.Bearer(&testregistry.Tokens{User: user, Password: password})
	var n atomic.Int64
	var revoke sync.Once
	f := w.Inject(&testregistry.Fault{
		Match: func(req *http.Request) bool { return testregistry.Blobs(req) && n.Add(1)%10 == 0 },
		Serve: func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
			if n.Load() >= 40 {
				revoke.Do(tokens.Revoke) // once: two refusals in a row are an answer
			}
			testregistry.Cut(50)(rw, req, next)
		},
	})
	b := w.blobAt(t, withLogin, func(o *Options) { o.Concurrency = 4; o.Retries = 20 })
	var active, most atomic.Int64
	w.Inject(&testregistry.Fault{Match: func(*http.Request) bool { return true }, Serve: func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
		if k := active.Add(1); k > most.Load() {
			most.Store(k)
		}
		defer active.Add(-1)
		next.ServeHTTP(rw, req)
	}})
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			p := make([]byte, 777)
			for i := range 10 {
				off := int64((g*10 + i) * 1801)
				k, err := b.ReadAtContext(context.Background(), p, off)
				if err != nil && err != io.EOF || !bytes.Equal(p[:k], w.blob[off:off+int64(k)]) {
					t.Errorf("at %d: %d, %v", off, k, err)
				}
			}
		})
	}
	wg.Wait()
	if f.Delivered() < 5 || most.Load() > 5 { // four readers and one for a token
		t.Errorf("%d faults, %d requests at once", f.Delivered(), most.Load())
	}
}

// TestForeign: a layer that the registry does not have comes from its
// descriptor's addresses, over HTTPS, without credentials.
func TestForeign(t *testing.T) {
	w := newWorld(t)
	w.Basic(user, password)
	data := []byte(strings.Repeat("foreign", 1000))
	leaked := false
	other := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		leaked = leaked || req.Header.Get("Authorization") != ""
		if req.URL.Path == "/wrong" {
			rw.Write(bytes.ToUpper(data))
			return
		}
		http.ServeContent(rw, req, "", time.Time{}, bytes.NewReader(data))
	}))
	defer other.Close()
	d := ocispec.Descriptor{
		MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		Digest:    digest.FromBytes(data), Size: int64(len(data)),
		URLs: []string{"http://" + w.host + "/plain", "ftp://x/y", other.URL + "/right"},
	}
	r := w.open(t, withLogin, func(o *Options) { o.Insecure = true })
	if b, err := readBlob(r, d); err != nil || !bytes.Equal(b, data) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	at, err := r.BlobAt(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 14)
	if _, err := at.ReadAtContext(t.Context(), p, 7); err != nil || string(p) != "foreignforeign" {
		t.Errorf("%q, %v", p, err)
	}
	d.URLs = []string{other.URL + "/wrong"}
	if _, err := readBlob(r, d); !errors.Is(err, fault.ErrIntegrity) {
		t.Errorf("wrong bytes: %v", err)
	}
	d.URLs = []string{"http://" + w.host + "/plain"}
	if _, err := readBlob(r, d); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("no address by HTTPS: %v", err)
	}
	d.URLs, d.MediaType = []string{other.URL + "/right"}, ocispec.MediaTypeImageLayerGzip
	if _, err := readBlob(r, d); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("an ordinary layer with an address: %v", err)
	}
	if leaked {
		t.Error("credentials went to the foreign host")
	}
	for _, q := range w.Requests() {
		if q.Path == "/plain" {
			t.Error("a foreign layer was asked for without encryption")
		}
	}
}
