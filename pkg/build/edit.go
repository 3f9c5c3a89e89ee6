package build

import (
	"fmt"
	"math"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

// Owners changes the owners of all files. The zero value leaves them.
type Owners struct {
	UID, GID             *uint32 // in place of every file's own
	UIDOffset, GIDOffset int64   // added to every file's, or to UID and GID
}

func (o *Owners) isZero() bool { return *o == Owners{} }

// String tells all, for the UUID.
func (o *Owners) String() string {
	return fmt.Sprintf("%s+%d %s+%d", optional(o.UID), o.UIDOffset, optional(o.GID), o.GIDOffset)
}

// Times changes times of modification, in seconds since 1970. The zero value
// leaves them.
type Times struct {
	All   *int64 // of every file, in place of its own
	Clamp *int64 // of every file that has a later one (SOURCE_DATE_EPOCH)
	Build *int64 // of the image itself
}

func (t *Times) String() string {
	return fmt.Sprintf("%s %s %s", optional(t.All), optional(t.Clamp), optional(t.Build))
}

func optional[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

// edit changes the finished tree as the options want it: behind the last
// layer, since directories that no layer lists have owners and times, too, and
// what one name of a file says goes for its others.
func (b *builder) edit() error {
	o := &b.opts
	if len(b.exclude) > 0 {
		b.tree.Prune(b.excluded)
	}
	if o.Owners.isZero() && o.Times.All == nil && o.Times.Clamp == nil {
		return nil
	}
	for path, i := range b.tree.All() {
		var err error
		if i.UID, err = newID(i.UID, o.Owners.UID, o.Owners.UIDOffset); err != nil {
			return fmt.Errorf("/%s: uid %w", path, err)
		}
		if i.GID, err = newID(i.GID, o.Owners.GID, o.Owners.GIDOffset); err != nil {
			return fmt.Errorf("/%s: gid %w", path, err)
		}
		o.Times.apply(i)
	}
	return nil
}

func newID(id uint32, force *uint32, offset int64) (uint32, error) {
	if force != nil {
		id = *force
	}
	// The largest number is nobody's: see chown(2).
	n := int64(id) + offset
	if offset < -math.MaxUint32 || offset > math.MaxUint32 || n < 0 || n >= math.MaxUint32 {
		return 0, fmt.Errorf("%d with an offset of %d is none: %w", id, offset, fault.ErrUnsupported)
	}
	return uint32(n), nil
}

func (t *Times) apply(i *rootfs.Inode) {
	if t.All != nil {
		i.Mtime, i.MtimeNsec = *t.All, 0
	}
	if t.Clamp != nil && i.Mtime >= *t.Clamp {
		i.Mtime, i.MtimeNsec = *t.Clamp, 0
	}
}
