package registry

import (
	"net/http"
	"net/url"
	"reflect"
	"testing"
	"time"
)

func TestParseChallenges(t *testing.T) {
	type p = map[string]string
	for _, tt := range []struct {
		in   []string
		want []challenge
	}{
		{[]string{`Basic realm="x"`}, []challenge{{"basic", p{"realm": "x"}}}},
		{[]string{`Basic`}, []challenge{{"basic", p{}}}},
		{[]string{`Bearer realm="https://auth.io/token",service="reg.io",scope="repository:a/b:pull,push"`},
			[]challenge{{"bearer", p{"realm": "https://auth.io/token", "service": "reg.io", "scope": "repository:a/b:pull,push"}}}},
		{[]string{`BEARER Realm = "a" , Service=b`}, []challenge{{"bearer", p{"realm": "a", "service": "b"}}}},
		{[]string{`Basic realm="x", Bearer realm="y",service="z"`},
			[]challenge{{"basic", p{"realm": "x"}}, {"bearer", p{"realm": "y", "service": "z"}}}},
		{[]string{`Negotiate`, `Basic realm="a\"b"`}, []challenge{{"negotiate", p{}}, {"basic", p{"realm": `a"b`}}}},
		{[]string{`Bearer realm="not closed`}, []challenge{{"bearer", p{"realm": "not closed"}}}},
		{[]string{``, `,,`, `=`, `"`}, nil},
	} {
		if got := parseChallenges(tt.in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-7": 0, "x": 0, "99999999999999999999": 0,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {in}}, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
	// The server's clock is an hour behind ours, or ahead of it.
	for _, skew := range []time.Duration{-time.Hour, time.Hour} {
		header := http.Header{
			"Date":        {now.Add(skew).Format(http.TimeFormat)},
			"Retry-After": {now.Add(skew + 10*time.Second).Format(http.TimeFormat)},
		}
		if got := retryAfter(header, now); got != 10*time.Second {
			t.Errorf("clocks %v apart: %v", skew, got)
		}
	}
}

func TestParseContentRange(t *testing.T) {
	for in, want := range map[string]contentRange{
		"bytes 0-0/1":   {0, 1, 1},
		"bytes 5-9/10":  {5, 10, 10},
		"bytes 5-9/*":   {5, 10, -1},
		"bytes 5-10/10": {},
		"bytes 9-5/10":  {},
		"bytes */10":    {},
		"bytes -5/10":   {},
		"bytes 0-9":     {},
		"items 0-9/10":  {},
		"":              {},
		"bytes 0--9/10": {},
		"bytes +0-9/10": {},
		"bytes 0-9/-10": {},
		"bytes 0-9/1e1": {},
		"bytes 0-18446744073709551615/18446744073709551616": {},
	} {
		got, ok := parseContentRange(in)
		if got != want || ok != (want != contentRange{}) {
			t.Errorf("%q: %v, %v, want %v", in, got, ok, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for fails := 1; fails < 100; fails++ {
		d := backoff(time.Second, fails)
		most := min(time.Second<<min(fails-1, 10), longestWait)
		if d < most/2 || d > most {
			t.Errorf("after %d failures %v, want %v to %v", fails, d, most/2, most)
		}
	}
}

func TestNextPage(t *testing.T) {
	home, err := url.Parse("https://reg.io/v2/a/referrers/x")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		links []string
		want  string
	}{
		{[]string{`</v2/a/referrers/x?n=2>; rel="next"`}, "https://reg.io/v2/a/referrers/x?n=2"},
		{[]string{`<?n=2>;rel=next`}, "https://reg.io/v2/a/referrers/x?n=2"},
		{[]string{`<https://reg.io/y>; rel="first", <https://reg.io/z>; title="a, <b>; c" ; rel="last NEXT"`}, "https://reg.io/z"},
		{[]string{`</a>; rel="prev"`, `</b>; rel="next"`}, "https://reg.io/b"},
		{[]string{`<https://other.io/y>; rel="next"`}, "error"},
		{[]string{`<https://reg.io:444/y>; rel="next"`}, "error"},
		{[]string{`<https://reg.io/%zz>; rel="next"`}, "error"},
		{[]string{`<http://reg.io/y>; rel="next"`}, "https://reg.io/y"},
		{[]string{`<https://u:p@reg.io/y>; rel="next"`}, "https://reg.io/y"},
		{[]string{`</a>; title="rel=next"`, `</a>`, `<`, `</a`, `rel="next"`, ``}, ""},
	} {
		got := ""
		u, err := nextPage(home, tt.links)
		if err != nil {
			got = "error"
		} else if u != nil {
			got = u.String()
		}
		if got != tt.want {
			t.Errorf("%q: %q, want %q", tt.links, got, tt.want)
		}
	}
}

func TestErrorDetail(t *testing.T) {
	for body, want := range map[string]string{
		`{"errors":[{"code":"DENIED","message":"not yours"}]}`: "not yours",
		`{"errors":[{"code":"DENIED","message":""}]}`:          "DENIED",
		`{"errors":[]}`: "",
		`{"details":"incorrect username or password"}`:                       "incorrect username or password",
		`{"error":"invalid_grant","error_description":"the token is stale"}`: "the token is stale",
		`{"errors":"x","details":{"a":1},"error_description":"y"}`:           "y",
		`<html>`: "",
		``:       "",
	} {
		if got := errorDetail([]byte(body)); got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
}
