package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/nbddev"
)

// What the host has put here; see internal/vm.
const (
	whole      = "/data/whole.erofs"
	index      = "/data/index.erofs"
	layout     = "/data/layout"
	unit       = "/data/erofs-nbd@.service"
	repository = "team/golang"
	native     = "team/native"
)

// hangs bounds what a test waits for; emulated processors are slow.
const hangs = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv("LAYERPIPE_VM") != "1" {
		fmt.Println("skipped: these tests are for a virtual machine (make test-vm)")
		return
	}
	if os.Getenv(noNetlink) != "" {
		fmt.Fprintln(os.Stderr, runWithoutNetlink())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A server is a process of erofs-nbd.
type server struct {
	t      *testing.T
	cmd    *exec.Cmd
	dev    string
	n      int
	stderr *interop.Output
	done   chan struct{}
	err    error
}

// launch starts erofs-nbd and waits for the line that says it is ready.
func launch(t *testing.T, command ...string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command(command[0], command[1:]...), stderr: new(interop.Output), done: make(chan struct{})}
	s.cmd.Stderr = s.stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	go func() { defer close(s.done); s.err = s.cmd.Wait() }()
	t.Cleanup(func() { s.cmd.Process.Kill(); <-s.done })
	if err != nil {
		<-s.done
		t.Fatalf("%s: %v: %s", strings.Join(command, " "), s.err, s.stderr)
	}
	s.dev = strings.TrimSpace(line)
	var ok bool
	if s.n, ok = nbddev.ParseName(s.dev); !ok {
		t.Fatalf("ready line %q", line)
	}
	return s
}

// start launches erofs-nbd; what is left of the device goes at the test's end.
func start(t *testing.T, args ...string) *server {
	t.Helper()
	s := launch(t, append([]string{"erofs-nbd"}, args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("stderr: %s", s.stderr)
		}
		exec.Command("erofs-nbd", "--detach", s.dev, "--force").Run()
	})
	return s
}

// ends waits for a server's end and its exit code.
func (s *server) ends(code int) {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(hangs):
		s.t.Fatalf("it does not end: %s", s.stderr)
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("exit code %d, want %d: %s", got, code, s.stderr)
	}
}

func (s *server) signal(sig syscall.Signal) { s.cmd.Process.Signal(sig) }

// kill is the end that nobody can prepare for.
func (s *server) kill() {
	s.cmd.Process.Kill()
	<-s.done
}

// gone checks that nothing is left of a device.
func (s *server) gone() {
	s.t.Helper()
	if i, err := nbddev.Stat(s.n); err != nil || i.Attached {
		s.t.Errorf("%s: %+v, %v", s.dev, i, err)
	}
	if left, _ := filepath.Glob(nbddev.DefaultStateDir + "/nbd*.json"); len(left) > 0 {
		s.t.Errorf("left: %v", left)
	}
	if b, _ := os.ReadFile("/proc/mounts"); bytes.Contains(b, []byte(s.dev+" ")) {
		s.t.Errorf("still mounted:\n%s", b)
	}
}

// command runs erofs-nbd to its end.
func command(t *testing.T, code int, want string, args ...string) string {
	t.Helper()
	cmd := exec.Command("erofs-nbd", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(stderr.String(), want) {
		t.Errorf("erofs-nbd %s: exit code %d, want %d, and %q in %q (%v)", strings.Join(args, " "), got, code, want, stderr.String(), err)
	}
	return stdout.String()
}

// ok runs any command that has to succeed.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// reference is the tree that every mount has to show: that of the whole image,
// mounted through a loop device.
var reference = sync.OnceValues(func() (fstree.Tree, error) {
	dir, err := os.MkdirTemp("", "reference")
	if err != nil {
		return nil, err
	}
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", whole, dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	defer unix.Unmount(dir, 0)
	return fstree.List(dir, fstree.Options{})
})

// compare compares a mount with the reference.
func compare(t *testing.T, dir string) {
	t.Helper()
	want, err := reference()
	if err != nil {
		t.Fatal(err)
	}
	if len(want) < 100 {
		t.Fatalf("only %d files in the reference", len(want))
	}
	dropCaches(t)
	fstree.EqualTree(t, dir, want, fstree.Options{})
}

// dropCaches makes the kernel forget what it has read.
func dropCaches(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

// mountpoint is a new directory.
func mountpoint(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a mount") // with a space, which mountinfo escapes
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A registry can be stopped and started again at the same address.
type registry struct {
	*testregistry.Registry
	t    *testing.T
	addr string
	srv  *http.Server
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{Registry: testregistry.New(), t: t, addr: "127.0.0.1:0"}
	for _, name := range []string{repository, native} {
		if err := r.AddLayout(name, filepath.Join(layout, filepath.Base(name))); err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	t.Cleanup(r.stop)
	return r
}

func (r *registry) start() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = l.Addr().String()
	r.srv = &http.Server{Handler: r.Registry}
	go r.srv.Serve(l)
}

func (r *registry) stop() { r.srv.Close() }

func (r *registry) ref(name string) string { return r.addr + "/" + name + ":latest" }

// lazy is the flags of a lazy mount.
func (r *registry) lazy(more ...string) []string {
	return append([]string{"--index", index, "--blob", r.ref(repository), "--plain-http"}, more...)
}

// readDirect reads a device past the page cache.
func readDirect(dev string, off int64, n int) ([]byte, error) {
	fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(b)
	got, err := unix.Pread(fd, b, off)
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF
	}
	return bytes.Clone(b[:max(got, 0)]), err
}

// await waits until something is so.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(hangs); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, hangs)
		}
	}
}

var errWrong = errors.New("wrong bytes")
