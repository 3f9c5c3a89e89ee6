package interop

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelErofs asks for root and a kernel that knows EROFS.
func kernelErofs(t testing.TB) {
	t.Helper()
	Root(t)
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(b), "\terofs\n") {
		// It may be a module that is not loaded yet.
		if exec.Command("modprobe", "erofs").Run() != nil {
			Missing(t, "this kernel has no EROFS")
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		Missing(t, "there are no loop devices: %v", err)
	}
}

// MountErofs mounts an image read-only on dir, through a loop device, until
// the test ends. options go to mount -o, after "ro,loop".
func MountErofs(t testing.TB, file, dir string, options ...string) {
	t.Helper()
	if err := TryMountErofs(t, file, dir, options...); err != nil {
		t.Fatal(err)
	}
}

// TryMountErofs is MountErofs for an image that the kernel may refuse.
func TryMountErofs(t testing.TB, file, dir string, options ...string) error {
	t.Helper()
	kernelErofs(t)
	opts := strings.Join(append([]string{"ro", "loop"}, options...), ",")
	out, err := exec.Command("mount", "-t", "erofs", "-o", opts, file, dir).CombinedOutput()
	if err != nil {
		return errors.New("mount -t erofs -o " + opts + " " + file + ": " + strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { unmount(t, dir) })
	return nil
}

// KernelSince tells whether the kernel is of this version or a later one.
func KernelSince(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		t.Fatal(err)
	}
	return a > major || a == major && b >= minor
}

// unmount takes a mount down. A process that has just ended may hold it for a
// moment; when it stays busy it is detached, so that the temporary directory
// above it can go, and the test fails.
func unmount(t testing.TB, dir string) {
	t.Helper()
	var err error
	for range 100 {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// NbdFuse shows the export behind an NBD URI as a file, through nbdfuse, until
// the test ends, and returns the file's path.
func NbdFuse(t testing.TB, uri string) string {
	t.Helper()
	nbdfuse := Tool(t, "nbdfuse")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		Missing(t, "there is no FUSE here: %v", err)
	}
	dir := t.TempDir()
	file, pidfile, log := filepath.Join(dir, "nbd"), filepath.Join(dir, "pid"), filepath.Join(dir, "log")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stderr, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd := exec.Command(nbdfuse, "-P", pidfile, file, uri)
	cmd.Stdout, cmd.Stderr = stderr, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if err := unix.Unmount(file, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			unix.Unmount(file, unix.MNT_DETACH)
		}
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
	})
	deadline := time.After(30 * time.Second)
	for {
		// The PID file is written once the file system answers.
		if _, err := os.Stat(pidfile); err == nil {
			return file
		}
		select {
		case err := <-ended:
			b, _ := os.ReadFile(log)
			ended <- err // for the cleanup
			t.Fatalf("nbdfuse %s: %v: %s", uri, err, b)
		case <-deadline:
			b, _ := os.ReadFile(log)
			t.Fatalf("nbdfuse %s: not ready: %s", uri, b)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
