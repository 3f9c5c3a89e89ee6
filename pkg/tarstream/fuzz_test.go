package tarstream

import (
	"archive/tar"
	"io"
	"strings"
	"testing"
)

// FuzzReader: whatever comes, reading ends; offsets and maps keep their
// promises (read checks them); a Source that gives one byte at a time makes no
// difference; and what archive/tar accepts reads the same, but for what
// incomparable knows.
func FuzzReader(f *testing.F) {
	f.Add([]byte(everything()))
	f.Add([]byte(hdr{magic: "v7", typ: nulType, name: "dir/", mode: 0o755}.block() + hdr{magic: "v7", typ: nulType, name: "a"}.file("v7") + end))
	f.Add([]byte(hdr{name: "name", prefix: "p", raw: map[int]string{475: "\x00", 476: "14000000001 14000000001 ", 508: "tar\x00"}}.file("x") + end))
	f.Add([]byte(pax("GNU.sparse.size", "9", "GNU.sparse.map", "2,1,9,0") + hdr{name: "s"}.file("a") + end))
	f.Add([]byte(pax("GNU.sparse.size", "9", "GNU.sparse.offset", "2", "GNU.sparse.numbytes", "1") + hdr{name: "s"}.file("a") + end))
	f.Add([]byte(pax("mtime", "-1.5", "uid", "70000", "LIBARCHIVE.xattr.user.%61", "YQ==") + hdr{name: "s"}.file("a") + end))
	f.Add([]byte(hdr{magic: magicGNU, name: "a", raw: map[int]string{108: base256(8, 1<<31), 136: base256(12, -1)}}.block() + hdr{magic: magicGNU, name: "n", raw: map[int]string{345: "pre/fix"}}.block()))
	f.Add([]byte(pax("SCHILY.acl.access", "u::rw,u:5:rwx,g::-,m::rx,o::x") + hdr{name: "s"}.file("a") + end))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			t.Skip()
		}
		// Most changes would only break a checksum.
		archive := fixChecksums(b)
		members, _, err := read(t, archive)
		if err == nil {
			t.Fatal("no end")
		}
		slow, _, slowErr := readFrom(t, archive, &shortSource{memSource{[]byte(archive)}})
		if len(slow) != len(members) || slowErr.Error() != err.Error() {
			t.Fatalf("%d entries, %v; in short pieces %d, %v", len(members), err, len(slow), slowErr)
		}
		for i := range slow {
			if slow[i].String() != members[i].String() {
				t.Fatalf("entry %d: %s; in short pieces %s", i, members[i], slow[i])
			}
		}
		compareArchiveTar(t, archive, members, err)
	})
}

// A shortSource has nothing buffered but what was asked for.
type shortSource struct{ memSource }

func (s *shortSource) Buffered() int { return min(1, len(s.rest)) }

// compareArchiveTar holds the entries against archive/tar's as long as those
// are comparable.
func compareArchiveTar(t *testing.T, archive string, members []member, err error) {
	tr := tar.NewReader(strings.NewReader(archive))
	for i := 0; ; i++ {
		h, terr := tr.Next()
		if terr != nil || incomparable(h) {
			return
		}
		if i == len(members) {
			if err == io.EOF {
				t.Fatalf("archive/tar finds %q behind the end", h.Name)
			}
			return // we refuse more than it does
		}
		m := members[i]
		if m.Sparse != nil || m.Stored != h.Size {
			return
		}
		if m.Name != h.Name || m.Linkname != h.Linkname || int64(m.Mode) != h.Mode&0o7777 || m.UID != uint32(h.Uid) || m.GID != uint32(h.Gid) ||
			m.Mtime != h.ModTime.Unix() || int(m.MtimeNsec) != h.ModTime.Nanosecond() {
			t.Fatalf("entry %d: %s\narchive/tar: %+v", i, m, h)
		}
		if data, err := io.ReadAll(tr); err == nil && m.Type == TypeRegular && string(data) != m.data {
			t.Fatalf("entry %d: %s\narchive/tar: %q", i, m, data)
		}
	}
}

// incomparable says that from here on archive/tar goes its own way, on
// purpose: see fromArchiveTar.
func incomparable(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.Contains(key, "acl") {
			return true // the mode follows an access list
		}
	}
	if uint32(h.Uid) == noID || uint32(h.Gid) == noID { // int may have 32 bits
		return true // no owner, so root's
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return strings.HasSuffix(h.Name, "/")
	case tar.TypeDir:
		return h.Size != 0
	}
	return true
}
