//go:build unix

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/build"
)

func smallImage(t testing.TB) string {
	t.Helper()
	return makeImage(t, testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...), build.Options{})
}

// socketOf is the path in a URI.
func socketOf(t *testing.T, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "nbd+unix" {
		t.Fatalf("URI %q: %v", uri, err)
	}
	return u.Query().Get("socket")
}

// TestSignals: a server that is told to end does, with exit code 0, and takes
// its socket with it.
func TestSignals(t *testing.T) {
	image := smallImage(t)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd := command(t, image)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := io.ReadAll(&untilNewline{r: stdout})
		if err != nil {
			t.Fatal(err)
		}
		uri := strings.TrimSpace(string(line))
		socket := socketOf(t, uri)
		for name, mode := range map[string]fs.FileMode{socket: fs.ModeSocket | 0o600, filepath.Dir(socket): fs.ModeDir | 0o700} {
			if st, err := os.Stat(name); err != nil || st.Mode() != mode {
				t.Errorf("%s: %v, %v", name, st.Mode(), err)
			}
		}
		c := dial(t, uri) // stays connected
		got := make([]byte, len(want))
		if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read: %v", err)
		}
		cmd.Process.Signal(sig)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", sig, err)
		}
		if _, err := os.Stat(filepath.Dir(socket)); !os.IsNotExist(err) {
			t.Errorf("left behind: %s", socket)
		}
		if _, err := c.ReadAt(got, 0); err == nil {
			t.Error("still served")
		}
	}
}

// TestSocketPath: a socket with a given name, also where one was left over.
func TestSocketPath(t *testing.T) {
	image := smallImage(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "a b+c%")
	// A server that was killed leaves its socket.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	s := start(t, image, "--listen", "unix:"+path)
	if got := socketOf(t, s.uri); got != path {
		t.Errorf("URI %s for %s", s.uri, path)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	readAll(t, s.uri)
	if nbdinfo, err := exec.LookPath("nbdinfo"); err == nil {
		interop.Run(t, nbdinfo, "--size", s.uri) // reads the same URI the same way
	}
	mustRefuse(t, "a socket in use", 1, "another server listens", image, "--listen", "unix:"+path)
	readAll(t, s.uri) // it goes on
	s.stop()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, "a file", 1, "no socket", image, "--listen", "unix:"+path)
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is gone: %q, %v", b, err)
	}
}

// TestSocketsOfTheDead: a server clears up after those that were killed, and
// disturbs nobody who lives or is about to.
func TestSocketsOfTheDead(t *testing.T) {
	base := filepath.Join(t.TempDir(), "[x]") // a pattern, which it is not taken for
	if err := os.Mkdir(base, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", base)
	image := smallImage(t)
	living := start(t, image)
	made := func(name string) string {
		t.Helper()
		dir := filepath.Join(base, socketDir+name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, socketName)})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		return dir
	}
	old := time.Now().Add(-2 * socketAge)
	dead, fresh, full := made("dead"), made("fresh"), made("full")
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dead, full, filepath.Dir(socketOf(t, living.uri))} {
		if err := os.Chtimes(dir, old, old); err != nil {
			t.Fatal(err)
		}
	}
	start(t, image).stop()
	for dir, want := range map[string]bool{dead: false, fresh: true, full: true} {
		if _, err := os.Lstat(dir); os.IsNotExist(err) == want {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(full, "precious")); err != nil {
		t.Error(err)
	}
	readAll(t, living.uri)
}

// TestRun: the server lives as long as the command, whose exit code is ours.
func TestRun(t *testing.T) {
	image := smallImage(t)
	for _, tt := range []struct {
		command string
		code    int
		stdout  string
	}{
		{"true", 0, ""},
		{"exit 7", 7, ""},
		{"kill -9 $$", 137, ""},
		{"no-such-command 2>/dev/null", 127, ""},
		{`test -S "$unixsocket" && echo "${uri%%\?*}"`, 0, "nbd+unix:///\n"},
	} {
		runtime := t.TempDir()
		t.Setenv("XDG_RUNTIME_DIR", runtime)
		code, stdout, stderr := invoke(t, image, "--run", tt.command)
		if code != tt.code || stdout != tt.stdout || stderr != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", tt.command, code, stdout, stderr)
		}
		if left, err := os.ReadDir(runtime); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v, %v", tt.command, left, err)
		}
	}
	nbdcopy := interop.Tool(t, "nbdcopy")
	out := filepath.Join(t.TempDir(), "out")
	if code, _, stderr := invoke(t, image, "--run", nbdcopy+` "$uri" '`+out+`'`); code != 0 {
		t.Fatalf("nbdcopy: %d, %s", code, stderr)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := os.ReadFile(image); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy has %d bytes, want %d, or other ones", len(got), len(want))
	}
}

