package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// terminal is a pseudo-terminal, and what was written to it.
type terminal struct {
	master, slave *os.File
	done          chan struct{}

	mu    sync.Mutex
	text  strings.Builder
	ended bool
	seen  *sync.Cond
}

func openTerminal(t *testing.T, columns int) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		interop.Missing(t, "no pseudo-terminals here: %v", err)
	}
	fd := int(master.Fd())
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	var n uint32
	if err == nil {
		n, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	}
	var slave *os.File
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty := &terminal{master: master, slave: slave, done: make(chan struct{})}
	tty.seen = sync.NewCond(&tty.mu)
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(columns)}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(tty.done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			tty.mu.Lock()
			tty.text.Write(buf[:n])
			tty.ended = err != nil
			tty.seen.Broadcast()
			tty.mu.Unlock()
			if err != nil { // EIO once nobody has the other side open
				return
			}
		}
	}()
	t.Cleanup(func() { slave.Close(); master.Close() })
	return tty
}

// wait waits until something that matches was written; false: it never was.
func (tty *terminal) wait(pattern string) bool {
	re := regexp.MustCompile(pattern)
	tty.mu.Lock()
	defer tty.mu.Unlock()
	for !re.MatchString(tty.text.String()) {
		if tty.ended {
			return false
		}
		tty.seen.Wait()
	}
	return true
}

// end is all that was written, once the command has ended.
func (tty *terminal) end() string {
	<-tty.done
	return tty.text.String()
}

// lines is what stays on the screen: of what was written over each other, the
// last. drawn is all that there ever was on a line.
func lines(text string) (last, drawn []string) {
	for l := range strings.SplitSeq(strings.TrimSuffix(text, "\r\n"), "\r\n") {
		parts := strings.Split(l, "\r")
		for _, s := range parts {
			drawn = append(drawn, strings.TrimRight(s, " "))
		}
		last = append(last, drawn[len(drawn)-1])
	}
	return last, drawn
}

// TestTerminal is what somebody sees who fetches an image: a bar before the
// first byte, bytes as they arrive, a retry and an error on lines of their own,
// no line that is wider than the terminal, and none that is empty.
func TestTerminal(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Layer{Write: func(b *testimage.Builder) {
		b.File("a", 0o644, strings.Repeat("some text that is no use to anybody\n", 20_000))
	}, Compression: testimage.Plain}, testimage.Layer{Write: func(b *testimage.Builder) {
		b.File("b", 0o644, strings.Repeat("and more of it\n", 10_000))
	}, Compression: testimage.Plain})
	size := im.Layers[0].Size
	for name, tt := range map[string]struct {
		columns int
		args    []string
		broken  bool // the last layer is wrong
		code    int
		want    []string // patterns, of the lines in the end
	}{
		"wide":    {120, nil, false, 0, []string{`oci-fetch: blob sha256:\S+: 503 Service Unavailable.*; trying again in .*`, `layer 0 of 2  100%  .* KiB .*in .*s`, `layer 1 of 2  100%  .*`}},
		"verbose": {120, []string{"-v"}, false, 0, []string{`oci-fetch: .* is sha256:.*`, `oci-fetch: .*trying again.*`, `layer 0 of 2  100%  .*`, `layer 1 of 2  100%  .*`}},
		"narrow":  {30, nil, false, 0, []string{`oci-fetch: .*trying again.*`, `layer 0 of 2  100%.*`, `layer 1 of 2  100%.*`}},
		"error":   {80, nil, true, 5, []string{`oci-fetch: .*trying again.*`, `layer 0 of 2  100%  .*`, `layer 1 of 2 .*`, `oci-fetch: .*content has the digest.*`}},
		"Ctrl-C":  {80, nil, false, 130, []string{`oci-fetch: .*trying again.*`, `layer 0 of 2    0%  .*`}},
		"quiet":   {80, []string{"-q"}, false, 0, nil},
		"no bars": {80, []string{"--no-progress"}, false, 0, []string{`oci-fetch: .*trying again.*`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := testregistry.New()
			if err := reg.AddLayout("team/app", im.Dir); err != nil {
				t.Fatal(err)
			}
			first, last := testregistry.Path(im.Layers[0].Digest.String()), testregistry.Path(im.Layers[1].Digest.String())
			bars := name != "quiet" && name != "no bars"
			held, half := make(chan struct{}), make(chan struct{})
			reg.Inject(&testregistry.Fault{Match: first, Times: 1, Serve: testregistry.Status(503)})
			reg.Inject(&testregistry.Fault{Match: first, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				<-held
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", size-1, size))
				w.Header().Set("Content-Length", fmt.Sprint(size))
				w.WriteHeader(http.StatusPartialContent)
				f, err := os.Open(im.Blob(0))
				if err != nil {
					return
				}
				defer f.Close()
				io.CopyN(w, f, size/2)
				http.NewResponseController(w).Flush()
				<-half
				io.Copy(w, f)
			}})
			if tt.broken {
				reg.Inject(&testregistry.Fault{Match: last, Serve: testregistry.Flip(5)})
			}
			srv := httptest.NewServer(reg)
			defer srv.Close()
			tty := openTerminal(t, tt.columns)
			cmd := exec.Command(program(t), append([]string{"--plain-http", "-o", filepath.Join(t.TempDir(), "out"), strings.TrimPrefix(srv.URL, "http://") + "/team/app"}, tt.args...)...)
			cmd.Env, cmd.Stderr = environment(t), tty.slave
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			tty.slave.Close() // it is the command's alone
			if bars && !tty.wait(`layer 0 of 2    0%`) {
				t.Error("no bar before the first byte")
			}
			if tt.code == 130 {
				if !tty.wait(`trying again`) {
					t.Error("nothing was tried again")
				}
				cmd.Process.Signal(os.Interrupt)
				bars = false
			} else {
				close(held)
			}
			if bars && !tty.wait(`layer 0 of 2   50%`) {
				t.Error("nothing of what arrived of the only piece")
			}
			close(half)
			cmd.Wait()
			if tt.code == 130 {
				close(held)
			}
			text := tty.end()
			if code := cmd.ProcessState.ExitCode(); code != tt.code {
				t.Errorf("exit code %d", code)
			}
			got, drawn := lines(text)
			if tt.want == nil {
				if text != "" {
					t.Errorf("%q", text)
				}
				return
			}
			if len(got) != len(tt.want) {
				t.Fatalf("%d lines: %q", len(got), got)
			}
			for i, l := range got {
				if !regexp.MustCompile("^" + tt.want[i] + "$").MatchString(l) {
					t.Errorf("line %d is %q, want %s", i, l, tt.want[i])
				}
			}
			for _, l := range drawn {
				if len(l) >= tt.columns && strings.HasPrefix(l, "layer") {
					t.Errorf("%q wraps", l)
				}
			}
			if !strings.HasSuffix(text, "\n") {
				t.Errorf("what comes next goes on in the line of %q", got[len(got)-1])
			}
			if strings.Contains(text, "\x1b") {
				t.Errorf("escape sequences: %q", text)
			}
		})
	}
}
