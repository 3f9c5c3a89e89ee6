package interop

import (
	"bytes"
	"net"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// An Output is what a process has printed so far. It may be read while the
// process runs.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Listening starts a server and waits until it takes connections on a Unix
// socket. It is killed when the test ends.
func Listening(t testing.TB, server *exec.Cmd, socket string) {
	t.Helper()
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	for range 3000 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not listen on %s", server.Path, socket)
}
