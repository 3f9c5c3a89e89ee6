package tarstream

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A record is one key=value of a PAX extended header (POSIX.1-2001). Both are
// slices of the header's body.
type record struct{ key, value []byte }

const (
	// maxRecords bounds the records of one header, which take 48 bytes of
	// memory each; sparse format 0.0 needs two for each run of a file.
	maxRecords = 1 << 18
	// maxGlobal bounds the records of all global headers together: each of
	// them is looked at for each entry.
	maxGlobal = 256
	// maxGlobalBytes bounds their bytes: xattrs among them are copied for each
	// entry. What is found in practice is the name of a git commit.
	maxGlobalBytes = 64 << 10
)

// parseRecords appends the records of the body of an 'x' or 'g' entry to recs:
// "len key=value\n" each, len counting the whole record. Repeated keys stay:
// GNU sparse 0.0 means it.
func parseRecords(body []byte, recs []record) ([]record, error) {
	for rest := body; len(rest) > 0; {
		bad := func(what string) error {
			return fmt.Errorf("extended header, byte %d: %s: %w", len(body)-len(rest), what, fault.ErrCorrupt)
		}
		if rest[0] == 0 && allZero(rest) {
			break // some writers pad the body with NULs
		}
		sp := bytes.IndexByte(rest[:min(len(rest), 20)], ' ')
		if sp <= 0 {
			return nil, bad("no length")
		}
		n, err := strconv.ParseUint(string(rest[:sp]), 10, 31)
		if err != nil || int(n) <= sp+1 || int(n) > len(rest) {
			return nil, bad("bad length")
		}
		if rest[n-1] != '\n' {
			return nil, bad("no newline at the end of a record")
		}
		key, value, ok := bytes.Cut(rest[sp+1:n-1], []byte("="))
		if !ok || len(key) == 0 {
			return nil, bad("no key")
		}
		if len(recs) == maxRecords {
			return nil, bad("too many records")
		}
		recs = append(recs, record{key, value})
		rest = rest[n:]
	}
	return recs, nil
}

// mergeGlobal folds the records of a 'g' header into those of earlier ones: a
// later one of the same key wins, and an empty one takes it back.
func mergeGlobal(global, more []record) ([]record, error) {
	for _, m := range more {
		if bytes.HasPrefix(m.key, []byte("GNU.sparse.")) {
			return nil, fmt.Errorf("%s in a global header: %w", m.key, fault.ErrUnsupported)
		}
		// GNU tar's way to say that the next entry is the rest of a file that
		// began in another volume; its label alone says nothing.
		if bytes.HasPrefix(m.key, []byte("GNU.volume.")) && string(m.key) != "GNU.volume.label" {
			return nil, fmt.Errorf("%s: a volume that continues another: %w", m.key, fault.ErrUnsupported)
		}
		global = slices.DeleteFunc(global, func(r record) bool { return bytes.Equal(r.key, m.key) })
		if len(m.value) == 0 {
			continue
		}
		if len(global) == maxGlobal {
			return nil, fmt.Errorf("more than %d records in global headers: %w", maxGlobal, fault.ErrUnsupported)
		}
		global = append(global, record{bytes.Clone(m.key), bytes.Clone(m.value)})
	}
	size := 0
	for _, r := range global {
		size += len(r.key) + len(r.value)
	}
	if size > maxGlobalBytes {
		return nil, fmt.Errorf("%d bytes of records in global headers (at most %d): %w", size, maxGlobalBytes, fault.ErrUnsupported)
	}
	return global, nil
}

// overridden tells whether a local header has a global record's key.
func overridden(global record, local []record) bool {
	return slices.ContainsFunc(local, func(l record) bool { return bytes.Equal(l.key, global.key) })
}

// A draft is an entry in the making. Its names become strings when the last
// header that may replace them has been read.
type draft struct {
	*Entry
	name, linkname []byte
	sparse         sparseHeader
}

