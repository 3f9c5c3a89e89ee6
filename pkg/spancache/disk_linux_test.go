package spancache

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/interop"
)

// TestDiskFull: a real disk without room is one warning; what was saved before
// is there, and nothing half written.
func TestDiskFull(t *testing.T) {
	interop.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		interop.Missing(t, "no tmpfs here: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	var warnings []error
	d := OpenDisk(dir, 1<<30, func(err error) { warnings = append(warnings, err) })
	d.jobs.Wait()
	const size = 100_000
	var kept int
	for i := range uint64(6) {
		d.rest.Store(0)
		name, p := blob(i, size)
		d.save(name, p)
		q := make([]byte, size)
		if d.Load(name, q) {
			kept++
			if !bytes.Equal(p, q) {
				t.Error("other bytes")
			}
		}
	}
	if len(warnings) != 1 || !errors.Is(warnings[0], syscall.ENOSPC) || kept == 0 || kept > 2 {
		t.Errorf("%d kept, warnings: %v", kept, warnings)
	}
	if names, _ := files(t, dir); len(names) != kept {
		t.Errorf("%d files for %d entries", len(names), kept)
	}
	// Room again.
	for i := range uint64(2) {
		name, _ := blob(i, size)
		os.Remove(d.path(name))
	}
	d.rest.Store(0)
	name, p := blob(10, size)
	d.save(name, p)
	if !d.Load(name, make([]byte, size)) {
		t.Error("nothing is kept although there is room")
	}
}
