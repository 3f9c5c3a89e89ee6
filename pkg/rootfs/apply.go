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

// A forwardLink is a hard link that came before its target.
type forwardLink struct{ path, target string }

// EndLayer resolves the hard links whose targets came behind them.
func (t *Tree) EndLayer() error {
	links := t.forward
	t.forward = nil
	for len(links) > 0 {
		// A link may wait for another one: go on while it helps.
		var still []forwardLink
		for _, l := range links {
			err := t.hardLink(l.path, l.target, true)
			if errors.Is(err, errNoTarget) {
				still = append(still, l)
			} else if err != nil {
				return fmt.Errorf("%q: %w", l.path, err)
			}
		}
		if len(still) == len(links) {
			return fmt.Errorf("%q: hard link to %q: %w", links[0].path, links[0].target, errNoTarget)
		}
		links = still
	}
	return nil
}

// errNoTarget: a hard link's target is nowhere.
var errNoTarget = fmt.Errorf("no such file: %w", fault.ErrCorrupt)

// Apply adds an archive's entry to the tree, in the current layer. For a
// regular file it returns the inode, whose Offset the caller sets when it
// knows where it put the data; otherwise nil.
func (t *Tree) Apply(e *tarstream.Entry) (*Inode, error) {
	i, err := t.apply(e)
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
			t.forward = append(t.forward, forwardLink{e.Name, e.Linkname})
			err = nil
		}
		return nil, err
	}
	dir, name, err := t.parentOf(e.Name, true)
	if err != nil {
		return nil, err
	}
	if name == "" {
		if e.Type != tarstream.TypeDir {
			return nil, fmt.Errorf("the root must be a directory: %w", fault.ErrUnsupported)
		}
		t.setAttrs(t.root, e)
		return nil, nil
	}
	if len(name) > maxName {
		return nil, nameTooLong(name)
	}
	if old, ok := dir.child(name); ok {
		if old.inode.IsDir() && e.Type == tarstream.TypeDir {
			old.layer = t.layer
			dir.content.children[name] = old
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
			i.Extents = &e.Sparse
		}
	case tarstream.TypeSymlink:
		if len(e.Linkname) == 0 || len(e.Linkname) > maxTarget {
			return nil, fmt.Errorf("symbolic link with a target of %d bytes (1 to %d): %w", len(e.Linkname), maxTarget, fault.ErrUnsupported)
		}
		i.Mode, i.Size = ModeSymlink, int64(len(e.Linkname))
		i.content = &content{target: e.Linkname}
	case tarstream.TypeDir:
		i.Mode, i.Nlink = ModeDir, 2
		i.content = &content{children: map[string]dirent{}}
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
	t.link(dir, name, i)
	if e.Type != tarstream.TypeRegular {
		return nil, nil
	}
	return i, nil
}

// setAttrs sets what an entry of any type has; the newest entry wins in all.
func (t *Tree) setAttrs(i *Inode, e *tarstream.Entry) {
	i.Mode = i.Mode&ModeType | e.Mode&0o7777
	i.UID, i.GID = e.UID, e.GID
	i.Mtime, i.MtimeNsec = e.Mtime, e.MtimeNsec
	i.Xattrs = t.xattrSet(e.Xattrs)
	if i.IsDir() {
		i.content.implied = false
		if i.content.opaque {
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
	d, ok := in.child(base)
	if !ok {
		return errNoTarget
	}
	if d.inode.IsDir() {
		return fmt.Errorf("hard link to the directory %q: %w", target, fault.ErrCorrupt)
	}
	dir, name, err := t.parentOf(path, true)
	if err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("the root must be a directory: %w", fault.ErrUnsupported)
	}
	if len(name) > maxName {
		return nameTooLong(name)
	}
	if old, ok := dir.child(name); ok {
		if late && old.layer == t.layer {
			return nil
		}
		if old.inode == d.inode {
			old.layer = t.layer
			dir.content.children[name] = old
			return nil
		}
		// Should the target vanish with what it replaces, its inode lives on.
		t.unlink(dir, name)
	}
	d.inode.Nlink++
	t.link(dir, name, d.inode)
	return nil
}

// link enters an inode under a name that is free.
func (t *Tree) link(dir *Inode, name string, i *Inode) {
	dir.content.children[name] = dirent{i, t.layer}
	if i.IsDir() {
		dir.Nlink++
	}
	if dir.content.implied && (i.Mtime > dir.Mtime || i.Mtime == dir.Mtime && i.MtimeNsec > dir.MtimeNsec) {
		// Nobody says when a directory that no layer lists was changed: take
		// its newest entry's word, so that equal inputs give equal trees.
		dir.Mtime, dir.MtimeNsec = i.Mtime, i.MtimeNsec
	}
}

// unlink takes a name away, and all that is below it.
func (t *Tree) unlink(dir *Inode, name string) {
	t.forget()
	d := dir.content.children[name]
	delete(dir.content.children, name)
	if !d.inode.IsDir() {
		d.inode.Nlink--
		return
	}
	dir.Nlink--
	for below := range d.inode.content.children {
		t.unlink(d.inode, below)
	}
}
