package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"time"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Open opens the file at a path; a symbolic link is followed, within the
// image. What it returns is a *File. Paths are those of io/fs, except that
// they need not be UTF-8.
func (f *FS) Open(name string) (fs.File, error) {
	ino, err := f.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	return f.file(ino, name), nil
}

// OpenNid opens the file whose inode has a number.
func (f *FS) OpenNid(nid uint64) (*File, error) {
	ino, err := f.inode(nid)
	if err != nil {
		return nil, err
	}
	return f.file(ino, fmt.Sprintf("nid %s", FormatNid(nid))), nil
}

// Stat implements fs.StatFS; it follows a symbolic link.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	ino, err := f.resolve("stat", name, true)
	if err != nil {
		return nil, err
	}
	return fileInfo{baseName(name), &ino.Stat}, nil
}

// Lstat is Stat that does not follow a symbolic link at the end.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	ino, err := f.resolve("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return fileInfo{baseName(name), &ino.Stat}, nil
}

// ReadLink is the target of the symbolic link at a path.
func (f *FS) ReadLink(name string) (string, error) {
	ino, err := f.resolve("readlink", name, false)
	if err != nil {
		return "", err
	}
	target, err := f.readLink(ino)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// ReadLinkNid is the target of the symbolic link with a number.
func (f *FS) ReadLinkNid(nid uint64) (string, error) {
	ino, err := f.inode(nid)
	if err != nil {
		return "", err
	}
	return f.readLink(ino)
}

// maxTarget bounds a symbolic link's target, in bytes. Linux makes none longer
// than 4095.
const maxTarget = 1 << 16

func (f *FS) readLink(ino *inode) (string, error) {
	if !ino.IsSymlink() {
		return "", fs.ErrInvalid
	}
	if ino.Size == 0 || ino.Size > maxTarget {
		return "", ino.corrupt(ino.Offset, "a symbolic link to %d bytes", ino.Size)
	}
	d, err := f.data(ino)
	if err != nil {
		return "", err
	}
	b := make([]byte, ino.Size)
	if n, err := d.ReadAt(b, 0); n < len(b) {
		return "", err
	}
	if strings.IndexByte(string(b), 0) >= 0 {
		return "", ino.corrupt(ino.Offset, "a symbolic link to %.300q", b)
	}
	return string(b), nil
}

// ReadFile implements fs.ReadFileFS. It refuses files of 2 GiB and more, which
// an image of a few bytes may have: open those.
func (f *FS) ReadFile(name string) ([]byte, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	if size := file.(*File).Size(); size > math.MaxInt32 {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%d bytes: %w", size, fault.ErrUnsupported)}
	}
	// A size of which much is a lie, or a hole, is not allocated at once.
	var b bytes.Buffer
	b.Grow(int(min(max(file.(*File).Size(), 0), 1<<20)) + bytes.MinRead)
	if _, err := file.(*File).WriteTo(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// ReadDir implements fs.ReadDirFS. Entries are in bytewise order.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	ino, err := f.resolve("readdir", name, true)
	if err != nil {
		return nil, err
	}
	list, err := f.readDir(ino)
	if err != nil {
		err = &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return f.dirEntries(list), err
}

func (f *FS) dirEntries(list []Dirent) []fs.DirEntry {
	entries := make([]fs.DirEntry, len(list))
	for i := range list {
		entries[i] = &dirEntry{f, list[i]}
	}
	return entries
}

// Resolve is the number of the inode at a path. With follow, a symbolic link
// at its end is followed.
func (f *FS) Resolve(name string, follow bool) (nid uint64, err error) {
	ino, err := f.resolve("open", name, follow)
	if err != nil {
		return 0, err
	}
	return ino.Nid, nil
}

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// resolve walks a path. Symbolic links lead no higher than the root.
func (f *FS) resolve(op, name string, follow bool) (*inode, error) {
	ino, err := f.walkPath(name, follow)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return ino, nil
}

func (f *FS) walkPath(name string, follow bool) (*inode, error) {
	if !validPath(name) {
		return nil, fs.ErrInvalid
	}
	root, err := f.inode(f.RootNid())
	if err != nil {
		return nil, err
	}
	way := []*inode{root} // from the root to where we are
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		here, part := way[len(way)-1], todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			if !here.isDir() {
				return nil, errNotDir
			}
			continue
		case "..":
			if !here.isDir() {
				return nil, errNotDir
			}
			way = way[:max(len(way)-1, 1)]
			continue
		}
		if !here.isDir() {
			return nil, errNotDir
		}
		ent, ok, err := f.lookup(here, part)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errNotExist
		}
		next, err := f.inode(ent.Nid)
		if err != nil {
			return nil, err
		}
		if next.IsSymlink() && (follow || len(todo) > 0) {
			if links++; links > maxLinks {
				return nil, errLinks
			}
			target, err := f.readLink(next)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(target, "/") {
				way = way[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		if next.isDir() {
			// A directory within itself would let a tree walk go on for ever.
			for _, above := range way {
				if above.Nid == next.Nid {
					return nil, here.corrupt(here.Offset, "%q leads back to a directory above it", part)
				}
			}
		}
		way = append(way, next)
	}
	return way[len(way)-1], nil
}

// validPath is fs.ValidPath without the demand for UTF-8, which file names in
// an image do not meet.
func validPath(name string) bool {
	if name == "." {
		return true
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

func baseName(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// pathError is an error that both io/fs and package fault have a name for.
type pathError struct {
	msg    string
	is, or error
}

func (e *pathError) Error() string { return e.msg }
func (e *pathError) Is(target error) bool {
	return target == e.is || target == e.or
}

var (
	errNotExist = &pathError{"no such file or directory", fs.ErrNotExist, fault.ErrNotFound}
	errNotDir   = &pathError{"not a directory", fs.ErrInvalid, fault.ErrUsage}
	errIsDir    = &pathError{"is a directory", fs.ErrInvalid, fault.ErrUsage}
	errNoData   = &pathError{"not a regular file", fs.ErrInvalid, fault.ErrUsage}
	errLinks    = &pathError{"too many levels of symbolic links", fs.ErrInvalid, nil}
)

// fileInfo is an fs.FileInfo.
type fileInfo struct {
	name string
	st   *Stat
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.st.Size }
func (i fileInfo) Mode() fs.FileMode  { return i.st.FileMode() }
func (i fileInfo) ModTime() time.Time { return i.st.Mtime }
func (i fileInfo) IsDir() bool        { return i.st.IsDir() }
func (i fileInfo) Sys() any           { return i.st }
func (i fileInfo) String() string     { return fs.FormatFileInfo(i) }

// dirEntry is an fs.DirEntry.
type dirEntry struct {
	f *FS
	e Dirent
}

func (d *dirEntry) Name() string      { return d.e.Name }
func (d *dirEntry) IsDir() bool       { return d.e.Type == ondisk.FTDir }
func (d *dirEntry) Type() fs.FileMode { return fileTypeMode(d.e.Type) }
func (d *dirEntry) String() string    { return fs.FormatDirEntry(d) }

// Info reads the inode.
func (d *dirEntry) Info() (fs.FileInfo, error) {
	st, err := d.f.StatNid(d.e.Nid)
	if err != nil {
		return nil, err
	}
	return fileInfo{d.e.Name, st}, nil
}

func fileTypeMode(t uint8) fs.FileMode {
	switch t {
	case ondisk.FTRegular:
		return 0
	case ondisk.FTDir:
		return fs.ModeDir
	case ondisk.FTChar:
		return fs.ModeDevice | fs.ModeCharDevice
	case ondisk.FTBlock:
		return fs.ModeDevice
	case ondisk.FTFIFO:
		return fs.ModeNamedPipe
	case ondisk.FTSocket:
		return fs.ModeSocket
	case ondisk.FTSymlink:
		return fs.ModeSymlink
	}
	return fs.ModeIrregular
}
