package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// script runs one of the scripts.
func script(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), want) {
		t.Errorf("%s: exit code %d, want %d, and %q in %q", strings.Join(args, " "), got, code, want, out)
	}
}

// TestOciMount: an image mounted by one command; the second time its index is
// there already.
func TestOciMount(t *testing.T) {
	r := newRegistry(t)
	dir, cache := mountpoint(t), filepath.Join(t.TempDir(), "indexes")
	mount := []string{"oci-mount", "--plain-http", "--index-dir", cache, "-o", "nosuid", r.ref(repository), dir}
	script(t, 0, "/dev/nbd", mount...)
	compare(t, dir)
	script(t, 0, "", "oci-umount", dir)
	indexes, err := os.ReadDir(cache)
	if err != nil || len(indexes) != 1 {
		t.Fatalf("%v, %v", indexes, err)
	}
	st, err := os.Stat(cache)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}

	r.Reset()
	script(t, 0, "/dev/nbd", append(mount, "--cache-size=64MiB")...)
	someFile(t, dir)
	for _, q := range r.Requests() {
		if strings.Contains(q.Path, "/blobs/") && q.Range == "" {
			t.Errorf("the whole of %s was fetched again", q.Path)
		}
	}
	ok(t, "umount", dir)
	await(t, "the server ends", func() bool {
		left, _ := filepath.Glob("/run/layerpipe/nbd*.json")
		return len(left) == 0
	})

	script(t, 4, "", "oci-mount", "--plain-http", "--index-dir", cache, r.addr+"/no/image", dir)
	script(t, 4, "no directory", "oci-mount", "--plain-http", r.ref(repository), dir+"/nothing")
	script(t, 2, "unknown option", "oci-mount", "--nonsense", r.ref(repository), dir)
	script(t, 4, "no device is known", "oci-umount", dir)

	// A layer that comes cut leaves no index.
	fault := r.Inject(&testregistry.Fault{Match: testregistry.Path("/blobs/"), Serve: testregistry.Status(404)})
	fresh := filepath.Join(t.TempDir(), "fresh")
	cmd := exec.Command("oci-mount", "--plain-http", "--index-dir", fresh, r.ref(repository), dir)
	if out, err := cmd.CombinedOutput(); err == nil || fault.Delivered() == 0 {
		t.Errorf("without layers: %s, %d faults", out, fault.Delivered())
	}
	if left, _ := os.ReadDir(fresh); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestMountHelper calls the helper as mount(8) does, with the options of
// erofs-utils.
func TestMountHelper(t *testing.T) {
	r := newRegistry(t)
	r.Basic("someone", "secret")
	dir := mountpoint(t)
	const helper = "/sbin/mount.layerpipe"
	credentials := "oci.insecure,oci.username=someone,oci.password=secret"
	script(t, 0, "/dev/nbd", helper, r.ref(repository), dir, "-o", "rw,noatime,_netdev,"+credentials)
	compare(t, dir)
	ok(t, "umount", dir)

	script(t, 0, "/dev/nbd", helper, r.ref(native), dir, "-v", "-o", credentials+",oci.blob="+os.Getenv("NATIVE"))
	someFile(t, dir)
	script(t, 0, "", "oci-umount", dir)

	script(t, 0, "/dev/nbd", helper, r.ref(repository), dir, "-o",
		credentials+",oci.tarindex=/data/foreign.erofs,oci.zinfo=/data/foreign.zinfo,oci.layer="+os.Getenv("FOREIGN")+",oci.platform="+os.Getenv("PLATFORM"))
	someFile(t, dir)
	script(t, 0, "", "oci-umount", dir)

	script(t, 1, "oci.zinfo needs", helper, r.ref(native), dir, "-o", credentials+",oci.zinfo=/x")
	script(t, 1, "unknown", helper, r.ref(native), dir, "-o", "oci.nonsense")
	script(t, 32, "", helper, r.ref(repository), dir, "-o", credentials+",oci.platform=plan9/386")
	script(t, 32, "", helper, r.ref(native), dir, "-o", "oci.insecure,oci.layer=0")
	script(t, 0, "", helper, r.ref(native), dir, "-f", "-o", "oci.insecure")
}

// TestMountCommand: util-linux's mount and umount, by command line and by
// fstab.
func TestMountCommand(t *testing.T) {
	const mount, umount = "/system/mount", "/system/umount"
	r := newRegistry(t)
	r.Basic("someone", "hunter2-secret")
	dir := filepath.Join(t.TempDir(), "m")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	options := "nosuid,oci.insecure,oci.username=someone,oci.password=hunter2-secret,oci.index-dir=" + t.TempDir()
	ended := func() bool {
		left, _ := filepath.Glob("/run/layerpipe/nbd*.json")
		return len(left) == 0
	}

	script(t, 0, "/dev/nbd", mount, "-t", "layerpipe", r.ref(repository), dir, "-o", options)
	compare(t, dir)
	titles, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(titles) == 0 {
		t.Fatalf("%v, %v", titles, err)
	}
	for _, name := range append(titles, "/run/layerpipe/nbd0.json") {
		if b, _ := os.ReadFile(name); strings.Contains(string(b), "hunter2") {
			t.Errorf("%s: %q", name, b)
		}
	}
	script(t, 0, "", mount, "-o", "remount,noatime", dir)
	if b, err := os.ReadFile("/proc/mounts"); err != nil || !strings.Contains(string(b), dir+" erofs ro,noatime") && !strings.Contains(string(b), dir+" erofs ro,nosuid,noatime") {
		t.Errorf("%s, %v", b, err)
	}
	script(t, 0, "", umount, dir)
	await(t, "the server ends", ended)

	line := r.ref(repository) + " " + dir + " layerpipe noauto,_netdev," + options + " 0 0\n"
	if err := os.WriteFile("/etc/fstab", []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove("/etc/fstab")
	script(t, 0, "/dev/nbd", mount, dir)
	someFile(t, dir)
	script(t, 0, "", umount, dir)
	await(t, "the server ends", ended)

	for bad, want := range map[string]string{
		"oci.nonsense":           "oci.nonsense: unknown",
		"oci.nonsense=1":         "unknown option --nonsense=1",
		"oci.zinfo=/x":           "oci.zinfo needs oci.tarindex",
		"oci.layer=0,oci.blob=1": "either oci.layer or oci.blob",
		"remount":                "remount is not supported",
	} {
		out, err := exec.Command("/sbin/mount.layerpipe", r.ref(repository), dir, "-o", bad).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %q, %v", bad, out, err)
		}
	}
}
