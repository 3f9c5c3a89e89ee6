package registry

import (
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fuzzRefs are what the configurations are asked about.
var fuzzRefs = []string{"golang:1.26", "reg.io:5000/team/app@" + someDigest, "a.wild.org/x"}

// checkPlaces fails if a configuration sends us where no reference could.
func checkPlaces(t *testing.T, list []place, err error) {
	t.Helper()
	if err != nil {
		if strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("an error of several lines: %q", err)
		}
		return
	}
	if len(list) == 0 || len(list) > maxPlaces+1 {
		t.Fatalf("%d places", len(list))
	}
	for _, p := range list {
		u, _ := p.address(false)
		if u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" || strings.ContainsAny(u.Host+p.ref.Repository, " \r\n") {
			t.Errorf("%+v leads to %q", p, u.String())
		}
		for k, values := range p.header {
			if strings.ContainsAny(k+strings.Join(values, ""), "\r\n") {
				t.Errorf("header %q: %q", k, values)
			}
		}
	}
}

func FuzzRegistriesConf(f *testing.F) {
	f.Add(mainConf)
	f.Add("[[registry]]\nprefix=\"*.wild.org\"\nlocation=\"u:p@x\"\n")
	f.Add("[aliases]\n\"golang\" = \"a.io/b:c\"\nx.y = 'z'\n")
	f.Add("a = {a = {a = [[\"]\", ']', \"\"\"]\n\\\"\"\"\"]]}}")
	f.Fuzz(func(t *testing.T, text string) {
		var one registriesConf
		if _, err := decodeToml([]byte(text), &one, "fuzz"); err != nil {
			checkPlaces(t, nil, err)
			return
		}
		conf := &registriesConf{Aliases: make(map[string]string)}
		if err := conf.add(&one, "fuzz"); err != nil {
			checkPlaces(t, nil, err)
			return
		}
		for _, s := range fuzzRefs {
			full, _ := conf.alias(s)
			ref, err := ParseReference(full)
			if err != nil {
				continue
			}
			if list, found, err := conf.places(ref); found {
				checkPlaces(t, list, err)
			}
		}
	})
}

func FuzzHostsToml(f *testing.F) {
	f.Add("server = \"https://registry-1.docker.io\"\n[host.\"https://mirror\"]\ncapabilities = [\"pull\"]\nca = \"ca.pem\"\nclient = [[\"a\", \"b\"]]\n[host.\"https://mirror\".header]\nx = [\"y\"]\n")
	f.Add("skip_verify = true\noverride_path = true\nserver = \"http://[::1]:80/v2/../x\"\n")
	f.Add("[host.a]\n[host.b.header]\nk = \"v\"\n[host.\"https://u:p@c\"]\n")
	f.Fuzz(func(t *testing.T, text string) {
		name := filepath.Join("dir", "hosts.toml")
		for _, s := range fuzzRefs {
			ref, err := ParseReference(s)
			if err != nil {
				t.Fatal(err)
			}
			var h hostsFile
			md, err := decodeToml([]byte(text), &h, name)
			if err != nil {
				checkPlaces(t, nil, err)
				return
			}
			list, err := h.places(ref, md, name)
			checkPlaces(t, list, err)
		}
	})
}

func FuzzAuthFile(f *testing.F) {
	f.Add(`{"auths":{"reg.io:5000":{"auth":"c29tZWJvZHk6aHVudGVyMg=="},"https://index.docker.io/v1/":{"identitytoken":"i"}}}`)
	f.Add(`{"auths":{"reg.io:5000/team":{"username":"a","password":"b"}},"credHelpers":{"docker.io":"x"},"credsStore":"y"}`)
	f.Add(`{"auths":{"reg.io:5000":{"auth":"!"}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseAuthFile([]byte(text), "file")
		for _, s := range fuzzRefs {
			if err != nil {
				break
			}
			ref, bad := ParseReference(s)
			if bad != nil {
				t.Fatal(bad)
			}
			a.helper(ref.Domain)
			_, err = a.entry(ref)
		}
		// What is quoted is a key, which the reference decides.
		if err != nil && (len(err.Error()) > 200+len("https://registry-1.docker.io/v2/") || strings.ContainsAny(err.Error(), "\n\x1b")) {
			t.Errorf("%q", err)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add(`Bearer realm="https://auth.io/token",service="reg.io"`, "bytes 5-9/10", "120", `</v2/x?n=1>; rel="next"`)
	f.Add(`Basic realm="a\"b", x=y`, "bytes 5-9/*", "Fri, 02 Jan 2026 03:04:15 GMT", `<https://reg.io/y>;rel=prev, <z>;title="a,<b>";rel="x next"`)
	home := &url.URL{Scheme: "https", Host: "reg.io", Path: "/v2/x"}
	f.Fuzz(func(t *testing.T, challenges, rng, after, link string) {
		list := parseChallenges([]string{challenges, challenges})
		if len(list) > maxChallenges {
			t.Errorf("%q: %d challenges", challenges, len(list))
		}
		for _, c := range list {
			if c.scheme != strings.ToLower(c.scheme) || len(c.params) > maxChallenges {
				t.Errorf("%q: %v", challenges, c)
			}
		}
		if r, ok := parseContentRange(rng); ok && (r.start < 0 || r.end <= r.start || r.total >= 0 && r.end > r.total) {
			t.Errorf("%q: %v", rng, r)
		}
		if d := retryAfter(http.Header{"Retry-After": {after}, "Date": {link}}, time.Unix(0, 0)); d < 0 {
			t.Errorf("%q: %v", after, d)
		}
		if u, err := nextPage(home, []string{link}); err == nil && u != nil && (!sameOrigin(home, u) || u.User != nil) {
			t.Errorf("%q leads to %s", link, u)
		}
	})
}

// FuzzRedirect: whatever a Location says, the next request goes to a host, by
// HTTP, encrypted if the first one was, and without a credential to any other
// origin.
func FuzzRedirect(f *testing.F) {
	f.Add("https://cdn.io/x?sig=1")
	f.Add("//user:password@cdn.io/x")
	f.Add("../blobs/x")
	f.Add("https:///v2/")
	f.Fuzz(func(t *testing.T, location string) {
		req, err := http.NewRequest(http.MethodGet, "https://reg.io/v2/a/blobs/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		next, err := redirected(req, location)
		if err == nil && (next.Host == "" || next.User != nil || next.Scheme != "https") {
			t.Errorf("%q leads to %q", location, next.String())
		}
	})
}
