package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// readBuffer is how much of a connection is read at once, in bytes.
const readBuffer = 64 << 10

// newTransport makes the connections of one client.
func newTransport(o *Options, p *place) (*http.Transport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Insecure}
	authorities, certs := slices.Clone(p.caFiles), slices.Clone(p.certFiles)
	if o.CAFile != "" {
		authorities = append(authorities, o.CAFile)
	}
	if o.CertFile != "" || o.KeyFile != "" {
		if o.CertFile == "" || o.KeyFile == "" {
			return nil, fault.Usagef("a client certificate needs its key, and a key its certificate")
		}
		certs = append(certs, [2]string{o.CertFile, o.KeyFile})
	}
	for _, name := range authorities {
		pem, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if conf.RootCAs == nil {
			if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
				conf.RootCAs = x509.NewCertPool()
			}
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.Usagef("%s: no certificate in it", name)
		}
	}
	for _, pair := range certs {
		cert, err := tls.LoadX509KeyPair(pair[0], pair[1])
		if err != nil {
			return nil, err
		}
		conf.Certificates = append(conf.Certificates, cert)
	}
	// HTTP/1.1 alone: over HTTP/2 all readers would share one connection, and
	// with it the limits that networks and servers put on each.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		OnProxyConnectResponse: func(_ context.Context, u *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return &statusError{what: "proxy " + u.Host, status: resp.StatusCode}
			}
			return nil
		},
		DialContext:     (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig: conf,
		Protocols:       &protocols,
		// Blobs are compressed already, and are verified as they are stored: a
		// Content-Encoding that lies must not change them.
		DisableCompression:     true,
		TLSHandshakeTimeout:    30 * time.Second,
		ResponseHeaderTimeout:  o.IdleTimeout,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    o.Concurrency,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         readBuffer,
	}, nil
}

// withoutCertificates is the transport for hosts that a client certificate is not
// meant for: it says who we are, and each server may ask for one.
func withoutCertificates(t *http.Transport) *http.Transport {
	if len(t.TLSClientConfig.Certificates) == 0 {
		return t
	}
	t = t.Clone()
	t.TLSClientConfig.Certificates = nil
	return t
}

// transportTo is the transport for an address.
func (c *client) transportTo(u *url.URL) *http.Transport {
	name := u.Hostname()
	own := (&url.URL{Host: c.host}).Hostname()
	if realm, _ := c.realm.Load().(string); strings.EqualFold(name, own) || strings.EqualFold(name, realm) {
		return c.transport
	}
	return c.elsewhere
}

// watched is a body that fails once a Read has waited for the idle timeout.
// Time that the consumer takes between two reads does not count.
type watched struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
}

// roundTrip sends one request. Unlike http.Client it follows nothing and adds
// nothing, and its errors do not repeat the URL, which may hold a signature.
func (c *client) roundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(c.o.IdleTimeout, func() { cancel(errStalled) })
	if c.o.Requests != nil {
		c.o.Requests.Add(1)
	}
	resp, err := c.transportTo(req.URL).RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		err = cause(ctx, err)
		cancel(nil)
		return nil, err
	}
	c.answered.Store(true)
	resp.Body = &watched{resp.Body, ctx, cancel, timer, c.o.IdleTimeout}
	return resp, nil
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.idle)
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	if err != nil && err != io.EOF {
		err = cause(w.ctx, err)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.ReadCloser.Close()
}

var (
	errPlainHTTP = errors.New("the server speaks plain HTTP, not HTTPS")
	errNotHTTPS  = errors.New("the server does not speak HTTPS")
)

// cause replaces "context canceled" by why it was, and the usual mistake's
// error by one that says what it is.
func cause(ctx context.Context, err error) error {
	if rec, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if string(rec.RecordHeader[:]) == "HTTP/" {
			return finalError{errPlainHTTP}
		}
		return finalError{errNotHTTPS}
	}
	if why := context.Cause(ctx); why != nil {
		return why
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the server closed the connection: %w", err)
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return fmt.Errorf("%w: %w", errStalled, err)
	}
	return err
}
