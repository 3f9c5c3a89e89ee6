package interop

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestPermissions(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, nil, 0); err != nil {
		t.Fatal(err)
	}
	read := func() error { _, err := os.ReadFile(name); return err }
	before := read()
	t.Run("bound", func(t *testing.T) {
		Permissions(t)
		if err := read(); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a file that nobody may read: %v", err)
		}
	})
	if err := read(); (err == nil) != (before == nil) {
		t.Errorf("after it: %v, before: %v", err, before)
	}
}
