//go:build unix

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/peakmem"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// program is this test as the command; testscript.Main runs what it is called.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "oci-fetch")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// environment is one without the user's credentials, proxies and mirrors, and
// with a home of its own.
func environment(t *testing.T, more ...string) []string {
	t.Helper()
	home := t.TempDir()
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home,
		"CONTAINERS_REGISTRIES_CONF=" + os.DevNull}, more...)
}

// signalAt sends a signal to a command that has been started, once it has come
// to a point, and waits for its end. One that ends before has missed the point.
func signalAt(t *testing.T, cmd *exec.Cmd, point <-chan struct{}, before func(), sig syscall.Signal) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	select {
	case <-point:
	case <-ended:
		t.Errorf("ended by itself, with code %d", cmd.ProcessState.ExitCode())
		return
	}
	before()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Error(err)
	}
	<-ended
}

// wantEmpty fails if there is anything in a directory.
func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil || len(list) > 0 {
		t.Errorf("%s: %v, %v", dir, list, err)
	}
}

// TestSignals ends the command in each of its phases: with the signal's code,
// soon, silently, and without a trace of what it was to write.
func TestSignals(t *testing.T) {
	// Under nohup the command would inherit that the signal is ignored; what is
	// handled here is not.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hup) })
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	bin := program(t)
	isLayer := func(req *http.Request) bool {
		return testregistry.Blobs(req) && !strings.Contains(req.URL.Path, im.Config.Digest.String())
	}
	forever := func(_ http.ResponseWriter, req *http.Request, _ http.Handler) { <-req.Context().Done() }
	for name, tt := range map[string]struct {
		fault  *testregistry.Fault
		args   []string
		signal syscall.Signal
	}{
		"token":            {&testregistry.Fault{Match: testregistry.Path("/token"), Serve: forever}, []string{"-o", "OUT/a"}, syscall.SIGINT},
		"manifest":         {&testregistry.Fault{Match: testregistry.Manifests, Serve: forever}, []string{"-o", "OUT/a"}, syscall.SIGTERM},
		"manifest's body":  {&testregistry.Fault{Match: testregistry.Manifests, Serve: testregistry.Stall(10)}, nil, syscall.SIGINT},
		"blobs":            {&testregistry.Fault{Match: testregistry.Blobs, Serve: forever}, []string{"-o", "OUT/a"}, syscall.SIGHUP},
		"a layer's body":   {&testregistry.Fault{Match: isLayer, Serve: testregistry.Stall(20)}, []string{"-o", "OUT/a"}, syscall.SIGINT},
		"one connection":   {&testregistry.Fault{Match: isLayer, Serve: testregistry.Stall(20)}, []string{"-o", "OUT/a", "-j1"}, syscall.SIGTERM},
		"one layer":        {&testregistry.Fault{Match: isLayer, Serve: testregistry.Stall(20)}, []string{"--layer=0"}, syscall.SIGINT},
		"a layout":         {&testregistry.Fault{Match: isLayer, Serve: testregistry.Stall(20)}, []string{"-o", "oci:OUT/a"}, syscall.SIGINT},
		"all platforms":    {&testregistry.Fault{Match: isLayer, Serve: testregistry.Stall(20)}, []string{"-o", "oci:OUT/a", "--all-platforms"}, syscall.SIGINT},
		"between retries":  {&testregistry.Fault{Match: isLayer, Serve: testregistry.Status(503, "Retry-After", "300")}, []string{"-q", "-o", "OUT/a"}, syscall.SIGINT},
		"redirected":       {&testregistry.Fault{Match: isLayer, Serve: testregistry.Status(307, "Location", "/token?stall")}, []string{"-o", "OUT/a"}, syscall.SIGINT},
		"the referrers":    {&testregistry.Fault{Match: testregistry.Path("/referrers/"), Serve: forever}, []string{"--referrers"}, syscall.SIGINT},
		"the cache's fill": {&testregistry.Fault{Match: isLayer, Serve: testregistry.Stall(20)}, []string{"--cache-dir", "CACHE", "-o", "OUT/a"}, syscall.SIGINT},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := testregistry.New()
			if err := reg.AddLayout("team/app", im.Dir); err != nil {
				t.Fatal(err)
			}
			reg.Bearer(&testregistry.Tokens{})
			reg.Inject(&testregistry.Fault{Match: func(req *http.Request) bool { return req.URL.RawQuery == "stall" }, Serve: forever})
			reached := make(chan struct{})
			serve, once := tt.fault.Serve, sync.OnceFunc(func() { close(reached) })
			// Once without a token: what is tested comes behind that.
			reg.Inject(&testregistry.Fault{
				Match: func(req *http.Request) bool {
					return tt.fault.Match(req) && (req.Header.Get("Authorization") != "" || req.URL.Path == "/token")
				},
				Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
					once()
					serve(w, req, next)
				},
			})
			srv := httptest.NewServer(reg)
			defer srv.Close()
			out, cache := t.TempDir(), t.TempDir()
			args := []string{"--plain-http", strings.TrimPrefix(srv.URL, "http://") + "/team/app"}
			for _, a := range tt.args {
				args = append(args, strings.NewReplacer("OUT", out, "CACHE", cache).Replace(a))
			}
			cmd := exec.Command(bin, args...)
			var stderr bytes.Buffer
			cmd.Env, cmd.Stderr = environment(t), &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			signalAt(t, cmd, reached, func() {}, tt.signal)
			if code := cmd.ProcessState.ExitCode(); code != 128+int(tt.signal) || stderr.Len() > 0 {
				t.Errorf("exit code %d, %q", code, stderr.String())
			}
			wantEmpty(t, out)
			if list, err := os.ReadDir(filepath.Join(cache, "tmp")); err == nil && len(list) > 0 {
				t.Errorf("the cache has %v", list)
			}
		})
	}
}

