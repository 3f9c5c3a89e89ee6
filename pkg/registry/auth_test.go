package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

const (
	user     = "somebody"
	password = "hunter2:secret"
	identity = "identity-secret"
)

func emptyAuthFile(t testing.TB) string { return authFileOf(t, "{}") }

func authFileOf(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// noSecret fails if a text has anything of the credentials.
func noSecret(t *testing.T, text string) {
	t.Helper()
	for _, s := range []string{"hunter2", "secret", "aHVudGVy"} {
		if strings.Contains(text, s) {
			t.Errorf("%q shows a credential", text)
		}
	}
}

func withLogin(o *Options) { o.Username, o.Password = user, password }

func TestBasic(t *testing.T) {
	w := newWorld(t)
	w.Basic(user, password)
	if b, err := readBlob(w.open(t, withLogin), w.layer); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	_, err := readBlob(w.open(t), w.layer)
	if !errors.Is(err, fault.ErrUnauthorized) || !strings.Contains(err.Error(), "none are known") {
		t.Errorf("no credentials: %v", err)
	}
	w.Reset()
	_, err = readBlob(w.open(t, withLogin, func(o *Options) { o.Password = "wrong-secret" }), w.layer)
	if !errors.Is(err, fault.ErrUnauthorized) {
		t.Errorf("wrong password: %v", err)
	}
	noSecret(t, fmt.Sprint(err, w.said()))
	if n := len(w.Requests()); n != 2 {
		t.Errorf("%d requests with a wrong password, want 2", n)
	}
}

func TestBearer(t *testing.T) {
	for name, tt := range map[string]struct {
		tokens *testregistry.Tokens
		change func(*Options)
		err    error
	}{
		"anonymous":                {tokens: &testregistry.Tokens{}},
		"password":                 {tokens: &testregistry.Tokens{User: user, Password: password}, change: withLogin},
		"wrong password":           {tokens: &testregistry.Tokens{User: user, Password: "x"}, change: withLogin, err: fault.ErrUnauthorized},
		"no password":              {tokens: &testregistry.Tokens{User: user, Password: "x"}, err: fault.ErrUnauthorized},
		"server fails a few times": {tokens: &testregistry.Tokens{User: user, Password: password, NoToken: 3}, change: withLogin},
		"identity token": {tokens: &testregistry.Tokens{Identity: identity}, change: func(o *Options) {
			o.AuthFile = strings.Replace(o.AuthFile, "auth.json", "identity.json", 1)
		}},
		"bad realm": {tokens: &testregistry.Tokens{Realm: "file:///etc/passwd"}, change: withLogin, err: fault.ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tokens := tt.tokens
			w.Bearer(tokens)
			r := w.open(t, func(o *Options) {
				text := fmt.Sprintf(`{"auths":{%q:{"identitytoken":%q}}}`, w.host, identity)
				os.WriteFile(filepath.Join(filepath.Dir(o.AuthFile), "identity.json"), []byte(text), 0o600)
				if tt.change != nil {
					tt.change(o)
				}
			})
			img, err := r.Resolve(t.Context(), nil)
			if err == nil {
				_, err = readBlob(r, img.Layers[0])
			}
			if tt.err == nil && err != nil || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v", err, tt.err)
			}
			if tt.err == nil && tokens.Issued() != 1 {
				t.Errorf("%d tokens for one repository", tokens.Issued())
			}
			noSecret(t, fmt.Sprint(err, w.said()))
		})
	}
}

// TestScopes: a token is asked for once for each thing that it must be good for.
func TestScopes(t *testing.T) {
	a := &authorizer{repository: "team/app"}
	for asked, want := range map[string]string{
		"":                               "repository:team/app:pull",
		"repository:team/app:pull":       "repository:team/app:pull",
		"repository:team/app:push,pull":  "repository:team/app:push,pull",
		"repository:team/app:*":          "repository:team/app:*",
		"repository:team/app:push":       "repository:team/app:push repository:team/app:pull",
		"repository:team/app2:pull":      "repository:team/app2:pull repository:team/app:pull",
		" registry:catalog:*  aws\t":     "registry:catalog:* aws repository:team/app:pull",
		"repository:team/app:pull other": "repository:team/app:pull other",
	} {
		if got := a.scopes(asked); got != want {
			t.Errorf("%q: %q, want %q", asked, got, want)
		}
	}
}

