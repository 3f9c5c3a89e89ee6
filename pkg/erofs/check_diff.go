package erofs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Change is how a path differs between two images.
type Change uint8

const (
	Added Change = iota
	Removed
	Changed
)

func (c Change) String() string {
	return [...]string{"added", "removed", "changed"}[c]
}

// Difference is one path that differs.
type Difference struct {
	Path    string
	Change  Change
	Details []string // of Changed: "mode 0644 -> 0600", "contents", ...
}

// Diff calls fn for each path that differs between two images, in the order of
// a walk, and ends with fn's error. What is below a directory that is in one
// image alone is named too. Sizes of directories do not count, nor does how an
// image stores anything.
func Diff(ctx context.Context, a, b *FS, fn func(Difference) error) error {
	d := differ{ctx: ctx, a: newWalker(a), b: newWalker(b), fn: fn, same: make(map[[2]uint64]bool),
		inB: make(map[uint64]uint64), inA: make(map[uint64]uint64)}
	return d.both(a.RootNid(), b.RootNid(), nil)
}

type differ struct {
	ctx  context.Context
	a, b *walker
	fn   func(Difference) error
	same map[[2]uint64]bool // pairs of files with several names that were compared
	// What a file with several names is in the other image, by its first name.
	inB, inA map[uint64]uint64
}

// both compares two inodes of one path.
func (d *differ) both(na, nb uint64, at *pathNode) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if at != nil && at.size > maxPath {
		return fmt.Errorf("a path of more than %d bytes: %w", maxPath, fault.ErrUnsupported)
	}
	a, err := d.a.f.inode(na)
	if err != nil {
		return at.fail(err)
	}
	b, err := d.b.f.inode(nb)
	if err != nil {
		return at.fail(err)
	}
	details, err := d.details(a, b)
	if err != nil {
		return at.fail(err)
	}
	if len(details) > 0 {
		if err := d.fn(Difference{at.path(), Changed, details}); err != nil {
			return err
		}
	}
	if !a.isDir() && !b.isDir() {
		return nil
	}
	return d.entries(a, b, at)
}

