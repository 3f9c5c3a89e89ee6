package registry

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// login is the credential at the real registries.
const (
	realUser     = "somebody"
	realPassword = "hunter2secret"
	// realUser and realPassword for htpasswd authentication. Made by
	// perl -e 'print crypt("hunter2secret", q($2b$05$abcdefghijklmnopqrstuu))'
	htpasswd = "somebody:$2b$05$abcdefghijklmnopqrstuuICrEN/3Yh1z4xPgdXBLa6A3WV8e1sfi\n"
)

// TestDockerRegistry fetches from Debian's docker-registry with each kind of
// authentication that it has.
func TestDockerRegistry(t *testing.T) { testRegistry(t, interop.DockerRegistry) }

// TestDistribution fetches from distribution v3 in the same ways. To build it
// takes a minute where that has not been done before.
func TestDistribution(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: distribution takes long to build")
	}
	testRegistry(t, interop.Distribution(t))
}

func testRegistry(t *testing.T, serve func(testing.TB, ...string) string) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.ZstdFrames)...)
	login := func(o *Options) { o.Username, o.Password = realUser, realPassword }
	creds := []string{"--dest-creds", realUser + ":" + realPassword}

	t.Run("none", func(t *testing.T) {
		ref := interop.PushOCI(t, im.Ref(), serve(t), "team/app:v1")
		fetchAll(t, im, ref)
	})
	t.Run("htpasswd", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "htpasswd")
		if err := os.WriteFile(file, []byte(htpasswd), 0o600); err != nil {
			t.Fatal(err)
		}
		host := serve(t, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}", file))
		ref := interop.PushOCI(t, im.Ref(), host, "team/app:v1", creds...)
		fetchAll(t, im, ref, login)
		refused(t, ref)
	})
	t.Run("token", func(t *testing.T) {
		ts := newTokenServer(t)
		host := serve(t, fmt.Sprintf(
			"auth: {token: {realm: %q, service: test, issuer: test, rootcertbundle: %q}}", ts.URL+"/token", ts.bundle))
		ref := interop.PushOCI(t, im.Ref(), host, "team/app:v1", creds...)
		before := ts.issued.Load()
		fetchAll(t, im, ref, login)
		if n := ts.issued.Load() - before; n != 1 {
			t.Errorf("%d tokens", n)
		}
		refused(t, ref)
		// A token's life is shorter than the download: the server says when.
		ts.life = -time.Hour
		refused(t, ref, login)
	})
}

// openPlain opens an image of a registry without TLS.
func openPlain(t *testing.T, ref string, change ...func(*Options)) *Repository {
	t.Helper()
	o := Options{PlainHTTP: true, AuthFile: emptyAuthFile(t), RetryWait: time.Millisecond}
	for _, c := range change {
		c(&o)
	}
	r, err := Open(ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// fetchAll reads an image in each way that there is.
func fetchAll(t *testing.T, im *testimage.Image, ref string, change ...func(*Options)) {
	t.Helper()
	r := openPlain(t, ref, change...)
	img, err := r.Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.Manifest.Digest != im.Manifest.Digest || len(img.Layers) != len(im.Layers) {
		t.Fatalf("%+v", img)
	}
	a := r.Ahead(t.Context(), img.Layers, 2)
	defer a.Close()
	for i, l := range img.Layers {
		want, err := os.ReadFile(im.Blob(i))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := readBlob(r, l); err != nil || !bytes.Equal(b, want) {
			t.Errorf("layer %d: %d bytes, %v", i, len(b), err)
		}
		if b, err := readAhead(a, l); err != nil || !bytes.Equal(b, want) {
			t.Errorf("layer %d, ahead: %d bytes, %v", i, len(b), err)
		}
		at, err := r.BlobAt(t.Context(), ocispec.Descriptor{Digest: l.Digest})
		if err != nil || at.Size() != l.Size {
			t.Fatalf("layer %d: %v, %v", i, at, err)
		}
		p, off := make([]byte, 100), l.Size/2
		if n, err := at.ReadAtContext(t.Context(), p, off); err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+int64(n)]) {
			t.Errorf("layer %d at %d: %v", i, off, err)
		}
	}
}

// refused expects an authentication error that shows no credential.
func refused(t *testing.T, ref string, change ...func(*Options)) {
	t.Helper()
	r := openPlain(t, ref, change...)
	_, err := r.Resolve(t.Context(), nil)
	if !errors.Is(err, fault.ErrUnauthorized) {
		t.Errorf("%v", err)
	}
	noSecret(t, fmt.Sprint(err))
}

// tokenServer issues what docker-registry takes: ES256 tokens with their
// certificate in them.
type tokenServer struct {
	*httptest.Server
	bundle string // file of the certificate
	life   time.Duration
	issued atomic.Int64
	key    *ecdsa.PrivateKey
	cert   []byte
}

func newTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ts := &tokenServer{bundle: filepath.Join(t.TempDir(), "bundle.pem"), life: 5 * time.Minute, key: key, cert: cert}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	if err := os.WriteFile(ts.bundle, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ts.Server = httptest.NewServer(ts)
	t.Cleanup(ts.Close)
	return ts
}

func (ts *tokenServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if u, p, _ := req.BasicAuth(); u != realUser || p != realPassword {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	grants := []access{}
	for _, s := range req.URL.Query()["scope"] {
		if f := strings.Split(s, ":"); len(f) == 3 {
			grants = append(grants, access{f[0], f[1], strings.Split(f[2], ",")})
		}
	}
	ts.issued.Add(1)
	now := time.Now()
	part := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(ts.cert)}}) + "." +
		part(map[string]any{
			"iss": "test", "sub": realUser, "aud": "test", "exp": now.Add(ts.life).Unix(),
			"nbf": now.Add(-2 * time.Hour).Unix(), "iat": now.Unix(), "jti": "x", "access": grants,
		})
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, ts.key, sum[:])
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	json.NewEncoder(w).Encode(map[string]string{"token": signed + "." + base64.RawURLEncoding.EncodeToString(sig)})
}
