package tarstream

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A record is one key=value of a PAX extended header (POSIX.1-2001). A record
// with an empty value takes an earlier one of the same key back.
type record struct {
	key   string
	value string
}

// maxRecords bounds the records of one header; each costs memory of its own.
const maxRecords = 1 << 16

// parseRecords reads the body of an 'x' or 'g' entry: "len key=value\n" each,
// len counting the whole record. Repeated keys stay: GNU sparse 0.0 means it.
func parseRecords(body []byte, into []record) ([]record, error) {
	rest := body
	for len(rest) > 0 {
		// Some writers pad the body with NULs.
		if len(bytes.Trim(rest, "\x00")) == 0 {
			break
		}
		sp := bytes.IndexByte(rest[:min(len(rest), 20)], ' ')
		if sp <= 0 {
			return nil, paxError(body, rest, "no length")
		}
		n, err := strconv.ParseUint(string(rest[:sp]), 10, 31)
		if err != nil || int(n) <= sp+1 || int(n) > len(rest) {
			return nil, paxError(body, rest, "bad length")
		}
		rec := rest[sp+1 : n]
		rest = rest[n:]
		if rec[len(rec)-1] != '\n' {
			return nil, paxError(body, rest, "no newline at the end of a record")
		}
		key, value, ok := strings.Cut(string(rec[:len(rec)-1]), "=")
		if !ok || key == "" {
			return nil, paxError(body, rest, "no key")
		}
		if len(into) == maxRecords {
			return nil, paxError(body, rest, "too many records")
		}
		into = append(into, record{key, value})
	}
	return into, nil
}

func paxError(body, rest []byte, what string) error {
	return fmt.Errorf("extended header, byte %d: %s: %w", len(body)-len(rest), what, fault.ErrCorrupt)
}

// merge folds the records of a global header into those before it, in which a
// later one of the same key wins; SCHILY.xattr keys are keys like any other.
func merge(global, more []record) []record {
	for _, m := range more {
		global = slices.DeleteFunc(global, func(r record) bool { return r.key == m.key })
		if m.value != "" {
			global = append(global, m)
		}
	}
	return global
}

// A sparseHeader collects the GNU.sparse.* records of PAX formats 0.0, 0.1
// and 1.0.
type sparseHeader struct {
	major, minor string
	name         string
	realSize     int64
	hasSize      bool
	sparseMap    []Extent
	offsets      int // 0.0: GNU.sparse.offset seen without its numbytes
}

// apply lets one record override what the header block said.
func (e *Entry) apply(r record, sp *sparseHeader) (err error) {
	const xattr, libarchive = "SCHILY.xattr.", "LIBARCHIVE.xattr."
	switch {
	case strings.HasPrefix(r.key, xattr):
		return e.setXattr(r.key[len(xattr):], r.value)
	case strings.HasPrefix(r.key, libarchive):
		// libarchive percent-encodes names and base64s values, sometimes
		// without the padding.
		name, err := url.PathUnescape(r.key[len(libarchive):])
		if err != nil {
			return fmt.Errorf("%s: %w", r.key, fault.ErrCorrupt)
		}
		value, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(r.value, "=\n"))
		if err != nil {
			return fmt.Errorf("%s: bad base64: %w", r.key, fault.ErrCorrupt)
		}
		// The SCHILY form of the same attribute is exact: it wins, wherever
		// it stands.
		if e.hasXattr(name) {
			return nil
		}
		return e.setXattr(name, string(value))
	case strings.HasPrefix(r.key, "GNU.sparse."):
		return sp.apply(r)
	case r.value == "":
		return nil // nothing to override with: the header block's value stands
	}
	switch r.key {
	case "path":
		e.Name = r.value
	case "linkpath":
		e.Linkname = r.value
	case "size":
		e.Size, err = parseSize(r)
	case "uid", "SCHILY.uid":
		e.UID, err = parseID(r)
	case "gid", "SCHILY.gid":
		e.GID, err = parseID(r)
	case "mtime":
		e.Mtime, e.MtimeNsec, err = parseTime(r.value)
	case "SCHILY.devmajor":
		e.Devmajor, err = parseID(r)
	case "SCHILY.devminor":
		e.Devminor, err = parseID(r)
	case "SCHILY.acl.access":
		return e.setACL("system.posix_acl_access", r)
	case "SCHILY.acl.default":
		return e.setACL("system.posix_acl_default", r)
	case "RHT.security.selinux":
		// GNU tar's own key; the kernel keeps the NUL that ends the context.
		if !e.hasXattr("security.selinux") {
			return e.setXattr("security.selinux", strings.TrimRight(r.value, "\x00")+"\x00")
		}
	}
	return err
}

