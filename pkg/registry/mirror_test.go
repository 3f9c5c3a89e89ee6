package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// writeFiles writes a configuration: names and contents.
func writeFiles(t testing.TB, files ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for i := 0; i < len(files); i += 2 {
		name := filepath.Join(dir, filepath.FromSlash(files[i]))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// show is a list of places in a form to compare.
func show(list []place) string {
	var out []string
	for _, p := range list {
		u, sure := p.address(false)
		s := u.String() + " " + p.ref.Repository + ":" + p.ref.Tag
		if !sure {
			s += "?"
		}
		if !p.tags {
			s += " digests only"
		}
		if !p.digests {
			s += " tags only"
		}
		if p.namespace != "" {
			s += " ns=" + p.namespace
		}
		out = append(out, s)
	}
	return strings.Join(out, " | ")
}

const mainConf = `
unqualified-search-registries = ["example.com"]
[[registry]]
prefix = "example.com/team"
location = "internal.example.net:5000/of/team"
[[registry.mirror]]
location = "mirror-0.local/x"
insecure = true
[[registry.mirror]]
location = "mirror-1.local"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "mirror-2.local"
pull-from-mirror = "tag-only"
[[registry]]
location = "example.com/team/longer"
[[registry]]
prefix = "*.wild.org"
blocked = true
[[registry]]
prefix = "*.tame.org"
[[registry.mirror]]
location = "mirror.local"
[[registry]]
location = "docker.io"
mirror-by-digest-only = true
[[registry.mirror]]
location = "hub.local:80"
[aliases]
"tool" = "quay.io/some/tool"
"team/gone" = "quay.io/gone"
`

func TestRegistriesConf(t *testing.T) {
	dir := writeFiles(t, "main.conf", mainConf,
		"main.conf.d/20-b.conf", "[[registry]]\nlocation = \"later.com\"\nblocked = true\n[aliases]\n\"team/gone\" = \"\"\n",
		"main.conf.d/10-a.conf", "[[registry]]\nlocation = \"later.com\"\n[[registry]]\nprefix = \"one.com\"\nlocation = \"two.com\"\n",
		"main.conf.d/notes.txt", "not TOML")
	o := Options{RegistriesConf: filepath.Join(dir, "main.conf"), HostsDir: t.TempDir()}
	conf, err := o.registriesConf()
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"example.com/team/app:v1": "https://mirror-0.local/v2 x/app:v1? | https://mirror-1.local/v2 app:v1 digests only | " +
			"https://mirror-2.local/v2 app:v1 tags only | https://internal.example.net:5000/v2 of/team/app:v1",
		"example.com/team/longer/app":  "https://example.com/v2 team/longer/app:latest",
		"example.com/teams/app":        "https://example.com/v2 teams/app:latest",
		"example.com:5000/team/app":    "https://example.com:5000/v2 team/app:latest",
		"a.b.wild.org/app":             "blocks",
		"wild.org/app":                 "https://wild.org/v2 app:latest",
		"a.tame.org/app":               "https://mirror.local/v2 app:latest | https://a.tame.org/v2 app:latest",
		"golang:1":                     "https://hub.local:80/v2 library/golang:1 digests only | https://registry-1.docker.io/v2 library/golang:1",
		"later.com/app":                "blocks",
		"one.com/a/b:c":                "https://two.com/v2 a/b:c",
		"tool:v2":                      "https://quay.io/v2 some/tool:v2",
		"team/gone":                    "https://hub.local:80/v2 team/gone:latest digests only | https://registry-1.docker.io/v2 team/gone:latest",
		"localhost/tool":               "https://localhost/v2 tool:latest",
		"one.com/a@" + someDigest:      "https://two.com/v2 a:",
		"tool:v3@" + someDigest:        "https://quay.io/v2 some/tool:v3",
		"mirror-0.local/not/of/theirs": "https://mirror-0.local/v2 not/of/theirs:latest",
	} {
		full, _ := conf.alias(ref)
		parsed, err := ParseReference(full)
		if err != nil {
			t.Fatal(err)
		}
		list, err := o.places(conf, parsed)
		got := show(list)
		if err != nil {
			got = err.Error()
		}
		if got != want && !(want == "blocks" && strings.Contains(got, "blocks") && errors.Is(err, fault.ErrUnauthorized)) {
			t.Errorf("%s:\n got %s\nwant %s", ref, got, want)
		}
	}
	for name, text := range map[string]string{
		"version 1":          "[registries.search]\nregistries = [\"a\"]",
		"no TOML":            "[[registry",
		"scheme":             "[[registry]]\nlocation = \"https://a.com\"",
		"nothing":            "[[registry]]\n",
		"bad star":           "[[registry]]\nprefix = \"a.*.com\"\nlocation = \"b\"",
		"bad word":           "[[registry]]\nlocation = \"b\"\n[[registry.mirror]]\nlocation = \"c\"\npull-from-mirror = \"never\"",
		"mirror of nothing":  "[[registry]]\nlocation = \"b\"\n[[registry.mirror]]\n",
		"both kinds of word": "[[registry]]\nlocation = \"b\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"c\"\npull-from-mirror = \"all\"",
		"too many":           "[[registry]]\nlocation = \"b\"\n" + strings.Repeat("[[registry.mirror]]\nlocation = \"c\"\n", 17),
		"too long":           strings.Repeat("# comment\n", 1<<17),
		"too deep":           "a = " + strings.Repeat("{a = ", 40),
		"too deep, in lines": "a = \"\"\"]\"\n\"\"\" # ]\nb = " + strings.Repeat("[ ']', \"]\\\"]\",\n", 40),
		"too long a key":     "a" + strings.Repeat(".a", 40) + " = 1",
		"too many entries":   strings.Repeat("[[registry]]\nlocation = \"b\"\n", maxRegistries+1),
		"a password":         "[[registry]]\nlocation = \"https://me:hunter2@b\"\n",
		"one in a mirror":    "[[registry]]\nprefix = \"a.com\"\nlocation = \"me:hunter2@b\"\n",
	} {
		dir := writeFiles(t, "c", text)
		_, err := Open("a.com/b", Options{RegistriesConf: filepath.Join(dir, "c"), HostsDir: dir})
		if !errors.Is(err, fault.ErrUsage) && !errors.Is(err, fault.ErrUnsupported) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		noSecret(t, fmt.Sprint(err))
	}
	if _, err := Open("a.com/b", Options{RegistriesConf: filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("named and absent: %v", err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", filepath.Join(dir, "main.conf"))
	if _, err := Open("a.wild.org/b", Options{}); !errors.Is(err, fault.ErrUnauthorized) {
		t.Errorf("by the environment: %v", err)
	}
}

func TestHostsToml(t *testing.T) {
	dir := writeFiles(t,
		"docker.io/hosts.toml", `
server = "https://registry-1.docker.io"
[host."https://z-mirror.example.com"]
  capabilities = ["pull"]
[host."http://a-mirror.internal:5000/v2/"]
  capabilities = ["pull", "resolve"]
[host."https://harbor.internal/v2/proxy"]
  override_path = true
[host."only-header.internal".header]
  x-custom = ["a", "b"]
`,
		"reg.io_5000_/hosts.toml", "skip_verify = true\ncapabilities = [\"resolve\"]\n",
		"_default/hosts.toml", "[host.\"https://any.internal\"]\n",
	)
	o := Options{RegistriesConf: os.DevNull, HostsDir: dir}
	for ref, want := range map[string]string{
		"golang:1": "https://z-mirror.example.com/v2 library/golang:1 digests only ns=docker.io | " +
			"http://a-mirror.internal:5000/v2 library/golang:1 ns=docker.io | " +
			"https://harbor.internal/v2/proxy library/golang:1 ns=docker.io | " +
			"https://only-header.internal/v2 library/golang:1 ns=docker.io | https://registry-1.docker.io/v2 library/golang:1",
		"reg.io:5000/app": "https://reg.io:5000/v2 app:latest tags only",
		"quay.io/app":     "https://any.internal/v2 app:latest ns=quay.io | https://quay.io/v2 app:latest",
	} {
		parsed, err := ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		list, err := o.places(&registriesConf{}, parsed)
		if got := show(list); err != nil || got != want {
			t.Errorf("%s: %v\n got %s\nwant %s", ref, err, got, want)
		}
	}
	for name, text := range map[string]string{
		"no TOML":       "[host.",
		"bad address":   "[host.\"ftp://a\"]\n",
		"password":      "[host.\"https://a:hunter2secret@b\"]\n",
		"bad ca":        "ca = 1",
		"bad client":    "client = [[\"a\", \"b\", \"c\"]]",
		"bad header":    "[header]\nx = \"a\\nb\"",
		"ca is missing": "ca = \"none.pem\"",
		"no quotes":     "[header]\nAuthorization = hunter2",
		"bad escape":    "[header]\nAuthorization = \"Basic hunter2\\q\"",
		"wrong type":    "server = [\"hunter2\"]",
	} {
		dir := writeFiles(t, "a.com/hosts.toml", text)
		_, err := Open("a.com/b", Options{RegistriesConf: os.DevNull, HostsDir: dir})
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		noSecret(t, fmt.Sprint(err))
	}
	if _, err := Open("a.com/b", Options{RegistriesConf: os.DevNull, HostsDir: filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("named and absent: %v", err)
	}
	t.Setenv("LAYERPIPE_HOSTS_DIR", dir)
	if r, err := Open("quay.io/b", Options{RegistriesConf: os.DevNull}); err != nil || len(r.all) != 2 {
		t.Errorf("by the environment: %v", err)
	}
}

// mirrored is a registry with a mirror, and what options use it.
func mirrored(t *testing.T) (w, mirror *world, conf func(*Options)) {
	w, mirror = newWorld(t), newWorld(t)
	return w, mirror, mirroredBy(t, w, mirror)
}

// mirroredBy is podman's configuration of a registry and its mirror.
func mirroredBy(t testing.TB, w, mirror *world) func(*Options) {
	name := filepath.Join(writeFiles(t, "c", fmt.Sprintf(
		"[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", w.host, mirror.host)), "c")
	return func(o *Options) {
		o.RegistriesConf = name
		o.Verbose = o.Notify
	}
}

// readEachWay reads the image in each way that there is.
func readEachWay(t *testing.T, w *world, r *Repository) {
	t.Helper()
	img, err := r.Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := readBlob(r, img.Layers[0]); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	a := r.Ahead(t.Context(), img.Layers, 2)
	defer a.Close()
	if b, err := readAhead(a, img.Layers[0]); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("ahead: %d bytes, %v", len(b), err)
	}
	at, err := r.BlobAt(t.Context(), img.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
	if n, err := at.ReadAtContext(t.Context(), p, 100_000); err != nil || !bytes.Equal(p[:n], w.blob[100_000:101_000]) {
		t.Errorf("at an offset: %d bytes, %v", n, err)
	}
}

// TestMirror has a row for each way a mirror can be of use or of none.
func TestMirror(t *testing.T) {
	everything := func(*http.Request) bool { return true }
	none := func(mirror *world) { mirror.srv.Close() }
	for name, tt := range map[string]struct {
		spoil   func(mirror *world)
		own     int // requests that the registry itself gets; -1: some
		mirrors int // those that the mirror gets
		say     string
	}{
		"has it all":   {own: 0, mirrors: -1, say: "test/app comes from the mirror"},
		"is not there": {spoil: none, own: -1, say: "trying 127.0.0.1"},
		"has nothing":  {spoil: func(m *world) { m.Inject(&testregistry.Fault{Match: everything, Serve: testregistry.Status(404)}) }, own: -1, mirrors: -1, say: "404"},
		"refuses":      {spoil: func(m *world) { m.Basic("x", "y") }, own: -1, mirrors: -1, say: "wants a user"},
		"fails":        {spoil: func(m *world) { m.Inject(&testregistry.Fault{Match: everything, Serve: testregistry.Status(500)}) }, own: -1, mirrors: -1, say: "tried 2 times"},
		"lacks blobs": {spoil: func(m *world) {
			m.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: testregistry.Status(404)})
		}, own: -1, mirrors: -1, say: "comes from the mirror"},
		"has short ones": {spoil: func(m *world) { m.PutBlob("test/app", m.layer.Digest, m.blob[1:]) }, own: -1, mirrors: -1, say: "has 299999 bytes"},
		"lies": {spoil: func(m *world) {
			m.Inject(&testregistry.Fault{Match: testregistry.Manifests, Serve: testregistry.Flip(20)})
		}, own: -1, mirrors: -1, say: "integrity"},
		"has no ranges": {spoil: (*world).noRanges, own: -1, mirrors: -1, say: "does not support ranges"},
	} {
		t.Run(name, func(t *testing.T) {
			w, mirror, conf := mirrored(t)
			if tt.spoil != nil {
				tt.spoil(mirror)
			}
			w.lines, mirror.lines = nil, nil
			readEachWay(t, w, w.open(t, conf))
			if n := len(w.Requests()); n != tt.own && tt.own >= 0 || n == 0 && tt.own < 0 {
				t.Errorf("%d requests to the registry, want %d", n, tt.own)
			}
			if n := len(mirror.Requests()); n != tt.mirrors && tt.mirrors >= 0 || n == 0 && tt.mirrors < 0 {
				t.Errorf("%d requests to the mirror, want %d", n, tt.mirrors)
			}
			if !strings.Contains(w.said(), tt.say) {
				t.Errorf("%q says nothing of %q", w.said(), tt.say)
			}
		})
	}
}

func (w *world) noRanges() { w.NoRanges() }

// TestMirrorEndsMidway: the mirror goes away in the middle of a blob; the
// registry is asked for the rest, not for the whole.
func TestMirrorEndsMidway(t *testing.T) {
	w, mirror, conf := mirrored(t)
	mirror.Inject(&testregistry.Fault{Match: testregistry.Blobs, Times: 1, Serve: testregistry.Cut(100_000)})
	f := mirror.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: testregistry.Status(502)})
	r := w.open(t, conf)
	if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if list := w.Requests(); len(list) != 1 || list[0].Range != "bytes=100000-299999" || f.Delivered() == 0 {
		t.Errorf("%+v, %d faults", list, f.Delivered())
	}
	// It rests now: the registry is asked first.
	before := len(mirror.Requests())
	if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) || len(mirror.Requests()) != before {
		t.Errorf("%d bytes, %v, %d more requests to the mirror", len(b), err, len(mirror.Requests())-before)
	}
	// Both fail: the error is the registry's own.
	w.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: testregistry.Status(404)})
	if _, err := readBlob(r, w.layer); err == nil {
		t.Error("no error")
	}
}

