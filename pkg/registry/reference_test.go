package registry

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

var someDigest = "sha256:" + strings.Repeat("0123456789abcdef", 4)

func TestParseReference(t *testing.T) {
	for _, tt := range []struct {
		in, domain, repository, tag, digest string
		warn                                bool
	}{
		{in: "golang", domain: "docker.io", repository: "library/golang", tag: "latest"},
		{in: "golang:1.26", domain: "docker.io", repository: "library/golang", tag: "1.26"},
		{in: "docker.io/golang", domain: "docker.io", repository: "library/golang", tag: "latest"},
		{in: "index.docker.io/golang:1", domain: "docker.io", repository: "library/golang", tag: "1"},
		{in: "user/app:v1", domain: "docker.io", repository: "user/app", tag: "v1"},
		{in: "org/team/app:v1", domain: "docker.io", repository: "org/team/app", tag: "v1"},
		{in: "myhost/app", domain: "docker.io", repository: "myhost/app", tag: "latest"},
		{in: "localhost/app", domain: "localhost", repository: "app", tag: "latest"},
		{in: "localhost:5000/app:v1", domain: "localhost:5000", repository: "app", tag: "v1"},
		{in: "127.0.0.1:5000/x", domain: "127.0.0.1:5000", repository: "x", tag: "latest"},
		{in: "[::1]:5000/app:v1", domain: "[::1]:5000", repository: "app", tag: "v1"},
		{in: "MyHost/app", domain: "MyHost", repository: "app", tag: "latest"},
		{in: "reg.io/app", domain: "reg.io", repository: "app", tag: "latest"},
		{in: "reg.io:5000", domain: "docker.io", repository: "library/reg.io", tag: "5000", warn: true},
		{in: "golang@" + someDigest, domain: "docker.io", repository: "library/golang", digest: someDigest},
		{in: "golang:1.26@" + someDigest, domain: "docker.io", repository: "library/golang", tag: "1.26", digest: someDigest},
		{in: "reg.io/app:v1@" + someDigest, domain: "reg.io", repository: "app", tag: "v1", digest: someDigest},
	} {
		r, err := ParseReference(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		want := Reference{tt.domain, tt.repository, tt.tag, digest.Digest(tt.digest), r.Warning}
		if r != want || (r.Warning != "") != tt.warn {
			t.Errorf("%s: %#v, want %#v", tt.in, r, want)
		}
		if id := r.identifier(); tt.digest != "" && id != tt.digest {
			t.Errorf("%s is fetched by %s", tt.in, id)
		}
	}
}

func TestParseReferenceBad(t *testing.T) {
	for in, why := range map[string]string{
		"Golang":                              "lower case",
		"reg.io/App":                          "lower case",
		"reg.io/app:":                         "empty tag",
		"reg.io//app":                         "empty path component",
		"reg.io/app/":                         "empty path component",
		"https://reg.io/app:v1":               "no https://",
		"reg.io/a___b":                        "not in the form",
		"app:" + strings.Repeat("t", 129):     "128 characters",
		strings.Repeat("0123456789abcdef", 4): "ID",
		"":                                    "empty",
		"golang@md5:":                         "digest",
		"golang@sha256:../../../etc/passwd":   "digest",
		":.v1":                                "not in the form",
		strings.Repeat("a", 5000):             "too long",
		"me:hunter2@reg.io/app":               "no credentials",
		"me:hunter2@reg.io:5000":              "no credentials",
		"https://me:hunter2@reg.io/app":       "no https://",
		"https://hunter2@reg.io/app":          "no https://",
		"golang:1.26@sha256:abc":              "digest",
		"golang:1.26@sha256:00":               "bad digest",
	} {
		_, err := ParseReference(in)
		if !errors.Is(err, fault.ErrUsage) || !strings.Contains(err.Error(), why) || len(err.Error()) > 300 {
			t.Errorf("%.100q: %v, want something about %q", in, err, why)
		}
		noSecret(t, err.Error())
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("golang:1.26@" + someDigest)
	f.Add("[::1]:5000/app:v1")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		r.Warning = ""
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %#v, which is parsed as %#v, %v", s, r, again, err)
		}
		u := (&client{ref: r, base: url.URL{Scheme: "https", Path: "/v2"}, sure: true, host: r.host()}).url("manifests", r.identifier())
		if strings.Contains(u.Path, "..") && !strings.Contains(r.Tag, "..") {
			t.Errorf("%q leads to %s", s, u)
		}
	})
}
