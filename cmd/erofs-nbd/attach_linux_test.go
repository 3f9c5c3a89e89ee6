package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/cmd/internal/regflags"
	"github.com/layerpipe/layerpipe/pkg/nbddev"
)

// What needs the driver is tested in a virtual machine: internal/vm.

func TestBadAttachFlags(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--attach", "nothing to serve"},
		{"image --attach=", "--attach="},
		{"image --attach=/dev/sda", "no name of an nbd device"},
		{"image --attach --run x", "without --listen"},
		{"image --mount . --listen unix:x", "without --listen"},
		{"image --mount-options ro", "needs --mount"},
		{"image --force", "--force is for"},
		{"image --daemon --run x", "not both"},
		{"image --attach --dead-timeout 1ms", "--dead-timeout"},
		{"image --list", "--list goes without"},
		{"--list --mount x", "--list goes without"},
		{"--detach nbd0 --reattach nbd0", "only one of"},
		{"--list --daemon", "--daemon is for"},
		{"--index i --blob b --daemon --authfile /dev/fd/3", "a daemon does not have it"},
		{"--reattach all --authfile /dev/fd/63", "a daemon does not have it"},
		{"--reattach nbd0 --blob x", "--reattach goes without"},
		{"--reattach nbd0 --cache-dir x", "keeps its own"},
		{"--reattach all --plain-http", "keeps its own"},
		{"--detach nbd0 --prefetch all", "keeps its own"},
		{"--reattach nbd0 --dead-timeout 1h", "--dead-timeout"},
	} {
		mustRefuse(t, tt.args, cli.ExitUsage, tt.want, strings.Fields(tt.args)...)
	}
}

// TestNoDriver: without the driver one is told what else would do.
func TestNoDriver(t *testing.T) {
	if !errors.Is(nbddev.Probe(), nbddev.ErrNoDriver) {
		t.Skip("skipped: this kernel has the driver")
	}
	image := smallImage(t)
	for _, args := range [][]string{{image, "--mount", t.TempDir()}, {image, "--attach"}, {image, "--attach=/dev/nbd3"}} {
		mustRefuse(t, "no driver", cli.ExitFailed, "no nbd driver", args...)
		mustRefuse(t, "no driver", cli.ExitFailed, "nbdfuse", args...)
	}
}