// TestMirrorCancel: a cancelled request is no reason to ask somebody else.
func TestMirrorCancel(t *testing.T) {
	w, mirror, conf := mirrored(t)
	ctx, cancel := context.WithCancel(t.Context())
	mirror.Inject(&testregistry.Fault{Match: testregistry.Manifests, Serve: func(_ http.ResponseWriter, req *http.Request, _ http.Handler) {
		cancel()
		<-req.Context().Done()
	}})
	if _, err := w.open(t, conf).Resolve(ctx, nil); !errors.Is(err, context.Canceled) || len(w.Requests()) != 0 {
		t.Errorf("%v, %d requests", err, len(w.Requests()))
	}
}

// TestMirrorCredentials: what the user says on the command line is for the
// registry; a mirror has what the file of credentials has for it.
func TestMirrorCredentials(t *testing.T) {
	w, mirror, conf := mirrored(t)
	w.Basic(user, password)
	mirror.Basic("mirror", "hunter2mirror")
	r := w.open(t, conf, withLogin)
	readEachWay(t, w, r)
	for _, q := range mirror.Requests() {
		if q.Auth {
			t.Fatalf("the mirror got credentials: %+v", q)
		}
	}
	noSecret(t, w.said())
	w.Reset()
	auth := fmt.Sprintf(`{"auths":{%q:{"username":"mirror","password":"hunter2mirror"}}}`, mirror.host)
	readEachWay(t, w, w.open(t, conf, func(o *Options) { o.AuthFile = authFileOf(t, auth) }))
	if n := len(w.Requests()); n != 0 {
		t.Errorf("%d requests to the registry", n)
	}
}

