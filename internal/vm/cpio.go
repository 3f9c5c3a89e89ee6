package vm

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A cpioWriter writes the archive that the kernel unpacks as its first root
// filesystem: the "newc" format of the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
type cpioWriter struct {
	w    io.Writer
	ino  uint32
	err  error
	dirs map[string]bool
}

const (
	cpioAlign = 4
	typeDir   = 0o040000
	typeFile  = 0o100000
	typeLink  = 0o120000
)

// entry writes one member; its size bytes of data come from r.
func (c *cpioWriter) entry(name string, mode uint32, size int64, r io.Reader) {
	if c.err != nil {
		return
	}
	if size > 1<<31 {
		c.err = fmt.Errorf("%s: %d bytes do not go into an initramfs", name, size)
		return
	}
	c.ino++
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
	// rdevmajor, rdevminor, namesize, check
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	c.write(head)
	c.pad(int64(len(head)))
	if c.err == nil && size > 0 {
		_, c.err = io.CopyN(c.w, r, size)
	}
	c.pad(size)
}

func (c *cpioWriter) write(s string) {
	if c.err == nil {
		_, c.err = io.WriteString(c.w, s)
	}
}

func (c *cpioWriter) pad(n int64) {
	c.write("\x00\x00\x00\x00"[:(cpioAlign-n%cpioAlign)%cpioAlign])
}

// dir makes a directory and those above it.
func (c *cpioWriter) dir(name string) {
	if name == "." || name == "/" || c.dirs[name] {
		return
	}
	c.dir(path.Dir(name))
	c.dirs[name] = true
	c.entry(name, typeDir|0o755, 0, nil)
}

// file puts in a file of the host's, or a directory with all that is in it.
func (c *cpioWriter) file(name, from string) {
	if c.err != nil {
		return
	}
	c.err = filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		to := path.Join(name, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			c.dir(to)
			return c.err
		case d.Type() == fs.ModeSymlink && p != from:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			c.dir(path.Dir(to))
			c.entry(to, typeLink|0o777, int64(len(target)), strings.NewReader(target))
			return c.err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() {
			return fmt.Errorf("%s is no regular file", p)
		}
		c.dir(path.Dir(to))
		c.entry(to, typeFile|uint32(st.Mode().Perm()), st.Size(), f)
		return c.err
	})
}

// writeCpio writes an archive with these host's files, by name in the guest,
// and an /init.
func writeCpio(w io.Writer, files map[string]string, init string) error {
	c := &cpioWriter{w: w, dirs: make(map[string]bool)}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c.file(name, files[name])
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "etc"} {
		c.dir(d)
	}
	c.entry("init", typeFile|0o755, int64(len(init)), strings.NewReader(init))
	c.entry("TRAILER!!!", 0, 0, nil)
	return c.err
}