// TestTokenServerRefuses: whatever a token server refuses with, authentication
// is what has failed, not the image that is missing.
func TestTokenServerRefuses(t *testing.T) {
	for _, status := range []int{400, 403, 404, 410, 302} {
		w := newWorld(t)
		w.Bearer(&testregistry.Tokens{})
		f := w.Inject(&testregistry.Fault{Match: testregistry.Path("/token"), Serve: testregistry.Status(status)})
		_, err := w.open(t).Resolve(t.Context(), nil)
		if err == nil || status >= 400 && (!errors.Is(err, fault.ErrUnauthorized) || errors.Is(err, fault.ErrNotFound)) || f.Delivered() != 1 {
			t.Errorf("%d: %v, asked %d times", status, err, f.Delivered())
		}
	}
}

// TestTokenExpires: the token is revoked while the connection drops in
// mid-blob. The download goes on at the offset with a new one.
func TestTokenExpires(t *testing.T) {
	w := newWorld(t)
	tokens := w.Bearer(&testregistry.Tokens{User: user, Password: password})
	f := w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
		defer tokens.Revoke()
		testregistry.Cut(50_000)(rw, req, next)
	}})
	b, err := readBlob(w.open(t, withLogin), w.layer)
	if err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if f.Delivered() < 6 || tokens.Issued() < 6 {
		t.Errorf("%d faults, %d tokens", f.Delivered(), tokens.Issued())
	}
	noSecret(t, w.said())
}

// TestRealmOfExpired: a registry that sends who comes with an expired token to a
// token server that is not for everybody. The one that was good before is asked.
func TestRealmOfExpired(t *testing.T) {
	w := newWorld(t)
	tokens := w.Bearer(&testregistry.Tokens{})
	users := &testregistry.Tokens{User: user, Password: password}
	other := httptest.NewServer(http.HandlerFunc(users.ServeToken))
	defer other.Close()
	home := ""
	w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool {
		tokens.Realm = home
		if testregistry.Blobs(req) && req.Header.Get("Authorization") != "" {
			tokens.Realm = other.URL
		}
		return false
	}})
	f := w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Times: 4, Serve: func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
		defer tokens.Revoke()
		testregistry.Cut(50_000)(rw, req, next)
	}})
	r := w.open(t)
	b, err := readBlob(r, w.layer)
	if err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if f.Delivered() != 4 || tokens.Issued() < 3 {
		t.Errorf("%d faults, %d tokens", f.Delivered(), tokens.Issued())
	}
	// A token server that has moved is found again, whether it has left nothing at
	// its old place or something that gives tokens as before.
	moved := httptest.NewServer(http.HandlerFunc(tokens.ServeToken))
	defer moved.Close()
	w.ClearFaults()
	tokens.Realm = moved.URL
	tokens.Revoke()
	f = w.Inject(&testregistry.Fault{Match: testregistry.Path("/token"), Serve: testregistry.Status(404)})
	if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) || f.Delivered() != 1 {
		t.Errorf("moved: %d bytes, %v; asked %d times at its old place", len(b), err, f.Delivered())
	}
	// However many readers there are, it is asked once.
	w.ClearFaults()
	tokens.Revoke()
	var worthless atomic.Int64
	f = w.Inject(&testregistry.Fault{Match: testregistry.Path("/token"), Serve: func(rw http.ResponseWriter, _ *http.Request, _ http.Handler) {
		fmt.Fprintf(rw, `{"token":"worthless%d"}`, worthless.Add(1))
	}})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) {
				t.Errorf("two: %d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	if f.Delivered() != 1 {
		t.Errorf("asked %d times at its old place", f.Delivered())
	}
}

// TestTokenNeverGood: a registry that refuses the tokens of its own server gets
// two requests, not a loop of them.
func TestTokenNeverGood(t *testing.T) {
	w := newWorld(t)
	w.Bearer(&testregistry.Tokens{})
	w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: testregistry.Status(401, "WWW-Authenticate", `Bearer realm="http://`+w.host+`/token"`)})
	_, err := readBlob(w.open(t), w.layer)
	if !errors.Is(err, fault.ErrUnauthorized) || !strings.Contains(err.Error(), "none are known") {
		t.Error(err)
	}
	if n := len(w.Requests()); n != 3 {
		t.Errorf("%d requests: %v", n, w.Requests())
	}
}

// TestSeparateRealm: the token server of an internal registry may be another
// internal host; the password goes there and not to the registry.
func TestSeparateRealm(t *testing.T) {
	w := newWorld(t)
	tokens := &testregistry.Tokens{User: user, Password: password}
	auth := httptest.NewServer(http.HandlerFunc(tokens.ServeToken))
	defer auth.Close()
	tokens.Realm = strings.Replace(auth.URL, "127.0.0.1", "127.0.0.2", 1) + "/token"
	seen := ""
	w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool {
		seen += req.Header.Get("Authorization") + "\n"
		return false
	}})
	w.Bearer(tokens)
	if _, err := readBlob(w.open(t, withLogin), w.layer); err == nil {
		// 127.0.0.2 reaches the same server on Linux only.
		if strings.Contains(seen, "Basic") {
			t.Error("the registry got the password")
		}
		return
	}
	tokens.Realm = auth.URL + "/token"
	if _, err := readBlob(w.open(t, withLogin), w.layer); err != nil {
		t.Error(err)
	}
}

