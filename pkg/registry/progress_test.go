package registry

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// TestProgress: what is told to have arrived is right, grows, and is all in the
// end, although the connection breaks in between.
func TestProgress(t *testing.T) {
	w := newWorld(t)
	b := w.blobAt(t)
	cut := w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Times: 1, Serve: testregistry.Cut(200_000)})
	p := make([]byte, 290_000)
	last, told := 0, 0
	n, err := b.ReadAtProgress(t.Context(), p, 5000, func(n int) {
		told++
		if n < last || !bytes.Equal(p[:n], w.blob[5000:][:n]) {
			t.Errorf("%d bytes are told, after %d, or are wrong", n, last)
		}
		last = n
	})
	if n != len(p) || err != nil || last != len(p) || told < 3 {
		t.Errorf("%d bytes, %v; %d told, %d times", n, err, last, told)
	}
	if cut.Delivered() != 1 {
		t.Error("nothing was cut")
	}
}

// TestProgressCancelled: who gives up keeps what there is.
func TestProgressCancelled(t *testing.T) {
	w := newWorld(t)
	b := w.blobAt(t)
	w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: testregistry.Stall(150_000)})
	ctx, cancel := context.WithCancel(t.Context())
	p := make([]byte, 290_000)
	n, err := b.ReadAtProgress(ctx, p, 0, func(int) { cancel() })
	if !errors.Is(err, context.Canceled) || n == 0 || n > 150_000 || !bytes.Equal(p[:n], w.blob[:n]) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestSuspect: after wrong bytes another place is asked, and said to be.
func TestSuspect(t *testing.T) {
	w, mirror, conf := mirrored(t)
	mirror.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: testregistry.Flip(10)})
	b := w.blobAt(t, conf)
	p := make([]byte, 1000)
	if _, err := b.ReadAtContext(t.Context(), p, 0); err != nil || p[10] == w.blob[10] {
		t.Fatalf("%v, or nothing was flipped", err)
	}
	if w.lines = nil; len(w.Requests()) != 0 {
		t.Error("the registry was asked")
	}
	b.Suspect(errors.New("digests differ"))
	if _, err := b.ReadAtContext(t.Context(), p, 0); err != nil || !bytes.Equal(p, w.blob[:1000]) {
		t.Errorf("%v, or wrong bytes", err)
	}
	if len(w.Requests()) != 1 || !strings.Contains(w.said(), "digests differ") {
		t.Errorf("%d requests to the registry; said: %s", len(w.Requests()), w.said())
	}
	// Where there is nobody else, nothing changes.
	alone := w.blobAt(t)
	alone.Suspect(errors.New("x"))
	if _, err := alone.ReadAtContext(t.Context(), p, 0); err != nil {
		t.Error(err)
	}
}
