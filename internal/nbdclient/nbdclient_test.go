package nbdclient_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/nbdclient"
)

// TestNbdkit reads from a server that is not ours, one that fails in the
// middle of the disk.
func TestNbdkit(t *testing.T) {
	nbdkit := interop.Tool(t, "nbdkit")
	dir := t.TempDir()
	want := bytes.Repeat([]byte("layerpipe "), 300_000) // several requests long
	data, sock, trigger := filepath.Join(dir, "data"), filepath.Join(dir, "sock"), filepath.Join(dir, "fail")
	if err := os.WriteFile(data, want, 0o644); err != nil {
		t.Fatal(err)
	}
	interop.Listening(t, exec.Command(nbdkit, "-f", "-r", "-U", sock, "--filter=error", "file", data, "error=EIO", "error-rate=1", "error-file="+trigger), sock)
	c, err := nbdclient.Dial("nbd+unix:///?socket=" + sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size() != int64(len(want)) {
		t.Errorf("size %d, want %d", c.Size(), len(want))
	}
	got := make([]byte, len(want)+1)
	n, err := c.ReadAt(got, 0)
	if err != io.EOF || !bytes.Equal(got[:n], want) {
		t.Errorf("read %d bytes, %v; want %d and EOF", n, err, len(want))
	}
	if err := os.WriteFile(trigger, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(got[:10], 5); !errors.Is(err, nbdclient.EIO) {
		t.Errorf("got %v, want %v", err, nbdclient.EIO)
	}
	if err := os.Remove(trigger); err != nil {
		t.Fatal(err)
	}
	if n, err := c.ReadAt(got[:10], 5); err != nil || !bytes.Equal(got[:n], want[5:15]) {
		t.Errorf("after the failure: %d bytes, %v", n, err)
	}
}
