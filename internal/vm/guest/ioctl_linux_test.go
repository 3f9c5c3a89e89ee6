package guest

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noNetlink, in the environment of this test binary, makes it run its arguments
// as a program that cannot open netlink sockets, as under systemd's
// RestrictAddressFamilies, or before there was netlink to the driver.
const noNetlink = "GUEST_NO_NETLINK"

// runWithoutNetlink becomes the program that the arguments name.
func runWithoutNetlink() error {
	runtime.LockOSThread() // the filter is the thread's
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},                                 // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SOCKET, Jt: 0, Jf: 3},    // else allow
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16},                                // seccomp_data.args[0], its low half
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_NETLINK, Jt: 0, Jf: 1},    // else allow
		{Code: unix.BPF_RET | unix.BPF_K, K: seccompErrno | uint32(unix.EAFNOSUPPORT)&0xffff}, // linux/seccomp.h
		{Code: unix.BPF_RET | unix.BPF_K, K: seccompAllow},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return err
	}
	os.Unsetenv(noNetlink)
	path, err := exec.LookPath(os.Args[1])
	if err != nil {
		return err
	}
	return unix.Exec(path, os.Args[1:], os.Environ())
}

const (
	seccompErrno = 0x00050000
	seccompAllow = 0x7fff0000
)

// TestIoctl: without netlink a device is attached by ioctl; all works but a
// takeover, which is refused.
func TestIoctl(t *testing.T) {
	t.Setenv(noNetlink, "1")
	attach := func(args ...string) *server {
		t.Helper()
		s := launch(t, append([]string{os.Args[0], "erofs-nbd"}, args...)...)
		await(t, "it warns", func() bool { return strings.Contains(s.stderr.String(), "no netlink here") })
		return s
	}
	dir := mountpoint(t)
	s := attach(whole, "--mount", dir)
	compare(t, dir)
	ok(t, "umount", dir)
	s.ends(0)
	s.gone()

	// --detach does what it can: unmount. Without a mount only the server can.
	s = attach(whole, "--mount", dir)
	other := attach(whole, "--attach")
	command(t, 0, "", "--detach", dir)
	s.ends(0)
	command(t, 1, "end its server", "--detach", other.dev)
	other.signal(syscall.SIGTERM)
	other.ends(0)
	other.gone()

	// Nobody waits for a server that cannot come back.
	s = attach(whole, "--mount", dir)
	name, _ := someFile(t, dir)
	s.kill()
	dropCaches(t)
	if _, err := os.ReadFile(name); err == nil {
		t.Error("read without a server")
	}
	if list := command(t, 0, "", "--list"); !strings.Contains(list, " gone ") {
		t.Errorf("listed as\n%s", list)
	}
	command(t, 0, "", "--detach", dir)
	s.gone()

	s = attach(whole, "--attach")
	s.kill()
	command(t, 1, "without netlink", "--reattach", s.dev)
	s.gone()
}
