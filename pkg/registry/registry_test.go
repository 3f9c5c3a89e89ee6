package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// world is a registry with one image, "test/app:v1" of one layer.
type world struct {
	*testregistry.Registry
	srv      *httptest.Server
	host     string
	blob     []byte
	layer    ocispec.Descriptor
	config   ocispec.Descriptor
	manifest ocispec.Descriptor

	mu    sync.Mutex
	lines []string // what Notify got
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{Registry: testregistry.New()}
	w.srv = httptest.NewServer(w)
	t.Cleanup(w.srv.Close)
	w.fill()
	return w
}

func (w *world) fill() {
	w.host = w.srv.Listener.Addr().String()
	w.blob = make([]byte, 300_000)
	for i := range w.blob {
		w.blob[i] = byte(i*i>>7 + i)
	}
	w.layer = w.AddBlob("test/app", ocispec.MediaTypeImageLayerGzip, w.blob)
	config, _ := json.Marshal(ocispec.Image{Platform: ociimage.DefaultPlatform()})
	w.config = w.AddBlob("test/app", ocispec.MediaTypeImageConfig, config)
	w.manifest = w.AddManifest("test/app", "v1", ocispec.MediaTypeImageManifest, manifestOf(w.config, w.layer))
}

func manifestOf(config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers}
	m.SchemaVersion = 2
	return m
}

// options are quick to fail and need no files.
func (w *world) options(t testing.TB) Options {
	return Options{
		PlainHTTP: true, RetryWait: time.Millisecond, Retries: 4, IdleTimeout: 20 * time.Second,
		AuthFile: emptyAuthFile(t), RegistriesConf: os.DevNull, HostsDir: t.TempDir(),
		Notify: func(line string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lines = append(w.lines, line)
		},
	}
}

func (w *world) open(t testing.TB, change ...func(*Options)) *Repository {
	t.Helper()
	o := w.options(t)
	for _, c := range change {
		c(&o)
	}
	r, err := Open(w.host+"/test/app:v1", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func (w *world) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.lines, "\n")
}

func readBlob(r *Repository, d ocispec.Descriptor) ([]byte, error) {
	b, err := r.Blob(context.Background(), d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b)
}

func TestResolve(t *testing.T) {
	w := newWorld(t)
	r := w.open(t)
	img, err := r.Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.Manifest.Digest != w.manifest.Digest || img.Config.Digest != w.config.Digest ||
		len(img.Layers) != 1 || img.Layers[0].Digest != w.layer.Digest || img.Tag != "v1" ||
		img.FullName != w.host+"/test/app:v1" || digest.FromBytes(img.ManifestBytes) != w.manifest.Digest {
		t.Errorf("%+v", img)
	}
	if b, err := readBlob(r, img.Layers[0]); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	// Without a size the registry's counts.
	if b, err := readBlob(r, ocispec.Descriptor{Digest: w.layer.Digest}); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("no size: %d bytes, %v", len(b), err)
	}
}

