package erofs

import (
	"io"
	"io/fs"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// File is an open file or directory of an FS. ReadAt may be called from
// several goroutines at once; the other methods share a position.
type File struct {
	f    *FS
	ino  *inode
	name string

	once sync.Once
	d    *fileData
	err  error

	off     int64 // of Read
	entries []Dirent
	listed  bool
	pos     int // of ReadDir
}

var (
	_ fs.ReadDirFile = (*File)(nil)
	_ io.ReaderAt    = (*File)(nil)
	_ io.ReadSeeker  = (*File)(nil)
	_ io.WriterTo    = (*File)(nil)
)

func (f *FS) file(ino *inode, name string) *File {
	return &File{f: f, ino: ino, name: name}
}

// data opens the contents when they are first wanted, so that opening and
// statting a file costs no more than its inode.
func (o *File) data() (*fileData, error) {
	o.once.Do(func() {
		switch {
		case o.ino.isDir():
			o.err = errIsDir
		case !o.ino.IsRegular():
			o.err = errNoData
		default:
			o.d, o.err = o.f.data(o.ino)
		}
	})
	return o.d, o.err
}

func (o *File) fail(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &fs.PathError{Op: op, Path: o.name, Err: err}
}

// Stat implements fs.File.
func (o *File) Stat() (fs.FileInfo, error) {
	return fileInfo{baseName(o.name), &o.ino.Stat}, nil
}

// Size is the file's size in bytes.
func (o *File) Size() int64 { return o.ino.Size }

// Close implements fs.File; there is nothing to release.
func (o *File) Close() error { return nil }

// Read implements io.Reader. It gives less than p holds rather than part of an
// encoded extent, which would be decoded in full all the same.
func (o *File) Read(p []byte) (int, error) {
	d, err := o.data()
	if err != nil {
		return 0, o.fail("read", err)
	}
	n, err := d.read(p, o.off, false)
	o.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, o.fail("read", err)
}

// ReadAt implements io.ReaderAt.
func (o *File) ReadAt(p []byte, off int64) (int, error) {
	d, err := o.data()
	if err != nil {
		return 0, o.fail("read", err)
	}
	n, err := d.ReadAt(p, off)
	return n, o.fail("read", err)
}

// Seek implements io.Seeker.
func (o *File) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		off += o.off
	case io.SeekEnd:
		off += o.ino.Size
	default:
		return 0, o.fail("seek", fault.ErrUsage)
	}
	if off < 0 {
		return 0, o.fail("seek", fault.ErrUsage)
	}
	o.off = off
	return off, nil
}

// WriteTo implements io.WriterTo, with pieces larger than io.Copy's.
func (o *File) WriteTo(w io.Writer) (total int64, err error) {
	buf := make([]byte, min(max(o.ino.Size-o.off, 1), 1<<20))
	for {
		n, err := o.Read(buf)
		if n > 0 {
			m, werr := w.Write(buf[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// ReadDir implements fs.ReadDirFile.
func (o *File) ReadDir(n int) ([]fs.DirEntry, error) {
	if !o.listed {
		list, err := o.f.readDir(o.ino)
		if err != nil {
			return nil, o.fail("readdir", err)
		}
		o.entries, o.listed = list, true
	}
	rest := o.entries[o.pos:]
	if n > 0 {
		if len(rest) == 0 {
			return nil, io.EOF
		}
		rest = rest[:min(n, len(rest))]
	}
	o.pos += len(rest)
	return o.f.dirEntries(rest), nil
}
