package e2e

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/fstree"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// Mounts through the kernel's NBD driver are tested in internal/vm.

const mountPassword = "hunter2-secret"

// mountScript runs one of the scripts with our commands, and a password on its
// stdin.
func mountScript(t *testing.T, name string, args ...string) result {
	t.Helper()
	cmd := exec.Command(filepath.Join(interop.RepoRoot(t), "scripts", name), args...)
	cmd.Env = append(os.Environ(), "PATH="+binDir+":"+os.Getenv("PATH"))
	cmd.Stdin = strings.NewReader(mountPassword)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stderr.String()}
}

// using has the processes with this text among their arguments, and those, by
// their ids.
func using(t *testing.T, text string) map[int]string {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(names) == 0 {
		t.Fatalf("%v, %v", names, err)
	}
	found := make(map[int]string)
	for _, name := range names {
		if b, _ := os.ReadFile(name); bytes.Contains(b, []byte(text)) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				t.Fatal(err)
			}
			found[pid] = strings.ReplaceAll(string(b), "\x00", " ")
		}
	}
	return found
}

// TestOciMountFuse mounts an image without the kernel's nbd: twice at the same
// time, by the script and by mount's helper, with an index that neither of them
// has yet. What it takes goes with the mount.
func TestOciMountFuse(t *testing.T) {
	interop.Root(t)
	interop.Tool(t, "nbdfuse")
	dir := filepath.Join(t.TempDir(), "with a space")
	mounts := []string{filepath.Join(dir, "by script"), filepath.Join(dir, "by helper")}
	for _, d := range append(mounts, filepath.Join(dir, "reference")) {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	im := testimage.New(t, testimage.Options{Parts: []string{"VERSION", "src/archive/tar", "src/testdata"}, NoSystem: true})
	must(t, fetch(im.Ref()), whole(filepath.Join(dir, "whole")))
	interop.MountErofs(t, filepath.Join(dir, "whole"), filepath.Join(dir, "reference"))
	want, err := fstree.List(filepath.Join(dir, "reference"), fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	reg := testregistry.New()
	if err := reg.AddLayout("team/golang", im.Dir); err != nil {
		t.Fatal(err)
	}
	reg.Basic("someone", mountPassword)
	ref := serveRegistry(t, reg) + "/team/golang:latest"
	indexes := filepath.Join(dir, "the indexes")
	mountHelp := func(d, options string) result {
		return mountScript(t, "mount.layerpipe", ref, d, "-o", "nosuid,oci.fuse,oci.insecure,oci.username=someone,oci.index-dir="+indexes+options)
	}
	ociMount := func(d string, more ...string) result {
		return mountScript(t, "oci-mount", append([]string{"--fuse", "--plain-http", "--username=someone", "--password-stdin", "--index-dir", indexes, ref, d}, more...)...)
	}
	left := func() (found []string) { // by a mount that failed or ended
		runs, _ := filepath.Glob("/run/oci-mount-*/mount")
		for _, name := range runs {
			if b, _ := os.ReadFile(name); strings.HasPrefix(string(b), dir) {
				found = append(found, name)
			}
		}
		return slices.AppendSeq(found, maps.Values(using(t, indexes)))
	}

	// What fails leaves no process, no mount and no directory.
	for _, tt := range []struct {
		result
		code int
		want string
	}{
		{mountHelp(mounts[1], ",oci.password=wrong"), 32, "unauthorized"},
		{mountHelp(mounts[1], ",oci.layer=0"), 1, "oci.fuse goes with"},
		{ociMount(mounts[0], "--nonsense"), 2, "unknown option --nonsense"},
		{ociMount(mounts[0], "another"), 2, "one ref and one dir"},
		{ociMount(mounts[0] + "/nothing"), 4, "no directory"},
		{ociMount(mounts[0], "--cache-size=much"), 2, "--cache-size"},
		{ociMount(mounts[0], "-o", "nonsense"), 1, "mount:"},
		{mountScript(t, "oci-umount", mounts[0]), 4, "no device is known"},
		{mountScript(t, "oci-umount", "--force", mounts[0]), 4, "no device is known"},
		{mountScript(t, "oci-umount", "--nonsense", mounts[0]), 2, "unknown option --nonsense"},
		{mountScript(t, "oci-umount"), 2, "which dir"},
	} {
		if tt.result.code != tt.code || !strings.Contains(strings.ToLower(tt.stderr), tt.want) {
			t.Errorf("%d %q, want %d and %q", tt.result.code, tt.stderr, tt.code, tt.want)
		}
		if l := left(); len(l) > 0 {
			t.Errorf("after %q there are still %q", tt.want, l)
		}
	}
	if err := os.RemoveAll(indexes); err != nil {
		t.Fatal(err)
	}

	var wg sync.WaitGroup
	wg.Go(func() {
		if r := ociMount(mounts[0], "-o", "nodev", "--cache-size=16MiB"); r.code != 0 {
			t.Errorf("oci-mount: %d %s", r.code, r.stderr)
		}
	})
	wg.Go(func() {
		if r := mountHelp(mounts[1], ",oci.password="+mountPassword); r.code != 0 {
			t.Errorf("mount.layerpipe: %d %s", r.code, r.stderr)
		}
	})
	wg.Wait()
	t.Cleanup(func() {
		for _, d := range mounts {
			exec.Command("umount", "-l", d).Run() // if a test ended early
		}
	})
	if t.Failed() {
		return
	}
	for _, d := range mounts {
		fstree.EqualTree(t, d, want, fstree.Options{})
	}
	if found := using(t, mountPassword); len(found) > 0 {
		t.Errorf("all users see %v", found)
	}
	names, err := filepath.Glob(filepath.Join(indexes, "*"))
	if err != nil || len(names) != 1 || !strings.HasSuffix(names[0], ".erofs") {
		t.Fatalf("indexes: %v, %v", names, err)
	}

	// --prune keeps what is mounted or young.
	unused := []string{filepath.Join(indexes, "sha256-old.erofs"), filepath.Join(indexes, ".layerpipe-1.tmp"), filepath.Join(indexes, "sha256-new.erofs")}
	for _, name := range unused {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-72 * time.Hour)
	for _, name := range []string{unused[0], unused[1], names[0]} {
		if err := os.Chtimes(name, past, past); err != nil {
			t.Fatal(err)
		}
	}
	if r := mountScript(t, "oci-mount", "--prune", "--index-dir="+indexes); r.code != 0 || r.stderr != "" {
		t.Errorf("--prune: %d %s", r.code, r.stderr)
	}
	for _, name := range append(unused, names[0]) {
		if _, err := os.Stat(name); (err == nil) != (name == unused[2] || name == names[0]) {
			t.Errorf("%s: %v", name, err)
		}
	}

	if r := mountScript(t, "oci-umount", mounts[0]); r.code != 0 {
		t.Errorf("oci-umount: %d %s", r.code, r.stderr)
	}

	// By a digest that has an index nobody asks what it is.
	reg.Reset()
	byDigest := strings.TrimSuffix(ref, ":latest") + "@" + strings.Replace(strings.TrimSuffix(filepath.Base(names[0]), ".erofs"), "-", ":", 1)
	ociMountDigest := func(more ...string) result {
		return mountScript(t, "oci-mount", append([]string{"--fuse", "--plain-http", "--username=someone", "--password-stdin", "--index-dir", indexes, byDigest, mounts[0]}, more...)...)
	}
	if r := ociMountDigest(); r.code != 0 {
		t.Fatalf("oci-mount %s: %d %s", byDigest, r.code, r.stderr)
	}
	for _, q := range reg.Requests() {
		if strings.Contains(q.Path, "/manifests/") {
			t.Errorf("%s was asked for", q.Path)
		}
	}
	if r := mountScript(t, "oci-umount", mounts[0]); r.code != 0 {
		t.Errorf("oci-umount: %d %s", r.code, r.stderr)
	}
	if r := ociMountDigest("--platform=linux/s390x"); r.code != 4 || !strings.Contains(r.stderr, "s390x") {
		t.Errorf("oci-mount %s of another platform: %d %s", byDigest, r.code, r.stderr)
	}
	interop.Run(t, "umount", mounts[1])
	nothing := func() {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); len(left()) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("left: %q", left())
			}
		}
	}
	nothing()

	// A server that dies leaves a mount whose reads fail, and which goes as ever.
	if r := ociMount(mounts[0]); r.code != 0 {
		t.Fatalf("oci-mount: %d %s", r.code, r.stderr)
	}
	for pid := range using(t, indexes) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	// nbdfuse learns of it from a read, and ends.
	if tree, err := fstree.List(mounts[0], fstree.Options{}); err == nil {
		t.Errorf("%d files are read without a server", len(tree))
	}
	if r := mountScript(t, "oci-umount", mounts[0]); r.code != 0 {
		t.Errorf("oci-umount after its server's death: %d %s", r.code, r.stderr)
	}
	if entries, err := os.ReadDir(mounts[0]); err != nil || len(entries) > 0 {
		t.Errorf("still mounted: %v, %v", entries, err)
	}
	nothing()
}

// TestOciMountNoDriver: where the kernel has no nbd, that is what one is told,
// before anything is fetched.
func TestOciMountNoDriver(t *testing.T) {
	if _, err := os.Stat("/sys/block/nbd0"); err == nil {
		t.Skip("skipped: this kernel has the driver")
	}
	if r := mountScript(t, "oci-mount", "oci:/nowhere", t.TempDir()); r.code != 1 || !strings.Contains(r.stderr, "--fuse") {
		t.Errorf("%d %q", r.code, r.stderr)
	}
}

// TestUnitFile: systemd has nothing to say against the template of units. What
// its command does is tested in internal/vm.
func TestUnitFile(t *testing.T) {
	verify := interop.Tool(t, "systemd-analyze")
	unit := filepath.Join(t.TempDir(), "erofs-nbd@.service")
	copyFile(t, filepath.Join(interop.RepoRoot(t), "docs", "erofs-nbd@.service"), unit)
	if out, err := exec.Command(verify, "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}
