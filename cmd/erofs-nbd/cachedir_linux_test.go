package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// tmpfs mounts a filesystem of its own, of so many bytes.
func tmpfs(t *testing.T, size string) (dir string) {
	t.Helper()
	interop.Root(t)
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		interop.Missing(t, "tmpfs cannot be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestCacheDirFull: a disk that is full is a warning, and reads do not suffer.
// What fitted is used at the next start.
func TestCacheDirFull(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	dir := tmpfs(t, "3m")
	for round := range 2 {
		reg.Reset()
		s := start(t, f.lazyArgs(ref, "--cache-dir", dir)...)
		f.same(t, readAll(t, s.uri))
		if code := s.stop(); code != 0 || strings.Count(s.stderr.String(), "\n") != 1 || !strings.Contains(s.stderr.String(), "warning: --cache-dir: ") || !strings.Contains(s.stderr.String(), unix.ENOSPC.Error()) {
			t.Errorf("round %d: exit code %d, stderr: %s", round, code, s.stderr)
		}
		files := cacheFiles(t, dir)
		if len(files) == 0 {
			t.Error("nothing was kept")
		}
		for _, name := range files {
			if strings.Contains(name, ".tmp-") {
				t.Errorf("left behind: %s", name)
			}
		}
	}
}

// TestCacheDirReadOnly: what is in a directory that cannot be written to is
// used, and a warning says that nothing comes to it.
func TestCacheDirReadOnly(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	dir := tmpfs(t, "64m")
	s := start(t, f.lazyArgs(ref, "--cache-dir", dir)...)
	f.same(t, readAll(t, s.uri))
	s.stop()
	lost := cacheFiles(t, dir)[0]
	if err := errors.Join(os.Remove(lost), unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	reg.Reset()
	s = start(t, f.lazyArgs(ref, "--cache-dir", dir)...)
	f.same(t, readAll(t, s.uri))
	if n := len(reg.Requests()); n != 2 { // one at the start, as not all is there
		t.Errorf("%d requests for a span that was lost", n)
	}
	if code := s.stop(); code != 0 || strings.Count(s.stderr.String(), "\n") != 1 || !strings.Contains(s.stderr.String(), "nothing new is kept there") {
		t.Errorf("exit code %d, stderr: %s", code, s.stderr)
	}
}

// TestCacheDirKilled: servers that are killed while they write leave nothing
// that is taken for good, and what they had written is used.
func TestCacheDirKilled(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	dir := t.TempDir()
	total := 0
	for i := range f.layers {
		if l := &f.layers[i]; l.Kind == seek.Plain {
			total += int(seek.Pieces(l.Size))
		} else {
			total += len(l.Spans)
		}
	}
	interrupted := 0
	for i := range 8 {
		cmd := command(t, f.lazyArgs(ref, "--cache-dir", dir, "--prefetch", "all", "--listen", "unix:"+dir+"/s")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before := len(cacheFiles(t, dir))
		eventually(t, func() bool {
			n := len(cacheFiles(t, dir))
			return n > before+i%4 || n >= total
		}, func() string { return "nothing is cached" })
		cmd.Process.Kill()
		cmd.Wait()
		if n := len(cacheFiles(t, dir)); n > 0 && n < total {
			interrupted++
		}
		time.Sleep(time.Millisecond)
	}
	if interrupted == 0 {
		t.Error("nobody was killed before all was written")
	}
	reg.Reset()
	s := start(t, f.lazyArgs(ref, "--cache-dir", dir, "--stats")...)
	f.same(t, readAll(t, s.uri))
	var blobs int64
	for _, l := range f.im.Layers {
		blobs += l.Size
	}
	if n := reg.TotalServed(); n >= blobs {
		t.Errorf("%d bytes fetched of %d: nothing was used of what there was", n, blobs)
	}
	if code := s.stop(); code != 0 || !strings.Contains(s.stderr.String(), " 0 were wrong") {
		t.Errorf("exit code %d, stderr: %s", code, s.stderr)
	}
}
