package tarstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// everything is an archive with one of each thing that takes more than a
// header block and its data.
func everything() string {
	return hdr{name: "dir/", typ: '5', mode: 0o755}.block() +
		hdr{name: "dir/file"}.file(strings.Repeat("d", 700)) +
		global("comment", "c", "uid", "5") +
		pax("path", "dir/päth", "SCHILY.xattr.user.a", "v", "SCHILY.acl.access", "u::r,g::r,o::r,u:1:r,m::r") + hdr{name: "p"}.file("pax") +
		longName(strings.Repeat("n", 600)) + longLink(strings.Repeat("l", 600)) + hdr{name: "n", typ: '1', link: "l", magic: magicGNU}.file("linkdata") +
		gnuSparse(1000, []Extent{{0, 1}, {10, 1}, {20, 1}, {30, 1}, {40, 1}, {50, 1}}, "abcdef", 1) +
		pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "9") + hdr{name: "s"}.file(body("1\n2\n3\n")+"abc") +
		hdr{name: "tty", typ: '3', major: 5, minor: 1}.block() +
		hdr{name: "last"}.file("x") + end
}

// TestCut cuts an archive at every byte: no cut reads as a complete archive,
// and all entries up to the cut are the same as in the whole.
func TestCut(t *testing.T) {
	archive := everything()
	whole, _, err := read(t, archive)
	if err != io.EOF || len(whole) != 8 {
		t.Fatalf("%d entries, %v", len(whole), err)
	}
	edges := map[int64]bool{0: true}
	for _, m := range whole {
		edges[(m.DataOffset+m.Stored+blockSize-1)&^(blockSize-1)] = true
		switch {
		case m.Name == "dir/päth":
			edges[m.Offset+int64(len(global("comment", "c", "uid", "5")))] = true
		case m.Type == TypeLink:
			edges[m.DataOffset] = true // a link with a size and no data, as far as one can see
		}
	}
	for n := range archive {
		got, _, err := read(t, archive[:n])
		last := int64(len(archive) - 2*blockSize)
		switch {
		case int64(n) == last+blockSize:
			// One zero block is an end, if nothing follows.
			if err != io.EOF || len(got) != len(whole) {
				t.Errorf("cut in mid-marker: %d entries, %v", len(got), err)
			}
		case errors.Is(err, ErrNoEndMarker):
			if !edges[int64(n)] {
				t.Errorf("cut at %d, not an edge: %v", n, err)
			}
		case !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("cut at %d: %v", n, err)
		}
		for i := range got {
			if g, w := got[i].String(), whole[i].String(); g != w && got[i].Type == TypeRegular {
				t.Errorf("cut at %d: entry %d:\ngot  %s\nwant %s", n, i, g, w)
			}
		}
	}
}

// TestFlip flips a bit of each byte of an archive, keeping the headers' checksums right:
// whatever that means, reading ends.
func TestFlip(t *testing.T) {
	archive := []byte(everything())
	for i := range archive {
		old := archive[i]
		archive[i] ^= 1 << (i % 8)
		if _, _, err := read(t, fixChecksums(archive)); err == nil {
			t.Errorf("byte %d: no error and no end", i)
		}
		archive[i] = old
	}
}