func (sp *sparseHeader) apply(r record) error {
	num := func() (int64, error) { return parseSize(r) }
	switch r.key {
	case "GNU.sparse.major":
		sp.major = r.value
	case "GNU.sparse.minor":
		sp.minor = r.value
	case "GNU.sparse.name":
		sp.name = r.value
	case "GNU.sparse.size", "GNU.sparse.realsize":
		n, err := num()
		sp.realSize, sp.hasSize = n, true
		return err
	case "GNU.sparse.offset":
		n, err := num()
		sp.sparseMap = append(sp.sparseMap, Extent{Offset: n})
		sp.offsets++
		return err
	case "GNU.sparse.numbytes":
		n, err := num()
		if sp.offsets != 1 {
			return fmt.Errorf("%s without an offset: %w", r.key, fault.ErrCorrupt)
		}
		sp.sparseMap[len(sp.sparseMap)-1].Length = n
		sp.offsets = 0
		return err
	case "GNU.sparse.map":
		sp.sparseMap = sp.sparseMap[:0]
		fields := strings.Split(r.value, ",")
		if len(fields)%2 != 0 {
			return fmt.Errorf("%s: odd number of fields: %w", r.key, fault.ErrCorrupt)
		}
		for i := 0; i < len(fields); i += 2 {
			off, err1 := parseSize(record{r.key, fields[i]})
			length, err2 := parseSize(record{r.key, fields[i+1]})
			if err1 != nil || err2 != nil {
				return fmt.Errorf("%s: bad number: %w", r.key, fault.ErrCorrupt)
			}
			sp.sparseMap = append(sp.sparseMap, Extent{off, length})
		}
	}
	return nil
}

func parseSize(r record) (int64, error) {
	n, err := strconv.ParseInt(r.value, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s=%q: %w", r.key, r.value, fault.ErrCorrupt)
	}
	return n, nil
}

func parseID(r record) (uint32, error) {
	n, err := strconv.ParseInt(r.value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s=%q: %w", r.key, r.value, fault.ErrCorrupt)
	}
	return toID(r.key, n)
}

// toID narrows an id to what Linux has: 32 bits, of which -1 is not an id.
func toID(what string, n int64) (uint32, error) {
	if n < 0 || n >= 1<<32-1 {
		return 0, fmt.Errorf("%s %d is outside of 32 bits: %w", what, n, fault.ErrUnsupported)
	}
	return uint32(n), nil
}

// parseTime reads a PAX time: decimal seconds since the epoch, with an
// optional sign and fraction, of which nine digits count.
func parseTime(s string) (sec int64, nsec uint32, err error) {
	bad := fmt.Errorf("time %q: %w", s, fault.ErrCorrupt)
	whole, frac, _ := strings.Cut(s, ".")
	negative := strings.HasPrefix(whole, "-")
	if sec, err = strconv.ParseInt(whole, 10, 64); err != nil && !(whole == "" || whole == "-") {
		return 0, 0, bad
	}
	for i := range len(frac) {
		if frac[i] < '0' || frac[i] > '9' {
			return 0, 0, bad
		}
	}
	digits := (frac + "000000000")[:9]
	n, _ := strconv.ParseUint(digits, 10, 32)
	if negative && n > 0 {
		// -1.25 is 0.75 after -2.
		return sec - 1, uint32(1e9 - n), nil
	}
	return sec, uint32(n), nil
}
