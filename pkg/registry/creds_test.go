package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestAuthFile(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	full := credential{Username: user, Password: password}
	for _, tt := range []struct {
		name, file, ref string
		want            credential
		bad             bool
	}{
		{name: "docker", file: `{"auths":{"reg.io":{"auth":"` + b64 + `"}}}`, ref: "reg.io/a/b", want: full},
		{name: "with a port", file: `{"auths":{"reg.io:5000":{"auth":"` + b64 + `"}}}`, ref: "reg.io:5000/a/b", want: full},
		{name: "another port", file: `{"auths":{"reg.io:5000":{"auth":"` + b64 + `"}}}`, ref: "reg.io/a/b"},
		{name: "a scheme", file: `{"auths":{"https://reg.io/v2/":{"auth":"` + b64 + `"}}}`, ref: "reg.io/a/b", want: full},
		{name: "an address", file: `{"auths":{"https://reg.io/artifactory/api/docker":{"auth":"` + b64 + `"}}}`, ref: "reg.io/a/b", want: full},
		{name: "hub without a scheme", file: `{"auths":{"index.docker.io/v1/":{"auth":"` + b64 + `"}}}`, ref: "golang", want: full},
		{name: "a user's at hub", file: `{"auths":{"index.docker.io/team":{"auth":"` + b64 + `"}}}`, ref: "golang"},
		{name: "hub", file: `{"auths":{"https://index.docker.io/v1/":{"auth":"` + b64 + `"}}}`, ref: "golang", want: full},
		{name: "podman's hub", file: `{"auths":{"docker.io":{"auth":"` + b64 + `"}}}`, ref: "golang", want: full},
		{name: "a namespace", file: `{"auths":{"reg.io":{"username":"x","password":"y"},"reg.io/a":{"auth":"` + b64 + `"}}}`, ref: "reg.io/a/b", want: full},
		{name: "another namespace", file: `{"auths":{"reg.io/c":{"auth":"` + b64 + `"}}}`, ref: "reg.io/a/b"},
		{name: "part of a name", file: `{"auths":{"reg.io/a":{"auth":"` + b64 + `"}}}`, ref: "reg.io/ab/c"},
		{name: "plain fields", file: `{"auths":{"reg.io":{"username":"` + user + `","password":"` + password + `"}}}`, ref: "reg.io/a", want: full},
		{name: "identity", file: `{"auths":{"reg.io":{"identitytoken":"i"}}}`, ref: "reg.io/a", want: credential{RefreshToken: "i"}},
		{name: "registry token", file: `{"auths":{"reg.io":{"registrytoken":"r"}}}`, ref: "reg.io/a", want: credential{AccessToken: "r"}},
		{name: "empty file", file: "\n", ref: "reg.io/a"},
		{name: "empty entry", file: `{"auths":{"reg.io":{}}}`, ref: "reg.io/a"},
		{name: "not JSON", file: `{"auths":{"reg.io":"hunter2`, ref: "reg.io/a", bad: true},
		{name: "not base64", file: `{"auths":{"reg.io":{"auth":"hunter2!"}}}`, ref: "reg.io/a", bad: true},
		{name: "no colon", file: `{"auths":{"reg.io":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("hunter2")) + `"}}}`, ref: "reg.io/a", bad: true},
		{name: "helper with a path", file: `{"credHelpers":{"reg.io":"../../x"}}`, ref: "reg.io/a", bad: true},
	} {
		ref, err := ParseReference(tt.ref)
		if err != nil {
			t.Fatal(err)
		}
		o := Options{AuthFile: authFileOf(t, tt.file)}
		got, err := o.credential(t.Context(), ref, func(string, ...any) {})
		if got != tt.want || (err != nil) != tt.bad || err != nil && !errors.Is(err, fault.ErrUnauthorized) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
		noSecret(t, fmt.Sprint(err))
	}
	missing := Options{AuthFile: filepath.Join(t.TempDir(), "none")}
	if _, err := missing.credential(t.Context(), Reference{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was named and is not there: %v", err)
	}
}

// TestAuthFileUnreadable: another try would not change a file of credentials.
func TestAuthFileUnreadable(t *testing.T) {
	w := newWorld(t)
	w.Basic(user, password)
	for _, name := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir()} {
		w.Reset()
		_, err := readBlob(w.open(t, func(o *Options) { o.AuthFile = name }), w.layer)
		if !errors.Is(err, fault.ErrUnauthorized) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(w.Requests()); n != 1 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
}

func TestAuthFilePlaces(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("XDG_CONFIG_HOME", one)
	t.Setenv("DOCKER_CONFIG", two)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv(authVariable, "")
	write := func(name, user string) {
		os.MkdirAll(filepath.Dir(name), 0o700)
		text := fmt.Sprintf(`{"auths":{"reg.io":{"username":%q,"password":"p"}}}`, user)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	who := func() string {
		var o Options
		c, err := o.credential(t.Context(), Reference{Domain: "reg.io", Repository: "a"}, func(string, ...any) {})
		if err != nil {
			t.Fatal(err)
		}
		return c.Username
	}
	if got := who(); got != "" {
		t.Errorf("no file: %q", got)
	}
	write(filepath.Join(two, "config.json"), "docker")
	if got := who(); got != "docker" {
		t.Errorf("DOCKER_CONFIG: %q", got)
	}
	write(filepath.Join(one, "containers", "auth.json"), "podman")
	if got := who(); got != "podman" {
		t.Errorf("podman's file: %q", got)
	}
	named := filepath.Join(t.TempDir(), "x.json")
	write(named, "named")
	t.Setenv("REGISTRY_AUTH_FILE", named)
	if got := who(); got != "named" {
		t.Errorf("REGISTRY_AUTH_FILE: %q", got)
	}
	t.Setenv(authVariable, `{"auths":{"reg.io":{"username":"environment","password":"p"}}}`)
	if got := who(); got != "named" {
		t.Errorf("REGISTRY_AUTH_FILE and %s: %q", authVariable, got)
	}
	t.Setenv("REGISTRY_AUTH_FILE", "")
	if got := who(); got != "environment" {
		t.Errorf("%s: %q", authVariable, got)
	}
}

// TestAuthFilePlacesBad: what is wrong with a file that nobody has named is said,
// and does not keep anybody from a public image.
func TestAuthFilePlacesBad(t *testing.T) {
	for name, tt := range map[string]struct {
		make func(t *testing.T, name string) error
		say  string
	}{
		"a directory":          {func(_ *testing.T, name string) error { return os.MkdirAll(name, 0o700) }, "config.json"},
		"not JSON":             {func(_ *testing.T, name string) error { return os.WriteFile(name, []byte("hunter2"), 0o600) }, "config.json is not valid JSON"},
		"no permission":        {func(t *testing.T, name string) error { interop.Permissions(t); return os.WriteFile(name, nil, 0) }, "config.json"},
		"nothing in the place": {func(_ *testing.T, name string) error { return nil }, ""},
		"a file in the place": {func(_ *testing.T, name string) error {
			return errors.Join(os.Remove(filepath.Dir(name)), os.WriteFile(filepath.Dir(name), nil, 0o600))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Bearer(&testregistry.Tokens{})
			dir := filepath.Join(t.TempDir(), "docker")
			t.Setenv("HOME", t.TempDir())
			t.Setenv("XDG_RUNTIME_DIR", dir)
			t.Setenv("XDG_CONFIG_HOME", dir)
			t.Setenv("DOCKER_CONFIG", dir)
			t.Setenv("REGISTRY_AUTH_FILE", "")
			t.Setenv(authVariable, "")
			if err := errors.Join(os.Mkdir(dir, 0o700), tt.make(t, filepath.Join(dir, "config.json"))); err != nil {
				t.Fatal(err)
			}
			b, err := readBlob(w.open(t, func(o *Options) { o.AuthFile = "" }), w.layer)
			if err != nil || !bytes.Equal(b, w.blob) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if said := fmt.Sprint(w.said()); !strings.Contains(said, tt.say) || tt.say == "" && strings.Contains(said, "credentials") {
				t.Errorf("said %q", said)
			}
			noSecret(t, fmt.Sprint(w.said()))
		})
	}
}

// TestAuthPipe: a pipe gives its credentials once, and they are good for as long
// as the download takes.
func TestAuthPipe(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no /dev/fd")
	}
	w := newWorld(t)
	tokens := w.Bearer(&testregistry.Tokens{User: user, Password: password})
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fmt.Fprintf(wr, `{"auths":{%q:{"username":%q,"password":%q}}}`, w.host, user, password)
	wr.Close()
	f := w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: func(rw http.ResponseWriter, req *http.Request, next http.Handler) {
		defer tokens.Revoke()
		testregistry.Cut(100_000)(rw, req, next)
	}})
	repo := w.open(t, func(o *Options) {
		o.AuthFile = fmt.Sprintf("/dev/fd/%d", r.Fd())
		o.CredentialLife = time.Nanosecond
	})
	if b, err := readBlob(repo, w.layer); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if f.Delivered() < 3 || tokens.Issued() < 3 {
		t.Errorf("%d faults, %d tokens", f.Delivered(), tokens.Issued())
	}
}