// TestMirrorTLS goes by containerd's configuration to a mirror with its own
// authority, client certificate and header; and not to it for tags.
func TestMirrorTLS(t *testing.T) {
	p := newPKI(t)
	w, mirror := newWorld(t), newTLSWorld(t, p, tls.RequireAndVerifyClientCert)
	dir := t.TempDir()
	for from, to := range map[string]string{p.caFile: "ca.pem", p.certFile: "c.pem", p.keyFile: "c.key"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, strings.ReplaceAll(w.host, ":", "_")+"_", to)
		os.MkdirAll(filepath.Dir(name), 0o755)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("[host.\"https://%s\"]\ncapabilities = [\"pull\"]\nca = \"ca.pem\"\nclient = [[\"c.pem\", \"c.key\"]]\n[host.\"https://%s\".header]\nX-Key = \"hunter2secret\"\n", mirror.host, mirror.host)
	if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(w.host, ":", "_")+"_", "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var keys, spaces []string
	elsewhere := newTLSWorld(t, p, tls.NoClientCert)
	leaked := false
	elsewhere.Inject(&testregistry.Fault{Match: func(req *http.Request) bool {
		leaked = leaked || req.Header.Get("X-Key") != ""
		return false
	}})
	mirror.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: func(rw http.ResponseWriter, req *http.Request, _ http.Handler) {
		keys, spaces = append(keys, req.Header.Get("X-Key")), append(spaces, req.URL.Query().Get("ns"))
		http.Redirect(rw, req, elsewhere.srv.URL+req.URL.Path, http.StatusTemporaryRedirect)
	}})
	r := w.open(t, func(o *Options) { o.HostsDir, o.Verbose = dir, o.Notify })
	if _, err := r.Resolve(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if b, err := readBlob(r, w.layer); err != nil || !bytes.Equal(b, w.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	list := w.Requests()
	if len(list) != 1 || !strings.Contains(list[0].Path, "/manifests/v1") {
		t.Errorf("requests to the registry: %+v", list)
	}
	if len(keys) != 2 || keys[0] != "hunter2secret" || spaces[0] != w.host || leaked {
		t.Errorf("header %q, ns %q, leaked %v", keys, spaces, leaked)
	}
	if !strings.Contains(w.said(), "comes from the mirror "+mirror.host) {
		t.Error(w.said())
	}
	noSecret(t, w.said())
}

// TestInsecureMirror: a mirror that may do without encryption is found, however
// it takes a TLS handshake; one that has encryption, and a certificate of its
// own, is spoken to by that.
func TestInsecureMirror(t *testing.T) {
	for name, answer := range map[string]string{"closes": "", "says something": "what?\r\n", "says what it is": "HTTP/1.1 400 Bad Request\r\n\r\n"} {
		// The first byte tells a handshake from a request.
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := &peekListener{Listener: tcp, refuse: func(c net.Conn) { io.WriteString(c, answer) }}
		w, mirror := newWorld(t), &world{Registry: testregistry.New()}
		mirror.srv = &httptest.Server{Listener: l, Config: &http.Server{Handler: mirror}}
		mirror.srv.Start()
		t.Cleanup(mirror.srv.Close)
		mirror.fill()
		readEachWay(t, w, w.open(t, mirroredBy(t, w, mirror)))
		if n := len(w.Requests()); n != 0 || l.refused.Load() == 0 || !strings.Contains(w.said(), "comes from the mirror") {
			t.Errorf("%s: %d requests to the registry, %d handshakes; %s", name, n, l.refused.Load(), w.said())
		}
	}
	p := newPKI(t)
	w, mirror := newWorld(t), newTLSWorld(t, p, tls.NoClientCert)
	readEachWay(t, w, w.open(t, mirroredBy(t, w, mirror)))
	if n := len(w.Requests()); n != 0 {
		t.Errorf("encrypted: %d requests to the registry", n)
	}
}

// peekListener refuses TLS.
type peekListener struct {
	net.Listener
	refuse  func(net.Conn)
	refused atomic.Int64
}

func (l *peekListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err == nil && first[0] != 0x16 {
			return &peekedConn{c, io.MultiReader(bytes.NewReader(first), c)}, nil
		}
		l.refused.Add(1)
		l.refuse(c)
		c.(*net.TCPConn).CloseWrite()
		go func() { io.Copy(io.Discard, c); c.Close() }()
	}
}

