package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// TestSoak has random faults at every request. What arrives is right, or the
// download fails cleanly; it is never wrong. Every other time there is a mirror,
// no better than the registry. SOAK=1m makes it run that long.
func TestSoak(t *testing.T) {
	length := time.Second
	if s := os.Getenv("SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	w, mirror, conf := mirrored(t)
	tokens := w.Bearer(&testregistry.Tokens{User: user, Password: password})
	layers, data := w.addLayers(10_000, 5_000_000, 70_000, 1)
	mirror.addLayers(10_000, 5_000_000, 70_000, 1)
	nowAndThen := testregistry.Mischief(3, func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
		tokens.Revoke()
		next.ServeHTTP(rw, req)
	})
	f, g := w.Inject(&testregistry.Fault{Serve: nowAndThen}), mirror.Inject(&testregistry.Fault{Serve: nowAndThen})
	right, failed := 0, 0
	// On a slow machine it goes on until it has seen both outcomes.
	for end, round := time.Now().Add(length), 0; time.Now().Before(end) || right == 0 || failed == 0 || round < 2; round++ {
		with := []func(*Options){withLogin}
		if round%2 == 1 {
			with = append(with, conf)
		}
		r := w.open(t, with...)
		a := r.Ahead(t.Context(), layers, 3)
		for i, d := range layers {
			var b []byte
			var err error
			if (i+right)%2 == 0 {
				b, err = readAhead(a, d)
			} else {
				b, err = readBlob(r, d)
			}
			switch {
			case err != nil:
				failed++
				noSecret(t, err.Error())
			case !bytes.Equal(b, data[i]):
				t.Fatalf("layer %d: %d bytes came as good and are wrong", i, len(b))
			default:
				right++
			}
			at, err := r.BlobAt(context.Background(), d)
			if err != nil {
				t.Fatal(err)
			}
			// A random read is not verified, but it is complete or an error.
			p := make([]byte, 100)
			if n, err := at.ReadAtContext(context.Background(), p, d.Size/2); err == nil && n != len(p) || err == io.EOF && int64(n) != d.Size-d.Size/2 {
				t.Fatalf("layer %d: %d bytes, %v", i, n, err)
			}
		}
		a.Close()
		r.Close()
	}
	noSecret(t, fmt.Sprint(w.said()))
	if g.Delivered() == 0 {
		t.Error("the mirror was never asked")
	}
	t.Logf("%d blobs right, %d failed, %d requests, %d to the mirror", right, failed, f.Delivered(), g.Delivered())
}
