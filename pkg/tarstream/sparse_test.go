package tarstream

import (
	"fmt"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// gnuSparse is an 'S' header, its extension blocks and the data. ext says how
// many empty extension blocks follow besides.
func gnuSparse(size int64, runs []Extent, data string, ext int) string {
	entries := func(n int) (s string) {
		for ; n > 0 && len(runs) > 0; n-- {
			s += fmt.Sprintf("%011o\x00%011o\x00", runs[0].Offset, runs[0].Length)
			runs = runs[1:]
		}
		return s
	}
	var blocks string
	raw := map[int]string{386: entries(4), 483: fmt.Sprintf("%011o\x00", size)}
	if len(runs) > 0 || ext > 0 {
		raw[482] = "\x01"
	}
	for len(runs) > 0 || ext > 0 {
		b := make([]byte, blockSize)
		if copy(b, entries(21)); len(runs) == 0 {
			ext--
		}
		if len(runs) > 0 || ext > 0 {
			b[504] = 1
		}
		blocks += string(b)
	}
	return hdr{magic: magicGNU, typ: 'S', name: "s", size: int64(len(data)), raw: raw}.block() + blocks + body(data)
}

func TestSparse(t *testing.T) {
	next := hdr{name: "next"}.file("x")
	const isNext = `- next "x"`
	var runs []Extent
	for i := range int64(100) {
		runs = append(runs, Extent{10 * i, 1})
	}
	runs100 := fmt.Sprintf("- s size 1000 map %v %q", runs, strings.Repeat("d", 100))
	map01 := strings.ReplaceAll(strings.Trim(strings.ReplaceAll(fmt.Sprint(runs), "} {", ","), "[{}]"), " ", ",")
	map10 := "100\n" + strings.ReplaceAll(map01, ",", "\n") + "\n"
	var kv00 []string
	for _, x := range runs {
		kv00 = append(kv00, "GNU.sparse.offset", fmt.Sprint(x.Offset), "GNU.sparse.numbytes", fmt.Sprint(x.Length))
	}
	d100 := strings.Repeat("d", 100)
	block10 := "0000012\n" // and 24 lines of 21 bytes
	for _, x := range runs[:12] {
		block10 += fmt.Sprintf("%020d\n%020d\n", x.Offset, x.Length)
	}
	v10 := func(size int64, text string) string {
		return pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "s", "GNU.sparse.realsize", fmt.Sprint(size)) +
			hdr{name: "GNUSparseFile.1/s"}.file(text)
	}
	v01 := func(size int64, text, data string) string {
		return pax("GNU.sparse.size", fmt.Sprint(size), "GNU.sparse.numblocks", "1", "GNU.sparse.name", "s", "GNU.sparse.map", text) + hdr{name: "GNUSparseFile.1/s"}.file(data)
	}
	for _, tt := range []archiveTest{
		// The old format: 4 runs in the header, 21 in each extension block.
		{name: "S", archive: gnuSparse(100, []Extent{{10, 3}, {50, 2}, {100, 0}}, "abcde", 0) + next + end,
			want: []string{`- s size 100 map [{10 3} {50 2}] "abcde"`, isNext}},
		{name: "S, 100 runs", archive: gnuSparse(1000, runs, d100, 0) + next + end, want: []string{runs100, isNext}},
		{name: "S, an empty extension block", archive: gnuSparse(100, []Extent{{0, 1}, {50, 1}}, "ab", 2) + next + end,
			want: []string{`- s size 100 map [{0 1} {50 1}] "ab"`, isNext}},
		{name: "S, a hole only", archive: gnuSparse(1<<30, []Extent{{1 << 30, 0}}, "", 0) + next + end, want: []string{"- s size 1073741824 map []", isNext}},
		{name: "S, no map", archive: gnuSparse(5, nil, "", 0) + next + end, want: []string{"- s size 5 map []", isNext}},
		{name: "S, no holes", archive: gnuSparse(5, []Extent{{0, 5}}, "abcde", 0) + next + end, want: []string{`- s "abcde"`, isNext}},
		{name: "S, empty", archive: gnuSparse(0, nil, "", 0) + next + end, want: []string{"- s", isNext}},
		{name: "S, adjacent runs", archive: gnuSparse(9, []Extent{{1, 2}, {3, 0}, {3, 3}}, "abcde", 0) + next + end,
			want: []string{`- s size 9 map [{1 5}] "abcde"`, isNext}},
		{name: "S with long name", archive: longName("long") + gnuSparse(5, []Extent{{0, 1}}, "a", 0) + end, want: []string{`- long size 5 map [{0 1}] "a"`}},
		{name: "S, out of order", archive: gnuSparse(9, []Extent{{5, 1}, {3, 1}}, "ab", 0) + end, err: fault.ErrCorrupt},
		{name: "S, overlap", archive: gnuSparse(9, []Extent{{3, 3}, {5, 1}}, "abcd", 0) + end, err: fault.ErrCorrupt},
		{name: "S, beyond the size", archive: gnuSparse(9, []Extent{{8, 2}}, "ab", 0) + end, err: fault.ErrCorrupt},
		{name: "S, more than is stored", archive: gnuSparse(9, []Extent{{1, 5}}, "ab", 0) + end, err: fault.ErrCorrupt},
		{name: "S, less than is stored", archive: gnuSparse(9, []Extent{{1, 1}}, "ab", 0) + end, err: fault.ErrCorrupt},
		{name: "S, negative", archive: hdr{magic: magicGNU, typ: 'S', name: "s", raw: map[int]string{386: base256(12, -5) + base256(12, 5), 483: "00000000011"}}.block() + end, err: fault.ErrCorrupt},
		{name: "S, overflow", archive: hdr{magic: magicGNU, typ: 'S', name: "s", raw: map[int]string{386: base256(12, 1<<62) + base256(12, 1<<62), 483: base256(12, 1<<62)}}.block() + end, err: fault.ErrCorrupt},
		{name: "S, size overflow", archive: hdr{magic: magicGNU, typ: 'S', name: "s", raw: map[int]string{483: base256(12, 1<<62+1)}}.block() + end, err: fault.ErrCorrupt},
		{name: "S, no number", archive: hdr{magic: magicGNU, typ: 'S', name: "s", raw: map[int]string{386: "x"}}.block() + end, err: fault.ErrCorrupt},
		{name: "S, no size", archive: hdr{magic: magicGNU, typ: 'S', name: "s", raw: map[int]string{483: "x"}}.block() + end, err: fault.ErrCorrupt},
		{name: "S, cut in the map", archive: gnuSparse(1000, runs, d100, 0)[:3*blockSize], err: errCut},
		{name: "S under another magic", archive: hdr{typ: 'S', name: "s"}.block() + end, err: fault.ErrUnsupported},

		{name: "0.0", archive: pax(append([]string{"GNU.sparse.size", "1000", "GNU.sparse.numblocks", "100"}, kv00...)...) + hdr{name: "s"}.file(d100) + next + end,
			want: []string{runs100, isNext}},
		{name: "0.0, a hole only", archive: pax("GNU.sparse.size", "1000", "GNU.sparse.numblocks", "0") + hdr{name: "s"}.file("") + next + end,
			want: []string{"- s size 1000 map []", isNext}},
		{name: "0.0, two offsets", archive: pax("GNU.sparse.size", "9", "GNU.sparse.offset", "1", "GNU.sparse.offset", "2") + hdr{name: "s"}.file("") + end, err: fault.ErrCorrupt},
		{name: "0.0, half a run", archive: pax("GNU.sparse.size", "9", "GNU.sparse.offset", "1") + hdr{name: "s"}.file("") + end, err: fault.ErrCorrupt},
		{name: "0.0, no offset", archive: pax("GNU.sparse.size", "9", "GNU.sparse.numbytes", "1") + hdr{name: "s"}.file("") + end, err: fault.ErrCorrupt},
		{name: "0.0, negative", archive: pax("GNU.sparse.size", "9", "GNU.sparse.offset", "-1", "GNU.sparse.numbytes", "1") + hdr{name: "s"}.file("x") + end, err: fault.ErrCorrupt},

		{name: "0.1", archive: v01(1000, map01, d100) + next + end, want: []string{runs100, isNext}},
		{name: "0.1, an empty run at the end", archive: v01(9, "2,1,9,0", "a") + next + end, want: []string{`- s size 9 map [{2 1}] "a"`, isNext}},
		{name: "0.1, odd", archive: v01(9, "2,1,9", "a") + end, err: fault.ErrCorrupt},
		{name: "0.1, no number", archive: v01(9, "2,1,", "a") + end, err: fault.ErrCorrupt},
		{name: "0.1, empty", archive: v01(9, "", "") + end, err: fault.ErrCorrupt},
		{name: "0.1, overflow", archive: v01(1<<62, "4611686018427387904,4611686018427387904", "a") + end, err: fault.ErrCorrupt},
		{name: "0.1, size overflow", archive: v01(1<<62+1, "0,1", "a") + end, err: fault.ErrCorrupt},
		{name: "0.1 of a link", archive: pax("GNU.sparse.size", "9", "GNU.sparse.map", "0,1") + hdr{name: "s", typ: '2', link: "x"}.block() + end, err: fault.ErrCorrupt},

		{name: "1.0", archive: v10(1000, body(map10)+d100) + next + end, want: []string{runs100, isNext}},
		{name: "1.0, map of a block exactly", archive: v10(1000, block10+d100[:12]) + next + end,
			want: []string{fmt.Sprintf("- s size 1000 map %v %q", runs[:12], d100[:12]), isNext}},
		{name: "1.0, a number across blocks", archive: v10(1000, body(strings.Replace(map10, "100\n0", "00000100\n0", 1))+d100) + next + end, want: []string{runs100, isNext}},
		{name: "1.0, a hole only", archive: v10(1<<50, body("1\n1125899906842624\n0\n")) + next + end, want: []string{"- s size 1125899906842624 map []", isNext}},
		{name: "1.0, no runs", archive: v10(7, body("0\n")) + next + end, want: []string{"- s size 7 map []", isNext}},
		{name: "1.0, no holes", archive: v10(3, body("1\n0\n3\n")+"abc") + next + end, want: []string{`- s "abc"`, isNext}},
		{name: "1.0, negative count", archive: v10(3, body("-1\n")) + end, err: fault.ErrCorrupt},
		{name: "1.0, no number", archive: v10(3, body("1\nx\n3\n")+"abc") + end, err: fault.ErrCorrupt},
		{name: "1.0, empty line", archive: v10(3, body("1\n\n3\n")+"abc") + end, err: fault.ErrCorrupt},
		{name: "1.0, endless number", archive: v10(3, body("1\n"+strings.Repeat("0", 1000)+"\n3\n")+"abc") + end, err: fault.ErrCorrupt},
		{name: "1.0, too many runs", archive: v10(3, body("4194305\n")) + end, err: fault.ErrUnsupported},
		{name: "1.0, map longer than the entry", archive: v10(3, "9\n0\n3\n") + next + end, err: fault.ErrCorrupt},
		{name: "1.0, no data at all", archive: v10(3, "") + next + end, err: fault.ErrCorrupt},
		{name: "1.0, cut in the map", archive: v10(1000, body(map10)+d100)[:4*blockSize], err: errCut},
		{name: "2.0", archive: pax("GNU.sparse.major", "2", "GNU.sparse.minor", "0") + hdr{name: "s"}.block() + end, err: fault.ErrUnsupported},
		{name: "1.1", archive: pax("GNU.sparse.major", "1", "GNU.sparse.minor", "1") + hdr{name: "s"}.block() + end, err: fault.ErrUnsupported},
	} {
		t.Run(tt.name, tt.run)
	}
}
