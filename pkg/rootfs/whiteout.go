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
	t.hideAll(in)
	return true, nil
}

// hide removes what lower layers put under a name, and leaves what the
// current layer has put there: whiteouts apply to lower layers only, wherever
// in the archive they stand.
func (t *Tree) hide(dir *Inode, name string) {
	if k := dir.content.dir.find(name); k >= 0 {
		t.hideAt(dir, k)
	}
}

func (t *Tree) hideAt(dir *Inode, k int) {
	switch d := &dir.content.dir.list[k]; {
	case d.newest() < t.layer:
		t.unlinkAt(dir, k)
	case d.inode.IsDir():
		t.hideAll(d.inode)
	}
}

// hideAll hides all that lower layers put into a directory. Once in a layer is
// enough: what comes later is the layer's own. (An archive may say it often.)
func (t *Tree) hideAll(dir *Inode) {
	d := dir.content.dir
	if d.cleared == t.layer {
		return
	}
	d.cleared = t.layer
	// Backwards, since the last entry moves to where one was removed.
	for k := len(d.list) - 1; k >= 0; k-- {
		t.hideAt(dir, k)
	}
}

// overlayWhiteout puts overlayfs's form of a whiteout into the tree; name ""
// is the opaque marker (Documentation/filesystems/overlayfs.rst).
func (t *Tree) overlayWhiteout(e *tarstream.Entry, name string) error {
	dir, _, err := t.parentOf(e.Name, true)
	if err != nil {
		return err
	}
	// With several layers it also takes away what the lower ones had there.
	if name == "" {
		t.hideAll(dir)
		t.setOpaque(dir)
		return nil
	}
	t.hide(dir, name)
	if old := dir.child(name); old != nil {
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
	return t.link(dir, name, i)
}

// dropNeedless takes whiteouts out of opaque directories and of those below
// them, which hide everything by themselves. Overlayfs heeds whiteouts where it
// merges directories; one that comes from a single layer it lists as it is, and
// then finds none of the files that its whiteouts stand for.
func (t *Tree) dropNeedless(dir *Inode, opaque bool) {
	d := dir.content.dir
	opaque = opaque || d.opaque
	// Backwards, since the last entry moves to where one was removed.
	for k := len(d.list) - 1; k >= 0; k-- {
		switch i := d.list[k].inode; {
		case i.IsDir():
			t.dropNeedless(i, opaque)
		case opaque && i.isWhiteout():
			t.unlinkAt(dir, k)
		}
	}
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
	if d := dir.content.dir; !d.opaque {
		d.opaque, t.opaque = true, true
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
