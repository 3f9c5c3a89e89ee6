package erofs

import (
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

// Finish writes the metadata of a tree, whose regular files must have been
// added or lie on a device, and then the superblock. The Writer is used up.
func (w *Writer) Finish(t *rootfs.Tree, fin Final) (*WriteStats, error) {
	if len(fin.Devices) != w.opts.Devices {
		return nil, fault.Usagef("erofs: %d devices, room for %d", len(fin.Devices), w.opts.Devices)
	}
	if len(fin.Label) > 16 {
		return nil, fault.Usagef("label %q: more than 16 bytes", fin.Label)
	}
	if err := w.data.flush(); err != nil {
		return nil, err
	}
	if err := w.tails.flush(); err != nil {
		return nil, err
	}
	p := &plan{w: w}
	err := p.gather(t)
	if err != nil {
		return nil, err
	}
	p.chooseEpoch(fin.BuildTime)
	if p.xattrs, err = newXattrTable(p.inodes, w.prefixes); err != nil {
		return nil, err
	}
	st := &WriteStats{Inodes: int64(len(p.inodes))}
	var end int64
	if end, st.Moved, err = p.compact(); err != nil {
		return nil, err
	}
	// What lies behind the data now is dead; metadata counts on zeros there.
	if err := w.out.Truncate(end); err != nil {
		return nil, err
	}
	if err := p.place(end); err != nil {
		return nil, err
	}
	if err := p.emit(end); err != nil {
		return nil, err
	}
	st.Metadata = p.metaEnd - end
	st.Size = p.metaEnd
	if fin.Trailer != nil {
		b, err := fin.Trailer(st.Size)
		if err != nil {
			return nil, err
		}
		if _, err := w.out.WriteAt(b, st.Size); err != nil {
			return nil, err
		}
		st.Size = w.roundUp(st.Size + int64(len(b)))
	}
	if err := w.out.Truncate(st.Size); err != nil {
		return nil, err
	}
	return st, p.superblock(fin, st.Size)
}

// emit writes directories, shared xattrs and inodes; start is where the first
// directory block is.
func (p *plan) emit(start int64) error {
	blocks := appender{f: p.w.out, off: start}
	out := window{f: p.w.out, start: p.xattrAt}
	if err := out.writeAt(p.xattrs.area, p.xattrAt); err != nil {
		return err
	}
	p.head = make([]byte, p.w.first-ondisk.SuperOffset)
	tails := runAhead{f: p.w.scratch}
	var buf []byte // an inode
	var dir []byte // a directory's or symlink's contents
	var f form
	for k, i := range p.inodes {
		if err := p.form(&f, i); err != nil {
			return err
		}
		buf = p.appendInode(buf[:0], i, &f, uint32(k+1))
		var err error
		if buf, err = p.xattrs.encode(buf, i.Xattrs); err != nil {
			return err
		}
		for int64(len(buf)) < f.bodyAt() {
			buf = append(buf, 0)
		}
		switch {
		case f.chunks != nil:
			buf = f.chunks.append(buf)
		case i.IsRegular() && f.inline > 0:
			n := len(buf)
			buf = append(buf, make([]byte, f.inline)...)
			if err := tails.readAt(buf[n:], tailOffset(i)); err != nil {
				return err
			}
		case i.IsDir(), i.IsSymlink():
			dir = append(dir[:0], i.Target()...)
			if i.IsDir() {
				list := listOf(i)
				dir = list.append(dir[:0], p.w.bs)
			}
			whole := int64(len(dir)) - f.inline
			if whole > 0 && blocks.off != i.Offset { // placeHead has changed the order
				if err := blocks.seek(i.Offset); err != nil {
					return err
				}
			}
			if err := blocks.write(dir[:whole]); err != nil {
				return err
			}
			if err := blocks.pad(p.w.bs); err != nil {
				return err
			}
			buf = append(buf, dir[whole:]...)
		}
		if off := p.inodeOffset(i); off < p.w.first {
			copy(p.head[off-ondisk.SuperOffset:], buf)
		} else if err := out.writeAt(buf, off); err != nil {
			return err
		}
	}
	if err := blocks.flush(); err != nil {
		return err
	}
	return out.flush()
}

func (p *plan) appendInode(dst []byte, i *rootfs.Inode, f *form, ino uint32) []byte {
	format := f.layout << ondisk.FormatLayoutBit
	icount, _ := ondisk.XattrIcount(int(f.xattrs)) // checked when it was encoded
	u := i.Rdev
	switch {
	case f.chunks != nil:
		u = f.chunks.format()
	case i.IsRegular(), i.IsDir(), i.IsSymlink():
		u = hole // no whole block
		if i.Offset >= 0 {
			u = uint32(i.Offset >> p.w.bits)
		}
	}
	if f.extended {
		e := ondisk.InodeExtended{Format: format | ondisk.FormatExtended, XattrIcount: icount, Mode: i.Mode,
			Size: uint64(i.Size), U: u, Ino: ino, UID: i.UID, GID: i.GID,
			Mtime: i.Mtime, MtimeNsec: i.MtimeNsec, Nlink: i.Nlink}
		return e.Append(dst)
	}
	c := ondisk.InodeCompact{Format: format, XattrIcount: icount, Mode: i.Mode, Nb: uint16(i.Nlink),
		Size: uint32(i.Size), U: u, Ino: ino, UID: uint16(i.UID), GID: uint16(i.GID)}
	return c.Append(dst)
}

// superblock writes the image's head: superblock and device table.
func (p *plan) superblock(fin Final, size int64) error {
	w := p.w
	blocks := size >> w.bits
	sb := ondisk.SuperBlock{
		Magic:         ondisk.Magic,
		FeatureCompat: ondisk.CompatSBChecksum | ondisk.CompatMtime,
		BlkSzBits:     w.bits,
		Inos:          uint64(len(p.inodes)),
		Epoch:         p.epoch.sec,
		FixedNsec:     p.epoch.nsec,
		BlocksLo:      uint32(blocks),
		MetaBlkaddr:   uint32(p.meta >> w.bits),
		XattrBlkaddr:  uint32(p.xattrAt >> w.bits),
		UUID:          fin.UUID,
		ExtraDevices:  uint16(len(fin.Devices)),
	}
	copy(sb.VolumeName[:], fin.Label)
	if fin.BuildTime != nil {
		sb.BuildTime = uint32(*fin.BuildTime - p.epoch.sec)
	}
	if p.xattrs.used {
		sb.FeatureIncompat |= ondisk.IncompatXattrPrefixes
		sb.FeatureCompat |= ondisk.CompatPlainXattrPfx
		sb.XattrPrefixCount = uint8(len(w.prefixes))
		sb.XattrPrefixStart = uint32(w.prefixOffset() / 4)
	}
	root := p.inodes[0].Nid
	if root > 0xffff {
		return fmt.Errorf("erofs: root at nid %d", root) // place puts it first
	}
	sb.RootNidOrBlksHi = uint16(root)
	if p.xattrs.sets > 0 {
		sb.FeatureCompat |= ondisk.CompatXattrFilter
	}
	if len(fin.Devices) > 0 || p.usesChunks() {
		sb.FeatureIncompat |= ondisk.IncompatChunkedFile
	}
	if len(fin.Devices) > 0 {
		sb.FeatureIncompat |= ondisk.IncompatDeviceTable
		sb.DevtSlotOff = (ondisk.SuperOffset + ondisk.SuperBlockSize) / ondisk.DeviceSlotSize
	}
	head := sb.Append(nil)
	addr := blocks
	for _, d := range fin.Devices {
		slot := ondisk.DeviceSlot{BlocksLo: uint32(w.roundUp(d.Size) >> w.bits), UniaddrLo: uint32(addr)}
		copy(slot.Tag[:], d.Tag)
		head = slot.Append(head)
		addr += w.roundUp(d.Size) >> w.bits
	}
	// The last address means "no block".
	if addr >= 1<<32-1 {
		return fmt.Errorf("image and layers of %d bytes together (at most %d): %w", addr<<w.bits, int64(1<<32-2)<<w.bits, fault.ErrUnsupported)
	}
	head = appendPrefixes(head, w.prefixes)
	head = append(head, p.head[len(head):]...) // as long as the checksum reaches, at least
	sb.Checksum = ondisk.Checksum(head[:ondisk.ChecksumLen(w.bits)])
	copy(head, sb.Append(nil))
	_, err := w.out.WriteAt(head, ondisk.SuperOffset)
	return err
}

func (p *plan) usesChunks() bool {
	if len(p.split) > 0 {
		return true
	}
	for _, i := range p.inodes {
		if i.IsRegular() && isSparse(i) && i.Size > 0 {
			return true
		}
	}
	return false
}

// A runAhead reads small pieces that mostly lie one behind the other: where the
// last one was followed by this one it reads more than it is asked for.
type runAhead struct {
	f     io.ReaderAt
	start int64
	buf   []byte
	end   int64 // of the last piece
}

const runAheadSize = 64 << 10

func (r *runAhead) readAt(p []byte, off int64) error {
	n := int64(len(p))
	follows := off >= r.end && off < r.end+tailUnit
	r.end = off + n
	if off < r.start || off+n > r.start+int64(len(r.buf)) {
		if !follows || n > runAheadSize {
			return readFull(r.f, p, off)
		}
		if r.buf == nil {
			r.buf = make([]byte, runAheadSize)
		}
		got, err := r.f.ReadAt(r.buf[:runAheadSize], off)
		r.start, r.buf = off, r.buf[:got]
		if int64(got) < n {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	copy(p, r.buf[off-r.start:])
	return nil
}

// A window gathers writes to positions near each other, in any order, to a
// file that reads as zeros where nothing was written.
type window struct {
	f     io.WriterAt
	start int64
	buf   []byte
}

// What is planned in batches is written in another order: up to a batch behind
// the end so far, and into blocks that the packer kept open before the batch.
const (
	keepBehind = packWindow + 2*batchSize
	windowSize = keepBehind + 3<<20
)

func (w *window) writeAt(p []byte, off int64) error {
	end := off + int64(len(p))
	if off < w.start || len(p) > windowSize/2 {
		// Behind the window, or larger than is worth gathering. In the second
		// case what the window holds there goes first.
		if err := w.flush(); err != nil {
			return err
		}
		w.start = max(w.start, end)
		_, err := w.f.WriteAt(p, off)
		return err
	}
	if end > w.start+windowSize {
		// Keep what may still be written to.
		if err := w.advance(end - keepBehind); err != nil {
			return err
		}
	}
	if n := end - w.start; n > int64(len(w.buf)) {
		if w.buf == nil {
			w.buf = make([]byte, 0, windowSize)
		}
		w.buf = append(w.buf, make([]byte, n-int64(len(w.buf)))...)
	}
	copy(w.buf[off-w.start:], p)
	return nil
}

// advance writes what is before start and forgets it.
func (w *window) advance(start int64) error {
	n := min(max(start-w.start, 0), int64(len(w.buf)))
	if n > 0 {
		if _, err := w.f.WriteAt(w.buf[:n], w.start); err != nil {
			return err
		}
	}
	w.buf = w.buf[:copy(w.buf, w.buf[n:])]
	w.start = max(w.start, start)
	return nil
}

func (w *window) flush() error { return w.advance(w.start + int64(len(w.buf))) }