// TestRunIsEnded: a signal ends the command and the server.
func TestRunIsEnded(t *testing.T) {
	dir := t.TempDir()
	ready, ended := filepath.Join(dir, "ready"), filepath.Join(dir, "ended")
	cmd := command(t, smallImage(t), "--run", "trap 'touch "+ended+"; exit 0' TERM; touch "+ready+"; while :; do sleep 0.05; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(ready); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the command does not run")
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 143 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(ended); err != nil {
		t.Errorf("the command was not told: %v", err)
	}
}

// TestSocketActivation passes a socket as systemd does.
func TestSocketActivation(t *testing.T) {
	image := smallImage(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	serve := func(script string, args ...string) *exec.Cmd {
		cmd := command(t)
		cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", script + ` exec "$0" "$@"`, os.Args[0]}, args...)
		cmd.ExtraFiles = []*os.File{f}
		return cmd
	}
	cmd := serve("export LISTEN_PID=$$ LISTEN_FDS=1;", image)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := io.ReadAll(&untilNewline{r: stdout})
	if err != nil || socketOf(t, strings.TrimSpace(string(line))) != path {
		t.Errorf("URI %q, %v", line, err)
	}
	readAll(t, strings.TrimSpace(string(line)))
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
	for _, c := range []*exec.Cmd{
		serve("export LISTEN_PID=$$ LISTEN_FDS=2;", image),
		serve("export LISTEN_PID=$$ LISTEN_FDS=1;", image, "--listen", "unix:"+path+"2"),
	} {
		out, _ := c.CombinedOutput()
		if code := c.ProcessState.ExitCode(); code != 2 || !bytes.Contains(out, []byte("systemd")) {
			t.Errorf("exit code %d: %s", code, out)
		}
	}
	// Sockets for somebody else are not ours.
	c := serve("export LISTEN_PID=1 LISTEN_FDS=1;", image, "--run", "true")
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestSystemdSocketActivate has systemd's own tool listen: it starts the server
// for the first client, which is served like any other.
func TestSystemdSocketActivate(t *testing.T) {
	activate := interop.Tool(t, "systemd-socket-activate")
	image := smallImage(t)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command(activate, "--listen="+path, "--setenv=EROFS_NBD_MAIN=1", os.Args[0], image)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	uri := "nbd+unix:///?socket=" + path
	eventually(t, func() bool {
		// The socket is there a moment before anybody listens on it.
		c, err := nbdclient.Dial(uri)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		return true
	}, func() string { return "nobody listens" })
	for range 2 {
		if got := readAll(t, uri); !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d, or other ones", len(got), len(want))
		}
	}
	cmd.Process.Signal(syscall.SIGTERM) // to the server, which has taken the tool's place
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestTLS: with a certificate, clients without TLS are turned away, and those
// with it are served.
func TestTLS(t *testing.T) {
	nbdinfo := interop.Tool(t, "nbdinfo")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"ca-cert.pem":     {Type: "CERTIFICATE", Bytes: der}, // the names that libnbd looks for
		"client-cert.pem": {Type: "CERTIFICATE", Bytes: der},
		"client-key.pem":  {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	image := smallImage(t)
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	cert, certKey := filepath.Join(dir, "ca-cert.pem"), filepath.Join(dir, "client-key.pem")
	for _, ca := range [][]string{nil, {"--tls-ca", cert}} {
		s := start(t, append(ca, image, "--listen", "tcp:localhost:0", "--tls-cert", cert, "--tls-key", certKey)...)
		u, err := url.Parse(s.uri)
		if err != nil || u.Scheme != "nbds" {
			t.Fatalf("URI %s", s.uri)
		}
		u.Host = net.JoinHostPort("localhost", u.Port()) // the certificate's name
		u.RawQuery = "tls-certificates=" + dir
		if got := strings.TrimSpace(string(interop.Run(t, nbdinfo, "--size", u.String()))); got != big.NewInt(st.Size()).String() {
			t.Errorf("size %s, want %d", got, st.Size())
		}
		if out, err := exec.Command(nbdinfo, "--size", "nbd://"+u.Host+"/").CombinedOutput(); err == nil {
			t.Errorf("without TLS: %s", out)
		}
	}
	mustRefuse(t, "a CA that is none", 2, "no certificate in it", image, "--tls-cert", cert, "--tls-key", certKey, "--tls-ca", certKey)
}
