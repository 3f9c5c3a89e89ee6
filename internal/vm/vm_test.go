package vm_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/vm"
)

// guest is a guest with Debian's kernel and the modules that the tests want,
// in the order of their dependencies.
func guest(t *testing.T) *vm.Guest {
	t.Helper()
	interop.Tool(t, "qemu-system-x86_64")
	dir := filepath.Join(interop.RepoRoot(t), ".peers", "vm")
	g := &vm.Guest{Kernel: filepath.Join(dir, "vmlinuz"), Busybox: interop.Tool(t, "busybox")}
	if _, err := os.Stat(g.Kernel); err != nil {
		interop.Missing(t, "no kernel in .peers/vm (run scripts/vm-kernel)")
	}
	for _, m := range []string{"libcrc32c", "netfs", "erofs", "loop", "nbd"} {
		g.Modules = append(g.Modules, filepath.Join(dir, m+".ko"))
	}
	return g
}

// TestBoot: what a script prints and how it ends comes back.
func TestBoot(t *testing.T) {
	g := guest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("of the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	g.Output = &out
	g.Files = map[string]string{"/data/file": file}
	g.Script = "cat /data/file; ls -d /dev/nbd0; grep -c erofs /proc/filesystems; uname -r; exit 7"
	exit, err := g.Run(ctx)
	if err != nil || exit != 7 {
		t.Fatalf("exit %d, %v\n%s", exit, err, out.Bytes())
	}
	release, err := os.ReadFile(filepath.Join(filepath.Dir(g.Kernel), "release"))
	if err != nil {
		t.Fatal(err)
	}
	want := "of the host\n/dev/nbd0\n1\n" + string(release)
	if got := out.String(); strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%q, want %q", got, want)
	}
}
