package rootfs

import (
	"fmt"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// whiteout handles the entries that say what a layer takes away. It reports
// whether e was one.
func (t *Tree) whiteout(e *tarstream.Entry) (done bool, err error) {
	dir, base := split(e.Name)
	for _, c := range dir {
		if strings.HasPrefix(c, whiteoutMeta) {
			return true, nil // below one of aufs's own directories
		}
	}
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return false, nil
	}
	name := base[len(whiteoutPrefix):]
	switch {
	case base == whiteoutOpaque:
		name = ""
	case strings.HasPrefix(base, whiteoutMeta):
		return true, nil
	case name == "" || name == "." || name == "..":
		return true, fmt.Errorf("whiteout of %q: %w", name, fault.ErrCorrupt)
	}
	if t.opts.Whiteouts == OverlayWhiteouts {
		return true, t.overlayWhiteout(e, name)
	}
	in, _, err := t.parentOf(e.Name, false)
	if in == nil || err != nil {
		return true, err // nothing there to hide
	}
	if name != "" {
		t.hide(in, name)
		return true, nil
	}
	for below := range in.content.children {
		t.hide(in, below)
	}
	return true, nil
}

// hide removes what lower layers put under a name, and leaves what the
// current layer has put there: whiteouts apply to lower layers only, wherever
// in the archive they stand.
func (t *Tree) hide(dir *Inode, name string) {
	d, ok := dir.child(name)
	switch {
	case !ok:
	case d.layer < t.layer:
		t.unlink(dir, name)
	case d.inode.IsDir():
		for below := range d.inode.content.children {
			t.hide(d.inode, below)
		}
	}
}

// overlayWhiteout puts overlayfs's form of a whiteout into the tree; name ""
// is the opaque marker (Documentation/filesystems/overlayfs.rst).
func (t *Tree) overlayWhiteout(e *tarstream.Entry, name string) error {
	dir, _, err := t.parentOf(e.Name, true)
	if err != nil {
		return err
	}
	if name == "" {
		t.setOpaque(dir)
		return nil
	}
	if old, ok := dir.child(name); ok {
		// The layer's own entry hides the lower one, but for a directory,
		// which overlayfs would merge.
		if old.inode.IsDir() {
			t.setOpaque(old.inode)
		}
		return nil
	}
	i := t.newInode()
	*i = Inode{Mode: ModeChar, Nlink: 1, Offset: -1, UID: e.UID, GID: e.GID, Mtime: e.Mtime, MtimeNsec: e.MtimeNsec}
	i.content = &content{whiteout: true}
	t.link(dir, name, i)
	return nil
}

func (i *Inode) isWhiteout() bool { return i.content != nil && i.content.whiteout }

// replaceWhiteout makes a directory where a whiteout is: opaque, so that it
// goes on hiding.
func (t *Tree) replaceWhiteout(in *Inode, name string) (*Inode, error) {
	t.unlink(in, name)
	i, err := t.mkdir(in, name)
	if err != nil {
		return nil, err
	}
	t.setOpaque(i)
	return i, nil
}

func (t *Tree) setOpaque(dir *Inode) {
	if !dir.content.opaque {
		dir.content.opaque = true
		t.addOpaque(dir)
	}
}

func (t *Tree) addOpaque(dir *Inode) {
	list := []tarstream.Xattr{{Name: "trusted.overlay.opaque", Value: "y"}}
	if dir.Xattrs != nil {
		for _, x := range dir.Xattrs.List {
			if x.Name != list[0].Name {
				list = append(list, x)
			}
		}
	}
	dir.Xattrs = t.xattrSet(list)
}
