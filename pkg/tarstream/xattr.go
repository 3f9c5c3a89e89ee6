package tarstream

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// An Xattr is an extended attribute under its full name ("user.mime_type").
type Xattr struct {
	Name  string
	Value string // bytes
}

// Limits of Linux (include/uapi/linux/limits.h), and one of our own: setting
// an attribute looks at all of the entry's others.
const (
	maxXattrName  = 255
	maxXattrValue = 65536
	maxXattrs     = 1024
)

func (e *Entry) hasXattr(name string) bool {
	for _, x := range e.Xattrs {
		if x.Name == name {
			return true
		}
	}
	return false
}

// setXattr sets an attribute, in place of an earlier one of the same name.
func (e *Entry) setXattr(name string, value []byte) error {
	if name == "" || len(name) > maxXattrName || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("xattr name %.300q: %w", name, fault.ErrUnsupported)
	}
	if len(value) > maxXattrValue {
		return fmt.Errorf("xattr %s: value of %d bytes: %w", name, len(value), fault.ErrUnsupported)
	}
	for i := range e.Xattrs {
		if e.Xattrs[i].Name == name {
			e.Xattrs[i].Value = string(value)
			return nil
		}
	}
	if len(e.Xattrs) == maxXattrs {
		return fmt.Errorf("more than %d xattrs: %w", maxXattrs, fault.ErrUnsupported)
	}
	e.Xattrs = append(e.Xattrs, Xattr{name, string(value)})
	return nil
}

// POSIX ACL entry tags (include/uapi/linux/posix_acl.h).
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclNoID       = 0xFFFFFFFF
	aclVersion    = 2
	maxACLEntries = 1 << 12
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// setACL turns the text form that star, GNU tar and libarchive store into the
// binary xattr that the kernel reads (posix_acl_xattr.h: u32 version, then
// {u16 tag, u16 perm, u32 id} each).
func (e *Entry) setACL(name string, r record) error {
	acl, err := parseACL(string(r.value))
	if err != nil {
		return fmt.Errorf("%s: %w", r.key, err)
	}
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, a := range acl {
		b = binary.LittleEndian.AppendUint16(b, a.tag)
		b = binary.LittleEndian.AppendUint16(b, a.perm)
		b = binary.LittleEndian.AppendUint32(b, a.id)
	}
	return e.setXattr(name, b)
}

// settleACLs does to the lists of an entry what the kernel does to a file when
// they are set: the access list goes before the mode, whose bits for the group
// become the mask, and a list that says no more than the mode is not kept.
// Archives do differ there: libarchive writes the group's own bits, for one.
func (e *Entry) settleACLs() error {
	for k := 0; k < len(e.Xattrs); k++ {
		x := &e.Xattrs[k]
		access := x.Name == "system.posix_acl_access"
		if !access && x.Name != "system.posix_acl_default" {
			continue
		}
		acl, err := decodeACL(x.Value)
		if err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
		if access && e.Type != TypeSymlink {
			for _, a := range acl {
				if n, ok := modeBits[a.tag]; ok { // in order: the mask comes behind the group
					e.Mode = e.Mode&^(7<<n) | a.perm<<n
				}
			}
		}
		if len(acl) == 0 || access && len(acl) == 3 {
			e.Xattrs = slices.Delete(e.Xattrs, k, k+1)
			k--
		}
	}
	return nil
}

// modeBits is where in the mode an entry's permissions stand.
var modeBits = map[uint16]int{aclUserObj: 6, aclGroupObj: 3, aclMask: 3, aclOther: 0}

// decodeACL reads the binary form, by the kernel's rules.
func decodeACL(b string) (acl []aclEntry, err error) {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32([]byte(b)) != aclVersion {
		return nil, fmt.Errorf("no list of version %d: %w", aclVersion, fault.ErrCorrupt)
	}
	for rest := []byte(b[4:]); len(rest) > 0; rest = rest[8:] {
		a := aclEntry{tag: binary.LittleEndian.Uint16(rest), perm: binary.LittleEndian.Uint16(rest[2:]), id: binary.LittleEndian.Uint32(rest[4:])}
		switch a.tag {
		case aclUser, aclGroup:
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			a.id = aclNoID // which the kernel does not look at
		default:
			return nil, fmt.Errorf("tag %#x: %w", a.tag, fault.ErrCorrupt)
		}
		if a.perm > 7 || len(acl) > 0 && acl[len(acl)-1].tag > a.tag {
			return nil, fmt.Errorf("bad entry: %w", fault.ErrCorrupt)
		}
		acl = append(acl, a)
	}
	return acl, checkACL(acl)
}

