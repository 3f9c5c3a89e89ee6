package guest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/nbddev"
)

// TestWhole: a local image on a device, of exactly its size, mounted and
// unmounted.
func TestWhole(t *testing.T) {
	dir := mountpoint(t)
	s := start(t, whole, "--mount", dir, "--mount-options", "nosuid,nodev,noatime")
	compare(t, dir)
	st, err := os.Stat(whole)
	if err != nil {
		t.Fatal(err)
	}
	i, err := nbddev.Stat(s.n)
	if err != nil || i.Size != st.Size() || i.BlockSize != 4096 {
		t.Errorf("%+v, %v; the image has %d bytes", i, err, st.Size())
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || !bytes.Contains(mounts, []byte(" erofs ro,nosuid,nodev,noatime")) {
		t.Errorf("%s, %v", mounts, err)
	}
	s.signal(syscall.SIGTERM)
	s.ends(0)
	s.gone()
}

// TestLazy: an index with its layers in a registry.
func TestLazy(t *testing.T) {
	r := newRegistry(t)
	dir := mountpoint(t)
	s := start(t, r.lazy("--mount", dir)...)
	if i, err := nbddev.Stat(s.n); err != nil || i.BlockSize != 512 {
		t.Errorf("%+v, %v", i, err)
	}
	compare(t, dir)
	if r.TotalServed() == 0 {
		t.Error("nothing came from the registry")
	}
	s.signal(syscall.SIGINT)
	s.ends(0)
	s.gone()
}

// TestNative: a layer that is an EROFS image, taken over after the tag has
// moved.
func TestNative(t *testing.T) {
	r := newRegistry(t)
	dir := mountpoint(t)
	s := start(t, "--blob", r.ref(native), "--layer", "0", "--plain-http", "--mount", dir)
	compare(t, dir)
	s.kill()
	if err := r.AddLayout(native, filepath.Join(layout, filepath.Base(repository))); err != nil {
		t.Fatal(err)
	}
	command(t, 0, "", "--reattach", dir, "--daemon")
	compare(t, dir)
	command(t, 0, "", "--detach", dir)
	s.gone()
}

// TestUmount: the server ends when somebody unmounts the filesystem.
func TestUmount(t *testing.T) {
	dir := mountpoint(t)
	s := start(t, whole, "--mount", dir)
	ok(t, "umount", dir)
	s.ends(0)
	s.gone()
}

// TestSymlink: a mount is found by its directory whatever that is called, be it
// by a signal, a takeover, or one who detaches it.
func TestSymlink(t *testing.T) {
	dir := mountpoint(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	s := start(t, whole, "--mount", link)
	someFile(t, dir)
	s.signal(syscall.SIGTERM)
	s.ends(0)
	s.gone()

	s = start(t, whole, "--mount", link)
	s.kill()
	command(t, 0, "", "--reattach", link, "--daemon")
	someFile(t, dir)
	command(t, 0, "", "--detach", link)
	s.gone()
}

// TestOnTop: of two mounts on one directory the one that is seen goes first.
func TestOnTop(t *testing.T) {
	dir := mountpoint(t)
	below, above := start(t, whole, "--mount", dir), start(t, whole, "--mount", dir)
	for _, s := range []*server{above, below} {
		command(t, 0, "", "--detach", dir)
		s.ends(0)
	}
	below.gone()
	above.gone()
}

// stoppedBusy is a server that was told to end while somebody has a file open,
// and what is in that.
func stoppedBusy(t *testing.T) (s *server, f *os.File, want []byte) {
	t.Helper()
	dir := mountpoint(t)
	s = start(t, whole, "--mount", dir)
	name, want := someFile(t, dir)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s.signal(syscall.SIGTERM)
	await(t, "the mount goes", func() bool { _, err := os.Stat(name); return err != nil })
	dropCaches(t)
	return s, f, want
}

// TestSigtermBusy: a mount in use is out of sight at once, and served until it
// is not used any more.
func TestSigtermBusy(t *testing.T) {
	s, f, want := stoppedBusy(t)
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read while it drains: %v", err)
	}
	f.Close()
	s.ends(0)
	s.gone()
}

// TestSigtermTwice: the second signal does not wait.
func TestSigtermTwice(t *testing.T) {
	s, f, want := stoppedBusy(t)
	await(t, "it says so", func() bool { return strings.Contains(s.stderr.String(), "in use") })
	s.signal(syscall.SIGTERM)
	s.ends(0)
	if _, err := f.ReadAt(make([]byte, len(want)), 0); err == nil {
		t.Error("still read")
	}
	f.Close()
	s.gone()
}

// someFile is a file of some size and its contents, which are what they have to
// be.
func someFile(t *testing.T, dir string) (name string, data []byte) {
	t.Helper()
	want, err := reference()
	if err != nil {
		t.Fatal(err)
	}
	dropCaches(t)
	const path = "usr/local/go/src/testdata/Isaac.Newton-Opticks.txt"
	name = filepath.Join(dir, path)
	if data, err = os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(data)); sum != want[path].Sum {
		t.Fatalf("%s: %s, want %s", name, sum, want[path].Sum)
	}
	return name, data
}