func TestRealm(t *testing.T) {
	for _, tt := range []struct {
		scheme, host, realm string
		trusted             []string
		ok                  bool
	}{
		{"https", "192.0.2.1", "https://192.0.2.7/token", nil, true},
		{"https", "192.0.2.1", "http://192.0.2.7/token", nil, false},
		{"https", "192.0.2.1", "https://169.254.169.254/latest", nil, false},
		{"https", "192.0.2.1", "https://127.0.0.1:99/", nil, false},
		{"https", "192.0.2.1", "https://100.64.1.1/", nil, false},
		{"https", "192.0.2.1", "https://[::ffff:10.0.0.1]/", nil, false},
		{"https", "192.0.2.1", "https://10.0.0.7/token", []string{"10.0.0.7"}, true},
		{"https", "192.0.2.1", "https://10.0.0.7:8443/token", []string{"10.0.0.7:8443"}, true},
		{"https", "10.0.0.1:5000", "https://10.0.0.7/token", nil, true},
		{"http", "10.0.0.1:5000", "http://10.0.0.7/token", nil, true},
		{"https", "10.0.0.1:5000", "https://10.0.0.1/token", nil, true},
		{"https", "192.0.2.1", "https://u:p@192.0.2.7/", nil, false},
		{"https", "192.0.2.1", "", nil, false},
		{"https", "192.0.2.1", "gopher://192.0.2.7/", nil, false},
	} {
		c := &client{o: &Options{TokenServers: tt.trusted}, base: url.URL{Scheme: tt.scheme}, host: tt.host}
		_, err := (&authorizer{c: c}).realm(t.Context(), tt.realm)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, fault.ErrUnauthorized) {
			t.Errorf("%s://%s, realm %s: %v", tt.scheme, tt.host, tt.realm, err)
		}
	}
}

// TestRedirectKeepsSecrets: another port of the same host is another origin.
func TestRedirectKeepsSecrets(t *testing.T) {
	w := newWorld(t)
	w.Basic(user, password)
	var got []string
	cdn := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		got = append(got, req.Header.Get("Authorization"))
		if req.URL.Path == "/back" {
			http.Redirect(rw, req, w.srv.URL+"/probe", http.StatusFound)
			return
		}
		rw.Write(w.blob)
	}))
	defer cdn.Close()
	back := ""
	w.Inject(&testregistry.Fault{Match: testregistry.Path("/probe"), Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
		back = req.Header.Get("Authorization")
		rw.Write(w.blob)
	}})
	target := cdn.URL + "/signed?sig=secret"
	f := w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool {
		return testregistry.Blobs(req) && req.Header.Get("Authorization") != ""
	}, Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
		http.Redirect(rw, req, target, http.StatusTemporaryRedirect)
	}})
	for range 2 {
		if b, err := readBlob(w.open(t, withLogin), w.layer); err != nil || !bytes.Equal(b, w.blob) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		target = cdn.URL + "/back"
	}
	if f.Delivered() != 2 || len(got) != 2 || got[0] != "" || got[1] != "" || back != "" {
		t.Errorf("%d redirects; the other origin got %q, and back at home it was %q", f.Delivered(), got, back)
	}
}

// TestEcho: a registry that repeats what it was sent does not get it into our
// errors.
func TestEcho(t *testing.T) {
	w := newWorld(t)
	w.Basic(user, password)
	f := w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool { return req.Header.Get("Authorization") != "" },
		Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
			_, p, _ := req.BasicAuth()
			rw.WriteHeader(400)
			fmt.Fprintf(rw, `{"errors":[{"message":"bad %s\n%s"}]}`, p, req.Header.Get("Authorization"))
		}})
	_, err := readBlob(w.open(t, withLogin), w.layer)
	if err == nil || f.Delivered() != 1 || !strings.Contains(err.Error(), "***") {
		t.Errorf("%v", err)
	}
	noSecret(t, fmt.Sprint(err))
}

