package main

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// aclRecords are the PAX keys of access control lists. GNU tar and bsdtar
// restore those, in text, and pass by the extended attributes of the same.
var aclRecords = map[string]string{
	"system.posix_acl_access":  "SCHILY.acl.access",
	"system.posix_acl_default": "SCHILY.acl.default",
}

// aclText is an access control list in text, from the kernel's form
// (posix_acl_xattr.h): a version, then entries of a tag, permissions and an id.
// ok is false for what is none. Users and groups are numbers, as whoever reads
// the text may call them otherwise.
func aclText(b []byte) (text string, ok bool) {
	const header, size, version = 4, 8, 2
	if len(b) < header+size || (len(b)-header)%size != 0 || binary.LittleEndian.Uint32(b) != version {
		return "", false
	}
	var list []string
	for b = b[header:]; len(b) > 0; b = b[size:] {
		perm := binary.LittleEndian.Uint16(b[2:])
		id := ""
		var kind string
		switch tag := binary.LittleEndian.Uint16(b); tag {
		case 0x01, 0x02:
			kind = "user"
		case 0x04, 0x08:
			kind = "group"
		case 0x10:
			kind = "mask"
		case 0x20:
			kind = "other"
		default:
			return "", false
		}
		if tag := b[0]; tag == 0x02 || tag == 0x08 {
			id = fmt.Sprint(binary.LittleEndian.Uint32(b[4:]))
		}
		p := []byte("rwx")
		for i := range p {
			if perm>>(2-i)&1 == 0 {
				p[i] = '-'
			}
		}
		list = append(list, kind+":"+id+":"+string(p))
	}
	return strings.Join(list, ","), true
}
