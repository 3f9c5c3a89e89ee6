package tarstream

import (
	"fmt"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// base256 is GNU's form of a number that octal digits cannot say.
func base256(size int, v int64) string {
	b := make([]byte, size)
	for i := range b {
		b[size-1-i] = byte(v >> min(63, 8*i))
	}
	b[0] |= 0x80
	return string(b)
}

func TestDialects(t *testing.T) {
	long := strings.Repeat("long/", 60) + "name"
	for _, tt := range []archiveTest{
		{
			name: "v7",
			// No typeflag but for links, no magic; directories end in a slash.
			archive: hdr{magic: "v7", typ: nulType, name: "dir/", mode: 0o755}.block() +
				hdr{magic: "v7", typ: nulType, name: "dir/file", uid: 7, gid: 8, time: 9}.file("v7") +
				hdr{magic: "v7", typ: '1', name: "hard", link: "dir/file"}.block() +
				hdr{magic: "v7", typ: '2', name: "soft", link: "dir/file", mode: 0o777}.block() +
				// What would be a prefix in ustar is junk here.
				hdr{magic: "v7", typ: nulType, name: "junk", raw: map[int]string{329: "junk", 345: "junk"}}.block() + end,
			want: []string{"d dir/ 0755", `- dir/file 7:8 @9 "v7"`, "h hard -> dir/file", "l soft -> dir/file 0777", "- junk"},
		},
		{
			name: "v7 with directories of a size",
			archive: hdr{magic: "v7", typ: nulType, name: "dir/", size: 512}.block() +
				hdr{magic: "v7", typ: nulType, name: "file"}.file("x") + end,
			want: []string{"d dir/", `- file "x"`},
		},
		{
			name:    "all 100 bytes of a name, 155 of a prefix, no NUL",
			archive: hdr{name: strings.Repeat("n", 100), prefix: strings.Repeat("p", 155), link: strings.Repeat("l", 100), typ: '2'}.block() + end,
			want:    []string{"l " + strings.Repeat("p", 155) + "/" + strings.Repeat("n", 100) + " -> " + strings.Repeat("l", 100)},
		},
		{
			name: "ustar, each type",
			archive: hdr{prefix: "usr/share", name: "doc/", typ: '5', mode: 0o1777}.block() +
				hdr{name: "a", mode: 0o104755, uid: 0o7777777, gid: 0o7777777, time: 0o77777777777}.file("data") +
				hdr{name: "old", typ: nulType}.file("1") +
				hdr{name: "contiguous", typ: '7'}.file("2") +
				hdr{name: "tty", typ: '3', major: 5, minor: 1}.block() +
				hdr{name: "sda", typ: '4', major: 8, minor: 1 << 20}.block() +
				hdr{name: "pipe", typ: '6'}.block() + end,
			want: []string{"d usr/share/doc/ 1777", `- a 4755 2097151:2097151 @8589934591 "data"`, `- old "1"`, `- contiguous "2"`,
				"c tty dev 5,1", "b sda dev 8,1048576", "p pipe"},
		},
		{
			name:    "device fields of what is no device are not looked at",
			archive: hdr{name: "a", raw: map[int]string{329: "junkjunk", 337: "junkjunk"}}.file("x") + end,
			want:    []string{`- a "x"`},
		},
		{
			name: "device with NUL devmajor",
			archive: hdr{name: "tty", typ: '3', raw: map[int]string{329: strings.Repeat("\x00", 8)}, minor: 7}.block() +
				hdr{name: "a"}.file("rest") + end,
			want: []string{"c tty dev 0,7", `- a "rest"`},
		},
		{
			name:    "NUL uid, gid and mtime",
			archive: hdr{name: "a", raw: map[int]string{108: strings.Repeat("\x00", 16), 136: strings.Repeat("\x00", 12)}}.file("x") + end,
			want:    []string{`- a "x"`},
		},
		{
			name: "checksum of signed bytes, and in other spellings",
			archive: hdr{name: "\xff\xfe", sum: func(_, s int64) string { return fmt.Sprintf("%06o\x00 ", s) }}.block() +
				hdr{name: "b", sum: func(u, _ int64) string { return fmt.Sprintf("%7o\x00", u) }}.block() +
				hdr{name: "c", sum: func(u, _ int64) string { return fmt.Sprintf("%08o", u) }}.block() + end,
			want: []string{"- \xff\xfe", "- b", "- c"},
		},
		{
			name:    "wrong checksum",
			archive: hdr{name: "a"}.block() + hdr{name: "b", sum: func(u, _ int64) string { return fmt.Sprintf("%06o\x00 ", u+1) }}.block() + end,
			want:    []string{"- a"},
			err:     fault.ErrCorrupt,
		},
		{
			name: "star and xstar",
			archive: hdr{name: "name", prefix: strings.Repeat("p", 130), raw: map[int]string{475: "\x00", 476: "14000000001 14000000001 ", 508: "tar\x00"}}.file("x") +
				hdr{name: "name", prefix: "pre", raw: map[int]string{475: "\x00", 476: "14000000001 14000000001 "}}.file("y") + end,
			want: []string{"- " + strings.Repeat("p", 130) + `/name "x"`, `- pre/name "y"`},
		},
		{
			name: "GNU long names",
			archive: longName(long) + longLink(long+"2") + hdr{magic: magicGNU, name: long[:100], link: long[:100], typ: '2'}.block() +
				// Either order; and no NUL at the end.
				longLink("target") + hdr{name: "././@LongLink", typ: 'L', magic: magicGNU}.file(long) + hdr{magic: magicGNU, name: "cut", typ: '1'}.block() +
				hdr{magic: magicGNU, name: "next"}.file("x") + end,
			want: []string{"l " + long + " -> " + long + "2", "h " + long + " -> target", `- next "x"`},
		},
		{
			name:    "a long name that holds nothing",
			archive: longName("") + hdr{magic: magicGNU, name: "a"}.block() + end,
			want:    []string{"- a"},
		},
		{
			name: "base-256",
			archive: hdr{magic: magicGNU, name: "a", raw: map[int]string{108: base256(8, 1<<32-2), 116: base256(8, 1<<31), 124: base256(12, 3), 136: base256(12, -1)}}.block() + body("abc") +
				hdr{magic: magicGNU, name: "b", typ: '3', raw: map[int]string{329: base256(8, 1<<20), 337: base256(8, 1<<31)}}.block() + end,
			want: []string{`- a 4294967294:2147483648 @-1 "abc"`, "c b dev 1048576,2147483648"},
		},
		{
			name:    "id beyond 32 bits",
			archive: hdr{magic: magicGNU, name: "a", raw: map[int]string{108: base256(8, 1<<32)}}.block() + end,
			err:     fault.ErrUnsupported,
		},
		{
			name:    "negative id",
			archive: hdr{magic: magicGNU, name: "a", raw: map[int]string{116: base256(8, -2)}}.block() + end,
			err:     fault.ErrUnsupported,
		},
		{
			name: "GNU incremental: directories list their names, times stand where a prefix would",
			archive: hdr{magic: magicGNU, name: "dir/", typ: 'D', mode: 0o755, raw: map[int]string{345: "14000000001\x0014000000001\x00"}}.file("Ya\x00Nb\x00\x00") +
				hdr{magic: magicGNU, name: "dir/a", raw: map[int]string{345: "14000000001\x0014000000001\x00"}}.file("x") + end,
			want: []string{`d dir/ 0755 size 0 "Ya\x00Nb\x00\x00"`, `- dir/a "x"`},
		},
		{
			name:    "GNU magic over a prefix, as Go wrote before 1.8",
			archive: hdr{magic: magicGNU, name: "name", raw: map[int]string{345: "some/prefix"}}.file("x") + end,
			want:    []string{`- some/prefix/name "x"`},
		},
		{
			name: "GNU magic over times, or over what is no text",
			archive: hdr{magic: magicGNU, name: "a", raw: map[int]string{345: "14000000001 \x00"}}.block() +
				hdr{magic: magicGNU, name: "b", raw: map[int]string{345: base256(12, -1) + base256(12, 1<<40)}}.block() +
				hdr{magic: magicGNU, name: "c", raw: map[int]string{345: "junk\xff"}}.block() +
				hdr{magic: magicGNU, name: "d", raw: map[int]string{345: "12 34/5"}}.block() + end,
			want: []string{"- a", "- b", "- c", "- 12 34/5/d"},
		},
		{
			name: "volume label; multi-volume",
			archive: hdr{magic: magicGNU, name: "backup", typ: 'V'}.block() + hdr{magic: magicGNU, name: "a"}.block() +
				hdr{magic: magicGNU, name: "b", typ: 'M', size: 7}.block() + end,
			want: []string{"- a"},
			err:  fault.ErrUnsupported,
		},
		{
			name:    "unknown type",
			archive: hdr{name: "a", typ: 'Z'}.file("data") + hdr{name: "b"}.file("x") + end,
			want:    []string{`- a "data"`, `- b "x"`},
			warn:    `"a": unknown entry type 'Z' read as a regular file`,
		},
		{
			name:    "typeflag '0' and a slash at the end",
			archive: hdr{name: "dir/"}.block() + hdr{name: "file/"}.file("x") + end,
			want:    []string{"d dir/", `- file/ "x"`},
			warn:    `"file/": a file's name ends in a slash`,
		},
		{
			name:    "names as they stand",
			archive: hdr{name: "/abs"}.block() + hdr{name: "./a//b/../c"}.block() + hdr{name: "\xc3\x28\n\x01"}.block() + hdr{}.block() + end,
			want:    []string{"- /abs", "- ./a//b/../c", "- \xc3\x28\n\x01", "- "},
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestEnds(t *testing.T) {
	a := hdr{name: "a"}.file("x")
	for _, tt := range []archiveTest{
		{name: "nothing at all", archive: "", err: ErrNoEndMarker},
		{name: "only the end", archive: end},
		{name: "no end", archive: a, want: []string{`- a "x"`}, err: ErrNoEndMarker},
		{name: "half the end", archive: a + end[:blockSize], want: []string{`- a "x"`}},
		{name: "less than half the end", archive: a + end[:blockSize-1], want: []string{`- a "x"`}, err: errCut},
		{name: "more than half the end", archive: a + end[:blockSize+1], want: []string{`- a "x"`}, err: errCut},
		{name: "junk behind the end", archive: a + end + "junk" + a, want: []string{`- a "x"`}, warn: "offset 2048: what follows the end"},
		{name: "an archive behind the padding of another", archive: a + end + strings.Repeat("\x00", 8192) + a + end, want: []string{`- a "x"`}, warn: "offset 10240: what follows the end"},
		{name: "a file system, which begins with zeros", archive: strings.Repeat("\x00", 32769) + "CD001", err: fault.ErrCorrupt},
		{name: "the second volume, in PAX's way", archive: global("GNU.volume.filename", "a", "GNU.volume.size", "9", "GNU.volume.offset", "5") + a + end, err: fault.ErrUnsupported},
		{name: "a volume's label, in PAX's way", archive: global("GNU.volume.label", "backup") + a + end, want: []string{`- a "x"`}},
		{name: "lone zero block", archive: a + end[:blockSize] + a + end, want: []string{`- a "x"`}, err: fault.ErrCorrupt},
		{name: "end behind an extended header", archive: pax("path", "b") + end, err: fault.ErrCorrupt},
		{name: "end behind a long name", archive: longName("b") + end, err: fault.ErrCorrupt},
		{name: "nothing behind an extended header", archive: pax("path", "b"), err: errCut},
		{name: "nothing behind a global header", archive: a + global("path", "b"), want: []string{`- a "x"`}, err: ErrNoEndMarker},
		{name: "no tar", archive: strings.Repeat("This is no tar archive. ", 100), err: fault.ErrCorrupt},
	} {
		t.Run(tt.name, tt.run)
	}
}

// TestHeaderOnly is about types that have no contents, with a size, with and
// without data behind them.
func TestHeaderOnly(t *testing.T) {
	next := hdr{name: "next"}.file("x")
	const isNext = `- next "x"`
	for _, typ := range "123456" {
		show := map[rune]string{'1': "h a -> t", '2': "l a -> t", '3': "c a -> t", '4': "b a -> t", '5': "d a -> t", '6': "p a -> t"}[typ]
		for _, size := range []int64{1, 512, 513, 70000, 1 << 33} {
			h := hdr{name: "a", link: "t", typ: byte(typ), size: size}
			archiveTest{archive: h.block() + next + end, want: []string{show, isNext}}.run(t)
			archiveTest{archive: pax("mtime", "0") + h.block() + next + end, want: []string{show, isNext}}.run(t)
			// The last of the archive.
			archiveTest{archive: h.block() + end, want: []string{show}}.run(t)
			archiveTest{archive: h.block(), want: []string{show}, err: ErrNoEndMarker}.run(t)
			archiveTest{archive: h.block() + end[:blockSize], want: []string{show}}.run(t)
			archiveTest{archive: h.block() + end + strings.Repeat("\x00", 9<<10), want: []string{show}}.run(t)
			archiveTest{archive: h.block() + end + "junk behind the end", want: []string{show}, warn: "what follows the end"}.run(t)
			archiveTest{archive: h.block() + end[:100], want: []string{show}, err: errCut}.run(t)
		}
		for _, data := range []string{"data", strings.Repeat("d", 512), strings.Repeat("\x00", 512) + "d", strings.Repeat("\x00", 2048) + "d", strings.Repeat("d", 70000),
			strings.Repeat("\x00", 600) + strings.Repeat("d", 70000)} {
			stored := fmt.Sprintf("%s size 0 %q", show, data)
			h := hdr{name: "a", link: "t", typ: byte(typ)}
			archiveTest{archive: h.file(data) + next + end, want: []string{stored, isNext}}.run(t)
			archiveTest{archive: pax("mtime", "0") + h.file(data) + next + end, want: []string{stored, isNext}}.run(t)
			archiveTest{archive: h.file(data) + end, want: []string{stored}}.run(t)
		}
		// Zeros alone are data where a header follows them.
		zeros := strings.Repeat("\x00", 3000)
		archiveTest{archive: hdr{name: "a", link: "t", typ: byte(typ)}.file(zeros) + next + end,
			want: []string{fmt.Sprintf("%s size 0 %q", show, zeros), isNext}}.run(t)
		// More zeros than can be looked at: no guess.
		archiveTest{archive: hdr{name: "a", link: "t", typ: byte(typ)}.file(strings.Repeat("\x00", 70000)) + next + end, err: fault.ErrUnsupported}.run(t)
	}
	// Several links in a row, each with the file's size and no data: a header
	// stands where the data would end, too.
	links := hdr{name: "a"}.file("x")
	want := []string{`- a "x"`}
	for i := range 5 {
		links += hdr{name: fmt.Sprint(i), link: "a", typ: '1', size: 1}.block()
		want = append(want, fmt.Sprintf("h %d -> a", i))
	}
	archiveTest{archive: links + end, want: want}.run(t)
}
