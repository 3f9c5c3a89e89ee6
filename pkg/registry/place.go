package registry

import (
	"net/http"
	"net/url"
	"strings"
)

// A place is one that may have a repository: its registry, or a mirror of it.
type place struct {
	ref      Reference // what the repository is called there
	mirror   bool
	insecure bool // no certificate is checked, and plain HTTP will do
	tags     bool // may be asked what a tag stands for
	digests  bool // may be asked for what a digest names

	// What only containerd's configuration has.
	base       *url.URL // scheme, host and the API's path; nil: as the reference says
	namespace  string   // the registry that the mirror is asked about; "": itself
	skipVerify bool
	caFiles    []string
	certFiles  [][2]string // certificates and their keys
	header     http.Header // sent with each request to this place, and to no other
}

// mirrorRetries is how many failures in a row a mirror is allowed, if the user
// allows that many: there is somebody else to ask.
const mirrorRetries = 2

// options are the user's options as they apply to the place. Credentials and
// certificates given by the user are for the registry; mirrors have those that
// the files of credentials and the configuration of mirrors give them.
func (p *place) options(o Options) *Options {
	if p.mirror {
		o.PlainHTTP, o.Insecure, o.CertFile, o.KeyFile, o.Username, o.Password = false, false, "", "", "", ""
		o.Retries = min(o.Retries, mirrorRetries)
	}
	o.Insecure = o.Insecure || p.insecure || p.skipVerify
	return &o
}

// places is where a reference's content may be, in the order in which to ask.
// The registry itself is the last one.
func (o *Options) places(conf *registriesConf, ref Reference) ([]place, error) {
	list, found, err := conf.places(ref)
	if !found && err == nil {
		list, found, err = o.hostsToml(ref)
	}
	if err != nil {
		return nil, err
	}
	if !found {
		list = []place{{ref: ref, tags: true, digests: true}}
	}
	return list, nil
}

// address is where a place's API is.
func (p *place) address(plainHTTP bool) (u url.URL, surely bool) {
	switch {
	case p.base != nil:
		u = *p.base
	default:
		u = url.URL{Scheme: "https", Host: p.ref.host(), Path: "/v2"}
	}
	if plainHTTP {
		u.Scheme = "http"
	}
	return u, !p.insecure || plainHTTP
}

// shortName is an image's name without a registry, and what follows it; ok
// reports whether there is no registry in s.
func shortName(s string) (name, rest string, ok bool) {
	name = s
	if i := strings.IndexByte(name, '@'); i >= 0 {
		name = name[:i]
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	first, _, more := strings.Cut(name, "/")
	ok = name != "" && !(more && (strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first))
	return name, s[len(name):], ok
}
