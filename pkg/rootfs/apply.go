package rootfs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// Names with a meaning in a layer (OCI image specification, layer.md,
// "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	// What else begins like this is aufs's own bookkeeping and no file.
	whiteoutMeta = ".wh..wh."
)

// maxLayers is what 16-bit device numbers have room for.
const maxLayers = 1<<16 - 1

// BeginLayer starts the next layer: what was applied so far is below it.
func (t *Tree) BeginLayer() error {
	if t.layer == maxLayers {
		return fmt.Errorf("more than %d layers: %w", maxLayers, fault.ErrUnsupported)
	}
	t.layer++
	t.forget()
	return nil
}

// errNoTarget: a hard link's target is nowhere.
var errNoTarget = fmt.Errorf("no such file: %w", fault.ErrCorrupt)

var errRootType = fmt.Errorf("the root must be a directory: %w", fault.ErrUnsupported)

// Apply adds an archive's entry to the tree, in the current layer. For a
// regular file it returns the inode, whose Offset the caller sets when it
// knows where it put the data; otherwise nil.
func (t *Tree) Apply(e *tarstream.Entry) (*Inode, error) {
	i, err := t.apply(e)
	if err == nil && t.setSize > maxXattrBytes {
		err = fmt.Errorf("files with different xattrs of more than %d MiB together: %w", maxXattrBytes>>20, fault.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", e.Name, err)
	}
	return i, nil
}

func (t *Tree) apply(e *tarstream.Entry) (*Inode, error) {
	if t.opts.Whiteouts != KeepWhiteouts && strings.Contains(e.Name, whiteoutPrefix) {
		if done, err := t.whiteout(e); done || err != nil {
			return nil, err
		}
	}
	if e.Type == tarstream.TypeLink {
		err := t.hardLink(e.Name, e.Linkname, false)
		if errors.Is(err, errNoTarget) {
			err = t.postpone(e.Name, e.Linkname)
		}
		return nil, err
	}
	dir, name, err := t.parentOf(e.Name, true)
	if err != nil {
		return nil, err
	}
	if name == "" {
		if e.Type != tarstream.TypeDir {
			return nil, errRootType
		}
		t.setAttrs(t.root, e)
		return nil, nil
	}
	if len(name) > maxName {
		return nil, nameTooLong(name)
	}
	if old := dir.child(name); old != nil {
		if old.inode.IsDir() && e.Type == tarstream.TypeDir {
			t.touch(old.inode)
			t.setAttrs(old.inode, e)
			return nil, nil
		}
		if old.inode.isWhiteout() && e.Type == tarstream.TypeDir {
			i, err := t.replaceWhiteout(dir, name)
			if err != nil {
				return nil, err
			}
			t.setAttrs(i, e)
			return nil, nil
		}
		t.unlink(dir, name)
	}
	i := t.newInode()
	*i = Inode{Nlink: 1, Offset: -1}
	switch e.Type {
	case tarstream.TypeRegular:
		i.Mode, i.Size = ModeRegular, e.Size
		if e.Sparse != nil {
			i.content = &content{extents: &e.Sparse}
		}
	case tarstream.TypeSymlink:
		if len(e.Linkname) == 0 || len(e.Linkname) > maxTarget {
			return nil, fmt.Errorf("symbolic link with a target of %d bytes (1 to %d): %w", len(e.Linkname), maxTarget, fault.ErrUnsupported)
		}
		i.Mode, i.Size = ModeSymlink, int64(len(e.Linkname))
		i.content = &content{target: e.Linkname}
	case tarstream.TypeDir:
		i.Mode, i.Nlink = ModeDir, 2
		i.content = &content{dir: &directory{}}
	case tarstream.TypeFifo:
		i.Mode = ModeFifo
	case tarstream.TypeChar, tarstream.TypeBlock:
		i.Mode = ModeChar
		if e.Type == tarstream.TypeBlock {
			i.Mode = ModeBlock
		}
		i.Rdev = ondisk.EncodeRdev(e.Devmajor, e.Devminor)
		if major, minor := ondisk.DecodeRdev(i.Rdev); major != e.Devmajor || minor != e.Devminor {
			return nil, fmt.Errorf("device number %d:%d: %w", e.Devmajor, e.Devminor, fault.ErrUnsupported)
		}
	default:
		return nil, fmt.Errorf("entry type %q: %w", e.Type, fault.ErrUnsupported)
	}
	t.setAttrs(i, e)
	if err := t.link(dir, name, i); err != nil {
		return nil, err
	}
	if e.Type != tarstream.TypeRegular {
		return nil, nil
	}
	return i, nil
}

// setAttrs sets what an entry of any type has; the newest entry wins in all.
func (t *Tree) setAttrs(i *Inode, e *tarstream.Entry) {
	i.Mode = i.Mode&ModeType | e.Mode&0o7777
	if i.IsSymlink() {
		i.Mode = ModeSymlink | 0o777 // as symlink(2) makes it, whatever an archive says
	}
	i.UID, i.GID = e.UID, e.GID
	i.Mtime, i.MtimeNsec = e.Mtime, e.MtimeNsec
	i.Xattrs = t.xattrSet(e.Xattrs)
	if i.IsDir() {
		i.content.dir.implied = false
		if i.content.dir.opaque {
			t.addOpaque(i)
		}
	}
}

// hardLink gives target's inode another name. Behind the layer's last entry
// (late) an entry that came for the same path in the meantime wins.
func (t *Tree) hardLink(path, target string, late bool) error {
	in, base, err := t.parentOf(target, false)
	if err != nil {
		return err
	}
	if in == nil || base == "" {
		return errNoTarget
	}
	d := in.child(base)
	if d == nil || d.inode.isWhiteout() {
		return errNoTarget
	}
	i := d.inode // directories may change from here on, which d lies in
	if i.IsDir() {
		return fmt.Errorf("hard link to the directory %q: %w", target, fault.ErrCorrupt)
	}
	dir, name, err := t.parentOf(path, true)
	if err != nil {
		return err
	}
	if name == "" {
		return errRootType
	}
	if len(name) > maxName {
		return nameTooLong(name)
	}
	if old := dir.child(name); old != nil {
		if late && old.newest() == t.layer {
			return nil
		}
		if old.inode == i {
			old.layer = t.layer
			return nil
		}
		// Should the target vanish with what it replaces, its inode lives on.
		t.unlink(dir, name)
	}
	i.Nlink++
	return t.link(dir, name, i)
}

// link enters an inode under a name that is free.
func (t *Tree) link(dir *Inode, name string, i *Inode) error {
	d := dir.content.dir
	if err := d.add(name, i, t.layer); err != nil {
		return err
	}
	if i.IsDir() {
		dir.Nlink++
		i.content.dir.parent = dir
		t.touch(i)
	}
	if d.implied && (i.Mtime > dir.Mtime || i.Mtime == dir.Mtime && i.MtimeNsec > dir.MtimeNsec) {
		// Nobody says when a directory that no layer lists was changed: take
		// its newest entry's word, so that equal inputs give equal trees.
		dir.Mtime, dir.MtimeNsec = i.Mtime, i.MtimeNsec
	}
	return nil
}

// touch notes that the current layer has put something into a directory, and so
// below those that it is in.
func (t *Tree) touch(dir *Inode) {
	for d := dir.content.dir; d.touched != t.layer; d = d.parent.content.dir {
		d.touched = t.layer
	}
}

// unlink takes a name away that is there, and all that is below it.
func (t *Tree) unlink(dir *Inode, name string) {
	t.unlinkAt(dir, dir.content.dir.find(name))
}

func (t *Tree) unlinkAt(dir *Inode, k int) {
	t.forget()
	d := dir.content.dir
	i := d.list[k].inode
	d.remove(k)
	if !i.IsDir() {
		i.Nlink--
		return
	}
	dir.Nlink--
	drop(i)
}

// drop takes a directory's entries their names.
func drop(dir *Inode) {
	d := dir.content.dir
	for k := range d.list {
		if i := d.list[k].inode; i.IsDir() {
			drop(i)
		} else {
			i.Nlink--
		}
	}
	*d = directory{}
}