// TestAttach: a device that others mount.
func TestAttach(t *testing.T) {
	s := start(t, whole, "--attach=/dev/nbd5")
	if s.dev != "/dev/nbd5" {
		t.Fatal(s.dev)
	}
	command(t, 1, "/dev/nbd5 is in use", whole, "--attach=nbd5")
	other := start(t, whole, "--attach")
	if other.n == s.n {
		t.Fatal("the same device twice")
	}
	want, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(other.dev)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, %v", other.dev, len(got), err)
	}
	if f, err := os.OpenFile(other.dev, os.O_WRONLY, 0); err == nil {
		if _, err := f.Write(make([]byte, 512)); err == nil && f.Sync() == nil {
			t.Error("written to")
		}
		f.Close()
	}
	other.signal(syscall.SIGTERM)
	other.ends(0)

	dir := mountpoint(t)
	ok(t, "mount", "-t", "erofs", "-o", "ro", s.dev, dir)
	someFile(t, dir)
	command(t, 1, "is in use", "--detach", "nbd5")
	s.signal(syscall.SIGTERM)
	await(t, "it says so", func() bool { return strings.Contains(s.stderr.String(), "in use") })
	someFile(t, dir)
	ok(t, "umount", dir)
	s.ends(0)
	s.gone()
}

// TestDaemon: the exit code tells whether it is mounted.
func TestDaemon(t *testing.T) {
	dir := mountpoint(t)
	command(t, 4, "no such file", "/data/nothing.erofs", "--mount", dir, "--daemon")
	command(t, 4, "no such file", whole, "--mount", dir+"/nothing", "--daemon")
	command(t, 1, "in use", whole, "--attach="+start(t, whole, "--attach").dev, "--daemon")
	out := command(t, 0, "", whole, "--mount", dir, "--daemon")
	dev := strings.TrimSpace(out)
	someFile(t, dir)
	list := command(t, 0, "", "--list")
	for _, want := range []string{dev, dir, whole} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in\n%s", want, list)
		}
	}
	// A busy mount stays.
	cmd := exec.Command("sleep", "1000")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	command(t, 1, "busy", "--detach", dir)
	someFile(t, dir)
	command(t, 0, "", "--detach", dir, "--force")
	if _, err := os.Stat(dir + "/usr"); err == nil {
		t.Error("still there")
	}
	cmd.Process.Kill()
	cmd.Wait()
	command(t, 4, "no device is known", "--detach", dir)
}

// TestNetworkNamespace: a server in a network namespace of its own attaches just
// as well.
func TestNetworkNamespace(t *testing.T) {
	dir := mountpoint(t)
	s := launch(t, "unshare", "-n", "erofs-nbd", whole, "--mount", dir)
	someFile(t, dir)
	ok(t, "umount", dir)
	s.ends(0)
	s.gone()
}

// TestNbdClient: Debian's nbd-client as the one that attaches, by netlink and by
// ioctl.
func TestNbdClient(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	interop.Listening(t, exec.Command("erofs-nbd", whole, "--listen", "unix:"+socket), socket)
	want, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	const dev, n = "/dev/nbd7", 7
	for _, way := range [][]string{nil, {"-nonetlink"}} {
		ok(t, append([]string{"/system/nbd-client", "-unix", socket, dev, "-N", ""}, way...)...)
		await(t, "it is attached", func() bool { i, err := nbddev.Stat(n); return err == nil && i.Size == int64(len(want)) })
		if got, err := os.ReadFile(dev); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes, %v", way, len(got), err)
		}
		command(t, 1, "in use", whole, "--attach="+dev)
		ok(t, "/system/nbd-client", "-d", dev)
		await(t, "it is detached", func() bool { i, err := nbddev.Stat(n); return err == nil && !i.Attached })
	}
}

// TestRegistryRestart: a mount outlives its registry's restart.
func TestRegistryRestart(t *testing.T) {
	r := newRegistry(t)
	dir := mountpoint(t)
	s := start(t, r.lazy("--mount", dir, "--cache-size", "0")...)
	name, want := someFile(t, dir)
	r.stop()
	dropCaches(t)
	type result struct {
		b   []byte
		err error
	}
	read := make(chan result)
	go func() {
		b, err := os.ReadFile(name)
		read <- result{b, err}
	}()
	await(t, "the server notices", func() bool { return strings.Contains(s.stderr.String(), "refused") })
	time.Sleep(500 * time.Millisecond)
	r.start()
	if got := <-read; got.err != nil || !bytes.Equal(got.b, want) {
		t.Errorf("%d bytes, %v", len(got.b), got.err)
	}
	// A registry that stays away is an error, and no more than that.
	r.stop()
	i, err := nbddev.Stat(s.n)
	if err != nil {
		t.Fatal(err)
	}
	last := i.Size/4096*4096 - 4096 // of the last layer
	if _, err := readDirect(s.dev, last, 4096); err != unix.EIO {
		t.Errorf("without a registry: %v", err)
	}
	r.start()
	if _, err := readDirect(s.dev, last, 4096); err != nil {
		t.Errorf("with the registry: %v", err)
	}
	someFile(t, dir)
}
