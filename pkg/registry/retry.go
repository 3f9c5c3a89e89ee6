package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

const (
	maxFailures  = 6               // in a row, without a byte of progress between them
	firstWait    = time.Second / 2 // doubles with each failure
	longestWait  = 30 * time.Second
	longestAsked = 5 * time.Minute
)

// statusError is an answer that is not the content.
type statusError struct {
	what   string // the request: a thing and where it was asked for
	status int
	detail string        // the registry's own words, bounded, on one line
	after  time.Duration // Retry-After; 0: none
	token  bool          // it is a token server's: whatever is refused is a matter of authentication
}

func (e *statusError) Error() string {
	s := strings.TrimSpace(fmt.Sprintf("%s: %d %s", e.what, e.status, http.StatusText(e.status)))
	if e.detail != "" {
		s += " (" + e.detail + ")"
	}
	return s
}

func (e *statusError) Is(target error) bool {
	switch e.status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return target == fault.ErrUnauthorized
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	if e.token && e.status < 500 {
		return target == fault.ErrUnauthorized
	}
	switch e.status {
	case http.StatusNotFound, http.StatusGone:
		return target == fault.ErrNotFound
	}
	return false
}

// errStalled is the end of a request that gave nothing for the idle timeout.
var errStalled = errors.New("no data for too long")

// finalError is an error that another try would not change.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// A retrier counts failures in a row and waits between them.
type retrier struct {
	c     *client
	fails int
}

// progress gives the whole budget back: a link that breaks once in a while must
// not end a long download.
func (r *retrier) progress() { r.fails = 0 }

// again waits until it is worth trying again after err, and returns nil then.
// It returns the error if it is not, without what the server may have repeated
// of our secrets.
func (r *retrier) again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err = r.c.secrets.scrub(err)
	r.fails++
	if !r.c.retryable(err) {
		return err
	}
	if r.fails >= r.c.o.Retries {
		return fmt.Errorf("%w (tried %d times)", err, r.fails)
	}
	wait := backoff(r.c.o.RetryWait, r.fails)
	if se, ok := errors.AsType[*statusError](err); ok && se.after > 0 {
		wait = min(se.after, r.c.o.LongestAsked)
	}
	r.c.notify("%v; trying again in %s", err, wait.Round(100*time.Millisecond))
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// backoff is exponential, between half and the whole of it by chance so that
// many clients do not come back at once.
func backoff(first time.Duration, fails int) time.Duration {
	d := min(first<<min(fails-1, 20), longestWait)
	return d/2 + rand.N(d/2+1)
}

// retryable tells the failures that pass from those that stay.
func (c *client) retryable(err error) bool {
	if _, ok := errors.AsType[finalError](err); ok {
		return false
	}
	if se, ok := errors.AsType[*statusError](err); ok {
		switch se.status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests:
			return true
		case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusNetworkAuthenticationRequired:
			return false
		}
		// Those beyond the standard's, too: 520 to 530 are a large CDN's for an
		// origin that it cannot reach just now.
		return se.status >= 500 && se.status < 600
	}
	if _, ok := errors.AsType[rangeError](err); ok {
		return true
	}
	for _, kind := range []error{fault.ErrIntegrity, fault.ErrCorrupt, fault.ErrUnsupported, fault.ErrNotFound,
		fault.ErrUnauthorized, fault.ErrUsage} {
		if errors.Is(err, kind) {
			return false
		}
	}
	if errors.Is(err, errStalled) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return true
	}
	// A certificate that is refused now will be refused again.
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return false
	}
	// So will what the other side refuses of our handshake: a TLS alert.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return false
	}
	// No port grows into one that there is.
	if _, ok := errors.AsType[*net.AddrError](err); ok {
		return false
	}
	// A host that never answered is more likely mistyped than restarting.
	if !c.answered.Load() && !(c.o.Expected != nil && c.o.Expected.Load()) {
		if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
			return false
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return false
		}
	}
	return true
}

// retryAfter reads a Retry-After header: seconds, or a date. That is a date by
// the server's clock, which the Date header tells; now is ours.
func retryAfter(header http.Header, now time.Time) time.Duration {
	h := strings.TrimSpace(header.Get("Retry-After"))
	if h == "" {
		return 0
	}
	if n, err := strconv.ParseUint(h, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(header.Get("Date")); err == nil {
		now = t
	}
	if t, err := http.ParseTime(h); err == nil && t.After(now) {
		return t.Sub(now)
	}
	return 0
}
