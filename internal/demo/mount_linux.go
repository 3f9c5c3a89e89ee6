package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cannotMount says why this process cannot mount EROFS; "" if it can.
func cannotMount() string {
	if os.Geteuid() != 0 {
		return "mounting needs root"
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return "there are no loop devices here"
	}
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(b), "\terofs\n") {
		if exec.Command("modprobe", "erofs").Run() != nil {
			return "this kernel has no EROFS"
		}
	}
	if _, err := exec.LookPath("mount"); err != nil {
		return "there is no mount command"
	}
	return ""
}

// mountErofs mounts an image on dir, which it makes.
func mountErofs(file, dir string) (unmount func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", file, dir).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w: %s", file, err, strings.TrimSpace(string(out)))
	}
	return func() error { return unix.Unmount(dir, 0) }, nil
}

// nbdFile shows the NBD export as a file that the loop driver takes, through
// nbdfuse. why says what is missing for that.
func (d *demo) nbdFile() (file string, stop func(), why string, err error) {
	nbdfuse, err := exec.LookPath("nbdfuse")
	if err != nil {
		return "", nil, "there is no nbdfuse (Debian's libnbd-bin); erofs-nbd --mount needs the kernel's nbd driver", nil
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return "", nil, "there is no FUSE here", nil
	}
	file = d.path("nbd")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return "", nil, "", err
	}
	say("$ nbdfuse nbd '%s' &", d.uri)
	cmd := exec.Command(nbdfuse, "-P", d.path("nbd.pid"), file, d.uri)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return "", nil, "", err
	}
	stop = func() {
		if unix.Unmount(file, 0) != nil {
			unix.Unmount(file, unix.MNT_DETACH)
			cmd.Process.Kill()
		}
		cmd.Wait()
	}
	for range 1000 {
		if _, err := os.Stat(d.path("nbd.pid")); err == nil {
			return file, stop, "", nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	return "", nil, "", fmt.Errorf("nbdfuse %s is not ready", d.uri)
}
