package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// usualCertsDirs are where podman and docker look for the certificates of one
// registry (containers-certs.d(5)), the first of which that has it counts:
// HOST[:PORT]/ with authorities in *.crt, and with a client's certificate in
// NAME.cert and its key in NAME.key.
func usualCertsDirs() []string {
	dirs := []string{"/etc/containers/certs.d", "/etc/docker/certs.d"}
	if home, err := os.UserHomeDir(); err == nil {
		dirs = slices.Insert(dirs, 0, filepath.Join(home, ".config", "containers", "certs.d"))
	}
	return dirs
}

// takeCerts adds the certificates that are kept for the place's host to those
// that the configuration of mirrors gives it. What cannot be read, or is none, may
// not be needed: it is said, and the server's answer shows whether it matters.
func (p *place) takeCerts(o *Options) {
	if o.PlainHTTP {
		return
	}
	dirs := o.certsDirs
	if dirs == nil {
		dirs = usualCertsDirs()
	}
	for _, dir := range dirs {
		dir = filepath.Join(dir, p.ref.Domain)
		list, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		good := func(err error) bool {
			if err != nil && o.Notify != nil {
				o.Notify(fmt.Sprintf("certificates: %v", err))
			}
			return err == nil
		}
		own := o.CertFile != "" || len(p.certFiles) > 0 // is nearer at hand
		for _, e := range list {
			name := filepath.Join(dir, e.Name())
			switch filepath.Ext(name) {
			case ".crt":
				if good(checkAuthority(name)) {
					p.caFiles = append(p.caFiles, name)
				}
			case ".cert":
				key := strings.TrimSuffix(name, "cert") + "key"
				if !own && good(checkPair(name, key)) {
					p.certFiles = append(p.certFiles, [2]string{name, key})
				}
			}
		}
		return
	}
}

func checkAuthority(name string) error {
	pem, err := os.ReadFile(name)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		err = fmt.Errorf("%s: no certificate in it", name)
	}
	return err
}

func checkPair(name, key string) error {
	_, err := tls.LoadX509KeyPair(name, key)
	if _, named := errors.AsType[*fs.PathError](err); err != nil && !named {
		err = fmt.Errorf("%s and its key: %w", name, err)
	}
	return err
}