// TestNothingAttached: what there is to say where nothing was ever attached.
func TestNothingAttached(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"--detach", "nbd0"}, {"--reattach", "/dev/nbd0"}, {"--detach", dir}} {
		mustRefuse(t, args[0], cli.ExitNotFound, "known", append(args, "--state-dir", dir)...)
	}
	if code, _, stderr := invoke(t, "--reattach", "all", "--state-dir", dir); code != 0 || stderr != "" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	code, stdout, stderr := invoke(t, "--list", "--state-dir", filepath.Join(dir, "none"))
	if code != 0 || stdout != "DEVICE  SIZE  SERVER  MOUNT  IMAGE\n" || stderr != "" {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

// TestUnreadableState: a state that cannot be read is told of, and goes when one
// insists.
func TestUnreadableState(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "nbd7.json")
	if err := os.WriteFile(name, []byte(`{"version": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := invoke(t, "--list", "--state-dir", dir)
	if code != 0 || strings.Count(stdout, "\n") != 1 || !strings.Contains(stderr, "version 99") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	mustRefuse(t, "reattach", cli.ExitFailed, "version 99", "--reattach", "nbd7", "--state-dir", dir)
	mustRefuse(t, "detach", cli.ExitFailed, "--force", "--detach", "nbd7", "--state-dir", dir)
	if code, _, stderr := invoke(t, "--detach", "nbd7", "--force", "--state-dir", dir); code != 0 || stderr != "" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("it is still there")
	}
}

// TestSaved: a server's flags survive in its state, all but what is for the
// attaching alone, and no path depends on the directory.
func TestSaved(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("layer0", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"--index i --blob layer0 --cache-size 1MiB --tmpdir t --mount m --daemon --mount-options nosuid",
		"--index i --blob oci:dir:tag --seek s --layer 3",
		"--index i --blob example.com/a/b:c --plain-http --username me --platform linux/arm64 --token-server a,b --authfile x",
	} {
		f := new(flags)
		env := &cli.Env{Name: "erofs-nbd", Args: strings.Fields(args)}
		if err := cli.Parse(env, f, description); err != nil {
			t.Fatal(err)
		}
		if err := f.absolute(); err != nil {
			t.Fatal(err)
		}
		t.Setenv("LAYERPIPE_PASSWORD", "hunter2")
		b, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("hunter2")) {
			t.Errorf("a password: %s", b)
		}
		got, err := saved(&nbddev.State{Server: b, Mount: f.Mount, DeadTimeout: f.DeadTimeout})
		if err != nil {
			t.Fatal(err)
		}
		if f.Index != filepath.Join(wd, "i") || !strings.Contains("layer0 dir:tag b:c", filepath.Base(f.Blob[0])) || strings.HasPrefix(f.Blob[0], "oci:") && f.Blob[0] != "oci:"+wd+"/dir:tag" {
			t.Errorf("%+v", f)
		}
		f.attachFlags = attachFlags{Mount: f.Mount, MountOptions: f.MountOptions, DeadTimeout: f.DeadTimeout}
		if !reflect.DeepEqual(got, f) {
			t.Errorf("%+v, want %+v", got, f)
		}
	}
}

// TestInheritedCredentials: a file stays with a device; what only its server had,
// a pipe of its own, does not.
func TestInheritedCredentials(t *testing.T) {
	for _, tt := range []struct{ old, now, want string }{
		{"/a", "", "/a"}, {"/a", "/b", "/b"}, {"/dev/fd/63", "", ""}, {"/proc/self/fd/3", "/b", "/b"},
	} {
		b, err := json.Marshal(&flags{Index: "/i", Blob: []string{"b"}, Flags: regflags.Flags{AuthFile: tt.old}})
		if err != nil {
			t.Fatal(err)
		}
		now := &flags{Flags: regflags.Flags{AuthFile: tt.now}}
		got, err := now.inherit(&nbddev.State{Server: b, DeadTimeout: time.Hour})
		if err != nil || got.AuthFile != tt.want {
			t.Errorf("%+v: %v, %v", tt, got, err)
		}
	}
}

// TestDaemon: the starter returns when the server is ready, and with its exit
// code when it is not.
func TestDaemon(t *testing.T) {
	image := smallImage(t)
	socket := filepath.Join(t.TempDir(), "s")
	// Streams that are pipes: one who reads them to the end must not wait for
	// the daemon.
	out, err := command(t, image, "--listen", "unix:"+socket, "--daemon").Output()
	if err != nil {
		t.Fatal(err)
	}
	uri := strings.TrimSpace(string(out))
	if got := socketOf(t, uri); got != socket {
		t.Errorf("URI %s", uri)
	}
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readAll(t, uri), want) {
		t.Error("other bytes")
	}
	nc, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	raw, err := nc.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var peer *unix.Ucred
	raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil {
		t.Fatal(err)
	}
	if cwd, err := os.Readlink("/proc/" + itoa(peer.Pid) + "/cwd"); err != nil || cwd != "/" {
		t.Errorf("its directory is %s, %v", cwd, err)
	}
	if err := syscall.Kill(int(peer.Pid), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(socket); os.IsNotExist(err) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the daemon does not end")
		}
	}

	cmd := command(t, filepath.Join(t.TempDir(), "gone"), "--daemon")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	if cmd.ProcessState.ExitCode() != cli.ExitNotFound || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("%v: %q", err, stderr.String())
	}
}

func itoa(n int32) string { b, _ := json.Marshal(n); return string(b) }

func TestNotifySystemd(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	if err := notifySystemd(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	l.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if err := notifySystemd(); err != nil { // it was told once
		t.Error(err)
	}
}

func TestMountOptions(t *testing.T) {
	for _, tt := range []struct {
		list  string
		flags uintptr
		data  string
	}{
		{"", unix.MS_RDONLY, ""},
		{"ro,defaults,", unix.MS_RDONLY, ""},
		{"nosuid,nodev,noexec", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"nosuid,noacl,suid,dax=never", unix.MS_RDONLY, "noacl,dax=never"},
	} {
		flags, data, err := parseMountOptions(tt.list)
		if err != nil || flags != tt.flags || data != tt.data {
			t.Errorf("%q: %#x, %q, %v", tt.list, flags, data, err)
		}
	}
	if _, _, err := parseMountOptions("nosuid,rw"); err == nil {
		t.Error("rw")
	}
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134`: `/a\`, `/a\0`: `/a\0`, `\777`: `\777`, "/ü": "/ü"} {
		if got := unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