// TestStreamFaults has a row for each way a blob's download can go wrong, and
// asserts that it did go wrong.
func TestStreamFaults(t *testing.T) {
	blobs := testregistry.Blobs
	resumed := func(req *http.Request) bool { return blobs(req) && req.Header.Get("Range") != "" }
	for name, tt := range map[string]struct {
		faults []testregistry.Fault
		err    error  // nil: the blob arrives
		say    string // part of the error, or of what is said on the way
	}{
		"cut once":                 {faults: []testregistry.Fault{{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)}}, say: "broke at byte 100000"},
		"cut at the first byte":    {faults: []testregistry.Fault{{Match: blobs, Times: 3, Serve: testregistry.Cut(0)}}, say: "broke at byte 0"},
		"cut with little progress": {faults: []testregistry.Fault{{Match: blobs, Times: 10, Serve: testregistry.Cut(7)}}, say: "broke at byte 70"},
		"always cut at once":       {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Cut(0)}}, err: io.ErrUnexpectedEOF, say: "tried 4 times"},
		"429 with seconds":         {faults: []testregistry.Fault{{Match: blobs, Times: 1, Serve: testregistry.Status(429, "Retry-After", "1")}}, say: "trying again in 1s"},
		"503 with a date": {faults: []testregistry.Fault{{Match: blobs, Times: 1, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			testregistry.Status(503, "Retry-After", time.Now().Add(1500*time.Millisecond).UTC().Format(http.TimeFormat))(w, req, next)
		}}}, say: "503 Service Unavailable"},
		"429 with months": {faults: []testregistry.Fault{{Match: blobs, Times: 1, Serve: testregistry.Status(429, "Retry-After", "9999999")}}, say: "trying again in 200ms"},
		"500 and 502 and 504": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Status(500)},
			{Match: blobs, Times: 1, Serve: testregistry.Status(502)},
			{Match: blobs, Times: 1, Serve: testregistry.Status(504)}}, say: "504 Gateway Timeout"},
		"a CDN's 520 and 522": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Status(520)},
			{Match: blobs, Times: 1, Serve: testregistry.Status(522)}}, say: ": 522 (test registry); trying again"},
		"501":           {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Status(501)}}, err: errAny, say: "501 Not Implemented"},
		"500 for ever":  {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Status(500)}}, err: errAny, say: "tried 4 times"},
		"404":           {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Status(404)}}, err: fault.ErrNotFound, say: "blob sha256:"},
		"403":           {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Status(403)}}, err: fault.ErrUnauthorized},
		"400":           {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Status(400)}}, err: errAny, say: "400 Bad Request"},
		"a bit flipped": {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Flip(299_999)}}, err: fault.ErrIntegrity, say: "content has the digest"},
		"a bit flipped, then cut": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				testregistry.Flip(10)(w, req, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					testregistry.Cut(1000)(w, req, next)
				}))
			}}}, err: fault.ErrIntegrity},
		"shorter than said": {faults: []testregistry.Fault{{Match: blobs, Serve: other(make([]byte, 299_999), false)}}, err: fault.ErrIntegrity, say: "has 299999 bytes, want 300000"},
		"longer than said":  {faults: []testregistry.Fault{{Match: blobs, Serve: other(make([]byte, 300_001), false)}}, err: fault.ErrIntegrity, say: "has 300001 bytes, want 300000"},
		"longer, in chunks": {faults: []testregistry.Fault{{Match: blobs, Serve: other(make([]byte, 300_001), true)}}, err: fault.ErrIntegrity, say: "goes on after 300000"},
		"in chunks":         {faults: []testregistry.Fault{{Match: blobs, Serve: chunked}}},
		"in chunks, cut": {faults: []testregistry.Fault{{Match: blobs, Times: 1, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			chunked(w, req, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { testregistry.Cut(1234)(w, req, next) }))
		}}}, say: "broke at byte 1234"},
		"range ignored": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)},
			{Match: resumed, Times: 1, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				req.Header.Del("Range")
				next.ServeHTTP(w, req)
			}}}},
		"range with another offset": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)},
			{Match: resumed, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				req.Header.Set("Range", "bytes=100001-299999")
				next.ServeHTTP(w, req)
			}}}, say: "answered with 100001-299999"},
		"another part, whatever is asked for": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)},
			{Match: blobs, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				req.Header.Set("Range", "bytes=100001-299999")
				next.ServeHTTP(w, req)
			}}}, err: fault.ErrIntegrity, say: "tried 4 times"},
		"several ranges": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)},
			{Match: resumed, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				req.Header.Set("Range", "bytes=100000-100001,100002-299999")
				next.ServeHTTP(w, req)
			}}}, say: `answered with the range ""`},
		"range of another size": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)},
			{Match: resumed, Serve: testregistry.Header(func(h http.Header) { h.Set("Content-Range", "bytes 100000-299999/300001") })}},
			err: fault.ErrIntegrity, say: "has 300001 bytes"},
		"shorter range": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)},
			{Match: resumed, Times: 1, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				req.Header.Set("Range", "bytes=100000-199999")
				next.ServeHTTP(w, req)
			}}}},
		"416": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)},
			{Match: resumed, Serve: testregistry.Status(416)}}},
		"416, and then 500": {faults: []testregistry.Fault{
			{Match: blobs, Times: 1, Serve: testregistry.Cut(100_000)},
			{Match: resumed, Times: 2, Serve: testregistry.Status(416)},
			{Match: blobs, Times: 1, Serve: testregistry.Status(500)}}, say: "500"},
		"206 to the whole": {faults: []testregistry.Fault{{Match: blobs, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			req.Header.Set("Range", "bytes=0-99")
			next.ServeHTTP(w, req)
		}}}, err: fault.ErrIntegrity},
		"content-encoding lies": {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Header(func(h http.Header) { h.Set("Content-Encoding", "gzip") })}}},
		"stalls":                {faults: []testregistry.Fault{{Match: blobs, Times: 1, Serve: testregistry.Stall(50_000)}}, say: "no data for too long"},
		"stalls before the header": {faults: []testregistry.Fault{{Match: blobs, Times: 1, Serve: func(_ http.ResponseWriter, req *http.Request, _ http.Handler) {
			<-req.Context().Done()
		}}}, say: "no data for too long"},
		"redirects in a circle": {faults: []testregistry.Fault{{Match: blobs, Serve: func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
			http.Redirect(w, req, req.URL.Path, http.StatusTemporaryRedirect)
		}}}, err: errAny, say: "over 10 redirects"},
		"redirect to nowhere": {faults: []testregistry.Fault{{Match: blobs, Serve: testregistry.Status(307, "Location", "ftp://x/")}}, err: errAny, say: "bad address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for i := range tt.faults {
				w.Inject(&tt.faults[i])
			}
			r := w.open(t, func(o *Options) {
				if strings.HasPrefix(name, "stalls") {
					o.IdleTimeout = 300 * time.Millisecond
				}
				if name == "429 with months" {
					o.LongestAsked = 200 * time.Millisecond
				}
			})
			b, err := readBlob(r, w.layer)
			switch {
			case tt.err == nil && (err != nil || !bytes.Equal(b, w.blob)):
				t.Errorf("%d bytes, %v", len(b), err)
			case tt.err != nil && (err == nil || tt.err != errAny && !errors.Is(err, tt.err)):
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if said := fmt.Sprint(w.said(), err); !strings.Contains(said, tt.say) {
				t.Errorf("%q says nothing of %q", said, tt.say)
			}
			for i := range tt.faults {
				if f := &tt.faults[i]; f.Delivered() == 0 || f.Times > 0 && f.Delivered() != f.Times {
					t.Errorf("fault %d was delivered %d times of %d", i, f.Delivered(), f.Times)
				}
			}
		})
	}
}

