package tarstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// The tests write archives as strings: headers, bodies and end markers joined
// with +, so that each says byte for byte what it is about.

const (
	magicUstar = "ustar\x0000"
	magicGNU   = "ustar  \x00"
)

// hdr is a header block. The zero value of a field is what most entries have:
// mode 0644, ustar, type '0', and else 0.
type hdr struct {
	name, link, prefix         string
	typ                        byte
	mode, uid, gid, size, time int64
	major, minor               int64
	magic                      string
	raw                        map[int]string // offset: bytes that replace what is there
	sum                        func(unsigned, signed int64) string
}

const nulType = 0xff // hdr.typ for a typeflag of NUL

func (h hdr) block() string {
	var b block
	octal := func(off, size int, v int64) { copy(b[off:off+size], fmt.Sprintf("%0*o\x00", size-1, v)) }
	if h.mode == 0 {
		h.mode = 0o644
	}
	copy(b[:100], h.name)
	octal(100, 8, h.mode)
	octal(108, 8, h.uid)
	octal(116, 8, h.gid)
	octal(124, 12, h.size)
	octal(136, 12, h.time)
	switch h.typ {
	case 0:
		b[156] = '0'
	case nulType:
	default:
		b[156] = h.typ
	}
	copy(b[157:257], h.link)
	switch h.magic {
	case "":
		h.magic = magicUstar
		fallthrough
	case magicUstar:
		copy(b[345:500], h.prefix)
		fallthrough
	case magicGNU:
		octal(329, 8, h.major)
		octal(337, 8, h.minor)
	}
	if h.magic != "v7" {
		copy(b[257:265], h.magic)
	}
	for off, s := range h.raw {
		copy(b[off:], s)
	}
	copy(b[148:156], "        ")
	var unsigned, signed int64
	for _, c := range b {
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	sum := fmt.Sprintf("%06o\x00 ", unsigned)
	if h.sum != nil {
		sum = h.sum(unsigned, signed)
	}
	copy(b[148:156], sum)
	return string(b[:])
}

// body pads s to full blocks.
func body(s string) string { return s + strings.Repeat("\x00", -len(s)&(blockSize-1)) }

// file is a header with its data.
func (h hdr) file(data string) string {
	h.size = int64(len(data))
	return h.block() + body(data)
}

var end = strings.Repeat("\x00", 2*blockSize)

// rec is one PAX record.
func rec(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for n != len(rest)+len(fmt.Sprint(n)) {
		n = len(rest) + len(fmt.Sprint(n))
	}
	return fmt.Sprint(n) + rest
}

func recs(kv []string) (s string) {
	for i := 0; i < len(kv); i += 2 {
		s += rec(kv[i], kv[i+1])
	}
	return s
}

func pax(kv ...string) string    { return hdr{name: "PaxHeaders/x", typ: 'x'}.file(recs(kv)) }
func global(kv ...string) string { return hdr{name: "pax_global", typ: 'g'}.file(recs(kv)) }

func longName(s string) string {
	return hdr{name: "././@LongLink", typ: 'L', magic: magicGNU}.file(s + "\x00")
}
func longLink(s string) string {
	return hdr{name: "././@LongLink", typ: 'K', magic: magicGNU}.file(s + "\x00")
}

// A member is an entry and its stored bytes.
type member struct {
	*Entry
	data string
}

// String is the form in which the tables say what is expected: the type as ls
// shows it ('h': hard link), the name, and what is not the usual.
func (m member) String() string {
	var s strings.Builder
	types := map[byte]byte{TypeRegular: '-', TypeLink: 'h', TypeSymlink: 'l', TypeChar: 'c', TypeBlock: 'b', TypeDir: 'd', TypeFifo: 'p'}
	fmt.Fprintf(&s, "%c %s", types[m.Type], m.Name)
	if m.Linkname != "" {
		fmt.Fprintf(&s, " -> %s", m.Linkname)
	}
	if m.Mode != 0o644 {
		fmt.Fprintf(&s, " %04o", m.Mode)
	}
	if m.UID != 0 || m.GID != 0 {
		fmt.Fprintf(&s, " %d:%d", m.UID, m.GID)
	}
	if m.Mtime != 0 || m.MtimeNsec != 0 {
		fmt.Fprintf(&s, " @%d", m.Mtime)
	}
	if m.MtimeNsec != 0 {
		fmt.Fprintf(&s, "+%dns", m.MtimeNsec)
	}
	if m.Devmajor != 0 || m.Devminor != 0 {
		fmt.Fprintf(&s, " dev %d,%d", m.Devmajor, m.Devminor)
	}
	for _, x := range m.Xattrs {
		fmt.Fprintf(&s, " %s=%q", x.Name, x.Value)
	}
	if m.Size != m.Stored {
		fmt.Fprintf(&s, " size %d", m.Size)
	}
	if m.Sparse != nil {
		fmt.Fprintf(&s, " map %v", m.Sparse)
	}
	if m.Stored > 0 {
		fmt.Fprintf(&s, " %q", m.data)
	}
	return s.String()
}

// read reads an archive to its end or its first error, and holds every entry
// to what the package promises of offsets, sizes and maps.
func read(t testing.TB, archive string) (members []member, warnings []string, err error) {
	t.Helper()
	return readFrom(t, archive, &memSource{[]byte(archive)})
}

// A memSource is a Source that has all of an archive at hand.
type memSource struct{ rest []byte }

func (s *memSource) Peek(n int) ([]byte, error) {
	if n > len(s.rest) {
		return s.rest, io.EOF
	}
	return s.rest[:n:n], nil
}

func (s *memSource) Buffered() int { return len(s.rest) }

func (s *memSource) Discard(n int64) (int64, error) {
	if n > int64(len(s.rest)) {
		n = int64(len(s.rest))
		s.rest = nil
		return n, io.EOF
	}
	s.rest = s.rest[n:]
	return n, nil
}

func readFrom(t testing.TB, archive string, src Source) (members []member, warnings []string, err error) {
	t.Helper()
	r := NewReader(src)
	r.Warn = func(s string) { warnings = append(warnings, s) }
	last := int64(0)
	for {
		e, err := r.Next()
		if err != nil {
			if e != nil {
				t.Errorf("an entry and an error: %v, %v", e, err)
			}
			if _, again := r.Next(); again != err {
				t.Errorf("error %v, and the next time %v", err, again)
			}
			return members, warnings, err
		}
		if e.Offset < last || e.Offset%blockSize != 0 || e.DataOffset < e.Offset+blockSize || e.DataOffset%blockSize != 0 {
			t.Errorf("%q: offset %d, data %d; the entry before ends at %d", e.Name, e.Offset, e.DataOffset, last)
		}
		last = e.DataOffset + e.Stored
		var got bytes.Buffer
		for {
			p, err := r.Data()
			if err == io.EOF {
				break
			}
			if err != nil {
				return members, warnings, err
			}
			if len(p) == 0 {
				t.Fatal("Data returned nothing and no error")
			}
			got.Write(p)
		}
		if want := archive[e.DataOffset : e.DataOffset+e.Stored]; got.String() != want {
			t.Errorf("%q: Data differs from the archive at %d+%d", e.Name, e.DataOffset, e.Stored)
		}
		checkEntry(t, e)
		members = append(members, member{e, got.String()})
	}
}

func checkEntry(t testing.TB, e *Entry) {
	t.Helper()
	if e.MtimeNsec >= 1e9 {
		t.Errorf("%q: %d ns", e.Name, e.MtimeNsec)
	}
	if e.Size < 0 || e.Stored < 0 || e.Type != TypeRegular && e.Size != 0 {
		t.Errorf("%q: type %c, size %d, stored %d", e.Name, e.Type, e.Size, e.Stored)
	}
	if strings.Contains(e.Name+e.Linkname, "\x00") {
		t.Errorf("%q -> %q: a NUL", e.Name, e.Linkname)
	}
	if e.Sparse == nil {
		if e.Type == TypeRegular && e.Size != e.Stored {
			t.Errorf("%q: no map, size %d, stored %d", e.Name, e.Size, e.Stored)
		}
		return
	}
	at, sum := int64(0), int64(0)
	for i, x := range e.Sparse {
		if x.Length <= 0 || x.Offset < at || i > 0 && x.Offset == at || x.Offset+x.Length > e.Size {
			t.Errorf("%q: size %d: bad map %v", e.Name, e.Size, e.Sparse)
		}
		at = x.Offset + x.Length
		sum += x.Length
	}
	if sum != e.Stored {
		t.Errorf("%q: map of %d bytes, stored %d", e.Name, sum, e.Stored)
	}
}

// An archiveTest says what the entries of an archive are, and how it ends.
type archiveTest struct {
	name    string
	archive string
	want    []string // members, as their String
	err     error    // nil: io.EOF
	warn    string   // part of a warning; none if empty
}

func (tt archiveTest) run(t *testing.T) {
	t.Helper()
	wantErr := tt.err
	if wantErr == nil {
		wantErr = io.EOF
	}
	// Byte by byte, a Source has no more than what it was asked for.
	for _, src := range []Source{
		&memSource{[]byte(tt.archive)},
		NewSource(iotest.OneByteReader(strings.NewReader(tt.archive))),
		NewSource(iotest.DataErrReader(strings.NewReader(tt.archive))),
	} {
		got, warnings, err := readFrom(t, tt.archive, src)
		if !errors.Is(err, wantErr) {
			t.Errorf("ends with %v, want %v", err, wantErr)
		}
		for i := range max(len(got), len(tt.want)) {
			g, w := "nothing", "nothing"
			if i < len(got) {
				g = got[i].String()
			}
			if i < len(tt.want) {
				w = tt.want[i]
			}
			if g != w {
				t.Errorf("entry %d:\ngot  %s\nwant %s", i, g, w)
			}
		}
		if w := strings.Join(warnings, "\n"); tt.warn == "" && w != "" || !strings.Contains(w, tt.warn) {
			t.Errorf("warnings %q, want %q", w, tt.warn)
		}
	}
}

// errCut is how an archive ends that is cut in the middle of something.
var errCut = io.ErrUnexpectedEOF
