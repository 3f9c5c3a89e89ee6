package tarstream

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestParseNumber(t *testing.T) {
	for _, tt := range []struct {
		field string
		want  int64
		err   error
	}{
		{"0000644\x00", 0o644, nil},
		{"0000644 ", 0o644, nil},
		{"00000644", 0o644, nil}, // no terminator: all digits
		{"   644 \x00", 0o644, nil},
		{"\x00\x00\x00\x00\x00\x00\x00\x00", 0, nil},
		{"        ", 0, nil},
		{"\x00 \x00 644\x00", 0o644, nil},
		{"644\x00junk", 0o644, nil}, // what stands behind the terminator is no number
		{"12 34   ", 0o12, nil},
		{"77777777", 0o77777777, nil},
		{"777777777777", 1<<36 - 1, nil},
		{"0000648\x00", 0, fault.ErrCorrupt},
		{"-000644\x00", 0, fault.ErrCorrupt},
		{"0x00644\x00", 0, fault.ErrCorrupt},
		{"abcdefgh", 0, fault.ErrCorrupt},
		{"777777777777777777777777", 0, fault.ErrCorrupt},
		// Base-256.
		{"\x80\x00\x00\x00\x00\x00\x00\x01", 1, nil},
		{"\x80\x00\x00\x00\x80\x00\x00\x00", 1 << 31, nil},
		{"\xff\xff\xff\xff\xff\xff\xff\xff", -1, nil},
		{"\xff\xff\xff\xff\xff\xff\xff\x00", -256, nil},
		{"\xff\xff\xff\xff\x7f\xff\xff\xff", -1<<31 - 1, nil},
		{"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff", math.MaxInt64, nil},
		{"\xff\xff\xff\xff\x80\x00\x00\x00\x00\x00\x00\x00", math.MinInt64, nil},
		{"\x80\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00", 0, fault.ErrCorrupt},
		{"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 0, fault.ErrCorrupt},
		{"\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 0, fault.ErrCorrupt},
		{"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 0, fault.ErrCorrupt},
		{"\xc0\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 0, fault.ErrCorrupt},
	} {
		got, err := parseNumber([]byte(tt.field))
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%q: %d, %v; want %d, %v", tt.field, got, err, tt.want, tt.err)
		}
	}
}

func TestParseTime(t *testing.T) {
	for _, tt := range []struct {
		in   string
		sec  int64
		nsec uint32
		ok   bool
	}{
		{"0", 0, 0, true},
		{"1350244992.023960108", 1350244992, 23960108, true},
		{"1.5", 1, 5e8, true},
		{"1.", 1, 0, true},
		{".5", 0, 5e8, true},
		{"-1", -1, 0, true},
		{"-1.25", -2, 75e7, true},
		{"-1.0", -1, 0, true},
		{"-0.5", -1, 5e8, true},
		{"-.5", -1, 5e8, true},
		{"-0.000000001", -1, 999999999, true},
		{"1.0000000009", 1, 0, true}, // below a nanosecond: cut off, as archive/tar does
		{"-1.0000000009", -1, 0, true},
		{"+5", 5, 0, true},
		{"9223372036854775807.999999999", math.MaxInt64, 999999999, true},
		{"-9223372036854775807.5", math.MinInt64, 5e8, true},
		{"-9223372036854775808", 0, 0, false},
		{"9223372036854775808", 0, 0, false},
		{".", 0, 0, false},
		{"-", 0, 0, false},
		{"-.", 0, 0, false},
		{"1.-5", 0, 0, false},
		{"1e9", 0, 0, false},
		{"1,5", 0, 0, false},
		{" 1", 0, 0, false},
		{"1.5 ", 0, 0, false},
		{"NaN", 0, 0, false},
	} {
		sec, nsec, err := parseTime([]byte(tt.in))
		if sec != tt.sec || nsec != tt.nsec || (err == nil) != tt.ok || err != nil && !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("%q: %d+%dns, %v; want %d+%dns", tt.in, sec, nsec, err, tt.sec, tt.nsec)
		}
	}
}

func TestParseRecords(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // key:value of each
		ok   bool
	}{
		{"", "", true},
		{rec("a", "b"), "a:b ", true},
		{rec("a", "b") + rec("c", "") + rec("a", "d"), "a:b c: a:d ", true},
		{rec("a", "x=y\nz\x00"), "a:x=y\nz\x00 ", true},
		{rec("a", strings.Repeat("x", 90)), "a:" + strings.Repeat("x", 90) + " ", true}, // 99 becomes 101
		{rec("a", "b") + "\x00\x00\x00", "a:b ", true},
		{"\x00\x00\x00", "", true},
		{"6 a=b\n\x00\x00x", "", false},
		{"6 a=b", "", false},
		{"6 a=bc", "", false},
		{"7 a=b\n", "", false},
		{"5 a=b\n", "", false},
		{"5 =b\n", "", false},
		{"5 ab\n", "", false},
		{"2 \n", "", false},
		{"0 a=b\n", "", false},
		{"-6 a=b\n", "", false},
		{"+6 a=b\n", "", false},
		{" 6 a=b\n", "", false},
		{"6\ta=b\n", "", false},
		{"99999999999999999999999 a=b\n", "", false},
		{"18446744073709551622 a=b\n", "", false},
		{"4294967302 a=b\n", "", false},
		{strings.Repeat("5 a=\n", maxRecords), strings.Repeat("a: ", maxRecords), true},
		{strings.Repeat("5 a=\n", maxRecords+1), "", false},
	} {
		recs, err := parseRecords([]byte(tt.in), nil)
		var got strings.Builder
		for _, r := range recs {
			got.WriteString(string(r.key) + ":" + string(r.value) + " ")
		}
		if got.String() != tt.want || (err == nil) != tt.ok || err != nil && !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("%.40q: %.40q, %v", tt.in, got.String(), err)
		}
	}
}

func TestToID(t *testing.T) {
	for _, tt := range []struct {
		n  int64
		ok bool
	}{{0, true}, {65536, true}, {1<<32 - 2, true}, {1<<32 - 1, true}, {1 << 32, false}, {-1, false}, {-2, false}} {
		got, err := toID(tt.n)
		if (err == nil) != tt.ok || err == nil && int64(got) != tt.n || err != nil && !errors.Is(err, fault.ErrUnsupported) {
			t.Errorf("%d: %d, %v", tt.n, got, err)
		}
	}
}

func TestDialect(t *testing.T) {
	xstar := map[int]string{475: "\x00", 476: "00000000001 ", 488: "00000000001 "}
	for _, tt := range []struct {
		h    hdr
		want dialect
	}{
		{hdr{magic: "v7"}, v7},
		{hdr{}, ustar},
		{hdr{magic: "ustar\x00\x00\x00"}, ustar}, // no version, as some old writers have it
		{hdr{magic: "ustar000"}, v7},
		{hdr{magic: magicGNU}, gnu},
		{hdr{raw: map[int]string{508: "tar\x00"}}, star},
		{hdr{raw: xstar}, star},
		{hdr{prefix: strings.Repeat("7", 155)}, ustar}, // digits, but no xstar
	} {
		b := block([]byte(tt.h.block()))
		if got := b.dialect(); got != tt.want {
			t.Errorf("%+v: dialect %d, want %d", tt.h, got, tt.want)
		}
	}
}
