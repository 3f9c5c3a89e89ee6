package registry

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestReferrers(t *testing.T) {
	w := newWorld(t)
	attach := func(kind string) ocispec.Descriptor {
		m := manifestOf(w.config, w.layer)
		m.ArtifactType, m.Subject = kind, &w.manifest
		d := w.AddManifest("test/app", "", ocispec.MediaTypeImageManifest, m)
		d.ArtifactType = kind
		return d
	}
	index, signature := attach("application/vnd.index"), attach("application/vnd.signature")
	look := func(how, kind string, want ...ocispec.Descriptor) {
		t.Helper()
		list, err := w.open(t).Referrers(t.Context(), w.manifest.Digest, kind)
		if err != nil || len(list) != len(want) {
			t.Errorf("%s: %+v, %v", how, list, err)
			return
		}
		for _, d := range want {
			if !strings.Contains(fmt.Sprint(list), d.Digest.String()) {
				t.Errorf("%s: no %s in %+v", how, d.ArtifactType, list)
			}
		}
	}
	look("API", "", index, signature)
	look("API, filtered", "application/vnd.index", index)

	f := w.Inject(&testregistry.Fault{Match: testregistry.Path("/referrers/"), Serve: testregistry.Status(404)})
	look("no API, no tag", "")
	x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{index, signature}}
	w.AddManifest("test/app", strings.Replace(w.manifest.Digest.String(), ":", "-", 1), ocispec.MediaTypeImageIndex, x)
	look("tag", "", index, signature)
	look("tag, filtered", "application/vnd.signature", signature)
	if f.Delivered() != 3 {
		t.Errorf("%d requests without the API", f.Delivered())
	}

	// Of a longer digest the tag has the first 64 digits only.
	long := digest.SHA512.FromString("x")
	w.AddManifest("test/app", "sha512-"+long.Encoded()[:64], ocispec.MediaTypeImageIndex, x)
	if list, err := w.open(t).Referrers(t.Context(), long, ""); err != nil || len(list) != 2 {
		t.Errorf("sha512: %v, %v", list, err)
	}

	// A mirror has the image, and nothing that is attached to it.
	w.ClearFaults()
	mirror := newWorld(t)
	r := w.open(t, mirroredBy(t, w, mirror))
	if list, err := r.Referrers(t.Context(), w.manifest.Digest, ""); err != nil || len(list) != 2 || len(mirror.Requests()) == 0 {
		t.Errorf("by a mirror without: %v, %v, after %d requests to it", list, err, len(mirror.Requests()))
	}

	// Pages without end.
	w.ClearFaults()
	w.Inject(&testregistry.Fault{Match: testregistry.Path("/referrers/"), Serve: testregistry.Header(func(h http.Header) {
		h.Set("Link", `</v2/test/app/referrers/`+w.manifest.Digest.String()+`?n=1>; rel="next"`)
	})})
	if _, err := w.open(t).Referrers(t.Context(), w.manifest.Digest, ""); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("endless pages: %v", err)
	}
	// Few pages, but large ones.
	w.ClearFaults()
	w.Inject(&testregistry.Fault{Match: testregistry.Path("/referrers/"), Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
		n := len(req.URL.RawQuery)
		if n < 4 {
			rw.Header().Set("Link", "<?"+strings.Repeat("n", n+1)+`>; rel="next"`)
		}
		fmt.Fprintf(rw, `{"schemaVersion":2,"manifests":[],"annotations":{"a":%q}}`, strings.Repeat("x", 3<<20))
	}})
	if _, err := w.open(t).Referrers(t.Context(), w.manifest.Digest, ""); !errors.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("large pages: %v", err)
	}
	if _, err := w.open(t).Referrers(t.Context(), "sha256:../x", ""); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("bad digest: %v", err)
	}
}
