package interop

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMissing runs this test binary again to see a skip and, with INTEROP=1, a
// failure: the promise that CI loses no check rests on the second.
func TestMissing(t *testing.T) {
	if os.Getenv("INTEROP_CHILD") == "1" {
		Tool(t, "no-such-program-anywhere")
		t.Fatal("Tool returned")
	}
	for _, tt := range []struct{ env, want string }{
		{"INTEROP=0", "--- SKIP: TestMissing"},
		{"INTEROP=1", "--- FAIL: TestMissing"},
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMissing$", "-test.v")
		cmd.Env = append(os.Environ(), "INTEROP_CHILD=1", tt.env)
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), tt.want) || strings.Contains(string(out), "Tool returned") {
			t.Errorf("%s: %v, want %q in:\n%s", tt.env, err, tt.want, out)
		}
	}
}

func TestPeersRun(t *testing.T) {
	for _, name := range []string{"mkfs.erofs", "fsck.erofs", "dump.erofs", "erofsfuse"} {
		cmd := Peer(t, name)
		// erofsfuse -V exits with 1.
		out, err := exec.Command(cmd[0], append(cmd[1:], "-V")...).CombinedOutput()
		if !strings.Contains(string(out), "1.9.4") {
			t.Errorf("%s -V: %v: %s", name, err, out)
		}
	}
}

// TestMountErofs mounts what the peer's mkfs made.
func TestMountErofs(t *testing.T) {
	dir := t.TempDir()
	src, img, mnt := filepath.Join(dir, "src"), filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	for _, d := range []string{src, mnt} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := []byte("hello\n")
	if err := os.WriteFile(filepath.Join(src, "file"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	Run(t, append(Peer(t, "mkfs.erofs"), "--quiet", img, src)...)
	MountErofs(t, img, mnt)
	got, err := os.ReadFile(filepath.Join(mnt, "file"))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %q, %v", got, err)
	}
}

// TestNbdFuse reads a file that nbdkit serves.
func TestNbdFuse(t *testing.T) {
	dir := t.TempDir()
	data, sock := filepath.Join(dir, "data"), filepath.Join(dir, "sock")
	want := bytes.Repeat([]byte("0123456789abcdef"), 256)
	if err := os.WriteFile(data, want, 0o644); err != nil {
		t.Fatal(err)
	}
	Listening(t, exec.Command(Tool(t, "nbdkit"), "-f", "-r", "-U", sock, "file", data), sock)
	got, err := os.ReadFile(NbdFuse(t, "nbd+unix:///?socket="+sock))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v; want %d", len(got), err, len(want))
	}
}
