package registry

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// pki is a certificate authority and what it signed, as files.
type pki struct {
	caFile, certFile, keyFile string
	server                    tls.Certificate
	pool                      *x509.CertPool
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	dir := t.TempDir()
	file := func(name, kind string, der []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	sign := func(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caKey, serverKey, clientKey := newKey(), newKey(), newKey()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER := sign(ca, ca, caKey, caKey)
	serverDER := sign(&x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, serverKey, caKey)
	clientDER := sign(&x509.Certificate{SerialNumber: big.NewInt(3),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, clientKey, caKey)
	keyDER, err := x509.MarshalPKCS8PrivateKey(clientKey)
	if err != nil {
		t.Fatal(err)
	}
	p := &pki{
		caFile: file("ca.pem", "CERTIFICATE", caDER), certFile: file("client.pem", "CERTIFICATE", clientDER),
		keyFile: file("client.key", "PRIVATE KEY", keyDER), pool: x509.NewCertPool(),
		server: tls.Certificate{Certificate: [][]byte{serverDER}, PrivateKey: serverKey},
	}
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	p.pool.AddCert(parsed)
	return p
}

// newTLSWorld is a registry that speaks HTTPS.
func newTLSWorld(t testing.TB, p *pki, clientAuth tls.ClientAuthType) *world {
	t.Helper()
	w := &world{Registry: testregistry.New()}
	w.srv = httptest.NewUnstartedServer(w)
	w.srv.TLS = &tls.Config{Certificates: []tls.Certificate{p.server}, ClientAuth: clientAuth, ClientCAs: p.pool}
	w.srv.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are what is tested
	w.srv.StartTLS()
	t.Cleanup(w.srv.Close)
	w.fill()
	return w
}

func TestTLS(t *testing.T) {
	p := newPKI(t)
	https := func(o *Options) { o.PlainHTTP = false }
	ca := func(o *Options) { o.CAFile = p.caFile }
	insecure := func(o *Options) { o.Insecure = true }
	client := func(o *Options) { o.CertFile, o.KeyFile = p.certFile, p.keyFile }
	for name, tt := range map[string]struct {
		clientAuth tls.ClientAuthType
		change     []func(*Options)
		say        string // part of the error; "": none
	}{
		"unknown authority":        {change: []func(*Options){https}, say: "certificate"},
		"its authority is given":   {change: []func(*Options){https, ca}},
		"insecure":                 {change: []func(*Options){https, insecure}},
		"plain HTTP to it":         {say: "400"},
		"client certificate":       {clientAuth: tls.RequireAndVerifyClientCert, change: []func(*Options){https, ca, client}},
		"no client certificate":    {clientAuth: tls.RequireAndVerifyClientCert, change: []func(*Options){https, ca}, say: "certificate"},
		"insecure has one to show": {clientAuth: tls.RequireAndVerifyClientCert, change: []func(*Options){https, insecure, client}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTLSWorld(t, p, tt.clientAuth)
			r := w.open(t, tt.change...)
			_, err := r.Resolve(t.Context(), nil)
			if tt.say == "" && err != nil || tt.say != "" && (err == nil || !strings.Contains(err.Error(), tt.say)) {
				t.Errorf("%v, want something about %q", err, tt.say)
			}
			if strings.Contains(w.said(), "again") {
				t.Errorf("a refusal was retried: %s", w.said())
			}
		})
	}
	w := newWorld(t)
	_, err := w.open(t, https).Resolve(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("HTTPS to a server without: %v", err)
	}
	for name, o := range map[string]Options{
		"no certificate in it": {CAFile: p.keyFile}, "no key": {CertFile: p.certFile}, "no certificate": {KeyFile: p.keyFile},
	} {
		if _, err := Open("reg.io/a", o); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open("reg.io/a", Options{CAFile: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
}

// TestCertsDir: certificates are found where docker and podman keep them.
func TestCertsDir(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a port's colon cannot be in a name")
	}
	p, stranger := newPKI(t), newPKI(t)
	for name, tt := range map[string]struct {
		links map[string]string // of the host's directory: to files
		first bool              // the directory before it has something, too
		say   string            // part of the error; "": none
		told  string            // part of the notice
	}{
		"all":                  {links: map[string]string{"ca.crt": p.caFile, "me.cert": p.certFile, "me.key": p.keyFile}},
		"several authorities":  {links: map[string]string{"a.crt": stranger.caFile, "b.crt": p.caFile, "me.cert": p.certFile, "me.key": p.keyFile}},
		"another's authority":  {links: map[string]string{"ca.crt": stranger.caFile, "me.cert": p.certFile, "me.key": p.keyFile}, say: "certificate"},
		"no client":            {links: map[string]string{"ca.crt": p.caFile}, say: "certificate"},
		"a client without key": {links: map[string]string{"ca.crt": p.caFile, "me.cert": p.certFile}, say: "certificate", told: "me.key"},
		"no authority":         {links: map[string]string{"a.crt": p.keyFile, "b.crt": p.caFile, "me.cert": p.certFile, "me.key": p.keyFile}, told: "a.crt: no certificate"},
		"a key for another":    {links: map[string]string{"ca.crt": p.caFile, "me.cert": p.certFile, "me.key": stranger.keyFile}, say: "certificate", told: "me.cert and its key"},
		"the first one counts": {first: true, links: map[string]string{"ca.crt": p.caFile, "me.cert": p.certFile, "me.key": p.keyFile}, say: "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTLSWorld(t, p, tls.RequireAndVerifyClientCert)
			before, dir := t.TempDir(), t.TempDir()
			err := os.Mkdir(filepath.Join(dir, w.host), 0o700)
			if tt.first {
				err = errors.Join(err, os.Mkdir(filepath.Join(before, w.host), 0o700))
			}
			for link, file := range tt.links {
				err = errors.Join(err, os.Symlink(file, filepath.Join(dir, w.host, link)))
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.open(t, func(o *Options) { o.PlainHTTP, o.certsDirs = false, []string{before, dir} }).Resolve(t.Context(), nil)
			if tt.say == "" && err != nil || tt.say != "" && (err == nil || !strings.Contains(err.Error(), tt.say)) {
				t.Errorf("%v, want something about %q", err, tt.say)
			}
			if !strings.Contains(w.said(), tt.told) || tt.told == "" && w.said() != "" {
				t.Errorf("said %q", w.said())
			}
		})
	}
}

// TestClientCertificate: it is for the registry and its token server, and no
// other host that asks for one sees it.
func TestClientCertificate(t *testing.T) {
	p := newPKI(t)
	for _, tokens := range []bool{true, false} {
		w := newTLSWorld(t, p, tls.RequestClientCert)
		// The same server by another name, which its certificate does not have.
		elsewhere := strings.Replace(w.srv.URL, "127.0.0.1", "localhost", 1)
		if tokens {
			w.Bearer(&testregistry.Tokens{Realm: elsewhere + "/token"})
		}
		var asked, shown atomic.Int64
		w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool {
			if strings.HasPrefix(req.Host, "localhost:") {
				asked.Add(1)
				shown.Add(int64(len(req.TLS.PeerCertificates)))
			} else if len(req.TLS.PeerCertificates) != 1 {
				t.Errorf("%s: the registry saw no certificate", req.URL.Path)
			}
			return false
		}})
		f := w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool {
			return !tokens && testregistry.Blobs(req) && !strings.HasPrefix(req.Host, "localhost:")
		}, Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
			http.Redirect(rw, req, elsewhere+req.URL.Path, http.StatusTemporaryRedirect)
		}})
		r := w.open(t, func(o *Options) {
			o.PlainHTTP, o.Insecure, o.CertFile, o.KeyFile = false, true, p.certFile, p.keyFile
		})
		if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		if asked.Load() != 1 || (shown.Load() == 1) != tokens || (f.Delivered() == 0) != tokens {
			t.Errorf("token server %v: the other host was asked %d times, and saw %d certificates", tokens, asked.Load(), shown.Load())
		}
	}
}