var errAny = errors.New("any error")

// other serves other bytes than the blob's.
func other(b []byte, chunked bool) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if chunked {
			http.NewResponseController(w).Flush()
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		}
		w.Write(b)
	}
}

// chunked serves the blob without a length.
func chunked(w http.ResponseWriter, req *http.Request, next http.Handler) {
	testregistry.Header(func(h http.Header) { h.Del("Content-Length") })(w, req, next)
}

// TestManifestFaults is TestStreamFaults for manifests.
func TestManifestFaults(t *testing.T) {
	manifests := testregistry.Manifests
	for name, tt := range map[string]struct {
		fault *testregistry.Fault
		err   error
		say   string
	}{
		"cut":                   {fault: &testregistry.Fault{Match: manifests, Times: 1, Serve: testregistry.Cut(10)}},
		"429":                   {fault: &testregistry.Fault{Match: manifests, Times: 1, Serve: testregistry.Status(429)}},
		"404":                   {fault: &testregistry.Fault{Match: manifests, Serve: testregistry.Status(404)}, err: fault.ErrNotFound, say: "manifest v1: 404"},
		"over 4 MiB":            {fault: &testregistry.Fault{Match: manifests, Serve: other(make([]byte, 4<<20+1), false)}, err: fault.ErrCorrupt, say: "over 4194304"},
		"over 4 MiB, in chunks": {fault: &testregistry.Fault{Match: manifests, Serve: other(make([]byte, 4<<20+1), true)}, err: fault.ErrCorrupt, say: "over 4194304"},
		"flipped":               {fault: &testregistry.Fault{Match: manifests, Serve: testregistry.Flip(20)}, err: fault.ErrIntegrity},
		"digest header lies":    {fault: &testregistry.Fault{Match: manifests, Serve: testregistry.Header(func(h http.Header) { h.Set("Docker-Content-Digest", someDigest) })}, err: fault.ErrIntegrity},
		"content type lies":     {fault: &testregistry.Fault{Match: manifests, Serve: testregistry.Header(func(h http.Header) { h.Set("Content-Type", ocispec.MediaTypeImageIndex) })}, err: fault.ErrCorrupt, say: "calls itself"},
		"content type unknown":  {fault: &testregistry.Fault{Match: manifests, Serve: testregistry.Header(func(h http.Header) { h.Set("Content-Type", "text/plain; charset=utf-8") })}},
		"schema 1": {fault: &testregistry.Fault{Match: manifests, Serve: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
			io.WriteString(w, `{"schemaVersion":1,"fsLayers":[]}`)
		}}, err: fault.ErrUnsupported, say: "schema 1"},
		"HTML": {fault: &testregistry.Fault{Match: manifests, Serve: other([]byte("<html>log in first</html>"), false)}, err: fault.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Inject(tt.fault)
			img, err := w.open(t).Resolve(t.Context(), nil)
			switch {
			case tt.err == nil && (err != nil || img.Manifest.Digest != w.manifest.Digest):
				t.Errorf("%+v, %v", img, err)
			case tt.err != nil && !errors.Is(err, tt.err):
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if err != nil && !strings.Contains(err.Error(), tt.say) {
				t.Errorf("%v says nothing of %q", err, tt.say)
			}
			if tt.fault.Delivered() == 0 {
				t.Error("the fault was not delivered")
			}
		})
	}
}