// fixChecksums makes the checksums of what looks like a header right again.
func fixChecksums(archive []byte) string {
	archive = bytes.Clone(archive)
	for rest := archive; len(rest) >= blockSize; rest = rest[blockSize:] {
		b := (*block)(rest)
		if string(b[257:262]) != "ustar" || b.checksumOK() {
			continue
		}
		copy(b[148:156], "        ")
		var sum int64
		for _, c := range b {
			sum += int64(c)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
	return string(archive)
}

// An endless source repeats s for ever, behind head.
type endless struct{ head, s string }

func (e *endless) Read(p []byte) (int, error) {
	if e.head == "" {
		e.head = e.s
	}
	n := copy(p, e.head)
	e.head = e.head[n:]
	return n, nil
}

// TestHostile: what claims to be huge is refused, or takes no more memory than
// what has really come, within the package's bounds.
func TestHostile(t *testing.T) {
	a := hdr{name: "a"}.file("x")
	ext := make([]byte, blockSize) // an extension block that another one follows
	for i := range 21 {
		copy(ext[24*i:], fmt.Sprintf("%011o\x00%011o\x00", 0, 0))
	}
	ext[504] = 1
	head := func(typ byte, size int64) string {
		return hdr{name: "x", typ: typ, magic: magicGNU, raw: map[int]string{124: base256(12, size)}}.block()
	}
	for _, tt := range []struct {
		name string
		src  io.Reader
		err  error
		mib  uint64 // that may be allocated, in all
	}{
		{"long name of 2^40 bytes", strings.NewReader(head('L', 1<<40) + a), fault.ErrUnsupported, 1},
		{"long name of 2^63-1 bytes", strings.NewReader(head('L', 1<<63-1) + a), fault.ErrUnsupported, 1},
		{"long link of -1 bytes", strings.NewReader(head('K', -1) + a), fault.ErrUnsupported, 1},
		{"records of 16 MiB that are not there", strings.NewReader(head('x', maxMeta) + a), io.ErrUnexpectedEOF, 1},
		{"records of 16 MiB + 1", strings.NewReader(head('g', maxMeta+1) + a), fault.ErrUnsupported, 1},
		{"more records than allowed", &endless{head('x', maxMeta), "6 ab=\n"}, fault.ErrCorrupt, 200},
		{"ever more global records", globals(), fault.ErrUnsupported, 2},
		{"global records of 80 KiB", strings.NewReader(global("a", strings.Repeat("v", 40<<10)) + global("b", strings.Repeat("v", 40<<10))), fault.ErrUnsupported, 1},
		{"global record of 40 KiB, twice", strings.NewReader(global("a", strings.Repeat("v", 40<<10)) + global("a", strings.Repeat("w", 40<<10)) + a + end), io.EOF, 1},
		{"file of 2^63-1 bytes", strings.NewReader(head('0', 1<<63-1) + a), fault.ErrCorrupt, 1},
		{"file of 2^62 bytes", strings.NewReader(head('0', 1<<62) + a), io.ErrUnexpectedEOF, 1},
		{"file of -1 bytes", strings.NewReader(head('0', -1) + a), fault.ErrCorrupt, 1},
		{"link of 2^62 bytes", strings.NewReader(head('1', 1<<62) + "data"), io.ErrUnexpectedEOF, 1},
		{"link of -512 bytes", strings.NewReader(head('1', -512) + a), fault.ErrCorrupt, 1},
		{"label of 2^40 bytes", strings.NewReader(head('V', 1<<40) + a), fault.ErrUnsupported, 1},
		{"endless old sparse map", &endless{hdr{name: "s", typ: 'S', magic: magicGNU, raw: map[int]string{482: "\x01"}}.block(), string(ext)}, fault.ErrUnsupported, 600},
		{"4 million runs in a block", strings.NewReader(pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "1") +
			head('0', 1<<40) + body("4194304\n")), fault.ErrCorrupt, 1},
		{"endless long name headers", &endless{"", longName("n")}, nil, 1},
		{"endless global headers", &endless{"", global("uid", "1")}, nil, 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := tt.src
			if tt.err == nil {
				src, tt.err = io.LimitReader(src, 32<<20), io.ErrUnexpectedEOF
				if tt.name == "endless global headers" {
					tt.err = ErrNoEndMarker
				}
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := NewReader(NewSource(src))
			var err error
			for err == nil {
				_, err = r.Next()
			}
			runtime.ReadMemStats(&after)
			if !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v", err, tt.err)
			}
			if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > tt.mib {
				t.Errorf("%d MiB allocated, want at most %d", got, tt.mib)
			}
		})
	}
}

func globals() io.Reader {
	var s strings.Builder
	for i := range maxGlobal + 1 {
		s.WriteString(global(fmt.Sprint("k", i), "v"))
	}
	return strings.NewReader(s.String())
}

// failing is a source that ends with an error of its own.
type failing struct {
	io.Reader
	err error
}

func (f failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF {
		err = f.err
	}
	return n, err
}

// TestSourceError: the error of what lies below comes through, wherever it
// strikes, even where the archive could end.
func TestSourceError(t *testing.T) {
	archive := everything()
	digest := fmt.Errorf("digest mismatch: %w", fault.ErrIntegrity)
	for n := 0; n < len(archive)-blockSize; n += 128 {
		r := NewReader(NewSource(failing{strings.NewReader(archive[:n]), digest}))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if !errors.Is(err, digest) {
			t.Errorf("at %d: %v", n, err)
		}
	}
}