// TestEchoElsewhere: nor do errors about what is wrong with an answer, wherever
// in it a registry repeats what it was sent, and however much of that is quoted.
func TestEchoElsewhere(t *testing.T) {
	long := password + strings.Repeat("/secret", 100)
	mixed := `"` + password + `\" Secret`
	manifest := func(format string) func(http.ResponseWriter, string) {
		return func(rw http.ResponseWriter, p string) {
			b, _ := json.Marshal(p)
			fmt.Fprint(rw, strings.ReplaceAll(format, "PASSWORD", string(b)))
		}
	}
	for name, serve := range map[string]func(rw http.ResponseWriter, p string){
		"detail": func(rw http.ResponseWriter, p string) {
			rw.WriteHeader(400)
			manifest(`{"errors":[{"message":PASSWORD}]}`)(rw, p)
		},
		"type": func(rw http.ResponseWriter, p string) {
			rw.Header().Set("Content-Type", p)
			fmt.Fprint(rw, `{"mediaType":"application/vnd.oci.image.index.v1+json"}`)
		},
		"no JSON":    func(rw http.ResponseWriter, p string) { rw.Header().Set("Content-Type", "a/"+p); fmt.Fprint(rw, p) },
		"media type": manifest(`{"mediaType":PASSWORD}`),
		"digest":     manifest(`{"config":{"digest":PASSWORD}}`),
		"platform":   manifest(`{"manifests":[{"digest":"` + digest.FromString("").String() + `","platform":{"os":"x","architecture":PASSWORD}}]}`),
		"range": func(rw http.ResponseWriter, p string) {
			rw.Header().Set("Content-Range", "bytes "+p)
			rw.WriteHeader(206)
		},
	} {
		for _, password := range []string{password, long, mixed} {
			w := newWorld(t)
			w.Basic(user, password)
			f := w.Inject(&testregistry.Fault{Match: func(req *http.Request) bool { return req.Header.Get("Authorization") != "" },
				Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
					_, p, _ := req.BasicAuth()
					serve(rw, p)
				}})
			r := w.open(t, func(o *Options) { o.Username, o.Password, o.Retries = user, password, 2 })
			_, err := r.Resolve(t.Context(), nil)
			if name == "range" {
				at, err2 := r.BlobAt(t.Context(), w.layer)
				if err2 != nil {
					t.Fatal(err2)
				}
				_, err = at.ReadAtContext(t.Context(), make([]byte, 10), 1)
			}
			if err == nil || f.Delivered() == 0 || !strings.Contains(err.Error(), "***") {
				t.Errorf("%s: %v", name, err)
			}
			noSecret(t, fmt.Sprint(err))
		}
	}
}

// TestEchoOfTokenServer: nor does what a token server repeats.
func TestEchoOfTokenServer(t *testing.T) {
	w := newWorld(t)
	w.Bearer(&testregistry.Tokens{})
	f := w.Inject(&testregistry.Fault{Match: testregistry.Path("/token"), Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
		rw.WriteHeader(400)
		req.ParseForm()
		fmt.Fprintf(rw, `{"errors":[{"message":"bad %s, %s"}]}`, req.Header.Get("Authorization"), url.QueryEscape(req.PostFormValue("refresh_token")))
	}})
	byIdentity := func(o *Options) {
		o.AuthFile = authFileOf(t, fmt.Sprintf(`{"auths":{%q:{"identitytoken":"hunter2/+secret"}}}`, w.host))
	}
	for i, change := range []func(*Options){withLogin, byIdentity} {
		_, err := readBlob(w.open(t, change), w.layer)
		if err == nil || f.Delivered() != i+1 || !strings.Contains(err.Error(), "***") {
			t.Errorf("%v", err)
		}
		noSecret(t, fmt.Sprint(err))
	}
}

// TestSecretsBounded: a registry that never accepts a token for long makes us
// remember no more than a few.
func TestSecretsBounded(t *testing.T) {
	var s secrets
	for i := range 1000 {
		s.addToken(fmt.Sprintf("token-%d-x", i))
		s.add(password)
	}
	if len(s.tokens) > maxSecretTokens || len(s.list) != 1 {
		t.Errorf("%d tokens, %d others", len(s.tokens), len(s.list))
	}
	// One secret begins like another.
	s.add("hunter2")
	if got := s.scrubText("a " + password + " b token-999-x c"); got != "a *** b *** c" {
		t.Error(got)
	}
}

// TestCredentialGivenUp: a request that is cancelled while a credential helper
// thinks does not decide for the requests after it.
func TestCredentialGivenUp(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("skipped: the helper is a shell script")
	}
	dir := t.TempDir()
	script := "#!/bin/sh\nif mkdir " + dir + "/asked 2>/dev/null; then exec sleep 60; fi\n" +
		`echo '{"ServerURL":"x","Username":"` + user + `","Secret":"` + password + `"}'` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-slow"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	w := newWorld(t)
	w.Basic(user, password)
	r := w.open(t, func(o *Options) { o.AuthFile = authFileOf(t, `{"credsStore":"slow"}`) })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(dir, "asked")); err == nil {
				cancel()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	if _, err := r.Blob(ctx, w.layer); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("the next request: %d bytes, %v", len(b), err)
	}
}
