package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// maxRedirects is where every client stops.
const maxRedirects = 10

// maxErrorBody bounds what is read of an error's body.
const maxErrorBody = 8 << 10

// client sends requests to one host on behalf of one repository.
type client struct {
	o         *Options
	ref       Reference // what the repository is called there
	place     place
	base      url.URL // of the API; its scheme counts only once sure
	host      string  // with port
	transport *http.Transport
	elsewhere *http.Transport // to hosts that are neither the registry's nor its token server's
	realm     atomic.Value    // the token server's host name
	auth      *authorizer
	secrets   secrets
	answered  atomic.Bool  // the host has answered at least once
	used      atomic.Bool  // it has given something
	rests     atomic.Int64 // until when it is asked last, after a failure; Unix nanoseconds

	mu   sync.Mutex
	sure bool // the scheme is the right one
}

func newClient(p place, user Options) (*client, error) {
	o := p.options(user)
	p.takeCerts(o)
	t, err := newTransport(o, &p)
	if err != nil {
		return nil, err
	}
	c := &client{o: o, ref: p.ref, place: p, transport: t, elsewhere: withoutCertificates(t)}
	c.base, c.sure = p.address(o.PlainHTTP)
	c.host = c.base.Host
	c.auth = newAuthorizer(c, p.ref.Repository)
	c.secrets.add(o.Password)
	for _, values := range p.header {
		c.secrets.add(values...)
	}
	return c, nil
}

func (c *client) notify(format string, args ...any) {
	if c.o.Notify != nil {
		c.o.Notify(c.secrets.scrubText(fmt.Sprintf(format, args...)))
	}
}

func (c *client) verbose(format string, args ...any) {
	if c.o.Verbose != nil {
		c.o.Verbose(c.secrets.scrubText(fmt.Sprintf(format, args...)))
	}
}

// scheme is how the host is spoken to, as far as that is known.
func (c *client) scheme() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.base.Scheme
}

// url is an endpoint of the repository. ref must be a valid tag or digest.
func (c *client) url(kind, ref string) *url.URL {
	u := &url.URL{Scheme: c.scheme(), Host: c.host, Path: c.base.Path + "/" + c.ref.Repository + "/" + kind + "/" + ref}
	if c.place.namespace != "" {
		u.RawQuery = url.Values{"ns": {c.place.namespace}}.Encode()
	}
	return u
}

