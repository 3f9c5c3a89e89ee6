package nbd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificate makes a self-signed one for "localhost" and its PEM.
func certificate(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "localhost"},
		DNSNames:              []string{"localhost"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestTLS(t *testing.T) {
	cert, ca := certificate(t)
	dev := pattern(1 << 20)
	path := listen(t, &Server{Exports: []Export{{Device: dev}}, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)

	c := dial(t, path)
	c.hello(handshakeFixed | handshakeNoZeroes)
	for _, opt := range []uint32{optList, optGo, optInfo, optStructuredReply, 99} {
		if got := c.option(opt, infoData("")); got[0].Type != repErrTLSRequired {
			t.Errorf("option %d before TLS: %#x", opt, got[0].Type)
		}
	}
	c.ack(optStartTLS, nil)
	inner := tls.Client(c.nc, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err := inner.Handshake(); err != nil {
		t.Fatal(err)
	}
	c.nc = inner
	if got := c.option(optStartTLS, nil); got[0].Type != repErrInvalid {
		t.Errorf("STARTTLS again: %#x", got[0].Type)
	}
	c.ack(optStructuredReply, nil)
	c.structured = true
	c.ack(optGo, infoData(""))
	c.check(dev, 100, 300000)
	c.check(dev, 0, len(dev))

	// EXPORT_NAME has no way to be refused but this one.
	c = dial(t, path)
	c.hello(handshakeFixed)
	c.send(appendOption(nil, optExportName, nil))
	c.closed()

	// What was sent in the clear must not be taken for something sent inside.
	c = dial(t, path)
	c.hello(handshakeFixed)
	c.send(appendOption(appendOption(nil, optStartTLS, nil), optList, nil))
	c.closed()

	// Not TLS at all.
	c = dial(t, path)
	c.hello(handshakeFixed)
	c.ack(optStartTLS, nil)
	c.send(appendOption(nil, optList, make([]byte, 100)))
	for {
		if _, err := c.nc.Read(make([]byte, 100)); err != nil {
			break // perhaps after an alert
		}
	}
}

// tlsDir lays out a CA as libnbd wants it.
func tlsDir(t *testing.T, ca []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