// TestBadDigest: a hostile digest gets into no request.
func TestBadDigest(t *testing.T) {
	w := newWorld(t)
	r := w.open(t)
	for _, d := range []digest.Digest{"sha256:../../../etc/passwd", "sha256:", "", "md5:d41d8cd98f00b204e9800998ecf8427e", "x"} {
		if _, err := r.Blob(t.Context(), ocispec.Descriptor{Digest: d, Size: 1}); !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("Blob(%q): %v", d, err)
		}
		if _, err := r.BlobAt(t.Context(), ocispec.Descriptor{Digest: d, Size: 1}); !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("BlobAt(%q): %v", d, err)
		}
		if _, err := r.FetchManifest(t.Context(), ocispec.Descriptor{Digest: d, Size: 1}); !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("FetchManifest(%q): %v", d, err)
		}
	}
	if n := len(w.Requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

// TestIPv6: a registry by its IPv6 address.
func TestIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("skipped: no IPv6 here: %v", err)
	}
	w := &world{Registry: testregistry.New()}
	w.srv = &httptest.Server{Listener: l, Config: &http.Server{Handler: w}}
	w.srv.Start()
	t.Cleanup(w.srv.Close)
	w.fill()
	if !strings.HasPrefix(w.host, "[::1]:") {
		t.Fatal(w.host)
	}
	if _, err := w.open(t).Resolve(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// TestCancel: a cancelled context ends a stalled stream at once, and is not
// retried.
func TestCancel(t *testing.T) {
	w := newWorld(t)
	w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: testregistry.Stall(1000)})
	ctx, cancel := context.WithCancelCause(t.Context())
	b, err := w.open(t).Blob(ctx, w.layer)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := io.ReadFull(b, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	why := errors.New("the user went home")
	cancel(why)
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	if n := len(w.Requests()); n > 1 {
		t.Errorf("%d requests", n)
	}
}
