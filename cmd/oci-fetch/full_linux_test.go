package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestDiskFull: where there is no room, the command fails and leaves nothing;
// but a cache that is full is only said to be of no use.
func TestDiskFull(t *testing.T) {
	interop.Root(t)
	im := testimage.NewLayers(t, testimage.Layer{Write: func(b *testimage.Builder) {
		for _, name := range []string{"a", "b", "c", "d"} {
			b.File(name, 0o644, strings.Repeat(name+"\n", 1<<20))
		}
	}, Compression: testimage.Plain})
	host, _ := servePlatforms(t, im)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		interop.Missing(t, "no tmpfs here: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(small, 0) })
	bin := program(t)
	run := func(shell bool, args ...string) (int, string) {
		cmd := exec.Command(bin, append([]string{"--plain-http", host + "/team/app"}, args...)...)
		if shell {
			cmd = exec.Command("sh", "-c", bin+" --plain-http "+host+"/team/app > /dev/full")
		}
		cmd.Env = environment(t)
		out, _ := cmd.CombinedOutput()
		return cmd.ProcessState.ExitCode(), string(out)
	}
	for _, args := range [][]string{{"-o", "/dev/full"}, {"-o", filepath.Join(small, "a")}, {"-o", "oci:" + filepath.Join(small, "a")}, nil} {
		if code, out := run(args == nil, args...); code != 1 || !strings.HasSuffix(out, "no space left on device\n") || strings.Count(out, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q", args, code, out)
		}
		wantEmpty(t, small)
	}
	good := filepath.Join(t.TempDir(), "a.tar")
	cache := filepath.Join(small, "cache")
	if code, out := run(false, "--cache-dir", cache, "-o", good); code != 0 || !strings.Contains(out, "cache: ") || !strings.Contains(out, "no space left") {
		t.Errorf("cache: exit code %d, %q", code, out)
	}
	if st, err := os.Stat(good); err != nil || st.Size() < im.Layers[0].Size {
		t.Errorf("%v, %v", st, err)
	}
	if list, err := filepath.Glob(filepath.Join(cache, "tmp", "*")); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}
