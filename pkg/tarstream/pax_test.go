package tarstream

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestPAX(t *testing.T) {
	a := hdr{name: "a"}.file("x")
	for _, tt := range []archiveTest{
		{
			name: "all keys",
			archive: pax("path", "päth/"+strings.Repeat("p", 300), "linkpath", "lïnk", "uid", "4294967294", "gid", "65536", "mtime", "-1.25",
				"atime", "1.5", "ctime", "2", "uname", "ü", "gname", "g", "comment", "c\nd", "hdrcharset", "BINARY", "charset", "x", "vendor.key", "v",
				"SCHILY.dev", "1", "SCHILY.ino", "2", "SCHILY.nlink", "3", "SCHILY.fflags", "nodump", "LIBARCHIVE.creationtime", "4", "GNU.dumpdir", "Ya\x00\x00") +
				hdr{typ: '2', name: "a", link: "b", uid: 1, gid: 1, time: 1}.block() + end,
			want: []string{"l päth/" + strings.Repeat("p", 300) + " -> lïnk 4294967294:65536 @-2+750000000ns"},
		},
		{
			name:    "size",
			archive: pax("size", "3") + hdr{name: "a"}.block() + body("abc") + pax("size", "0") + hdr{name: "b", size: 5}.block() + a + end,
			want:    []string{`- a "abc"`, "- b", `- a "x"`},
		},
		{
			name: "devices",
			archive: pax("SCHILY.devmajor", "1048575", "SCHILY.devminor", "1048576") + hdr{typ: '3', name: "a"}.block() +
				pax("SCHILY.uid", "5", "SCHILY.gid", "6") + hdr{name: "b"}.block() + end,
			want: []string{"c a dev 1048575,1048576", "- b 5:6"},
		},
		{
			name:    "empty values leave what the header says",
			archive: pax("path", "", "linkpath", "", "uid", "", "gid", "", "mtime", "", "size", "") + hdr{name: "a", uid: 1, gid: 2, time: 3}.file("x") + end,
			want:    []string{`- a 1:2 @3 "x"`},
		},
		{
			name:    "the last of repeated keys",
			archive: pax("path", "b", "uid", "1", "path", "c", "uid", "2") + a + end,
			want:    []string{`- c 2:0 "x"`},
		},
		{
			name:    "the last of repeated headers, which is its entry's alone",
			archive: pax("path", "b", "uid", "1") + pax("path", "c") + a + a + end,
			want:    []string{`- c "x"`, `- a "x"`},
		},
		{
			name:    "Solaris's X",
			archive: hdr{typ: 'X', name: "x"}.file(rec("path", "b")) + a + end,
			want:    []string{`- b "x"`},
		},
		{
			name:    "long names and a record: the record wins",
			archive: longName("b") + pax("path", "c") + a + pax("path", "c") + longName("b") + a + end,
			want:    []string{`- c "x"`, `- c "x"`},
		},
		{
			name: "global headers: applied, merged, overridden, taken back",
			archive: global("uid", "5", "mtime", "7") + a +
				global("gid", "6") + a +
				pax("uid", "8") + a + // overridden,
				pax("uid", "") + a + // left out,
				a + // for one entry only;
				global("uid", "", "gid", "9") + a + // taken back for all
				pax("path", "p") + global("mtime", "") + a + end,
			want: []string{`- a 5:0 @7 "x"`, `- a 5:6 @7 "x"`, `- a 8:6 @7 "x"`, `- a 0:6 @7 "x"`, `- a 5:6 @7 "x"`, `- a 0:9 @7 "x"`, `- p 0:9 "x"`},
		},
		{
			name:    "a global xattr",
			archive: global("SCHILY.xattr.user.g", "1") + a + pax("SCHILY.xattr.user.g", "2", "SCHILY.xattr.user.h", "3") + a + end,
			want:    []string{`- a user.g="1" "x"`, `- a user.g="2" user.h="3" "x"`},
		},
		{name: "git's comment", archive: global("comment", strings.Repeat("0", 40)) + a + end, want: []string{`- a "x"`}},
		{name: "a global sparse map", archive: global("GNU.sparse.map", "0,1") + a + end, err: fault.ErrUnsupported},
		{name: "NUL in a path", archive: pax("path", "a\x00b") + a + end, err: fault.ErrCorrupt},
		{name: "NUL in a link's target", archive: pax("linkpath", "a\x00b") + a + end, err: fault.ErrCorrupt},
		{name: "bad size", archive: pax("size", "-1") + a + end, err: fault.ErrCorrupt},
		{name: "size beyond 64 bits", archive: pax("size", "9223372036854775808") + a + end, err: fault.ErrCorrupt},
		{name: "size beyond all sums", archive: pax("size", "9223372036854775807") + a + end, err: fault.ErrCorrupt},
		{name: "bad uid", archive: pax("uid", "root") + a + end, err: fault.ErrCorrupt},
		{name: "uid of 33 bits", archive: pax("uid", "4294967296") + a + end, err: fault.ErrUnsupported},
		{name: "uid that is none", archive: pax("uid", "4294967295", "gid", "4294967295") + a + pax("uid", "4294967295") + hdr{name: "b", gid: 7}.block() + end,
			want: []string{`- a "x"`, "- b 0:7"}, warn: `"b": owner or group -1 is nobody's number: read as 0`},
		{name: "uid -1", archive: pax("uid", "-1") + a + end, err: fault.ErrUnsupported},
		{name: "bad mtime", archive: pax("mtime", "yesterday") + a + end, err: fault.ErrCorrupt},
		{name: "bad record", archive: hdr{typ: 'x', name: "x"}.file("99 path=b\n") + a + end, err: fault.ErrCorrupt},
		{name: "bad global record", archive: hdr{typ: 'g', name: "x"}.file("99 path=b\n") + a + end, err: fault.ErrCorrupt},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestXattrs(t *testing.T) {
	caps := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	b64, raw64 := base64.StdEncoding.EncodeToString, base64.RawStdEncoding.EncodeToString
	many := func(n int) (kv []string) {
		for i := range n {
			kv = append(kv, fmt.Sprintf("SCHILY.xattr.user.%d", i), "")
		}
		return kv
	}
	a := hdr{name: "a"}.file("x")
	for _, tt := range []archiveTest{
		{
			name: "binary and empty values",
			archive: pax("SCHILY.xattr.security.capability", caps, "SCHILY.xattr.user.newline", "a\nb=c\n", "SCHILY.xattr.user.empty", "") + a +
				a + end,
			want: []string{fmt.Sprintf(`- a security.capability=%q user.newline="a\nb=c\n" user.empty="" "x"`, caps), `- a "x"`},
		},
		{name: "GNU tar's escapes", archive: pax("SCHILY.xattr.user.a%3Db%253D%25", "v") + a + end, want: []string{`- a user.a=b%3D%="v" "x"`}},
		{
			name:    "libarchive's form",
			archive: pax("LIBARCHIVE.xattr.user.%61%20%c3%bc", b64([]byte(caps)), "LIBARCHIVE.xattr.user.b", raw64([]byte("vv")), "LIBARCHIVE.xattr.user.c", "") + a + end,
			want:    []string{fmt.Sprintf(`- a user.a ü=%q user.b="vv" user.c="" "x"`, caps)},
		},
		{
			name: "both forms: SCHILY's wins",
			archive: pax("LIBARCHIVE.xattr.user.a", b64([]byte("l")), "SCHILY.xattr.user.a", "s") + a +
				pax("SCHILY.xattr.user.a", "s", "LIBARCHIVE.xattr.user.a", b64([]byte("l"))) + a + end,
			want: []string{`- a user.a="s" "x"`, `- a user.a="s" "x"`},
		},
		{
			name: "GNU tar's SELinux context",
			archive: pax("RHT.security.selinux", "system_u:object_r:etc_t:s0") + a + pax("RHT.security.selinux", "x\x00") + a +
				pax("SCHILY.xattr.security.selinux", "y", "RHT.security.selinux", "x") + a + end,
			want: []string{`- a security.selinux="system_u:object_r:etc_t:s0\x00" "x"`, `- a security.selinux="x\x00" "x"`, `- a security.selinux="y" "x"`},
		},
		{
			name:    "64 KiB, and 255 bytes of name",
			archive: pax("SCHILY.xattr.user."+strings.Repeat("n", 250), strings.Repeat("v", 65536)) + a + end,
			want:    []string{"- a user." + strings.Repeat("n", 250) + `="` + strings.Repeat("v", 65536) + `" "x"`},
		},
		{name: "value beyond 64 KiB", archive: pax("SCHILY.xattr.user.a", strings.Repeat("v", 65537)) + a + end, err: fault.ErrUnsupported},
		{name: "name beyond 255", archive: pax("SCHILY.xattr.user."+strings.Repeat("n", 251), "v") + a + end, err: fault.ErrUnsupported},
		{name: "no name", archive: pax("SCHILY.xattr.", "v") + a + end, err: fault.ErrUnsupported},
		{name: "NUL in a name", archive: pax("SCHILY.xattr.user.\x00", "v") + a + end, err: fault.ErrUnsupported},
		{name: "too many", archive: pax(many(maxXattrs+1)...) + a + end, err: fault.ErrUnsupported},
		{name: "bad base64", archive: pax("LIBARCHIVE.xattr.user.a", "*") + a + end, err: fault.ErrCorrupt},
		{name: "bad escape", archive: pax("LIBARCHIVE.xattr.user.%zz", "") + a + end, err: fault.ErrCorrupt},
	} {
		t.Run(tt.name, tt.run)
	}
	members, _, _ := read(t, pax(many(maxXattrs)...)+a+end)
	if len(members) != 1 || len(members[0].Xattrs) != maxXattrs {
		t.Errorf("%d xattrs: %d entries", maxXattrs, len(members))
	}
}

func TestACL(t *testing.T) {
	// {tag, perm, id} behind the version, as in posix_acl_xattr.h.
	binaryACL := func(e ...[3]uint32) string {
		b := binary.LittleEndian.AppendUint32(nil, 2)
		for _, x := range e {
			b = binary.LittleEndian.AppendUint16(b, uint16(x[0]))
			b = binary.LittleEndian.AppendUint16(b, uint16(x[1]))
			b = binary.LittleEndian.AppendUint32(b, x[2])
		}
		return fmt.Sprintf("%q", b)
	}
	const none = 0xffffffff
	want := binaryACL([3]uint32{1, 7, none}, [3]uint32{2, 6, 5}, [3]uint32{2, 4, 1000}, [3]uint32{4, 5, none}, [3]uint32{8, 1, 65536}, [3]uint32{0x10, 7, none}, [3]uint32{0x20, 0, none})
	minimal := binaryACL([3]uint32{1, 7, none}, [3]uint32{4, 5, none}, [3]uint32{0x20, 0, none})
	ok := []struct{ text, want string }{
		// GNU tar with --numeric-owner.
		{"user::rwx,user:5:rw-,user:1000:r--,group::r-x,group:65536:--x,mask::rwx,other::---", want},
		{"user::rwx\nuser:1000:r--\nuser:5:rw-\ngroup::r-x\ngroup:65536:--x\nmask::rwx\nother::---\n", want},
		{"o::---, m::rwx, g:65536:x, g::rx, u:1000:r, u:5:rw, u::rwx", want},
		{"user::rwx,user:5:rw-,user:1000:r--,group::r-x,group:65536:--x,mask:rwx,other:---", want},
		// star and libarchive: the number behind the name.
		{"user::rwx,user:games:rw-:5,user:lisa:r--:1000,group::r-x,group:staff:--x:65536,mask::rwx,other::---", want},
		{"user::rwx,user:5:rw-,user:1000:r--\t#effective:r--,group::r-x,group:65536:--x,mask::rwx,other::---", want},
	}
	for _, tt := range ok {
		archiveTest{archive: pax("SCHILY.acl.access", tt.text, "SCHILY.acl.default", tt.text) + hdr{name: "d", typ: '5'}.block() + end,
			want: []string{"d d 0770 system.posix_acl_access=" + tt.want + " system.posix_acl_default=" + tt.want}}.run(t)
	}
	// What says no more than the mode is no attribute; as a default it is one.
	archiveTest{archive: pax("SCHILY.acl.access", "user::rwx,group::r-x,other::---", "SCHILY.acl.default", "user::rwx,group::r-x,other::---") +
		hdr{name: "d", typ: '5'}.block() + end,
		want: []string{"d d 0750 system.posix_acl_default=" + minimal}}.run(t)
	archiveTest{archive: pax("SCHILY.acl.access", "", "SCHILY.acl.default", "\n") + hdr{name: "d", typ: '5'}.block() + end, want: []string{"d d"}}.run(t)

	const base = "user::rwx,group::r-x,other::---,mask::rwx"
	for _, tt := range []struct {
		text string
		err  error
	}{
		{base + ",user:lisa:r--", fault.ErrUnsupported},
		{base + ",group:staff:r--", fault.ErrUnsupported},
		{base + ",user:lisa:r--:x", fault.ErrUnsupported},
		{base + ",user:4294967296:r--", fault.ErrUnsupported},
		{base + ",user:4294967295:r--", fault.ErrCorrupt}, // the file could not be opened
		{base + ",user:5:rws", fault.ErrCorrupt},
		{base + ",user:5:r--,user:5:rw-", fault.ErrCorrupt},
		{base + ",owner:5:r--", fault.ErrCorrupt},
		{base + ",user", fault.ErrCorrupt},
		{base + ",user:1:2:3:4", fault.ErrCorrupt},
		{base + ",user::r--", fault.ErrCorrupt},
		{"user::rwx,group::r-x", fault.ErrCorrupt},
		{"user::rwx,group::r-x,other::---,user:5:r--", fault.ErrCorrupt}, // no mask
		{strings.Repeat("user:1:r\n", maxACLEntries+1), fault.ErrUnsupported},
	} {
		archiveTest{archive: pax("SCHILY.acl.access", tt.text) + hdr{name: "d", typ: '5'}.block() + end, err: tt.err}.run(t)
	}
	archiveTest{archive: pax("SCHILY.acl.ace", "owner@:rw::allow") + hdr{name: "a"}.block() + end,
		want: []string{"- a"}, warn: `"a": its NFSv4 access control list is left out`}.run(t)
}

// TestACLMode: an access list goes before the mode, as setting it would.
func TestACLMode(t *testing.T) {
	raw := func(version uint32, e ...uint32) string { // tag, perm, id of each
		b := binary.LittleEndian.AppendUint32(nil, version)
		for ; len(e) > 0; e = e[3:] {
			b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
			b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
			b = binary.LittleEndian.AppendUint32(b, e[2])
		}
		return string(b)
	}
	const none = 0xffffffff
	const key = "SCHILY.xattr.system.posix_acl_access"
	for _, tt := range []struct {
		key, value string
		typ        byte
		mode       uint16 // of the entry, which the header says is 04740
		xattrs     int
		err        error
	}{
		{"SCHILY.acl.access", "u::rw,u:5:rwx,g::-,m::rx,o::x", '0', 0o4651, 1, nil},
		{"SCHILY.acl.access", "u::rwx,g::rx,o::r", '0', 0o4754, 0, nil},
		{"SCHILY.acl.default", "u::rwx,g::rx,o::r", '5', 0o4740, 1, nil},
		{key, raw(2, 1, 6, none, 2, 7, 5, 4, 0, none, 0x10, 5, none, 0x20, 1, none), '0', 0o4651, 1, nil},
		{key, raw(2, 1, 7, 0, 4, 5, 0, 0x20, 4, 0), '0', 0o4754, 0, nil},
		{key, raw(2), '0', 0o4740, 0, nil},
		{key, raw(2, 1, 7, none, 4, 5, none, 0x20, 4, none), '2', 0o4740, 0, nil},
		{key, raw(1), '0', 0, 0, fault.ErrCorrupt},
		{key, "", '0', 0, 0, fault.ErrCorrupt},
		{key, raw(2) + "x", '0', 0, 0, fault.ErrCorrupt},
		{key, raw(2, 1, 7, none, 0x20, 4, none, 4, 5, none), '0', 0, 0, fault.ErrCorrupt}, // out of order
		{key, raw(2, 1, 8, none, 4, 5, none, 0x20, 4, none), '0', 0, 0, fault.ErrCorrupt},
		{key, raw(2, 1, 7, none, 3, 5, none, 0x20, 4, none), '0', 0, 0, fault.ErrCorrupt},
		{key, raw(2, 1, 7, none, 2, 7, 5, 4, 5, none, 0x20, 4, none), '0', 0, 0, fault.ErrCorrupt}, // no mask
	} {
		archive := pax(tt.key, tt.value) + hdr{name: "f", typ: tt.typ, link: "l", mode: 0o4740}.block() + end
		e, err := NewReader(NewSource(strings.NewReader(archive))).Next()
		if !errors.Is(err, tt.err) {
			t.Errorf("%s=%q: %v, want %v", tt.key, tt.value, err, tt.err)
		}
		if err == nil && (e.Mode != tt.mode || len(e.Xattrs) != tt.xattrs) {
			t.Errorf("%s=%q: mode %o and %d xattrs, want %o and %d", tt.key, tt.value, e.Mode, len(e.Xattrs), tt.mode, tt.xattrs)
		}
	}
}