// entries merges the entries of two inodes, of which at least one is a
// directory.
func (d *differ) entries(a, b *inode, at *pathNode) error {
	var lists [2][]Dirent // what is no directory has no entries
	for i, side := range [...]struct {
		w   *walker
		ino *inode
	}{{d.a, a}, {d.b, b}} {
		if !side.ino.isDir() {
			continue
		}
		err := side.w.enter(side.ino)
		if err == nil {
			lists[i], err = side.w.list(side.ino)
		}
		if err != nil {
			return at.fail(err)
		}
	}
	la, lb := lists[0], lists[1]
	var err error
	for len(la) > 0 || len(lb) > 0 {
		switch {
		case len(lb) == 0 || len(la) > 0 && la[0].Name < lb[0].Name:
			err = d.one(d.a, la[0], at, Removed)
			la = la[1:]
		case len(la) == 0 || lb[0].Name < la[0].Name:
			err = d.one(d.b, lb[0], at, Added)
			lb = lb[1:]
		default:
			err = d.both(la[0].Nid, lb[0].Nid, at.join(la[0].Name))
			la, lb = la[1:], lb[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// one reports an entry of one image, and what is below it.
func (d *differ) one(w *walker, e Dirent, at *pathNode, c Change) error {
	at = at.join(e.Name)
	return w.walk(e.Nid, at, func(path string, _ *Stat) error {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		return d.fn(Difference{Path: path, Change: c})
	})
}

// details says in what two inodes differ.
func (d *differ) details(a, b *inode) ([]string, error) {
	var list []string
	differ := func(what string, va, vb any) {
		if va != vb {
			list = append(list, fmt.Sprintf("%s %v -> %v", what, va, vb))
		}
	}
	if ta, tb := a.Mode&ondisk.ModeTypeMask, b.Mode&ondisk.ModeTypeMask; ta != tb {
		return []string{fmt.Sprintf("type %v -> %v", a.Type(), b.Type())}, nil
	}
	differ("mode", fmt.Sprintf("%04o", a.Mode&0o7777), fmt.Sprintf("%04o", b.Mode&0o7777))
	differ("uid", a.UID, b.UID)
	differ("gid", a.GID, b.GID)
	if !a.Mtime.Equal(b.Mtime) {
		differ("mtime", a.Mtime.UTC().Format(time.RFC3339Nano), b.Mtime.UTC().Format(time.RFC3339Nano))
	}
	differ("device", a.Rdev, b.Rdev)
	if !a.isDir() {
		differ("links", a.Nlink, b.Nlink)
		if a.Nlink > 1 && b.Nlink > 1 && !d.alsoLinked(a.Nid, b.Nid) {
			list = append(list, "links with other names")
		}
	}
	switch {
	case a.IsSymlink():
		ta, err := d.a.f.readLink(a)
		if err != nil {
			return nil, err
		}
		tb, err := d.b.f.readLink(b)
		if err != nil {
			return nil, err
		}
		differ("target", fmt.Sprintf("%q", ta), fmt.Sprintf("%q", tb))
	case a.IsRegular():
		differ("size", a.Size, b.Size)
		if a.Size == b.Size {
			off, err := d.contents(a, b)
			if err != nil {
				return nil, err
			}
			if off >= 0 {
				list = append(list, fmt.Sprintf("contents from byte %d on", off))
			}
		}
	}
	xa, err := d.a.f.xattrs(a)
	if err != nil {
		return nil, err
	}
	xb, err := d.b.f.xattrs(b)
	if err != nil {
		return nil, err
	}
	return append(list, xattrDetails(xa, xb)...), nil
}

// alsoLinked tells whether the names of two files that were met before were
// names of these two, too: as many names need not be the same ones.
func (d *differ) alsoLinked(a, b uint64) bool {
	inB, metA := d.inB[a]
	inA, metB := d.inA[b]
	if !metA {
		d.inB[a] = b
	}
	if !metB {
		d.inA[b] = a
	}
	return (!metA || inB == b) && (!metB || inA == a)
}

func xattrDetails(a, b []Xattr) []string {
	var list []string
	find := func(l []Xattr, name string) int {
		return slices.IndexFunc(l, func(x Xattr) bool { return x.Name == name })
	}
	for _, x := range a {
		switch i := find(b, x.Name); {
		case i < 0:
			list = append(list, fmt.Sprintf("xattr %q removed", x.Name))
		case !bytes.Equal(x.Value, b[i].Value):
			list = append(list, fmt.Sprintf("xattr %q", x.Name))
		}
	}
	for _, x := range b {
		if find(a, x.Name) < 0 {
			list = append(list, fmt.Sprintf("xattr %q added", x.Name))
		}
	}
	return list
}

// contents compares two files of the same size. It returns the offset of the
// first byte that differs, or -1.
func (d *differ) contents(a, b *inode) (int64, error) {
	pair := [2]uint64{a.Nid, b.Nid}
	if a.Size == 0 || d.same[pair] {
		return -1, nil
	}
	da, err := d.a.f.data(a)
	if err != nil {
		return 0, err
	}
	db, err := d.b.f.data(b)
	if err != nil {
		return 0, err
	}
	pa, pb := make([]byte, min(a.Size, 256<<10)), make([]byte, min(a.Size, 256<<10))
	for off := int64(0); off < a.Size; {
		if err := d.ctx.Err(); err != nil {
			return 0, err
		}
		if n, err := d.alike(da, db, off); err != nil {
			return 0, err
		} else if n > 0 {
			off += n
			continue
		}
		n := min(int64(len(pa)), a.Size-off)
		if _, err := da.ReadAt(pa[:n], off); err != nil && err != io.EOF {
			return 0, err
		}
		if _, err := db.ReadAt(pb[:n], off); err != nil && err != io.EOF {
			return 0, err
		}
		if !bytes.Equal(pa[:n], pb[:n]) {
			for i := range pa {
				if pa[i] != pb[i] {
					return off + int64(i), nil
				}
			}
		}
		off += n
	}
	if a.Nlink > 1 && b.Nlink > 1 {
		d.same[pair] = true
	}
	return -1, nil
}

// alike is how many bytes from off on need no reading to be known for the same:
// holes in both files, which in a hostile image have no end, or one place of a
// blob that both images name by its digest, which need not be at hand.
func (d *differ) alike(a, b *fileData, off int64) (int64, error) {
	ea, err := a.m.extentAt(off)
	if err != nil {
		return 0, err
	}
	eb, err := b.m.extentAt(off)
	if err != nil {
		return 0, err
	}
	n := min(ea.Offset+ea.Length, eb.Offset+eb.Length) - off
	switch {
	case ea.Kind == ExtentHole && eb.Kind == ExtentHole:
		return n, nil
	case ea.Kind == ExtentRaw && eb.Kind == ExtentRaw && ea.Addr-ea.Offset == eb.Addr-eb.Offset:
		if tag := d.a.f.devices[ea.Device].tag; isDigest(tag) && tag == d.b.f.devices[eb.Device].tag {
			return n, nil
		}
	}
	return 0, nil
}

// isDigest tells whether a device's tag is a blob's sha256 in hex: other tags
// may mean something else in another image.
func isDigest(tag string) bool {
	b, err := hex.DecodeString(tag)
	return err == nil && len(b) == sha256.Size
}
