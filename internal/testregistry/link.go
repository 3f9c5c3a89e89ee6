package testregistry

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// A Link is a handler behind a slow network: each request takes a while to get
// there, and all answers together have a bandwidth.
type Link struct {
	Handler   http.Handler
	Delay     time.Duration // of each request
	Bandwidth int64         // bytes a second; 0: no bound

	mu   sync.Mutex
	free time.Time // when all that was sent is through
}

// linkChunk is what goes through at once, in bytes: other answers may be
// between two chunks of one.
const linkChunk = 16 << 10

// linkQueue is how much an answer may have handed to the link before it is
// sent: whoever wakes up too late has not kept the link waiting.
const linkQueue = 50 * time.Millisecond

// Listen serves the link on a port of the loopback interface.
func (l *Link) Listen() (host string, stop func(), err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: l, ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(ln)
	return ln.Addr().String(), func() { srv.Close() }, nil
}

// ServeHTTP implements http.Handler.
func (l *Link) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	select {
	case <-time.After(l.Delay):
	case <-req.Context().Done():
		return
	}
	l.Handler.ServeHTTP(&bodyWriter{ResponseWriter: w, edit: l.pass(w, req)}, req)
}

// pass sends bytes at the link's pace; what bodyWriter gets is what is left.
func (l *Link) pass(w http.ResponseWriter, req *http.Request) func([]byte) ([]byte, error) {
	var ready time.Time // when the next chunk can be handed over
	return func(p []byte) ([]byte, error) {
		for l.Bandwidth > 0 && len(p) > 0 {
			n := min(linkChunk, len(p))
			ready = l.wait(n, ready)
			if err := req.Context().Err(); err != nil {
				return nil, err // the client has gone, and takes no more
			}
			if _, err := w.Write(p[:n]); err != nil {
				return nil, err
			}
			p = p[n:]
		}
		return p, nil
	}
}

// wait takes n bytes' time on the link, and says when that is over.
func (l *Link) wait(n int, ready time.Time) time.Time {
	now := time.Now()
	if ready.IsZero() {
		ready = now
	}
	if late := now.Add(-linkQueue); ready.Before(late) {
		ready = late
	}
	l.mu.Lock()
	if l.free.Before(ready) {
		l.free = ready
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.Bandwidth) * float64(time.Second)))
	end := l.free
	l.mu.Unlock()
	time.Sleep(end.Sub(now))
	return end
}
