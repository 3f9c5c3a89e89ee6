// Package e2e runs the commands as a user would, as processes joined by pipes,
// on whole images, and compares what comes out with other people's tools.
package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/peakmem"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// binDir holds the commands, built once for all tests.
var binDir string

func TestMain(m *testing.M) {
	peakmem.Init()
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	if binDir, err = os.MkdirTemp("", "layerpipe-e2e-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(binDir)
	cmd := exec.Command("go", "build", "-o", binDir+string(filepath.Separator), "../../cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// tool is the path of one of our commands.
func tool(name string) string {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(binDir, name)
}

// A result is how one command of a pipeline ended.
type result struct {
	code   int
	stderr string
}

// pipe joins commands with pipes, feeds the first one stdin, and returns what
// the last one wrote and how each ended.
func pipe(t testing.TB, stdin io.Reader, commands ...[]string) (stdout []byte, ends []result) {
	t.Helper()
	cmds := make([]*exec.Cmd, len(commands))
	stderrs := make([]bytes.Buffer, len(commands))
	var out bytes.Buffer
	var ours []*os.File
	for i, c := range commands {
		cmds[i] = exec.Command(c[0], c[1:]...)
		cmds[i].Stderr = &stderrs[i]
		if i > 0 {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmds[i-1].Stdout, cmds[i].Stdin = w, r
			ours = append(ours, r, w)
		}
	}
	cmds[0].Stdin = stdin
	cmds[len(cmds)-1].Stdout = &out
	for _, c := range cmds {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	// Only the children's copies are to keep a pipe open.
	for _, f := range ours {
		f.Close()
	}
	for i, c := range cmds {
		err := c.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) && !errors.Is(err, os.ErrClosed) {
			// The command ended without reading all of stdin: its own exit
			// code says why.
			if i > 0 || c.ProcessState == nil {
				t.Fatal(err)
			}
		}
		ends = append(ends, result{c.ProcessState.ExitCode(), strings.TrimSpace(stderrs[i].String())})
	}
	return out.Bytes(), ends
}

// must runs a pipeline in which everything has to go well.
func must(t testing.TB, commands ...[]string) []byte {
	t.Helper()
	out, ends := pipe(t, nil, commands...)
	for i, e := range ends {
		if e.code != 0 {
			t.Fatalf("%s: exit code %d: %s", strings.Join(commands[i], " "), e.code, e.stderr)
		}
	}
	return out
}

// fetch is the oci-fetch command for a plain-HTTP reference.
func fetch(ref string) []string { return []string{tool("oci-fetch"), "--plain-http", ref} }

// whole and index build an image from stdin, or from files.
func whole(out string, in ...string) []string {
	return append([]string{tool("tar2erofs"), out}, in...)
}

func index(out string, in ...string) []string {
	return append([]string{tool("tar2erofs"), "-i", out}, in...)
}

// A nbdServer is a running erofs-nbd.
type nbdServer struct {
	uri    string
	stderr interop.Output
}

// says waits for the server to write something to stderr that contains want: a
// reply may overtake the line about it.
func (s *nbdServer) says(t testing.TB, want string) {
	t.Helper()
	for range 1000 {
		if strings.Contains(s.stderr.String(), want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("erofs-nbd does not say %q; it said: %q", want, s.stderr.String())
}

// serve runs erofs-nbd on a socket of the test's until the test ends. It must
// then end in good order.
func serve(t testing.TB, args ...string) *nbdServer {
	t.Helper()
	// A socket's path is bounded, and a test's directory can be long.
	dir, err := os.MkdirTemp("", "nbd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &nbdServer{}
	cmd := exec.Command(tool("erofs-nbd"), append(args, "--listen", "unix:"+filepath.Join(dir, "s"))...)
	cmd.Stderr = &s.stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer kill.Stop()
		err := cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("erofs-nbd, interrupted: %v: %s", err, s.stderr.String())
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("erofs-nbd %s printed no URI: %v: %s", strings.Join(args, " "), err, s.stderr.String())
	}
	s.uri = strings.TrimSpace(line)
	return s
}

// serveRegistry serves our registry on the loopback interface, and returns its
// HOST:PORT.
func serveRegistry(t testing.TB, reg *testregistry.Registry) string {
	t.Helper()
	host, stop, err := reg.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return host
}

// absent wants no file where a failed command would have put one, nor any
// temporary neighbour of it.
func absent(t testing.TB, out string) {
	t.Helper()
	names, err := os.ReadDir(filepath.Dir(out))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		t.Errorf("left behind: %s", n.Name())
	}
}

// empty is a file name in a directory of its own, which absent looks at.
func empty(t testing.TB) string { return filepath.Join(t.TempDir(), "out.erofs") }
