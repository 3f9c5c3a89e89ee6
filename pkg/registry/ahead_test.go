package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// addLayers puts layers of these sizes into the repository.
func (w *world) addLayers(sizes ...int) (list []ocispec.Descriptor, data [][]byte) {
	rnd := rand.NewChaCha8([32]byte{1})
	for _, n := range sizes {
		b := make([]byte, n)
		rnd.Read(b)
		list = append(list, w.AddBlob("test/app", ocispec.MediaTypeImageLayerGzip, b))
		data = append(data, b)
	}
	return list, data
}

func readAhead(a *Ahead, d ocispec.Descriptor) ([]byte, error) {
	r, err := a.Blob(context.Background(), d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestAhead(t *testing.T) {
	w := newWorld(t)
	probe := w.open(t).Ahead(t.Context(), nil, 2)
	probe.Close()
	piece := int(probe.piece)
	list, data := w.addLayers(1, piece-1, piece, piece+1, 3*piece+5, 17)
	list = append(list, list[1], w.config)
	data = append(data, data[1], nil)
	for _, tt := range []struct {
		name   string
		inject func()
	}{
		{"quiet", func() {}},
		{"cuts", func() {
			var n atomic.Int64
			w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool { return testregistry.Blobs(req) && n.Add(1)%3 == 0 }, Serve: testregistry.Cut(1000)})
		}},
		{"no ranges", w.NoRanges}, // the last one: it stays
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.ClearFaults()
			w.Reset()
			tt.inject()
			a := w.open(t).Ahead(t.Context(), list, 2)
			defer a.Close()
			for i, d := range list[:7] {
				if b, err := readAhead(a, d); err != nil || !bytes.Equal(b, data[i]) {
					t.Errorf("layer %d: %d bytes, %v, want %d", i, len(b), err, len(data[i]))
				}
			}
			var total int64
			for _, d := range list[:7] {
				total += d.Size
			}
			if got := w.TotalServed(); tt.name == "quiet" && got > total+w.config.Size {
				t.Errorf("%d bytes served for %d", got, total)
			}
		})
	}
}

// TestAheadNoRanges: where a registry refuses ranges, or mixes them up, the
// layers come as a stream.
func TestAheadNoRanges(t *testing.T) {
	for name, serve := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"400": testregistry.Status(400),
		"416": testregistry.Status(416),
		"501": testregistry.Status(501),
		"several ranges": func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
			req.Header.Set("Range", req.Header.Get("Range")+",0-0")
			next.ServeHTTP(rw, req)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			list, data := w.addLayers(2000, maxPiece+10, 3000)
			f := w.Inject(&testregistry.Fault{
				Match: func(req *http.Request) bool { return testregistry.Blobs(req) && req.Header.Get("Range") != "" },
				Serve: serve,
			})
			a := w.open(t).Ahead(t.Context(), list, 2)
			defer a.Close()
			for i, d := range list {
				if b, err := readAhead(a, d); err != nil || !bytes.Equal(b, data[i]) {
					t.Errorf("layer %d: %d bytes, %v, want %d", i, len(b), err, len(data[i]))
				}
			}
			if f.Delivered() == 0 {
				t.Error("no range was asked for")
			}
		})
	}
}

// TestAheadErrors: what is wrong with a blob shows when it is opened, or at its
// end; the others are as they were.
func TestAheadErrors(t *testing.T) {
	w := newWorld(t)
	list, data := w.addLayers(1000, 2000, maxPiece+10, 3000)
	bad := append([]byte(nil), data[2]...)
	bad[maxPiece+3] ^= 1
	w.PutBlob("test/app", list[2].Digest, bad)
	missing := list[1]
	missing.Digest = "sha256:" + missing.Digest[7+2:] + "00"
	a := w.open(t).Ahead(t.Context(), []ocispec.Descriptor{list[0], missing, list[2], list[3]}, 2)
	defer a.Close()
	if b, err := readAhead(a, list[0]); err != nil || !bytes.Equal(b, data[0]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := a.Blob(t.Context(), missing); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if _, err := readAhead(a, list[2]); !errors.Is(err, fault.ErrIntegrity) {
		t.Errorf("flipped: %v", err)
	}
	if b, err := readAhead(a, list[3]); err != nil || !bytes.Equal(b, data[3]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestAheadClose gives up in the middle: nothing hangs, nothing goes on.
func TestAheadClose(t *testing.T) {
	w := newWorld(t)
	list, data := w.addLayers(5*maxPiece, 5*maxPiece)
	w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool {
		return testregistry.Blobs(req) && !strings.HasPrefix(req.Header.Get("Range"), "bytes=0-")
	}, Serve: testregistry.Stall(10)})
	a := w.open(t).Ahead(t.Context(), list, 2)
	r, err := a.Blob(t.Context(), list[0])
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, a.piece/4) // of the first piece
	if _, err := io.ReadFull(r, p); err != nil || !bytes.Equal(p, data[0][:len(p)]) {
		t.Error(err)
	}
	r.Close()
	a.Close()
}

// TestAheadMemory: what is in memory does not grow with the connections.
func TestAheadMemory(t *testing.T) {
	r := newWorld(t).open(t)
	for n := 2; n <= 64; n++ {
		a := r.Ahead(t.Context(), nil, n)
		if total := a.piece*int64(cap(a.window)) + int64(n)*readBuffer; total > aheadMemory || a.piece < minPiece || cap(a.free) > cap(a.window) {
			t.Errorf("%d connections: %d pieces of %d bytes", n, cap(a.window), a.piece)
		}
		a.Close()
	}
}

// TestAheadArrives: what has arrived of a piece is read before the rest is
// there, and once more after the connection broke there.
func TestAheadArrives(t *testing.T) {
	w := newWorld(t)
	list, data := w.addLayers(300_000, 300_000)
	goOn := make(chan struct{})
	var cuts atomic.Int64
	f := w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Times: 4, Serve: func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
		testregistry.Cut(100_000)(rw, req, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			if cuts.Add(1) > 2 {
				<-goOn // nothing more until what there is was read
			}
			next.ServeHTTP(rw, req)
		}))
	}})
	a := w.open(t).Ahead(t.Context(), list, 2)
	defer a.Close()
	for i, d := range list {
		r, err := a.Blob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 100_000)
		if _, err := io.ReadFull(r, got); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			close(goOn)
		}
		rest, err := io.ReadAll(r)
		if got = append(got, rest...); err != nil || !bytes.Equal(got, data[i]) {
			t.Errorf("layer %d: %d bytes, %v", i, len(got), err)
		}
		r.Close()
	}
	if f.Delivered() != 4 {
		t.Errorf("%d connections were cut", f.Delivered())
	}
}
