package erofs

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Dirent is one entry of a directory.
type Dirent struct {
	Name string
	Nid  uint64
	Type uint8 // ondisk.FTRegular, ...
}

// dirBlock is one parsed block of a directory.
type dirBlock struct {
	b   []byte
	n   int // entries
	ino *inode
	off int64 // of the block in the directory, for messages
}

// dirBlockAt reads block no of a directory. buf is block-sized scratch.
func (d *fileData) dirBlockAt(no int64, buf []byte) (dirBlock, error) {
	off := no << d.f.blkBits
	b := buf[:min(d.f.BlockSize(), d.ino.Size-off)]
	if n, err := d.ReadAt(b, off); n < len(b) {
		return dirBlock{}, err
	}
	blk := dirBlock{b: b, ino: d.ino, off: off}
	if len(b) < ondisk.DirentSize {
		return blk, blk.corrupt("a block of %d bytes", len(b))
	}
	first := blk.nameOff(0)
	if first < ondisk.DirentSize || first%ondisk.DirentSize != 0 || first > len(b) {
		return blk, blk.corrupt("the first name is at %d", first)
	}
	blk.n = first / ondisk.DirentSize
	return blk, nil
}

func (b *dirBlock) corrupt(format string, args ...any) error {
	return b.ino.corrupt(b.ino.Offset, "directory block at %d: "+format, append([]any{b.off}, args...)...)
}

func (b *dirBlock) nameOff(i int) int {
	p := b.b[i*ondisk.DirentSize+8:]
	return int(p[0]) | int(p[1])<<8
}

// name is the name of entry i, checked.
func (b *dirBlock) name(i int) ([]byte, error) {
	start, end := b.nameOff(i), len(b.b)
	if i+1 < b.n {
		end = b.nameOff(i + 1)
	}
	if start > end || end > len(b.b) {
		return nil, b.corrupt("name %d is at %d..%d", i, start, end)
	}
	name := b.b[start:end]
	if i+1 == b.n {
		if z := bytes.IndexByte(name, 0); z >= 0 {
			name = name[:z]
		}
	}
	if len(name) == 0 || len(name) > ondisk.MaxNameLen || bytes.IndexByte(name, 0) >= 0 || bytes.IndexByte(name, '/') >= 0 {
		return nil, b.corrupt("name %d is %.300q", i, name)
	}
	return name, nil
}

func (b *dirBlock) entry(i int) ondisk.Dirent {
	var e ondisk.Dirent
	e.Decode(b.b[i*ondisk.DirentSize:])
	return e
}

// openDir opens a directory's blocks.
func (f *FS) openDir(ino *inode) (*fileData, error) {
	return f.data(ino)
}

// dirents calls fn with the entries of a directory as they are stored, "." and
// ".." among them, and ends with fn's error. Names must ascend: lookups rely
// on it, and it keeps a directory that repeats a block from having no end.
func (f *FS) dirents(ino *inode, fn func(Dirent) error) error {
	d, err := f.openDir(ino)
	if err != nil {
		return err
	}
	buf := make([]byte, min(f.BlockSize(), ino.Size))
	last := ""
	for no := int64(0); no<<f.blkBits < ino.Size; no++ {
		blk, err := d.dirBlockAt(no, buf)
		if err != nil {
			return err
		}
		for i := range blk.n {
			name, err := blk.name(i)
			if err != nil {
				return err
			}
			e := blk.entry(i)
			ent := Dirent{Name: string(name), Nid: e.Nid, Type: e.FileType}
			if ent.Name <= last {
				return ino.fail(ino.Offset, fmt.Errorf("directory block at %d: %q does not come after %q: %w", blk.off, ent.Name, last, errOrder))
			}
			last = ent.Name
			if err := fn(ent); err != nil {
				return err
			}
		}
	}
	return nil
}

// errOrder is fault.ErrCorrupt for names that do not ascend.
var errOrder = &pathError{"corrupt input", fault.ErrCorrupt, nil}

// Dirents lists the directory with a number in bytewise order, without "." and
// "..".
func (f *FS) Dirents(nid uint64) ([]Dirent, error) {
	ino, err := f.inode(nid)
	if err != nil {
		return nil, err
	}
	return f.readDir(ino)
}

func (f *FS) readDir(ino *inode) ([]Dirent, error) {
	if !ino.isDir() {
		return nil, errNotDir
	}
	var list []Dirent
	err := f.dirents(ino, func(e Dirent) error {
		if e.Name != "." && e.Name != ".." {
			list = append(list, e)
		}
		return nil
	})
	return list, err
}

// lookup finds a name in a directory by bisection, in a logarithm of its
// blocks. ok is false if it is not there.
func (f *FS) lookup(ino *inode, name string) (ent Dirent, ok bool, err error) {
	d, err := f.openDir(ino)
	if err != nil {
		return ent, false, err
	}
	buf := make([]byte, min(f.BlockSize(), ino.Size))
	lo, hi := int64(0), (ino.Size+f.blockMask())>>f.blkBits
	for lo < hi {
		mid := lo + (hi-lo)/2
		blk, err := d.dirBlockAt(mid, buf)
		if err != nil {
			return ent, false, err
		}
		// Bisect within the block; its ends tell where to go on.
		i, j := 0, blk.n
		for i < j {
			k := i + (j-i)/2
			b, err := blk.name(k)
			if err != nil {
				return ent, false, err
			}
			switch c := strings.Compare(name, string(b)); {
			case c == 0:
				e := blk.entry(k)
				return Dirent{Name: name, Nid: e.Nid, Type: e.FileType}, true, nil
			case c < 0:
				j = k
			default:
				i = k + 1
			}
		}
		switch i {
		case 0:
			hi = mid
		case blk.n:
			lo = mid + 1
		default:
			return ent, false, nil
		}
	}
	return ent, false, nil
}
