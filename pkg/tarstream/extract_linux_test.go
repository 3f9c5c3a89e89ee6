package tarstream

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// extract unpacks an archive into dir the way tar does as root, through the
// Reader alone, so that the result can be held against another tool's.
func extract(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := NewReader(NewSource(f))
	for {
		e, err := r.Next()
		if err == io.EOF || err == ErrNoEndMarker {
			return
		}
		if err == nil {
			err = extractEntry(r, e, dir)
		}
		if err != nil {
			t.Fatalf("%s: %v", archive, err)
		}
	}
}

func extractEntry(r *Reader, e *Entry, dir string) error {
	path := filepath.Join(dir, filepath.FromSlash(e.Name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if e.Type != TypeDir {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := create(r, e, dir, path); err != nil || e.Type == TypeLink {
		return err
	}
	if err := os.Lchown(path, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if e.Type != TypeSymlink {
		if err := unix.Chmod(path, uint32(e.Mode)); err != nil {
			return err
		}
	}
	for _, x := range e.Xattrs {
		if err := unix.Lsetxattr(path, x.Name, []byte(x.Value), 0); err != nil {
			return &os.PathError{Op: "setxattr " + x.Name, Path: path, Err: err}
		}
	}
	ts, err := unix.TimeToTimespec(time.Unix(e.Mtime, int64(e.MtimeNsec)))
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func create(r *Reader, e *Entry, dir, path string) error {
	switch e.Type {
	case TypeDir:
		return os.MkdirAll(path, 0o755)
	case TypeLink:
		return os.Link(filepath.Join(dir, filepath.FromSlash(e.Linkname)), path)
	case TypeSymlink:
		return os.Symlink(e.Linkname, path)
	case TypeFifo:
		return unix.Mkfifo(path, 0o600)
	case TypeChar, TypeBlock:
		mode := uint32(unix.S_IFCHR)
		if e.Type == TypeBlock {
			mode = unix.S_IFBLK
		}
		return unix.Mknod(path, mode|0o600, int(unix.Mkdev(e.Devmajor, e.Devminor)))
	}
	f, err := os.Create(strings.TrimSuffix(path, "/"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(e.Size); err != nil {
		return err
	}
	runs := e.Sparse
	if runs == nil {
		runs = []Extent{{0, e.Size}}
	}
	for {
		p, err := r.Data()
		if err == io.EOF {
			return f.Close()
		}
		if err != nil {
			return err
		}
		for len(p) > 0 {
			n := min(int64(len(p)), runs[0].Length)
			if _, err := f.WriteAt(p[:n], runs[0].Offset); err != nil {
				return err
			}
			p = p[n:]
			if runs[0].Offset, runs[0].Length = runs[0].Offset+n, runs[0].Length-n; runs[0].Length == 0 {
				runs = runs[1:]
			}
		}
	}
}