// apply lets one record override what the header block said. Keys that say
// nothing a filesystem keeps (atime, comment, uname ...) are passed over.
func (r *Reader) apply(d *draft, rec record) (err error) {
	if name, ok := bytes.CutPrefix(rec.key, []byte("SCHILY.xattr.")); ok {
		// An empty value is an empty attribute here, not a record taken back.
		return d.setXattr(schilyName(name), rec.value)
	}
	if name, ok := bytes.CutPrefix(rec.key, []byte("LIBARCHIVE.xattr.")); ok {
		return d.libarchiveXattr(name, rec)
	}
	if bytes.HasPrefix(rec.key, []byte("GNU.sparse.")) {
		return d.sparse.apply(rec)
	}
	if len(rec.value) == 0 {
		return nil // nothing to override with: the header block's value stands
	}
	switch string(rec.key) {
	case "path":
		d.name = rec.value
	case "linkpath":
		d.linkname = rec.value
	case "size":
		d.Size, err = parseSize(rec)
	case "uid", "SCHILY.uid":
		d.UID, err = parseID(rec)
	case "gid", "SCHILY.gid":
		d.GID, err = parseID(rec)
	case "mtime":
		d.Mtime, d.MtimeNsec, err = parseTime(rec.value)
	case "SCHILY.devmajor":
		d.Devmajor, err = parseID(rec)
	case "SCHILY.devminor":
		d.Devminor, err = parseID(rec)
	case "SCHILY.acl.access":
		return d.setACL("system.posix_acl_access", rec)
	case "SCHILY.acl.default":
		return d.setACL("system.posix_acl_default", rec)
	case "SCHILY.acl.ace":
		r.warn("offset %d: %q: its NFSv4 access control list is left out", r.off-blockSize, d.name)
	case "RHT.security.selinux":
		// GNU tar's own key; the kernel keeps the NUL that ends the context.
		if !d.hasXattr("security.selinux") {
			return d.setXattr("security.selinux", append(bytes.Clone(bytes.TrimRight(rec.value, "\x00")), 0))
		}
	}
	return err
}

// schilyName undoes how GNU tar (since 1.29) writes a name with what would end
// a record's key in it.
func schilyName(name []byte) string {
	if bytes.IndexByte(name, '%') >= 0 {
		name = bytes.ReplaceAll(name, []byte("%3D"), []byte("="))
		name = bytes.ReplaceAll(name, []byte("%25"), []byte("%"))
	}
	return string(name)
}

// libarchiveXattr sets an attribute whose name libarchive percent-encoded and
// whose value it put into base64, with or without the padding.
func (d *draft) libarchiveXattr(name []byte, rec record) error {
	plain, err := url.PathUnescape(string(name))
	if err != nil {
		return fmt.Errorf("%s: %w", rec.key, fault.ErrCorrupt)
	}
	value, err := base64.RawStdEncoding.DecodeString(string(bytes.TrimRight(rec.value, "=\n")))
	if err != nil {
		return fmt.Errorf("%s: bad base64: %w", rec.key, fault.ErrCorrupt)
	}
	// The SCHILY form of the same attribute is exact: it wins, wherever it
	// stands.
	if d.hasXattr(plain) {
		return nil
	}
	return d.setXattr(plain, value)
}

func parseSize(r record) (int64, error) {
	n, err := strconv.ParseInt(string(r.value), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s=%q: %w", r.key, r.value, fault.ErrCorrupt)
	}
	return n, nil
}

func parseID(r record) (uint32, error) {
	n, err := strconv.ParseInt(string(r.value), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s=%q: %w", r.key, r.value, fault.ErrCorrupt)
	}
	id, err := toID(n)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", r.key, err)
	}
	return id, nil
}

// toID narrows an id to what Linux has: 32 bits.
func toID(n int64) (uint32, error) {
	if n < 0 || n > noID {
		return 0, fmt.Errorf("%d is outside of 32 bits: %w", n, fault.ErrUnsupported)
	}
	return uint32(n), nil
}

// parseTime reads a PAX time: decimal seconds since the epoch, with an
// optional sign and fraction, of which nine digits count.
func parseTime(s []byte) (sec int64, nsec uint32, err error) {
	bad := func() (int64, uint32, error) {
		return 0, 0, fmt.Errorf("time %q: %w", s, fault.ErrCorrupt)
	}
	whole, frac, _ := bytes.Cut(s, []byte("."))
	negative := bytes.HasPrefix(whole, []byte("-"))
	if bare := len(whole) == 0 || string(whole) == "-"; bare {
		if len(frac) == 0 {
			return bad()
		}
	} else if sec, err = strconv.ParseInt(string(whole), 10, 64); err != nil || sec == -1<<63 {
		return bad() // the least of all is kept free, for the fraction's borrow
	}
	for i, c := range frac {
		if c < '0' || c > '9' {
			return bad()
		}
		if i < 9 {
			nsec = nsec*10 + uint32(c-'0')
		}
	}
	for i := len(frac); i < 9; i++ {
		nsec *= 10
	}
	if negative && nsec > 0 {
		return sec - 1, 1e9 - nsec, nil // -1.25 is 0.75 after -2
	}
	return sec, nsec, nil
}
