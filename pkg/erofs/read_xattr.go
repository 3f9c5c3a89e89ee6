package erofs

import (
	"encoding/binary"
	"fmt"
	"sort"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Xattr is an extended attribute: its full name, and its value.
type Xattr struct {
	Name  string
	Value []byte
}

// Xattrs reads the extended attributes of the inode with a number, sorted by
// name.
func (f *FS) Xattrs(nid uint64) ([]Xattr, error) {
	ino, err := f.inode(nid)
	if err != nil {
		return nil, err
	}
	return f.xattrs(ino)
}

func (f *FS) xattrs(ino *inode) ([]Xattr, error) {
	if ino.XattrSize == 0 {
		return nil, nil
	}
	off := ino.Offset + ino.isize
	// At most 12 + 4*65535 bytes.
	b := make([]byte, ino.XattrSize)
	if err := ino.space.readAt(b, off); err != nil {
		return nil, ino.wrap(err)
	}
	var h ondisk.XattrHeader
	h.Decode(b)
	pos := ondisk.XattrHeaderSize + ondisk.XattrSharedIDSize*int(h.SharedCount)
	if pos > len(b) {
		return nil, ino.corrupt(off, "%d shared xattrs in %d bytes", h.SharedCount, len(b))
	}
	var list []Xattr
	for i := range int(h.SharedCount) {
		id := binary.LittleEndian.Uint32(b[ondisk.XattrHeaderSize+ondisk.XattrSharedIDSize*i:])
		x, err := f.sharedXattr(id)
		if err != nil {
			return nil, ino.wrap(fmt.Errorf("shared xattr %d: %w", id, err))
		}
		list = append(list, x)
	}
	for pos < len(b) {
		if len(b)-pos < ondisk.XattrEntrySize {
			return nil, ino.corrupt(off+int64(pos), "%d bytes left for an xattr", len(b)-pos)
		}
		var e ondisk.XattrEntry
		e.Decode(b[pos:])
		// Zeros fill the area where it is larger than its entries, and for Linux
		// other entries may come behind them.
		if e == (ondisk.XattrEntry{}) {
			pos += ondisk.XattrEntrySize
			continue
		}
		if e.Size() > len(b)-pos {
			return nil, ino.corrupt(off+int64(pos), "an xattr of %d bytes where there are %d", e.Size(), len(b)-pos)
		}
		x, err := f.xattr(&e, b[pos+ondisk.XattrEntrySize:])
		if err != nil {
			return nil, ino.fail(off+int64(pos), err)
		}
		list = append(list, x)
		pos += e.Size()
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

// sharedXattrSpace and sharedXattrOffset are where shared attributes are. The
// space is nil if they are in a metabox that is not there.
func (f *FS) sharedXattrSpace() *metaSpace {
	if f.sb.FeatureCompat&ondisk.CompatSharedEAInMetabox != 0 {
		return f.metabox
	}
	return f.meta
}

func (f *FS) sharedXattrOffset(id uint32) int64 {
	return int64(f.sb.XattrBlkaddr)<<f.blkBits + int64(id)*4
}

// sharedXattr reads an entry of the shared area.
func (f *FS) sharedXattr(id uint32) (Xattr, error) {
	space, off := f.sharedXattrSpace(), f.sharedXattrOffset(id)
	if space == nil {
		return Xattr{}, fmt.Errorf("there is no metabox: %w", fault.ErrCorrupt)
	}
	b, err := space.read(off, ondisk.XattrEntrySize)
	if err != nil {
		return Xattr{}, err
	}
	var e ondisk.XattrEntry
	e.Decode(b)
	b = make([]byte, int(e.NameLen)+int(e.ValueSize))
	if err := space.readAt(b, off+ondisk.XattrEntrySize); err != nil {
		return Xattr{}, err
	}
	return f.xattr(&e, b)
}

// xattr makes an attribute from an entry and the bytes behind it.
func (f *FS) xattr(e *ondisk.XattrEntry, b []byte) (Xattr, error) {
	prefix := ""
	if i := int(e.NameIndex & ondisk.XattrLongPrefixMask); e.NameIndex&ondisk.XattrLongPrefix != 0 {
		if i >= len(f.prefixes) {
			return Xattr{}, fmt.Errorf("long xattr prefix %d of %d: %w", i, len(f.prefixes), fault.ErrCorrupt)
		}
		prefix = f.prefixes[i]
	} else {
		if i >= len(ondisk.XattrPrefixes) || ondisk.XattrPrefixes[i] == "" {
			return Xattr{}, fmt.Errorf("xattr prefix %d: %w", i, fault.ErrCorrupt)
		}
		prefix = ondisk.XattrPrefixes[i]
	}
	n, v := int(e.NameLen), int(e.ValueSize)
	return Xattr{Name: prefix + string(b[:n]), Value: append([]byte(nil), b[n:n+v]...)}, nil
}

// readPrefixes reads the long xattr name prefixes, wherever they are.
func (f *FS) readPrefixes() error {
	// Like Linux, whether the feature is announced or not.
	if f.sb.XattrPrefixCount == 0 {
		return nil
	}
	read := f.meta.readAt
	switch plain := f.sb.FeatureCompat&ondisk.CompatPlainXattrPfx != 0; {
	case plain:
	case f.metabox != nil:
		read = f.metabox.readAt
	case f.packed != nil:
		read = func(p []byte, off int64) error { return readFull(f.packed, p, off) }
	}
	off := int64(f.sb.XattrPrefixStart) * 4
	for i := range int(f.sb.XattrPrefixCount) {
		var size [2]byte
		if err := read(size[:], off); err != nil {
			return fmt.Errorf("long xattr prefix %d: %w", i, corruptShort(err))
		}
		n := int(binary.LittleEndian.Uint16(size[:]))
		if n < 1 || n > ondisk.MaxNameLen+1 {
			return fmt.Errorf("long xattr prefix %d: offset %#x: %d bytes: %w", i, off, n, fault.ErrCorrupt)
		}
		b := make([]byte, n)
		if err := read(b, off+2); err != nil {
			return fmt.Errorf("long xattr prefix %d: %w", i, corruptShort(err))
		}
		var p ondisk.LongPrefix
		p.Decode(b)
		if int(p.BaseIndex) >= len(ondisk.XattrPrefixes) {
			return fmt.Errorf("long xattr prefix %d: offset %#x: base %d: %w", i, off, p.BaseIndex, fault.ErrCorrupt)
		}
		f.prefixes = append(f.prefixes, ondisk.XattrPrefixes[p.BaseIndex]+p.Infix)
		off = (off + 2 + int64(n) + 3) &^ 3
	}
	return nil
}
