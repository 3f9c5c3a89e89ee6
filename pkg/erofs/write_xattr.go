package erofs

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
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
// set its form behind an inode. There may be as many sets as inodes: what is
// behind an inode is made when that is written, and only its size is kept.
type xattrTable struct {
	prefixes []ondisk.LongPrefix
	used     bool                       // a long prefix is
	shared   map[tarstream.Xattr]uint32 // id: offset in the shared area / 4
	area     []byte                     // the shared area
	sets     int                        // how many there are
}

// newXattrTable looks at the sets of all inodes, in image order.
func newXattrTable(inodes []*rootfs.Inode, prefixes []ondisk.LongPrefix) (*xattrTable, error) {
	t := &xattrTable{prefixes: prefixes, shared: make(map[tarstream.Xattr]uint32)}
	sets := usedSets(inodes)
	t.sets = len(sets)
	uses, order := repeated(sets)
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
	var buf []byte
	for _, s := range sets {
		var err error
		if buf, err = t.encode(buf[:0], s); err != nil {
			return nil, err
		}
		s.Stored = uint32(len(buf))
	}
	return t, nil
}

// usedSets lists the sets that inodes have, in the order of their first uses,
// and counts these.
func usedSets(inodes []*rootfs.Inode) (sets []*rootfs.XattrSet) {
	for _, i := range inodes {
		if i.Xattrs != nil {
			i.Xattrs.Uses = 0
		}
	}
	for _, i := range inodes {
		if i.Xattrs == nil {
			continue
		}
		if i.Xattrs.Uses++; i.Xattrs.Uses == 1 {
			sets = append(sets, i.Xattrs)
		}
	}
	return sets
}

// repeated counts the uses of the attributes that more than one inode may have,
// and lists them in the order of the sets. The others, of which a million files
// can have a million, are told apart by hashes: two that collide do no harm.
func repeated(sets []*rootfs.XattrSet) (uses map[tarstream.Xattr]int, order []tarstream.Xattr) {
	seed := maphash.MakeSeed()
	var hashes []uint64
	for _, s := range sets {
		for _, x := range s.List {
			hashes = append(hashes, maphash.Comparable(seed, x))
		}
	}
	slices.Sort(hashes)
	twice := hashes[:0]
	for k, h := range hashes {
		if k > 0 && h == hashes[k-1] && (len(twice) == 0 || twice[len(twice)-1] != h) {
			twice = append(twice, h)
		}
	}
	uses = make(map[tarstream.Xattr]int)
	for _, s := range sets {
		for _, x := range s.List {
			if s.Uses == 1 {
				if _, ok := slices.BinarySearch(twice, maphash.Comparable(seed, x)); !ok {
					continue
				}
			}
			if uses[x] == 0 {
				order = append(order, x)
			}
			uses[x] += int(s.Uses)
		}
	}
	return uses, order
}

// size is how many bytes encode appends.
func (t *xattrTable) size(s *rootfs.XattrSet) int64 {
	if s == nil {
		return 0
	}
	return int64(s.Stored)
}

// encode appends what stands between an inode and its data.
func (t *xattrTable) encode(dst []byte, s *rootfs.XattrSet) ([]byte, error) {
	if s == nil {
		return dst, nil
	}
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
	start := len(dst)
	dst = h.Append(dst)
	for _, id := range ids {
		dst = binary.LittleEndian.AppendUint32(dst, id)
	}
	dst = append(dst, inline...)
	if n := len(dst) - start; n > 0 {
		if _, ok := ondisk.XattrIcount(n); !ok {
			return nil, fmt.Errorf("%d bytes of xattrs on one file: %w", n, fault.ErrUnsupported)
		}
	}
	return dst, nil
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
