package erofs

import (
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Stat is what an inode says of a file. It is what Sys returns for the
// fs.FileInfo of an FS.
type Stat struct {
	Nid       uint64 // the inode's number: its address; hard links share it
	Ino       uint32 // the number recorded for 32-bit programs
	Mode      uint32 // as st_mode: type, setuid, setgid, sticky, permissions
	UID, GID  uint32
	Nlink     uint32
	Size      int64 // bytes
	Mtime     time.Time
	Rdev      uint32 // as encoded by the kernel; see Device
	Layout    uint16 // ondisk.LayoutFlatPlain, ...
	Extended  bool   // the inode has 64 bytes, not 32
	XattrSize int    // bytes of the inode's own xattr area
	Offset    int64  // of the inode, in the image or in the metabox
}

// Device is the device number of a character or block device.
func (s *Stat) Device() (major, minor uint32) { return ondisk.DecodeRdev(s.Rdev) }

// FileMode is the mode in the form of io/fs.
func (s *Stat) FileMode() fs.FileMode {
	m := fs.FileMode(s.Mode & 0o777)
	switch s.Mode & ondisk.ModeTypeMask {
	case ondisk.ModeDir:
		m |= fs.ModeDir
	case ondisk.ModeSymlink:
		m |= fs.ModeSymlink
	case ondisk.ModeFIFO:
		m |= fs.ModeNamedPipe
	case ondisk.ModeSocket:
		m |= fs.ModeSocket
	case ondisk.ModeBlock:
		m |= fs.ModeDevice
	case ondisk.ModeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	for _, b := range [...]struct {
		bit  uint32
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if s.Mode&b.bit != 0 {
			m |= b.mode
		}
	}
	return m
}

// Type names the type: file, directory, symlink, fifo, socket, character
// device, block device.
func (s *Stat) Type() string {
	switch s.Mode & ondisk.ModeTypeMask {
	case ondisk.ModeRegular:
		return "file"
	case ondisk.ModeDir:
		return "directory"
	case ondisk.ModeSymlink:
		return "symlink"
	case ondisk.ModeFIFO:
		return "fifo"
	case ondisk.ModeSocket:
		return "socket"
	case ondisk.ModeChar:
		return "character device"
	case ondisk.ModeBlock:
		return "block device"
	}
	return "unknown" // no inode that was read has such a mode
}

// IsDir, IsRegular and IsSymlink tell the commonest types apart.
func (s *Stat) IsDir() bool     { return s.Mode&ondisk.ModeTypeMask == ondisk.ModeDir }
func (s *Stat) IsRegular() bool { return s.Mode&ondisk.ModeTypeMask == ondisk.ModeRegular }
func (s *Stat) IsSymlink() bool { return s.Mode&ondisk.ModeTypeMask == ondisk.ModeSymlink }

// inode is a decoded inode and where its parts are.
type inode struct {
	Stat
	space       *metaSpace
	isize       int64  // of the inode without xattrs
	startblk    int64  // flat: first block, -1 for none
	u           uint32 // i_u
	format      uint16
	nsec        uint32 // of the time, as recorded
	dotOmitted  bool
	noFragments bool // it is one that fragments depend on
}

func (i *inode) isDir() bool { return i.IsDir() }

// end is where the inode and its xattrs end.
func (i *inode) end() int64 { return i.Offset + i.isize + int64(i.XattrSize) }

// corrupt is an error of this inode at an offset of its space.
func (i *inode) corrupt(off int64, format string, args ...any) error {
	return i.fail(off, fmt.Errorf(format+": %w", append(args, fault.ErrCorrupt)...))
}

// fail says of which inode an error is, and where.
func (i *inode) fail(off int64, err error) error {
	return fmt.Errorf("nid %s, %soffset %#x: %w", FormatNid(i.Nid), i.space.name, off, err)
}

// wrap says of which inode an error is that tells the place itself.
func (i *inode) wrap(err error) error {
	return fmt.Errorf("nid %s: %w", FormatNid(i.Nid), err)
}

// FormatNid is a nid for people: the metabox bit would make a huge number.
func FormatNid(nid uint64) string {
	if nid&ondisk.NidMetabox != 0 {
		return fmt.Sprintf("%d of the metabox", nid&ondisk.NidMask)
	}
	return fmt.Sprint(nid)
}

// inode reads an inode by its number.
func (f *FS) inode(nid uint64) (*inode, error) {
	i := &inode{Stat: Stat{Nid: nid}, space: f.meta}
	base := int64(f.sb.MetaBlkaddr) << f.blkBits
	if nid&ondisk.NidMetabox != 0 {
		if i.space, base = f.metabox, 0; f.metabox == nil {
			return nil, fmt.Errorf("nid %s: there is no metabox: %w", FormatNid(nid), fault.ErrCorrupt)
		}
	}
	slot := nid & ondisk.NidMask
	if slot > maxAddr>>ondisk.SlotBits {
		return nil, fmt.Errorf("nid %s: out of range: %w", FormatNid(nid), fault.ErrCorrupt)
	}
	i.Offset = base + int64(slot)<<ondisk.SlotBits
	b, err := i.space.read(i.Offset, ondisk.InodeCompactSize)
	if err != nil {
		return nil, i.wrap(err)
	}
	var c ondisk.InodeCompact
	c.Decode(b)
	i.format = c.Format
	i.Layout = ondisk.Layout(c.Format)
	if c.Format&^ondisk.FormatAll != 0 || i.Layout > ondisk.LayoutChunkBased {
		return nil, i.fail(i.Offset, fmt.Errorf("inode format %#x: %w", c.Format, fault.ErrUnsupported))
	}
	i.XattrSize = ondisk.XattrIbodySize(c.XattrIcount)
	i.Mode = uint32(c.Mode)
	if c.Format&ondisk.FormatExtended == 0 {
		f.compact(i, &c)
	} else {
		if b, err = i.space.read(i.Offset, ondisk.InodeExtendedSize); err != nil {
			return nil, i.wrap(err)
		}
		var x ondisk.InodeExtended
		x.Decode(b)
		if x.Size > maxAddr {
			return nil, i.corrupt(i.Offset, "size %d", x.Size)
		}
		i.extended(&x)
	}
	switch i.Mode & ondisk.ModeTypeMask {
	case ondisk.ModeChar, ondisk.ModeBlock:
		i.Rdev = i.u
	case ondisk.ModeDir:
		i.dotOmitted = i.format&ondisk.FormatDotOmitted != 0
	case ondisk.ModeRegular, ondisk.ModeSymlink, ondisk.ModeFIFO, ondisk.ModeSocket:
	default:
		return nil, i.corrupt(i.Offset, "mode %#o", i.Mode)
	}
	return i, nil
}

// compact takes the rest of a compact inode.
func (f *FS) compact(i *inode, c *ondisk.InodeCompact) {
	i.isize = ondisk.InodeCompactSize
	i.Ino, i.UID, i.GID, i.Size, i.u = c.Ino, uint32(c.UID), uint32(c.GID), int64(c.Size), c.U
	i.setTime(f.sb.Epoch+int64(c.Mtime), f.sb.FixedNsec)
	i.Nlink = uint32(c.Nb)
	hi := uint16(0)
	i.startblk = int64(c.U)
	none := c.U == math.MaxUint32
	if !i.isDir() && c.Format&ondisk.FormatNlink1 != 0 {
		i.Nlink, hi = 1, c.Nb
		none = none && hi == math.MaxUint16
	}
	i.setStart(hi, none)
}

// extended takes all of an extended inode.
func (i *inode) extended(x *ondisk.InodeExtended) {
	i.Extended, i.isize = true, ondisk.InodeExtendedSize
	i.Ino, i.UID, i.GID, i.Size, i.u = x.Ino, x.UID, x.GID, int64(x.Size), x.U
	i.setTime(x.Mtime, x.MtimeNsec)
	i.Nlink = x.Nlink
	i.setStart(x.Nb, x.U == math.MaxUint32 && x.Nb == math.MaxUint16)
}

// setStart sets where flat data begins.
func (i *inode) setStart(hi uint16, none bool) {
	i.startblk = int64(hi)<<32 | int64(i.u)
	// Only what has no data but an inline tail may lack a first block.
	if none && i.Layout == ondisk.LayoutFlatPlain {
		i.startblk = -1
	}
}

// setTime sets the modification time. Any number of seconds comes back from
// time.Time's Unix, however little the date may mean.
func (i *inode) setTime(sec int64, nsec uint32) {
	i.Mtime, i.nsec = time.Unix(sec, int64(nsec)), nsec
}

// StatNid reads the inode with a number.
func (f *FS) StatNid(nid uint64) (*Stat, error) {
	ino, err := f.inode(nid)
	if err != nil {
		return nil, err
	}
	return &ino.Stat, nil
}
