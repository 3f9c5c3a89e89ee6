package testregistry

import (
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// Mischief does one thing or another, by chance, to one request in so many, of
// the faults that a registry, its network or its cache are known for; more are
// the test's own.
func Mischief(oneIn int, more ...Answer) Answer {
	body := func(b string) Answer {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.Write([]byte(b)) }
	}
	asks := func(change func(http.Header)) Answer {
		return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			change(req.Header)
			next.ServeHTTP(w, req)
		}
	}
	faults := append([]Answer{
		Status(500), Status(503), Status(429), Status(404), Status(416),
		Cut(0), Cut(1), Cut(5000), Cut(40_000), Flip(0), Flip(3333),
		Header(func(h http.Header) { h.Set("Content-Range", "bytes 1-2/3") }),
		Header(func(h http.Header) { h.Set("Content-Encoding", "gzip") }),
		Header(func(h http.Header) { h.Del("Content-Length") }), // in chunks
		body("nonsense"), body(""),
		asks(func(h http.Header) { h.Del("Range") }),
		asks(func(h http.Header) { h.Set("Range", "bytes=1-100") }),
		func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
			http.Redirect(w, req, req.URL.Path+"?again", http.StatusFound)
		},
	}, more...)
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		mu.Lock()
		serve, hit := faults[rnd.IntN(len(faults))], rnd.IntN(oneIn) == 0
		mu.Unlock()
		if !hit {
			serve = func(w http.ResponseWriter, req *http.Request, next http.Handler) { next.ServeHTTP(w, req) }
		}
		serve(w, req, next)
	}
}
