package erofs

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// XattrSupported reports whether EROFS has a place for an attribute's name.
func XattrSupported(name string) bool {
	_, _, ok := xattrIndex(name)
	return ok
}

// xattrIndex splits a name into a predefined prefix and the rest.
func xattrIndex(name string) (index uint8, rest string, ok bool) {
	for i, prefix := range ondisk.XattrPrefixes {
		if prefix == "" || !strings.HasPrefix(name, prefix) {
			continue
		}
		rest = name[len(prefix):]
		whole := !strings.HasSuffix(prefix, ".")
		if whole == (rest == "") {
			return uint8(i), rest, true
		}
	}
	return 0, "", false
}

// CheckXattrs reports what keeps a list of attributes, in supported namespaces,
// from being stored on one file.
func CheckXattrs(list []tarstream.Xattr) error {
	n := ondisk.XattrHeaderSize
	for _, x := range list {
		_, rest, ok := xattrIndex(x.Name)
		if !ok || len(rest) > math.MaxUint8 {
			return fmt.Errorf("xattr %q: no such namespace in EROFS: %w", x.Name, fault.ErrUnsupported)
		}
		if len(x.Value) > math.MaxUint16 {
			return fmt.Errorf("xattr %q: value of %d bytes (at most %d): %w", x.Name, len(x.Value), math.MaxUint16, fault.ErrUnsupported)
		}
		e := ondisk.XattrEntry{NameLen: uint8(len(rest)), ValueSize: uint16(len(x.Value))}
		n += e.Size()
	}
	if _, ok := ondisk.XattrIcount(n); !ok {
		return fmt.Errorf("%d bytes of xattrs on one file: %w", n, fault.ErrUnsupported)
	}
	return nil
}

// parsePrefixes checks WriterOptions.XattrPrefixes.
func parsePrefixes(names []string) ([]ondisk.LongPrefix, error) {
	if len(names) > ondisk.XattrLongPrefixMask+1 {
		return nil, fault.Usagef("%d xattr prefixes (at most %d)", len(names), ondisk.XattrLongPrefixMask+1)
	}
	var list []ondisk.LongPrefix
	for _, name := range names {
		index, infix, ok := xattrIndex(name)
		if !ok || infix == "" || len(infix) > math.MaxUint8 {
			return nil, fault.Usagef("xattr prefix %q: it must begin with a namespace (like \"user.\") and go on", name)
		}
		list = append(list, ondisk.LongPrefix{BaseIndex: index, Infix: infix})
	}
	return list, nil
}

// appendPrefixes appends the table of long prefixes.
func appendPrefixes(dst []byte, list []ondisk.LongPrefix) []byte {
	for _, p := range list {
		dst = p.Append(dst)
	}
	return dst
}

// xattrBound is the most that a set can take behind an inode, in bytes.
func xattrBound(s *rootfs.XattrSet) int64 {
	if s == nil {
		return 0
	}
	n := int64(ondisk.XattrHeaderSize)
	for _, x := range s.List {
		_, rest, _ := xattrIndex(x.Name)
		e := ondisk.XattrEntry{NameLen: uint8(len(rest))}
		n += int64(e.Size()) + int64(len(x.Value)) + 3
	}
	return n &^ 3
}

// An xattrTable knows which attributes are stored once for all, and gives each
// set its form behind an inode.
type xattrTable struct {
	prefixes []ondisk.LongPrefix
	used     bool                       // a long prefix is
	shared   map[tarstream.Xattr]uint32 // id: offset in the shared area / 4
	area     []byte                     // the shared area
	bodies   map[*rootfs.XattrSet][]byte
}

// newXattrTable looks at the sets of all inodes, in image order.
func newXattrTable(inodes []*rootfs.Inode, prefixes []ondisk.LongPrefix) (*xattrTable, error) {
	t := &xattrTable{prefixes: prefixes, shared: make(map[tarstream.Xattr]uint32), bodies: make(map[*rootfs.XattrSet][]byte)}
	uses := make(map[tarstream.Xattr]int)
	var order []tarstream.Xattr
	var sets []*rootfs.XattrSet
	for _, i := range inodes {
		if i.Xattrs == nil {
			continue
		}
		if _, ok := t.bodies[i.Xattrs]; !ok {
			t.bodies[i.Xattrs] = nil
			sets = append(sets, i.Xattrs)
		}
		for _, x := range i.Xattrs.List {
			if uses[x]++; uses[x] == 1 {
				order = append(order, x)
			}
		}
	}
	for _, x := range order {
		e, err := t.encodeXattr(nil, x)
		if err != nil {
			return nil, err
		}
		// Shared, n uses cost the entry and n ids; inline, n entries.
		if n := uses[x]; n*len(e) > len(e)+n*ondisk.XattrSharedIDSize {
			t.shared[x] = uint32(len(t.area) / 4)
			t.area = append(t.area, e...)
		}
	}
	for _, s := range sets {
		body, err := t.encode(s)
		if err != nil {
			return nil, err
		}
		t.bodies[s] = body
	}
	return t, nil
}

// body is what stands between an inode and its data.
func (t *xattrTable) body(s *rootfs.XattrSet) []byte { return t.bodies[s] }

func (t *xattrTable) encode(s *rootfs.XattrSet) ([]byte, error) {
	h := ondisk.XattrHeader{NameFilter: ondisk.XattrFilterDefault}
	var ids []uint32
	var inline []byte
	for _, x := range s.List {
		index, rest, _ := xattrIndex(x.Name)
		h.NameFilter &^= ondisk.XattrFilterBit(index, rest)
		if id, ok := t.shared[x]; ok && len(ids) < 255 {
			ids = append(ids, id)
			continue
		}
		var err error
		if inline, err = t.encodeXattr(inline, x); err != nil {
			return nil, err
		}
	}
	slices.Sort(ids) // the kernel reads them in turn: in disk order
	h.SharedCount = uint8(len(ids))
	b := h.Append(nil)
	for _, id := range ids {
		b = append(b, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	b = append(b, inline...)
	if _, ok := ondisk.XattrIcount(len(b)); !ok {
		return nil, fmt.Errorf("%d bytes of xattrs on one file: %w", len(b), fault.ErrUnsupported)
	}
	return b, nil
}

func (t *xattrTable) encodeXattr(dst []byte, x tarstream.Xattr) ([]byte, error) {
	if err := CheckXattrs([]tarstream.Xattr{x}); err != nil {
		return nil, err
	}
	index, rest, _ := xattrIndex(x.Name)
	best := ""
	for k, p := range t.prefixes { // the longest one that fits, of equals the first
		if len(p.Infix) > len(best) && strings.HasPrefix(x.Name, ondisk.XattrPrefixes[p.BaseIndex]+p.Infix) {
			best = p.Infix
			index, t.used = ondisk.XattrLongPrefix|uint8(k), true
		}
	}
	rest = rest[len(best):]
	e := ondisk.XattrEntry{NameLen: uint8(len(rest)), NameIndex: index, ValueSize: uint16(len(x.Value))}
	dst = e.Append(dst)
	dst = append(dst, rest...)
	dst = append(dst, x.Value...)
	for len(dst)&3 != 0 {
		dst = append(dst, 0)
	}
	return dst, nil
}