// TestNoDowngrade: a redirect from https to http is refused.
func TestNoDowngrade(t *testing.T) {
	p := newPKI(t)
	w := newTLSWorld(t, p, tls.NoClientCert)
	plain := newWorld(t)
	f := w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
		http.Redirect(rw, req, plain.srv.URL+req.URL.Path, http.StatusTemporaryRedirect)
	}})
	_, err := readBlob(w.open(t, func(o *Options) { o.PlainHTTP, o.CAFile = false, p.caFile }), w.layer)
	if err == nil || !strings.Contains(err.Error(), "from https to http") || f.Delivered() != 1 || len(plain.Requests()) > 0 {
		t.Errorf("%v, %d redirects, %d plain requests", err, f.Delivered(), len(plain.Requests()))
	}
	// Nor is a token server asked without encryption.
	w.ClearFaults()
	tokens := w.Bearer(&testregistry.Tokens{Realm: plain.srv.URL + "/token"})
	_, err = readBlob(w.open(t, withLogin, func(o *Options) { o.PlainHTTP, o.CAFile = false, p.caFile }), w.layer)
	if !errors.Is(err, fault.ErrUnauthorized) || !strings.Contains(err.Error(), "without encryption") || tokens.Issued() > 0 {
		t.Errorf("%v", err)
	}
	noSecret(t, fmt.Sprint(err))
}

// TestProxy goes through a proxy, by CONNECT for HTTPS and plainly for HTTP.
func TestProxy(t *testing.T) {
	p := newPKI(t)
	var connects, plains atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodConnect {
			plains.Add(1)
			out := req.Clone(req.Context())
			out.RequestURI = ""
			resp, err := http.DefaultTransport.RoundTrip(out)
			if err != nil {
				rw.WriteHeader(http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			for k, v := range resp.Header {
				rw.Header()[k] = v
			}
			rw.WriteHeader(resp.StatusCode)
			io.Copy(rw, resp.Body)
			return
		}
		connects.Add(1)
		testregistry.Tunnel(rw, req.Host)
	}))
	defer proxy.Close()
	for name, w := range map[string]*world{"https": newTLSWorld(t, p, tls.NoClientCert), "http": newWorld(t)} {
		r := w.open(t, func(o *Options) {
			o.PlainHTTP = name == "http"
			if name == "https" {
				o.CAFile = p.caFile
			}
		})
		// The environment is read once for a process, and never used for
		// loopback addresses, so the proxy is set where it would put it.
		r.own().transport.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }
		if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if connects.Load() != 1 || plains.Load() != 1 {
		t.Errorf("%d CONNECTs, %d plain requests", connects.Load(), plains.Load())
	}
}

// TestProxyRefuses: a proxy that wants a password is an authentication error,
// and is not asked again and again.
func TestProxyRefuses(t *testing.T) {
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		rw.WriteHeader(http.StatusProxyAuthRequired)
	}))
	defer proxy.Close()
	p := newPKI(t)
	r := newTLSWorld(t, p, tls.NoClientCert).open(t, func(o *Options) { o.PlainHTTP, o.CAFile = false, p.caFile })
	r.own().transport.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }
	_, err := r.Resolve(t.Context(), nil)
	if !errors.Is(err, fault.ErrUnauthorized) || !strings.Contains(err.Error(), "proxy 127.0.0.1") || asked.Load() != 1 {
		t.Errorf("%v, asked %d times", err, asked.Load())
	}
}
