// Package registry reads images from container registries: references,
// authentication, retries, blob streams that resume where they broke, and random
// access. It is the only package that speaks HTTP.
package registry

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A Reference names an image in a registry, in docker's grammar.
type Reference struct {
	Domain     string // of the registry, with its port: "docker.io", "localhost:5000"
	Repository string // "library/golang"
	Tag        string // "latest" if neither tag nor digest were given
	Digest     digest.Digest
	Warning    string // what the user may not have meant, or ""
}

// maxReference bounds what is parsed at all: a domain, a repository of 255
// characters, a tag of 128 and the longest digest fit.
const maxReference = 1024

// ParseReference reads a reference as docker does: "golang" is
// docker.io/library/golang:latest.
func ParseReference(s string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, fault.Usagef("reference %q: %s", redact(s), why)
	}
	if len(s) > maxReference {
		return bad("too long")
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return bad("a reference has no " + oneLine(scheme, 20) + ":// before it")
	}
	if redact(s) != clip(s) {
		return bad("a reference holds no credentials: give them with --username, or in a file")
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		// The library's errors repeat the input or only say "invalid".
		return bad(explain(s))
	}
	r := Reference{Domain: reference.Domain(named), Repository: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
		if err := r.Digest.Validate(); err != nil {
			return bad("bad digest")
		}
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	if name, port, ok := strings.Cut(s, ":"); ok && r.Domain == "docker.io" && strings.Trim(port, "0123456789") == "" &&
		strings.Contains(name, ".") && !strings.Contains(name, "/") {
		r.Warning = fmt.Sprintf("%s is the image %q with the tag %s on Docker Hub, not a registry's port", s, r.Repository, port)
	}
	return r, nil
}

// clip keeps what is quoted short.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// redact is what may be quoted of an address that somebody got wrong: without
// the user and the password that it may begin with.
func redact(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if ok {
		scheme += "://"
	} else {
		scheme, rest = "", s
	}
	i := strings.LastIndexByte(rest, '@')
	if i < 0 {
		return clip(s)
	}
	// NAME:TAG@ALGORITHM:HEX is no credential, whatever is wrong with the digest.
	algorithm, hex, isDigest := strings.Cut(rest[i+1:], ":")
	isPort := hex != "" && len(hex) <= len("65535") && strings.Trim(hex, "0123456789") == ""
	isDigest = isDigest && (!isPort || digest.Algorithm(algorithm).Available()) && !strings.ContainsAny(algorithm, "./") && !strings.Contains(hex, "/")
	if !ok && (isDigest || !strings.Contains(rest[:i], ":")) {
		return clip(s)
	}
	return clip(scheme + "***" + rest[i:])
}

// explain says what is wrong with a reference that the grammar refuses.
func explain(s string) string {
	name, _, _ := strings.Cut(s, "@")
	base := name[strings.LastIndexByte(name, '/')+1:]
	_, tag, hasTag := strings.Cut(base, ":")
	switch {
	case s == "":
		return "empty"
	case strings.Contains(s, "@") && !strings.Contains(s[strings.IndexByte(s, '@'):], ":"):
		return "what follows @ must be a digest"
	case strings.Contains(s, "@") && digest.Digest(s[strings.IndexByte(s, '@')+1:]).Validate() != nil:
		return "bad digest"
	case len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "":
		return "an image's ID cannot be fetched"
	case hasTag && tag == "":
		return "empty tag"
	case len(tag) > 128:
		return "a tag has at most 128 characters"
	case strings.HasSuffix(name, "/"), strings.Contains(name, "//"):
		return "empty path component"
	case strings.ToLower(name) != name:
		return "a repository's name is lower case"
	}
	return "not in the form [REGISTRY/]REPOSITORY[:TAG][@DIGEST]"
}

// String is the reference in full. It parses to the same again.
func (r Reference) String() string {
	s := r.Domain + "/" + r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// identifier is what a manifest is asked for by: the digest wins.
func (r Reference) identifier() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// host is where the API of a domain is served.
func (r Reference) host() string {
	if r.Domain == "docker.io" {
		return "registry-1.docker.io"
	}
	return r.Domain
}
