package testimage

import (
	"archive/tar"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// epoch is the mtime of what the test makes up itself.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A Builder writes a layer's tar. Errors stick: the first one is returned by
// Close. Names are as they stand in the archive; a directory's ends in "/".
type Builder struct {
	tw  *tar.Writer
	err error
}

// NewBuilder starts a tar on w.
func NewBuilder(w io.Writer) *Builder { return &Builder{tw: tar.NewWriter(w)} }

// Close writes the end marker.
func (b *Builder) Close() error {
	if b.err != nil {
		return b.err
	}
	return b.tw.Close()
}

// A Change alters a header before it is written.
type Change func(*tar.Header)

// Owner sets an entry's numeric owner.
func Owner(uid, gid uint32) Change {
	return func(h *tar.Header) { h.Uid, h.Gid = int(uid), int(gid) }
}

// Mtime sets an entry's time of modification.
func Mtime(t time.Time) Change {
	return func(h *tar.Header) { h.ModTime, h.Format = t, tar.FormatPAX }
}

// Xattr adds an extended attribute.
func Xattr(name, value string) Change {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

// Header writes an entry as it stands, with its contents.
func (b *Builder) Header(h *tar.Header, data []byte, changes ...Change) {
	if b.err != nil {
		return
	}
	if h.ModTime.IsZero() {
		h.ModTime = epoch
	}
	for _, c := range changes {
		c(h)
	}
	if b.err = b.tw.WriteHeader(h); b.err == nil && len(data) > 0 {
		_, b.err = b.tw.Write(data)
	}
}

// Dir adds a directory.
func (b *Builder) Dir(name string, mode int64, changes ...Change) {
	b.Header(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, nil, changes...)
}

// File adds a regular file.
func (b *Builder) File(name string, mode int64, data string, changes ...Change) {
	b.Header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}, []byte(data), changes...)
}

// Symlink adds a symbolic link.
func (b *Builder) Symlink(name, target string, changes ...Change) {
	b.Header(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil, changes...)
}

// Link adds a hard link; target is a path in the archive.
func (b *Builder) Link(name, target string, changes ...Change) {
	b.Header(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, nil, changes...)
}

// Node adds a character or block device, or a FIFO.
func (b *Builder) Node(name string, typeflag byte, mode, major, minor int64, changes ...Change) {
	b.Header(&tar.Header{Typeflag: typeflag, Name: name, Mode: mode, Devmajor: major, Devminor: minor}, nil, changes...)
}

// Whiteout marks a lower layer's entry as deleted.
func (b *Builder) Whiteout(dir, name string) { b.File(dir+".wh."+name, 0, "") }

// Opaque marks a directory as hiding what lower layers have in it.
func (b *Builder) Opaque(dir string) { b.File(dir+".wh..wh..opq", 0, "") }

// Tree adds what is at path on this machine, as name and below it: files,
// directories and symbolic links, owned by root, with times cut to seconds so
// that the bytes do not depend on the file system's precision. A path that is
// not there is left out; so is what cannot be read.
func (b *Builder) Tree(name, path string) {
	if b.err != nil {
		return
	}
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) || os.IsPermission(err) {
				return nil
			}
			return err
		}
		rel, err := filepath.Rel(path, p)
		if err != nil {
			return err
		}
		to := name
		if rel != "." {
			to = name + "/" + filepath.ToSlash(rel)
		}
		return b.copy(to, p, d)
	})
	if b.err == nil {
		b.err = err
	}
}

func (b *Builder) copy(name, path string, d fs.DirEntry) error {
	st, err := d.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode().Perm()), ModTime: st.ModTime().Truncate(time.Second)}
	switch {
	case st.Mode().IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return b.tw.WriteHeader(h)
	case st.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
		return b.tw.WriteHeader(h)
	case !st.Mode().IsRegular():
		return nil
	}
	f, err := os.Open(path)
	if os.IsPermission(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := b.tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(b.tw, f, st.Size())
	return err
}
