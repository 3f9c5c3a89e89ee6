package registry

import (
	"fmt"
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
// that the configuration of mirrors gives it. What cannot be read may not be
// needed: it is said, and the server's answer shows whether it matters.
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
		readable := func(name string) bool {
			f, err := os.Open(name)
			if err != nil {
				if o.Notify != nil {
					o.Notify(fmt.Sprintf("certificates: %v", err))
				}
				return false
			}
			f.Close()
			return true
		}
		own := o.CertFile != "" || len(p.certFiles) > 0 // is nearer at hand
		for _, e := range list {
			name := filepath.Join(dir, e.Name())
			switch filepath.Ext(name) {
			case ".crt":
				if readable(name) {
					p.caFiles = append(p.caFiles, name)
				}
			case ".cert":
				key := strings.TrimSuffix(name, "cert") + "key"
				if !own && readable(name) && readable(key) {
					p.certFiles = append(p.certFiles, [2]string{name, key})
				}
			}
		}
		return
	}
}
