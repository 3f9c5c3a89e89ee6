package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// origin is where a blob is asked for: at the registry, at a mirror, or at the
// address of a foreign layer.
type origin struct {
	c       *client
	u       *url.URL
	foreign bool
	// location is where random reads were last redirected. Most registries keep
	// blobs elsewhere, and would otherwise be asked twice for each read.
	location atomic.Pointer[url.URL]
}

// get asks for a blob, or for a range of it.
func (o *origin) get(ctx context.Context, header http.Header, what string) (resp *http.Response, err error) {
	if !o.foreign {
		return o.c.get(ctx, http.MethodGet, o.u, header, what)
	}
	resp, err = o.c.send(ctx, http.MethodGet, o.u, header, "")
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", what, o.u.Host, o.c.secrets.scrub(err))
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return nil, o.c.statusError(what, resp)
	}
	return resp, nil
}

// left reports whether an address is at another place than the origin.
func (o *origin) left(u *url.URL) bool {
	home := *o.u
	if !o.foreign {
		home.Scheme = o.c.scheme()
	}
	return !sameOrigin(&home, u)
}

// parseForeign accepts the address of a foreign layer: HTTPS only.
func parseForeign(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("bad address of a foreign layer")
	}
	return u, nil
}

// rangeHeader asks for the bytes [off, end). It is always closed: an open range
// is what some servers answer with 416.
func rangeHeader(off, end int64) http.Header {
	return http.Header{"Range": {"bytes=" + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(end-1, 10)}}
}

// refusesRange reports whether a server does not take a range, which is another
// thing than to ignore it: some answer 416, as if there were nothing at that
// place, or take the header for a mistake. Without it they may give the blob.
func refusesRange(err error) bool {
	se, ok := errors.AsType[*statusError](err)
	if !ok {
		return false
	}
	switch se.status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusPreconditionFailed,
		http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented:
		return true
	}
	return false
}

// contentRange is what a 206 says it holds: [start, end) of total bytes, -1 if
// the server does not tell.
type contentRange struct{ start, end, total int64 }

// parseContentRange reads "bytes 0-499/1234" (RFC 9110, section 14.4).
func parseContentRange(s string) (r contentRange, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return r, false
	}
	span, total, ok1 := strings.Cut(s, "/")
	first, last, ok2 := strings.Cut(span, "-")
	if !ok1 || !ok2 {
		return r, false
	}
	num := func(s string) int64 {
		// 60 bits: a sum of two does not overflow.
		n, err := strconv.ParseUint(s, 10, 60)
		if err != nil {
			ok = false
		}
		return int64(n)
	}
	r.start, r.end, r.total = num(first), num(last)+1, -1
	if total != "*" {
		r.total = num(total)
	}
	if !ok || r.end <= r.start || r.total >= 0 && r.end > r.total {
		return contentRange{}, false
	}
	return r, true
}

// A rangeError is an answer to another range than was asked for. Something on
// the way has mixed it up, and the next answer may be right.
type rangeError struct{ error }

func (e rangeError) Unwrap() error { return e.error }

func rangeErrorf(format string, args ...any) error {
	return rangeError{fmt.Errorf(format, args...)}
}

// checkRange tells whether a 206 is what was asked for: it starts at off, goes
// no further than end, and agrees on the size of the blob.
func checkRange(resp *http.Response, off, end, size int64, what string) (contentRange, error) {
	h := resp.Header.Get("Content-Range")
	r, ok := parseContentRange(h)
	switch {
	case !ok:
		return r, rangeErrorf("%s: range %d-%d answered with the range %q: %w", what, off, end-1, oneLine(h, 60), fault.ErrIntegrity)
	case r.start != off || r.end > end:
		return r, rangeErrorf("%s: range %d-%d answered with %d-%d: %w", what, off, end-1, r.start, r.end-1, fault.ErrIntegrity)
	case size > 0 && r.total >= 0 && r.total != size:
		return r, fmt.Errorf("%s: the registry has %d bytes, want %d: %w", what, r.total, size, fault.ErrIntegrity)
	case resp.ContentLength >= 0 && resp.ContentLength != r.end-r.start:
		return r, rangeErrorf("%s: range %d-%d has a length of %d: %w", what, r.start, r.end-1, resp.ContentLength, fault.ErrIntegrity)
	}
	return r, nil
}
