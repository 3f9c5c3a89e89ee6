package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// hostsFile is containerd's certs.d/HOST/hosts.toml.
type hostsFile struct {
	Server string              `toml:"server"`
	Hosts  map[string]hostConf `toml:"host"`
	hostConf
}

// hostConf is how one host is spoken to. ca and client are a file or several,
// and client's entries a file with both parts or a pair.
type hostConf struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
}

// defaultHostsDir is where containerd's configuration usually is; tests have it
// elsewhere.
var defaultHostsDir = "/etc/containerd/certs.d"

// hostsToml looks for a reference's registry in containerd's configuration.
func (o *Options) hostsToml(ref Reference) (list []place, found bool, err error) {
	dir, must := o.HostsDir, true
	if dir == "" {
		dir = os.Getenv("LAYERPIPE_HOSTS_DIR")
	}
	if dir == "" {
		dir, must = defaultHostsDir, false
	}
	list, found, err = hostsIn(dir, ref)
	if must {
		return list, found, err
	}
	switch {
	case err == nil:
		for i := range list {
			list[i].dropDenied(o.Notify)
		}
		return list, found, nil
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrPermission):
		// It is root's, as containerd is. A mirror is of use, and never needed.
		if o.Notify != nil {
			o.Notify(fmt.Sprintf("mirrors: %v", err))
		}
	default:
		return nil, found, err
	}
	return nil, false, nil
}

// dropDenied drops the certificates of a place that are not ours to read, as keys
// are not even where all else is.
func (p *place) dropDenied(notify func(string)) {
	denied := func(name string) bool {
		f, err := os.Open(name)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, fs.ErrPermission) {
			return false
		}
		if notify != nil {
			notify(fmt.Sprintf("mirrors: %v", err))
		}
		return true
	}
	p.caFiles = slices.DeleteFunc(p.caFiles, denied)
	p.certFiles = slices.DeleteFunc(p.certFiles, func(pair [2]string) bool { return denied(pair[0]) || denied(pair[1]) })
}

// hostsIn looks for a reference's registry in a directory, which has to be there.
func hostsIn(dir string, ref Reference) (list []place, found bool, err error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, false, err
	}
	names := []string{ref.Domain}
	if host, port, ok := cutPort(ref.Domain); ok {
		// A colon cannot be in a file's name everywhere.
		names = []string{host + "_" + port + "_", ref.Domain}
	}
	for _, n := range append(names, "_default") {
		file := filepath.Join(dir, n, "hosts.toml")
		var h hostsFile
		md, err := readToml(file, &h)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			list, err = h.places(ref, md, file)
		}
		return list, true, err
	}
	return nil, false, nil
}

func cutPort(domain string) (host, port string, ok bool) {
	i := strings.LastIndexByte(domain, ':')
	if i < 0 || strings.HasSuffix(domain, "]") {
		return domain, "", false
	}
	return domain[:i], domain[i+1:], true
}

// places are the hosts in the order of the file, then the server.
func (h *hostsFile) places(ref Reference, md toml.MetaData, file string) (list []place, err error) {
	seen := make(map[string]bool)
	for _, key := range md.Keys() {
		// A host may have nothing but tables of its own: [host."...".header].
		if len(key) < 2 || key[0] != "host" || seen[key[1]] {
			continue
		}
		seen[key[1]] = true
		p, err := h.Hosts[key[1]].place(ref, key[1], file)
		if err != nil {
			return nil, err
		}
		p.mirror = true
		list = append(list, p)
	}
	if len(list) > maxPlaces {
		return nil, fault.Usagef("%s: %d hosts, over %d", file, len(list), maxPlaces)
	}
	own, err := h.hostConf.place(ref, h.Server, file)
	if err != nil {
		return nil, err
	}
	return append(list, own), nil
}

// place makes a place of a host's table. An empty address is the registry's
// own.
func (h hostConf) place(ref Reference, address, file string) (place, error) {
	p := place{ref: ref, skipVerify: h.SkipVerify, tags: true, digests: true}
	bad := func(format string, args ...any) (place, error) {
		return p, fault.Usagef("%s: host %q: %s", file, redact(address), fmt.Sprintf(format, args...))
	}
	if h.Capabilities != nil {
		p.tags, p.digests = slices.Contains(h.Capabilities, "resolve"), slices.Contains(h.Capabilities, "pull")
	}
	if address != "" {
		full := address
		if !strings.Contains(full, "://") {
			full = "https://" + full
		}
		u, err := url.Parse(full)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return bad("not the address of a registry")
		}
		u.Path = strings.TrimRight(u.Path, "/")
		if !h.OverridePath && !strings.HasSuffix(u.Path, "/v2") {
			u.Path += "/v2"
		}
		p.base = u
		// Credentials are kept by the name of the host that gets them.
		p.ref.Domain = u.Host
		if u.Host == ref.host() {
			p.ref.Domain = ref.Domain
		} else {
			p.namespace = ref.Domain
		}
	}
	beside := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(filepath.Dir(file), name)
	}
	cas, ok := stringsOf(h.CA)
	if !ok {
		return bad("ca is no file name")
	}
	for _, name := range cas {
		p.caFiles = append(p.caFiles, beside(name))
	}
	if p.certFiles, ok = clientFiles(h.Client, beside); !ok {
		return bad("client is no certificate and key")
	}
	for k, v := range h.Header {
		values, ok := stringsOf(v)
		if !ok || strings.ContainsFunc(k+strings.Join(values, ""), func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return bad("bad header %q", k)
		}
		if p.header == nil {
			p.header = make(http.Header)
		}
		p.header[http.CanonicalHeaderKey(k)] = values
	}
	return p, nil
}

// stringsOf reads a string, or a list of them.
func stringsOf(v any) (list []string, ok bool) {
	switch v := v.(type) {
	case nil:
		return nil, true
	case string:
		return []string{v}, true
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			list = append(list, s)
		}
		return list, true
	}
	return nil, false
}

// clientFiles reads the forms that client has: "file", ["file", ...],
// [["certificate", "key"], ...].
func clientFiles(v any, beside func(string) string) (list [][2]string, ok bool) {
	entries, isList := v.([]any)
	if !isList {
		entries = []any{v}
	}
	if v == nil {
		return nil, true
	}
	for _, e := range entries {
		pair, ok := stringsOf(e)
		if !ok || len(pair) == 0 || len(pair) > 2 {
			return nil, false
		}
		key := pair[len(pair)-1] // one file may hold both
		if key == "" {
			key = pair[0]
		}
		list = append(list, [2]string{beside(pair[0]), beside(key)})
	}
	return list, true
}