// TestHelper runs a credential helper.
func TestHelper(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the helper is a shell script")
	}
	dir := t.TempDir()
	script := `#!/bin/sh
read server
case $server in
reg.io) echo '{"ServerURL":"reg.io","Username":"somebody","Secret":"hunter2:secret"}';;
token.io) echo '{"ServerURL":"token.io","Username":"<token>","Secret":"identity-secret"}';;
https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"x"}';;
broken.io) echo 'hunter2 secret'; exit 1;;
garbage.io) echo 'hunter2 <html>';;
noisy.io) echo 'hunter2 secret' >&2; exit 3;;
endless.io) while echo hunter2 hunter2 hunter2 hunter2 hunter2 hunter2 hunter2 hunter2; do :; done;;
absent.io|other.io) echo 'credentials not found in native keychain'; exit 1;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	podmans := `#!/bin/sh
read server
case $server in
docker.io) echo '{"Username":"hub","Secret":"y"}';;
*) echo 'credentials not found in native keychain'; exit 1;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-podman"), []byte(podmans), 0o700); err != nil {
		t.Fatal(err)
	}
	hub, err := ParseReference("golang")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{AuthFile: authFileOf(t, `{"credHelpers":{"docker.io":"podman"}}`)}
	got, err := o.credential(t.Context(), hub, func(f string, a ...any) { t.Errorf(f, a...) })
	if want := (credential{Username: "hub", Password: "y"}); err != nil || got != want {
		t.Errorf("Docker Hub's by podman login: %+v, %v", got, err)
	}
	file := authFileOf(t, `{"credHelpers":{"reg.io":"test","none.io":"no-such"},"credsStore":"test","auths":{"other.io":{"username":"a","password":"b"}}}`)
	for ref, want := range map[string]credential{
		"reg.io/a":     {Username: user, Password: password},
		"token.io/a":   {RefreshToken: identity},
		"golang":       {Username: "hub", Password: "x"},
		"broken.io/a":  {},
		"garbage.io/a": {},
		"noisy.io/a":   {},
		"endless.io/a": {},
		"none.io/a":    {},
		"absent.io/a":  {},
		"other.io/a":   {Username: "a", Password: "b"},
	} {
		r, err := ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		said := ""
		o := Options{AuthFile: file}
		got, err := o.credential(t.Context(), r, func(f string, a ...any) { said += fmt.Sprintf(f, a...) })
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", ref, got, err)
		}
		noSecret(t, said)
		// That there is no credential is not worth a word.
		if fails := want == (credential{}) && ref != "absent.io/a"; fails != (said != "") && ref != "other.io/a" {
			t.Errorf("%s: said %q", ref, said)
		}
	}
}

// TestHelperHangs: a helper that never ends, and has started what never ends
// either, is given up.
func TestHelperHangs(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the helper is a shell script")
	}
	dir := t.TempDir()
	script := "#!/bin/sh\nsleep 3600 &\necho $! > " + filepath.Join(dir, "pid") + "\nwait\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-hang"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("not for ever")
	go func() {
		for {
			b, _ := os.ReadFile(filepath.Join(dir, "pid"))
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				cancel(why)
				t.Cleanup(func() {
					if p, err := os.FindProcess(pid); err == nil {
						p.Kill()
					}
				})
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	if _, err := askHelper(ctx, "hang", "reg.io", func(string, ...any) {}); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
}
