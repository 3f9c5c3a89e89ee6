package vm_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/vm"
)

// guest is a guest with Debian's kernel and the modules that the tests want,
// in the order of their dependencies.
func guest(t *testing.T) *vm.Guest {
	t.Helper()
	if os.Getenv("LAYERPIPE_TEST_VM") == "" {
		t.Skip("boots virtual machines: make test-vm")
	}
	g, err := vm.New(interop.RepoRoot(t))
	if err != nil {
		interop.Missing(t, "%v", err)
	}
	return g
}

// TestBoot: what is put into a guest is there, programs run with their
// libraries, and what a script prints and how it ends comes back.
func TestBoot(t *testing.T) {
	g := guest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("of the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	g.Output = &out
	g.Put("/data/file", file)
	// Linked with libraries, unlike all else there.
	if err := g.PutProgram("/bin/bash", "/bin/bash"); err != nil {
		t.Fatal(err)
	}
	g.Script = "bash -c 'echo $BASH $VM_ACCEL | grep -Ec \"^/bin/bash (kvm|tcg)$\"'; cat /data/file; ls -d /dev/nbd0; grep -c erofs /proc/filesystems; uname -r; exit 7"
	exit, err := g.Run(ctx)
	if err != nil || exit != 7 {
		t.Fatalf("exit %d, %v\n%s", exit, err, out.Bytes())
	}
	release, err := os.ReadFile(filepath.Join(filepath.Dir(g.Kernel), "release"))
	if err != nil {
		t.Fatal(err)
	}
	want := "1\nof the host\n/dev/nbd0\n1\n" + string(release)
	if got := out.String(); strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// packages have the tests that run in a guest.
var packages = []string{"./pkg/nbddev", "./internal/vm/guest"}

// smaller is an image with few files, since an emulated processor reads them
// slowly, and with one that is as large as several spans.
var smaller = testimage.Options{Parts: []string{"VERSION", "src/archive/tar", "src/testdata"}, NoSystem: true}

// TestKernel runs these tests in a guest, and shows each of them as a subtest.
func TestKernel(t *testing.T) {
	g := guest(t)
	dir := t.TempDir()
	for _, name := range []string{"erofs-nbd", "tar2erofs", "oci-fetch"} {
		g.Put("/usr/local/bin/"+name, goBuild(t, filepath.Join(dir, name), "build", "./cmd/"+name))
	}
	for _, name := range []string{"oci-mount", "oci-umount"} {
		g.Put("/usr/local/bin/"+name, filepath.Join(interop.RepoRoot(t), "scripts", name))
	}
	g.Put("/data/erofs-nbd@.service", filepath.Join(interop.RepoRoot(t), "docs", "erofs-nbd@.service"))
	g.Put("/sbin/mount.layerpipe", filepath.Join(interop.RepoRoot(t), "scripts", "mount.layerpipe"))
	// The programs of people's systems, where busybox has its own or none.
	for _, name := range []string{"mount", "umount", "nbd-client"} {
		if err := g.PutProgram("/system/"+name, interop.Tool(t, name, "/usr/sbin/"+name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, pkg := range packages {
		name := filepath.Base(pkg) + ".test"
		g.Put("/tests/"+name, goBuild(t, filepath.Join(dir, name), "test", "-c", pkg))
	}
	im := testimage.New(t, smaller)
	g.Put("/data/layout/golang", im.Dir)
	for name, options := range map[string][]string{"whole": nil, "index": {"-i", "--span-size", "128KiB"}} {
		file := filepath.Join(dir, name)
		args := append([]string{filepath.Join(dir, "tar2erofs")}, append(options, file)...)
		for i := range im.Layers {
			args = append(args, im.Blob(i))
		}
		interop.Run(t, args...)
		g.Put("/data/"+name+".erofs", file)
	}
	// What mount.erofs takes: an index of one layer, and its checkpoints.
	const one = 1
	foreign, zinfo := filepath.Join(dir, "foreign"), filepath.Join(dir, "zinfo")
	interop.Run(t, append(interop.Peer(t, "mkfs.erofs"), "--quiet", "--tar=i", "--gzinfo="+zinfo, foreign, im.Blob(one))...)
	g.Put("/data/foreign.erofs", foreign)
	g.Put("/data/foreign.zinfo", zinfo)
	nat := testimage.NewLayers(t, testimage.Layer{File: filepath.Join(dir, "whole"), MediaType: "application/vnd.erofs.layer.v1"})
	g.Put("/data/layout/native", nat.Dir)

	// For one who looks for something: CRASHES=1000 GUESTFLAGS="-test.run='TestCrash|TestLazy'"
	g.Script = fmt.Sprintf("export LAYERPIPE_VM=1 PLATFORM=linux/%s FOREIGN=%d NATIVE=%s CRASHES='%s'; set -- ",
		runtime.GOARCH, one, nat.Layers[0].Digest, os.Getenv("CRASHES")) + os.Getenv("GUESTFLAGS") + `
cd /tmp
for test in /tests/*; do
	$test -test.v -test.timeout=15m -test.skip=TestNoDriver "$@" || failed="$failed ${test##*/}"
done
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }`
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	var out bytes.Buffer
	g.Output = io.MultiWriter(&out, testWriter{t})
	began := time.Now()
	exit, err := g.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f s, boot included", time.Since(began).Seconds())
	passed := 0
	for _, m := range result.FindAllStringSubmatch(out.String(), -1) {
		t.Run(m[2], func(t *testing.T) {
			switch m[1] {
			case "PASS":
				passed++
			default:
				t.Errorf("%s in the guest", m[1]) // a skip, too: nothing is missing there
			}
		})
	}
	if exit != 0 || passed == 0 {
		t.Errorf("the guest's tests: exit code %d, %d passed", exit, passed)
	}
}

var result = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\w+) `)

// testWriter shows lines as they come.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("guest: %s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

// goBuild makes a static program for the guest.
func goBuild(t *testing.T, out string, args ...string) string {
	t.Helper()
	args = append([]string{args[0]}, append([]string{"-o", out, "-ldflags=-s -w"}, args[1:]...)...)
	cmd := exec.Command("go", args...)
	cmd.Dir = interop.RepoRoot(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, b)
	}
	return out
}
