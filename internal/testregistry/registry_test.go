package testregistry

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestRegistry asks as a client does, and looks at what was counted.
func TestRegistry(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	r := New()
	if err := r.AddLayout("team/app", im.Dir); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r)
	defer srv.Close()
	ask := func(method, path, rng string) (int, []byte, http.Header) {
		t.Helper()
		req, err := http.NewRequest(method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rng != "" {
			req.Header.Set("Range", rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, nil, nil
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return 0, b, nil
		}
		return resp.StatusCode, b, resp.Header
	}
	layer := im.Layers[0]
	blob := "/v2/team/app/blobs/" + layer.Digest.String()
	if code, _, _ := ask("GET", "/v2/", ""); code != 200 {
		t.Errorf("/v2/: %d", code)
	}
	for _, ref := range []string{testimage.Tag, im.Manifest.Digest.String()} {
		code, b, h := ask("GET", "/v2/team/app/manifests/"+ref, "")
		if code != 200 || int64(len(b)) != im.Manifest.Size || h.Get("Content-Type") != im.Manifest.MediaType {
			t.Errorf("manifest %s: %d, %d bytes, %v", ref, code, len(b), h)
		}
	}
	if code, b, h := ask("HEAD", blob, ""); code != 200 || len(b) != 0 || h.Get("Content-Length") == "" {
		t.Errorf("HEAD: %d, %v", code, h)
	}
	_, whole, _ := ask("GET", blob, "")
	if code, b, h := ask("GET", blob, "bytes=10-19"); code != 206 || !bytes.Equal(b, whole[10:20]) || h.Get("Content-Range") == "" {
		t.Errorf("range: %d, %q, %v", code, b, h)
	}
	if got, want := r.Served()[layer.Digest], layer.Size+10; got != want {
		t.Errorf("%d bytes of the layer were served, want %d", got, want)
	}
	for _, path := range []string{"/v2/nosuch/manifests/latest", "/v2/team/app/manifests/nosuch", "/v2/team/app/blobs/sha256:0", "/x"} {
		if code, _, _ := ask("GET", path, ""); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	r.NoRanges()
	if code, b, _ := ask("GET", blob, "bytes=10-19"); code != 200 || !bytes.Equal(b, whole) {
		t.Errorf("no ranges: %d, %d bytes", code, len(b))
	}
	f := r.Inject(&Fault{Match: Blobs, Times: 2, Serve: Cut(5)})
	for range 3 {
		ask("GET", blob, "")
	}
	if f.Delivered() != 2 {
		t.Errorf("the fault was delivered %d times", f.Delivered())
	}
	r.Reset()
	if len(r.Requests()) != 0 || r.TotalServed() != 0 {
		t.Error("Reset left something")
	}
	r.Basic("user", "password")
	if code, _, h := ask("GET", "/v2/", ""); code != 401 || h.Get("Www-Authenticate") == "" {
		t.Errorf("basic: %d, %v", code, h)
	}
}
