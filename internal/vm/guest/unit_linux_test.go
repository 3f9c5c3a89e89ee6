package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnit does with docs/erofs-nbd@.service what systemd does: it starts the
// command, and again when the server has died. The second one takes the device
// over.
func TestUnit(t *testing.T) {
	b, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	var command string
	for line := range strings.Lines(string(b)) {
		if c, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart=/bin/sh -c '"); ok {
			command, ok = strings.CutSuffix(c, "'")
			if !ok {
				t.Fatalf("%q", line)
			}
		}
	}
	dir := mountpoint(t)
	// However somebody may have written it.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MOUNT", link+"/")
	t.Setenv("ARGS", whole+" --mount-options nosuid")
	s := launch(t, "sh", "-c", command)
	t.Cleanup(func() { exec.Command("erofs-nbd", "--detach", s.dev, "--force").Run() })
	name, _ := someFile(t, dir)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.kill()
	next := launch(t, "sh", "-c", command)
	if next.dev != s.dev {
		t.Errorf("%s, then %s", s.dev, next.dev)
	}
	if _, err := f.Read(make([]byte, 100)); err != nil {
		t.Error(err)
	}
	someFile(t, dir)
	f.Close()
	next.signal(15)
	next.ends(0)
	next.gone()
}
