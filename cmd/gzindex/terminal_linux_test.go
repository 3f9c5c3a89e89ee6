package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
)

// On a terminal there is a bar; binary data is not written to one, and input is
// not waited for.
func TestTerminal(t *testing.T) {
	script := interop.Tool(t, "script")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data.gz"), gzipped(sample(3_000_000)), 0o666); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "stdin is a terminal"},
		{"data.gz", 2, "refusing to write binary data to a terminal"},
		{"data.gz -o index", 0, "%"},
		{"--read 0:10 --zinfo index data.gz", 2, "refusing to write binary data to a terminal"},
		{"--verify index data.gz", 0, "100%"},
		{"--show index", 0, "checkpoint"},
	} {
		cmd := exec.Command(script, "-qec", "exec '"+self+"' "+c.args, "/dev/null")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GZINDEX_TEST_MAIN=1")
		out, err := cmd.Output()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.want) {
			t.Errorf("gzindex %s: exit code %d, %v: %q", c.args, code, err, out)
		}
	}
}