// TestSignalHelper: a credential helper that never answers does not keep the
// command.
func TestSignalHelper(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	asked := filepath.Join(dir, "asked")
	script := "#!/bin/sh\necho $$ > " + asked + ".new\nmv " + asked + ".new " + asked + "\nsleep 20 & wait\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-slow"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	auth := filepath.Join(dir, "auth.json")
	if err := os.WriteFile(auth, []byte(`{"credsStore":"slow"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := testregistry.New()
	reg.Basic("somebody", "hunter2")
	srv := httptest.NewServer(reg)
	defer srv.Close()
	cmd := exec.Command(program(t), "--plain-http", "--authfile", auth, "-o", filepath.Join(out, "a"), strings.TrimPrefix(srv.URL, "http://")+"/team/app")
	cmd.Env = environment(t)
	for i, e := range cmd.Env {
		if strings.HasPrefix(e, "PATH=") {
			cmd.Env[i] = "PATH=" + dir + ":" + os.Getenv("PATH")
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, err := os.Stat(asked); err != nil; _, err = os.Stat(asked) {
		time.Sleep(5 * time.Millisecond)
	}
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	wantEmpty(t, out)
}

// TestEndless: answers without end, of each kind, are cut off; what they cost in
// memory is bounded.
func TestEndless(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	bin := program(t)
	isLayer := func(req *http.Request) bool {
		return testregistry.Blobs(req) && !strings.Contains(req.URL.Path, im.Config.Digest.String())
	}
	endless := func(status int, header ...string) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			chunk := []byte(strings.Repeat(`{"layers":[{"digest":"x"}],`, 4096))
			for {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}
	}
	for name, tt := range map[string]struct {
		fault *testregistry.Fault
		args  []string
		code  int
		say   string
	}{
		"manifest":                {&testregistry.Fault{Match: testregistry.Manifests, Serve: endless(200)}, nil, 1, "over 4194304 bytes"},
		"manifest of 10 GB":       {&testregistry.Fault{Match: testregistry.Manifests, Serve: endless(200, "Content-Length", "10000000000")}, nil, 1, "10000000000 bytes, over 4194304"},
		"HTML":                    {&testregistry.Fault{Match: testregistry.Manifests, Serve: endless(404, "Content-Type", "text/html")}, nil, 4, "404"},
		"error":                   {&testregistry.Fault{Match: testregistry.Manifests, Serve: endless(403)}, nil, 3, "403"},
		"redirect":                {&testregistry.Fault{Match: testregistry.Manifests, Serve: endless(302, "Location", "/v2/team/app/manifests/latest")}, nil, 1, "over 10 redirects"},
		"unauthorized":            {&testregistry.Fault{Match: testregistry.Manifests, Serve: endless(401, "WWW-Authenticate", `Bearer realm="http://HOST/token",scope="repository:team/app:pull"`)}, nil, 3, "401"},
		"token":                   {&testregistry.Fault{Match: testregistry.Path("/token"), Serve: endless(200)}, nil, 3, "token from"},
		"config":                  {&testregistry.Fault{Match: func(req *http.Request) bool { return !isLayer(req) && testregistry.Blobs(req) }, Serve: endless(200)}, []string{"--config"}, 5, "goes on after"},
		"layer":                   {&testregistry.Fault{Match: isLayer, Serve: endless(200)}, []string{"-j1"}, 5, "goes on after"},
		"layer, by ranges":        {&testregistry.Fault{Match: isLayer, Serve: endless(200)}, nil, 5, "content has the digest"},
		"layer, as a wrong range": {&testregistry.Fault{Match: isLayer, Serve: endless(206, "Content-Range", "bytes 0-99999999/100000000")}, nil, 5, "a part of it in answer to a request for the whole"},
		"referrers":               {&testregistry.Fault{Match: testregistry.Path("/referrers/"), Serve: endless(200)}, []string{"--referrers"}, 1, "not an index"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := testregistry.New()
			if err := reg.AddLayout("team/app", im.Dir); err != nil {
				t.Fatal(err)
			}
			if name == "token" || name == "unauthorized" {
				reg.Bearer(&testregistry.Tokens{})
			}
			serve := tt.fault.Serve
			f := reg.Inject(&testregistry.Fault{Match: tt.fault.Match, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				serve(hostWriter{w, req.Host}, req, next)
			}})
			srv := httptest.NewServer(reg)
			defer srv.Close()
			cmd, err := peakmem.Command(bin, append([]string{"--plain-http", "--retries", "1", strings.TrimPrefix(srv.URL, "http://") + "/team/app"}, tt.args...)...)
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd.Env, cmd.Stderr = append(cmd.Environ(), environment(t)...), &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			peak, _ := cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(stderr.String(), tt.say) || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("exit code %d, want %d: %q", code, tt.code, stderr.String())
			}
			if peak > 64e6 && !raceDetector() {
				t.Errorf("%d MB", peak/1e6)
			}
			if f.Delivered() == 0 {
				t.Error("the fault was not delivered")
			}
		})
	}
}

// raceDetector reports whether it was built in: it takes as much memory again.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// hostWriter puts the registry's own address into what it asks for.
type hostWriter struct {
	http.ResponseWriter
	host string
}

func (w hostWriter) WriteHeader(status int) {
	if h := w.Header().Get("WWW-Authenticate"); h != "" {
		w.Header().Set("WWW-Authenticate", strings.ReplaceAll(h, "HOST", w.host))
	}
	w.ResponseWriter.WriteHeader(status)
}

// TestNoSecretAnywhere: while a download with a password and tokens goes through
// its troubles, neither is in what the command says, in its arguments, or in
// what it keeps.
func TestNoSecretAnywhere(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	reg := testregistry.New()
	if err := reg.AddLayout("team/app", im.Dir); err != nil {
		t.Fatal(err)
	}
	tokens := reg.Bearer(&testregistry.Tokens{User: "somebody", Password: "hunter2"})
	authorized := func(req *http.Request) bool { return req.Header.Get("Authorization") != "" }
	reg.Inject(&testregistry.Fault{Match: func(req *http.Request) bool { return authorized(req) && testregistry.Manifests(req) }, Times: 1, Serve: func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, `{"errors":[{"message":"busy with %s"}]}`, req.Header.Get("Authorization"))
	}})
	reg.Inject(&testregistry.Fault{Match: func(req *http.Request) bool { return authorized(req) && testregistry.Blobs(req) }, Times: 2,
		Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			defer tokens.Revoke()
			testregistry.Cut(5)(w, req, next)
		}})
	stalled := make(chan struct{})
	last := im.Layers[1].Digest.String()
	reg.Inject(&testregistry.Fault{Match: func(req *http.Request) bool { return authorized(req) && strings.Contains(req.URL.Path, last) }, Times: 1,
		Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			close(stalled)
			<-req.Context().Done()
		}})
	srv := httptest.NewServer(reg)
	defer srv.Close()
	cache := t.TempDir()
	cmd := exec.Command(program(t), "--plain-http", "-v", "-j1", "-u", "somebody", "--password-stdin", "--cache-dir", cache, "-o", os.DevNull,
		strings.TrimPrefix(srv.URL, "http://")+"/team/app")
	var said bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environment(t), strings.NewReader("hunter2\n"), &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var process bytes.Buffer
	signalAt(t, cmd, stalled, func() {
		for _, name := range []string{"cmdline", "comm", "status", "environ"} {
			b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(cmd.Process.Pid), name))
			if err != nil {
				break // no such system
			}
			process.Write(b)
		}
	}, syscall.SIGTERM)
	said.Write(process.Bytes())
	err := filepath.WalkDir(cache, func(name string, e os.DirEntry, err error) error {
		said.WriteString(name)
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		said.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", "-secret", base64.StdEncoding.EncodeToString([]byte("somebody:hunter2"))} {
		if i := strings.Index(said.String(), secret); i >= 0 {
			t.Errorf("%q is shown: %q", secret, said.String()[max(0, i-100):i])
		}
	}
	// The test proves nothing if nothing happened.
	for _, want := range []string{"busy with Bearer ***", "broke at byte", "trying again", "layer 0 of", "blobs/sha256"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("no %q in what was said", want)
		}
	}
	if tokens.Issued() < 2 {
		t.Errorf("%d tokens", tokens.Issued())
	}
}

// TestProxyEnvironment: the environment names a proxy with a password; it is
// used for HTTP and, by CONNECT, for HTTPS, and not where NO_PROXY says so.
func TestProxyEnvironment(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	reg := testregistry.New()
	if err := reg.AddLayout("team/app", im.Dir); err != nil {
		t.Fatal(err)
	}
	encrypted, plain := httptest.NewTLSServer(reg), httptest.NewServer(reg) // the former's certificate is for example.com
	defer encrypted.Close()
	defer plain.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: encrypted.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	var connects, plains, refused atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if want := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:hunter2")); req.Header.Get("Proxy-Authorization") != want {
			refused.Add(1)
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		if req.Method != http.MethodConnect {
			plains.Add(1)
			req.Header.Del("Proxy-Authorization")
			reg.ServeHTTP(w, req)
			return
		}
		connects.Add(1)
		testregistry.Tunnel(w, encrypted.Listener.Addr().String())
	}))
	defer proxy.Close()
	address := strings.TrimPrefix(proxy.URL, "http://")
	bin := program(t)
	run := func(env []string, args ...string) (int, string) {
		cmd := exec.Command(bin, append([]string{"--digest", "--retries", "1"}, args...)...)
		cmd.Env = environment(t, env...)
		out, _ := cmd.CombinedOutput()
		if strings.Contains(string(out), "hunter") {
			t.Errorf("a credential was shown: %s", out)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	good := []string{"HTTP_PROXY=http://me:hunter2@" + address, "HTTPS_PROXY=http://me:hunter2@" + address}
	want := im.Manifest.Digest.String() + "\n"
	if code, out := run(good, "--ca-file", ca, "example.com/team/app"); code != 0 || out != want || connects.Load() == 0 {
		t.Errorf("https: %d, %q, %d CONNECTs", code, out, connects.Load())
	}
	if code, out := run(good, "--plain-http", "example.com/team/app"); code != 0 || out != want || plains.Load() == 0 {
		t.Errorf("http: %d, %q, %d requests", code, out, plains.Load())
	}
	for _, scheme := range []string{"HTTPS_PROXY=http://me:hunter3@", "HTTPS_PROXY=http://"} {
		if code, out := run([]string{scheme + address}, "--ca-file", ca, "example.com/team/app"); code != 3 || !strings.Contains(out, "proxy "+address+": 407") {
			t.Errorf("%s: %d, %q", scheme, code, out)
		}
	}
	before := plains.Load() + connects.Load() + refused.Load()
	if code, out := run(append(good, "NO_PROXY=example.com"), "--plain-http", strings.TrimPrefix(plain.URL, "http://")+"/team/app"); code != 0 || out != want {
		t.Errorf("loopback: %d, %q", code, out)
	}
	run(append(good, "NO_PROXY=example.com"), "--plain-http", "example.com:1/team/app")
	if n := plains.Load() + connects.Load() + refused.Load(); n != before {
		t.Errorf("%d requests to a proxy that was not to be used", n-before)
	}
}
