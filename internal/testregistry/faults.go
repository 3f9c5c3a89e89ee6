package testregistry

import (
	"net/http"
	"strings"
	"sync/atomic"
)

// An Answer is given in place of the registry's. It may call next for a part of
// that, and panic with http.ErrAbortHandler to drop the connection.
type Answer func(w http.ResponseWriter, req *http.Request, next http.Handler)

// A Fault is what goes wrong with some requests.
type Fault struct {
	// Match chooses the requests; nil: all.
	Match func(*http.Request) bool
	// Times is how often it happens; 0: always.
	Times int
	Serve Answer

	delivered atomic.Int64
}

// Delivered is how often the fault has happened.
func (f *Fault) Delivered() int { return int(f.delivered.Load()) }

// Inject adds a fault. The first one that matches a request happens to it.
func (r *Registry) Inject(f *Fault) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
	return f
}

// ClearFaults takes all faults away.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// fault is what happens to a request, or nil.
func (r *Registry) fault(req *http.Request) *Fault {
	r.mu.Lock()
	faults := r.faults
	r.mu.Unlock()
	for _, f := range faults {
		if f.Match != nil && !f.Match(req) {
			continue
		}
		if n := f.delivered.Add(1); f.Times > 0 && n > int64(f.Times) {
			f.delivered.Add(-1)
			continue
		}
		return f
	}
	return nil
}

// Path matches the requests whose path contains s.
func Path(s string) func(*http.Request) bool {
	return func(req *http.Request) bool { return strings.Contains(req.URL.Path, s) }
}

// Blobs and Manifests match the requests for one kind of thing.
var (
	Blobs     = Path("/blobs/")
	Manifests = Path("/manifests/")
)

// Status answers with a status, and headers given as name, value, ...
func Status(status int, headers ...string) Answer {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		fail(w, status, "TEST")
	}
}

// Cut drops the connection after n bytes of the body.
func Cut(n int64) Answer {
	return after(n, func(*http.Request) {})
}

// Stall sends n bytes of the body and then nothing more until the client goes.
func Stall(n int64) Answer {
	return after(n, func(req *http.Request) { <-req.Context().Done() })
}

// after calls end once n bytes of the body are sent, and then drops the
// connection.
func after(n int64, end func(*http.Request)) Answer {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		n := n
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, edit: func(p []byte) ([]byte, error) {
			if int64(len(p)) >= n {
				w.Write(p[:n])
				http.NewResponseController(w).Flush()
				end(req)
				panic(http.ErrAbortHandler)
			}
			n -= int64(len(p))
			return p, nil
		}}, req)
	}
}

// Flip inverts one bit of the body's byte at off.
func Flip(off int64) Answer {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		var pos int64
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, edit: func(p []byte) ([]byte, error) {
			if i := off - pos; i >= 0 && i < int64(len(p)) {
				p = append([]byte(nil), p...)
				p[i] ^= 1
			}
			pos += int64(len(p))
			return p, nil
		}}, req)
	}
}

// Header changes the headers of the registry's own answer just before they go.
func Header(change func(http.Header)) Answer {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		next.ServeHTTP(&headerWriter{ResponseWriter: w, change: change}, req)
	}
}

// bodyWriter edits a body on its way.
type bodyWriter struct {
	http.ResponseWriter
	edit func([]byte) ([]byte, error)
}

func (w *bodyWriter) Write(p []byte) (int, error) {
	q, err := w.edit(p)
	if err != nil {
		return 0, err
	}
	if _, err := w.ResponseWriter.Write(q); err != nil {
		return 0, err
	}
	return len(p), nil
}

// headerWriter edits the headers once.
type headerWriter struct {
	http.ResponseWriter
	change func(http.Header)
}

func (w *headerWriter) WriteHeader(status int) {
	if w.change != nil {
		w.change(w.Header())
		w.change = nil
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *headerWriter) Write(p []byte) (int, error) {
	if w.change != nil {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets a fault within a fault flush what it wrote.
func (w *bodyWriter) Unwrap() http.ResponseWriter   { return w.ResponseWriter }
func (w *headerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