func parseACL(text string) ([]aclEntry, error) {
	var acl []aclEntry
	for line := range strings.FieldsFuncSeq(text, func(c rune) bool { return c == ',' || c == '\n' }) {
		line, _, _ = strings.Cut(line, "#") // "#effective:r--"
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if len(acl) == maxACLEntries {
			return nil, fmt.Errorf("more than %d entries: %w", maxACLEntries, fault.ErrUnsupported)
		}
		a, err := parseACLEntry(strings.Split(line, ":"))
		if err != nil {
			return nil, fmt.Errorf("entry %q: %w", line, err)
		}
		acl = append(acl, a)
	}
	// The kernel wants them by tag, then by id.
	sort.SliceStable(acl, func(i, j int) bool {
		if acl[i].tag != acl[j].tag {
			return acl[i].tag < acl[j].tag
		}
		return acl[i].id < acl[j].id
	})
	return acl, checkACL(acl)
}

// checkACL holds a sorted list to the kernel's rules (posix_acl_valid in
// fs/posix_acl.c): one entry for each of user::, group:: and other::, at most
// one mask, which must be there if somebody is named, and nobody named twice.
// A filesystem image with another list is one whose files cannot be opened.
func checkACL(acl []aclEntry) error {
	var count [aclOther + 1]int
	for i, a := range acl {
		if count[a.tag]++; i > 0 && a.tag == acl[i-1].tag && a.id == acl[i-1].id {
			return fmt.Errorf("an entry stands twice: %w", fault.ErrCorrupt)
		}
		if (a.tag == aclUser || a.tag == aclGroup) && a.id == aclNoID {
			return fmt.Errorf("an entry for %d, nobody's number: %w", uint32(aclNoID), fault.ErrCorrupt)
		}
	}
	if len(acl) == 0 {
		return nil
	}
	named := count[aclUser]+count[aclGroup] > 0
	if count[aclUserObj] != 1 || count[aclGroupObj] != 1 || count[aclOther] != 1 ||
		count[aclMask] > 1 || named && count[aclMask] == 0 {
		return fmt.Errorf("incomplete: %w", fault.ErrCorrupt)
	}
	return nil
}

// parseACLEntry reads "tag:qualifier:perm" with star's fourth field, the
// number behind a qualifier that is a name.
func parseACLEntry(f []string) (a aclEntry, err error) {
	a.id = aclNoID
	if len(f) == 2 { // "mask:rwx", "other:r--"
		f = []string{f[0], "", f[1]}
	}
	if len(f) != 3 && len(f) != 4 {
		return a, fault.ErrCorrupt
	}
	named := f[1] != ""
	switch f[0] {
	case "user", "u":
		a.tag = aclUserObj
		if named {
			a.tag = aclUser
		}
	case "group", "g":
		a.tag = aclGroupObj
		if named {
			a.tag = aclGroup
		}
	case "mask", "m":
		a.tag = aclMask
	case "other", "o":
		a.tag = aclOther
	default:
		return a, fault.ErrCorrupt
	}
	if named {
		id := f[1]
		if len(f) == 4 {
			id = f[3]
		}
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			// Whose number it is only the machine knew that wrote the archive.
			return a, fmt.Errorf("no numeric id: %w", fault.ErrUnsupported)
		}
		a.id = uint32(n)
	}
	for _, c := range f[2] {
		switch c {
		case 'r':
			a.perm |= 4
		case 'w':
			a.perm |= 2
		case 'x':
			a.perm |= 1
		case '-', ' ':
		default:
			return a, fault.ErrCorrupt
		}
	}
	return a, nil
}