// findScheme asks a host that may speak plain HTTP what it speaks. HTTPS is
// preferred.
func (c *client) findScheme(ctx context.Context) error {
	c.mu.Lock()
	sure, u := c.sure, c.base
	c.mu.Unlock()
	if sure {
		return nil
	}
	u.Scheme, u.Path = "https", u.Path+"/"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := c.roundTrip(req)
	if err == nil {
		discard(resp)
	} else if notEncrypted(err) {
		u.Scheme = "http"
	} else {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sure, c.base.Scheme = true, u.Scheme
	return nil
}

// notEncrypted tells the ways in which servers without HTTPS, or nobody at its
// port, answer the start of a TLS connection.
func notEncrypted(err error) bool {
	for _, e := range []error{errPlainHTTP, errNotHTTPS, syscall.ECONNREFUSED, syscall.ECONNRESET, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// get sends one GET or HEAD to the registry, with what authentication it wants,
// and follows redirects. Any answer but 200 and 206 is an error. what names the
// thing that is asked for.
func (c *client) get(ctx context.Context, method string, u *url.URL, header http.Header, what string) (*http.Response, error) {
	if err := c.findScheme(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if u.Host == c.host && u.Scheme != c.scheme() {
		v := *u
		v.Scheme = c.scheme()
		u = &v
	}
	used, fresh := c.auth.current(), false
	for {
		resp, err := c.send(ctx, method, u, header, used)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, c.secrets.scrub(err))
		}
		switch {
		case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent:
			c.auth.accepted(used)
			return resp, nil
		case c.refused(resp, used) && !fresh && sameOrigin(u, resp.Request.URL):
			// Only the registry's own word counts: a 401 of a redirect's target
			// is about its signature. What it refuses though it is fresh, it refuses.
			discard(resp)
			if used, fresh, err = c.auth.renew(ctx, used, resp); err != nil {
				return nil, fmt.Errorf("%s: %w", what, err)
			}
		default:
			e := c.statusError(what, resp)
			if e.status == http.StatusUnauthorized && c.auth.anonymous.Load() {
				// Docker Hub's answer, say, for a name that nobody has.
				return nil, fmt.Errorf("%w: no such repository, or one that wants credentials, and none are known", e)
			}
			return nil, e
		}
	}
}

// refused says that another header may change an answer.
func (c *client) refused(resp *http.Response, used string) bool {
	return resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden && c.auth.stale(used)
}

// send sends one request with an Authorization header ("": none).
func (c *client) send(ctx context.Context, method string, u *url.URL, header http.Header, authorization string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	// Without this a proxy may compress what it passes on.
	req.Header.Set("Accept-Encoding", "identity")
	if sameOrigin(u, &url.URL{Scheme: c.scheme(), Host: c.host}) {
		for k, v := range c.place.header {
			req.Header[k] = v
		}
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	return c.follow(req)
}

// follow sends a request and follows its redirects. Credentials do not leave
// the origin that they are meant for, not even to come back to it, and what
// began encrypted stays so.
func (c *client) follow(req *http.Request) (*http.Response, error) {
	first, left := req.URL, false
	for n := 0; ; n++ {
		resp, err := c.roundTrip(req)
		if err != nil {
			return nil, err
		}
		resp.Request = req
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		discard(resp)
		if n == maxRedirects {
			return nil, finalError{fmt.Errorf("over %d redirects", maxRedirects)}
		}
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			return nil, finalError{fmt.Errorf("a redirect in answer to %s: %w", req.Method, fault.ErrUnsupported)}
		}
		next, err := redirected(req, resp.Header.Get("Location"))
		if err != nil {
			return nil, finalError{err}
		}
		req = req.Clone(req.Context())
		req.URL, req.Host = next, ""
		if left = left || !sameOrigin(first, next); left {
			req.Header.Del("Authorization")
			for k := range c.place.header {
				req.Header.Del(k)
			}
		}
	}
}

// redirected is where an answer to a request sends us. A user and a password
// that the address names are not ours to send.
func redirected(req *http.Request, location string) (*url.URL, error) {
	next, err := req.URL.Parse(location)
	if err != nil || location == "" || next.Host == "" || next.Scheme != "http" && next.Scheme != "https" {
		return nil, errors.New("redirected to a bad address")
	}
	if req.URL.Scheme == "https" && next.Scheme == "http" {
		return nil, fmt.Errorf("redirected from https to http, at %s: refused", next.Host)
	}
	next.User = nil
	return next, nil
}

// sameOrigin compares scheme, host and port.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}

// discard ends a response whose body nobody wants, in a way that keeps the
// connection if the body is short.
func discard(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, maxErrorBody)
	resp.Body.Close()
}

// statusError makes an error of an answer, and closes it.
func (c *client) statusError(what string, resp *http.Response) *statusError {
	e := &statusError{what: what, status: resp.StatusCode, after: retryAfter(resp.Header, time.Now())}
	if resp.Request != nil && resp.Request.URL.Host != c.host {
		e.what += " at " + resp.Request.URL.Host
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	resp.Body.Close()
	e.detail = c.secrets.scrubText(oneLine(errorDetail(b), 200))
	return e
}

// errorDetail is what the body of an error says: of a registry as the
// distribution spec has it, of a token server as OAuth2 (RFC 6749, section 5.2)
// or Docker Hub's has it.
func errorDetail(b []byte) string {
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Description string `json:"error_description"`
		Details     string `json:"details"`
	}
	// A field of another type stays empty, and the others are read all the same.
	json.Unmarshal(b, &body)
	if len(body.Errors) > 0 {
		return cmp.Or(body.Errors[0].Message, body.Errors[0].Code)
	}
	return cmp.Or(body.Description, body.Details)
}

// oneLine makes foreign text fit into a line of ours.
func oneLine(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strings.TrimSpace(s)
}
