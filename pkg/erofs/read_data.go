package erofs

import (
	"io"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// fileData reads the contents of an inode. It is an io.ReaderAt.
type fileData struct {
	f   *FS
	ino *inode
	m   mapper // nil for an empty file
}

// data opens an inode's contents: a file's bytes, a directory's blocks, a
// symbolic link's target.
func (f *FS) data(ino *inode) (*fileData, error) {
	d := &fileData{f: f, ino: ino}
	if ino.Size == 0 {
		return d, nil
	}
	var err error
	d.m, err = f.mapper(ino)
	return d, err
}

// Size is the file's size in bytes.
func (d *fileData) Size() int64 { return d.ino.Size }

// ReadAt implements io.ReaderAt.
func (d *fileData) ReadAt(p []byte, off int64) (n int, err error) { return d.read(p, off, true) }

// read is ReadAt; unless all of p is to be filled, it ends before an encoded
// extent that does not fit in as a whole, if that is not the first.
func (d *fileData) read(p []byte, off int64, all bool) (n int, err error) {
	if off < 0 {
		return 0, d.ino.wrap(fault.ErrUsage)
	}
	if off >= d.ino.Size {
		return 0, io.EOF
	}
	if rest := d.ino.Size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	for n < len(p) {
		e, xerr := d.m.extentAt(off)
		if xerr != nil {
			return n, xerr
		}
		in := off - e.Offset
		if in < 0 || in >= e.Length {
			return n, d.ino.corrupt(d.ino.Offset, "no extent for offset %d of the file", off)
		}
		k := int(min(int64(len(p)-n), e.Length-in))
		if !all && n > 0 && e.Kind == ExtentEncoded && int64(k) < e.Length {
			return n, nil
		}
		if xerr := d.f.readExtent(d.ino, &e, p[n:n+k], in); xerr != nil {
			return n, xerr
		}
		n += k
		off += int64(k)
	}
	return n, err
}

// readExtent fills p with the bytes at in, an offset in an extent.
func (f *FS) readExtent(ino *inode, e *FileExtent, p []byte, in int64) error {
	switch e.Kind {
	case ExtentHole:
		clear(p)
		return nil
	case ExtentInline:
		return ino.nilOrWrap(ino.space.readAt(p, e.Addr+in))
	case ExtentRaw:
		// Directories are read piecemeal and again and again.
		if e.Device == 0 && ino.Mode&ondisk.ModeTypeMask != ondisk.ModeRegular {
			return ino.nilOrWrap(f.meta.readAt(p, e.Addr+in))
		}
		return ino.nilOrWrap(f.readDevice(e.Device, p, e.Addr+in))
	case ExtentFragment:
		n, err := f.packed.ReadAt(p, e.Addr+in)
		if n < len(p) {
			return ino.corrupt(ino.Offset, "fragment at %d of %d bytes: %v", e.Addr, e.Length, err)
		}
		return nil
	}
	return f.readEncoded(ino, e, p, in)
}

// nilOrWrap is wrap for an error that may be nil.
func (i *inode) nilOrWrap(err error) error {
	if err == nil {
		return nil
	}
	return i.wrap(err)
}

// Extents lists where a file's bytes are. A corrupt file may have any number
// of extents, so the list goes to a function, which ends it with an error.
func (f *FS) Extents(nid uint64, fn func(FileExtent) error) error {
	ino, err := f.inode(nid)
	if err != nil {
		return err
	}
	return f.extents(ino, fn)
}

func (f *FS) extents(ino *inode, fn func(FileExtent) error) error {
	if !ino.hasData() {
		return nil
	}
	d, err := f.data(ino)
	if err != nil {
		return err
	}
	for off := int64(0); off < ino.Size; {
		e, err := d.m.extentAt(off)
		if err != nil {
			return err
		}
		if off < e.Offset || off >= e.Offset+e.Length {
			return ino.corrupt(ino.Offset, "no extent for offset %d of the file", off)
		}
		if err := fn(e); err != nil {
			return err
		}
		off = e.Offset + e.Length
	}
	return nil
}

// hasData says whether an inode's type has contents at all.
func (i *inode) hasData() bool {
	switch i.Mode & ondisk.ModeTypeMask {
	case ondisk.ModeRegular, ondisk.ModeDir, ondisk.ModeSymlink:
		return true
	}
	return false
}
