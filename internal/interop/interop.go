// Package interop is how a test asks for what a newcomer's machine may lack: a
// foreign tool, root, a mount, the pinned erofs-utils. What is missing skips
// the test and says why; with INTEROP=1, as CI sets it, it fails the test, so
// that no check is lost without anybody noticing.
package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Required reports whether a missing tool or right fails a test.
func Required() bool { return os.Getenv("INTEROP") == "1" }

// Missing ends the test: it skips, or fails where INTEROP=1.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if Required() {
		t.Fatalf("INTEROP=1, but "+format, args...)
	}
	t.Skipf("skipped: "+format, args...)
}

// Tool is the path of the first of the named programs that is installed.
// Several names are alternatives, the best one first.
func Tool(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	Missing(t, "%s is not installed (.ci/run lists the packages)", strings.Join(names, " or "))
	return ""
}

// Root asks for root: to mount, to make device nodes, to set owners.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "this needs root")
	}
}

// Peer is the command, to be followed by its arguments, that runs a program of
// the pinned erofs-utils ("mkfs.erofs", "fsck.erofs", "dump.erofs",
// "erofsfuse") out of .peers, where scripts/peers puts it.
func Peer(t testing.TB, name string) []string {
	t.Helper()
	path := filepath.Join(RepoRoot(t), ".peers", "bin", name)
	if _, err := os.Stat(path); err != nil {
		Missing(t, "no %s in .peers (run scripts/peers)", name)
	}
	return []string{path}
}

// RepoRoot is the directory of go.mod, found upwards from the test's own.
func RepoRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test's directory")
		}
		dir = parent
	}
}

// Run runs a command to its end and returns its stdout; a failure ends the
// test and shows what it printed.
func Run(t testing.TB, command ...string) []byte {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(command, " "), err, stdout.String(), stderr.String())
	}
	return []byte(stdout.String())
}