type peekedConn struct {
	net.Conn
	r io.Reader
}

func (c *peekedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// TestMirrorComesBack: a mirror that failed is tried again after its rest.
func TestMirrorComesBack(t *testing.T) {
	w, mirror, conf := mirrored(t)
	r := w.open(t, conf)
	r.all[0].rests.Store(time.Now().Add(time.Hour).UnixNano())
	readEachWay(t, w, r)
	if n := len(mirror.Requests()); n != 0 {
		t.Errorf("%d requests to a mirror at rest", n)
	}
	r.all[0].rests.Store(time.Now().Add(-time.Second).UnixNano())
	w.Reset()
	at, err := r.BlobAt(t.Context(), w.layer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := at.ReadAtContext(t.Context(), make([]byte, 10), 0); err != nil && err != io.EOF {
		t.Error(err)
	}
	if len(mirror.Requests()) == 0 || len(w.Requests()) != 0 {
		t.Errorf("%d requests to the mirror, %d to the registry", len(mirror.Requests()), len(w.Requests()))
	}
}

// TestHostsDirUsual: what is wrong with the directory that nobody has named. It
// is root's, mostly.
func TestHostsDirUsual(t *testing.T) {
	usual := defaultHostsDir
	defer func() { defaultHostsDir = usual }()
	t.Setenv("LAYERPIPE_HOSTS_DIR", "")
	dir, pki := t.TempDir(), newPKI(t)
	for name, tt := range map[string]struct {
		make func(dir string) error
		bad  bool
	}{
		"none":         {func(string) error { return nil }, false},
		"empty":        {func(dir string) error { return os.Mkdir(dir, 0o700) }, false},
		"not readable": {func(dir string) error { return os.Mkdir(dir, 0) }, false},
		"nonsense": {func(dir string) error {
			file := filepath.Join(dir, "_default", "hosts.toml")
			return errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte("="), 0o600))
		}, true},
		"key not readable": {func(dir string) error {
			dir = filepath.Join(dir, "_default")
			return errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "key"), nil, 0),
				os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "client = [[%q, %q]]", pki.certFile, filepath.Join(dir, "key")), 0o600))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			unreadable := strings.HasSuffix(name, "not readable")
			if unreadable {
				interop.Permissions(t)
			}
			defaultHostsDir = filepath.Join(dir, name)
			if err := tt.make(defaultHostsDir); err != nil {
				t.Fatal(err)
			}
			w := newWorld(t)
			o := w.options(t)
			o.HostsDir = ""
			r, err := Open(w.host+"/test/app:v1", o)
			if err == nil {
				defer r.Close()
				_, err = r.Resolve(t.Context(), nil)
			}
			if (err != nil) != tt.bad {
				t.Error(err)
			}
			if said := w.said(); (said != "") != unreadable {
				t.Errorf("said %q", said)
			}
		})
	}
}
