package inflate

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// precodes of the cases below. HCLEN is given as the number of lengths that
// follow; their order is 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1 15.
const (
	// 18 and 1 have one bit: =0 is a length of 1, =1 repeats a zero 11 to 138
	// times.
	preZeroOne = `
		14:4          # HCLEN: 18 lengths
		0:3*2 1:3     # 16, 17: none; 18: 1
		0:3*14        # up to 14: none
		1:3           # 1: 1
	`
	// 0 has one bit (=0), 18 and 1 two (1: =10, 18: =11).
	preZeros = `
		14:4
		0:3*2 2:3     # 18: 2
		1:3           # 0: 1
		0:3*13
		2:3           # 1: 2
	`
	// 0, 1, 2 and 18 have two bits each.
	preTwo = `
		14:4
		0:3*2 2:3     # 18: 2 (=11)
		2:3           # 0: 2 (=00)
		0:3*11
		2:3           # 2: 2 (=10)
		0:3
		2:3           # 1: 2 (=01)
	`
)

// cases are streams that are at the edge of the format, or over it: the ground
// that zlib's infcover and puff's tests cover, spelled out bit by bit.
var cases = []struct {
	name, text string
	err        string // what the error says, or the stream is good
	out        int    // bytes that come out
}{
	{"no input", ``, "unexpected end", 0},
	{"block type 3", `1:1 3:2`, "invalid block type", 0},
	{"no final block", `0:1 1:2 =0000000`, "unexpected end", 0},

	{"stored: empty", `1:1 0:2 | x0000ffff`, "", 0},
	{"stored: one byte", `1:1 0:2 | x0100feff x2a`, "", 1},
	{"stored: three blocks", `0:1 0:2 | x0000ffff 0:1 0:2 | x0100feff x61 1:1 0:2 | x0000ffff`, "", 1},
	{"stored: bits before it are ignored", `1:1 0:2 31:5 x0000ffff`, "", 0},
	{"stored: length without its complement", `1:1 0:2 | x0000fffe`, "complement", 0},
	{"stored: length cut off", `1:1 0:2 | x0000ff`, "unexpected end", 0},
	{"stored: data cut off", `1:1 0:2 | x0300fcff x0102`, "unexpected end", 2},

	{"fixed: empty", `1:1 1:2 =0000000`, "", 0},
	{"fixed: cut off", `1:1 1:2 =00110000 =00110000`, "unexpected end", 2},
	{"fixed: end of block cut off", `1:1 1:2 =00110000 =00110000 =00110000 =00110000 =00110000`, "unexpected end", 5},
	{"fixed: length 258", `1:1 1:2
		=00110000             # literal 0
		=11000101 =00000      # 258 times, distance 1
		=0000000`, "", 259},
	{"fixed: 258 the long way", `1:1 1:2
		=00110000
		=11000100 31:5 =00000 # 227 and 31
		=0000000`, "", 259},
	{"fixed: symbol 286", `1:1 1:2 =11000110 0:32`, "invalid literal or length code", 0},
	{"fixed: symbol 287", `1:1 1:2 =11000111 0:32`, "invalid literal or length code", 0},
	{"fixed: distance symbol 30", `1:1 1:2 =00110000 =0000001 =11110 =0000000`, "invalid distance code", 1},
	{"fixed: distance symbol 31", `1:1 1:2 =00110000 =0000001 =11111 =0000000`, "invalid distance code", 1},
	{"fixed: too far, nothing there", `1:1 1:2 =0000001 =00000 =0000000`, "before the start", 0},
	{"fixed: too far by one", `1:1 1:2 =00110000 =0000001 =00001 =0000000`, "before the start", 1},
	{"fixed: just far enough", `1:1 1:2 =00110000 =00110000 =0000001 =00001 =0000000`, "", 5},
	{"fixed: too far by 32767", `1:1 1:2 =00110000 =0000001 =11101 8191:13 =0000000`, "before the start", 1},

	{"dynamic: 287 literals", `1:1 2:2 30:5 0:5 0:4 0:32`, "too many", 0},
	{"dynamic: 31 distances", `1:1 2:2 0:5 30:5 0:4 0:32`, "too many", 0},
	{"dynamic: header cut off", `1:1 2:2 0:5`, "unexpected end", 0},
	{"dynamic: no precode", `1:1 2:2 0:5 0:5 0:4 0:3*4 0:64`, "code lengths", 0},
	{"dynamic: precode over-subscribed", `1:1 2:2 0:5 0:5 0:4 1:3*3 0:3 0:64`, "code lengths", 0},
	{"dynamic: precode incomplete", `1:1 2:2 0:5 0:5 0:4 2:3*3 0:3 0:64`, "code lengths", 0},
	{"dynamic: precode of one code", `1:1 2:2 0:5 0:5 0:4 0:3*3 1:3 0:1*300`, "code lengths", 0},
	{"dynamic: repeat of nothing", `1:1 2:2 0:5 0:5 0:4 1:3 0:3*2 1:3
		=1 0:2 0:64`, "without a length", 0},
	{"dynamic: repeat past the end", `1:1 2:2 0:5 0:5` + preZeroOne + `
		=1 127:7 =1 127:7     # 276 of 258
		0:64`, "past the end", 0},
	{"dynamic: no end of block", `1:1 2:2 0:5 0:5` + preZeroOne + `
		=0 =0                 # literals 0 and 1
		=1 127:7 =1 106:7     # 138 and 117 zeros: 257
		=0                    # a distance
		0:64`, "end of the block", 0},
	{"dynamic: end of block only", `1:1 2:2 0:5 0:5` + preZeroOne + `
		=1 127:7 =1 107:7     # 256 zeros
		=0                    # 256: 1
		=0                    # distance 0: 1
		=0                    # end`, "", 0},
	{"dynamic: the unused half of the one code", `1:1 2:2 0:5 0:5` + preZeroOne + `
		=1 127:7 =1 107:7 =0 =0
		=1 0:64`, "invalid literal or length code", 0},
	{"dynamic: no distances", `1:1 2:2 0:5 0:5` + preZeros + `
		=10                   # literal 0: 1
		=11 127:7 =11 106:7   # 255 zeros
		=10                   # 256: 1
		=0                    # no distance
		=0 =0 =0 =1`, "", 3},
	{"dynamic: a match, but no distances", `1:1 2:2 1:5 0:5` + preZeros + `
		=11 127:7 =11 107:7   # 256 zeros
		=10 =10               # 256, 257: 1
		=0                    # no distance
		=1 0:64`, "invalid distance code", 0},
	{"dynamic: the one distance", `1:1 2:2 1:5 0:5` + preTwo + `
		=01                   # literal 0: 1
		=11 127:7 =11 106:7   # 255 zeros
		=10 =10               # 256, 257: 2
		=01                   # distance 0: 1
		=0 =11 =0             # literal, 3 from 1 before
		=10`, "", 4},
	{"dynamic: the other half of the one distance", `1:1 2:2 1:5 0:5` + preTwo + `
		=01 =11 127:7 =11 106:7 =10 =10 =01
		=0 =11 =1
		=10 0:64`, "invalid distance code", 1},
	{"dynamic: literals over-subscribed", `1:1 2:2 0:5 0:5` + preZeroOne + `
		=0 =0                 # literals 0 and 1: 1
		=1 127:7 =1 105:7     # up to 255
		=0 =0 0:64`, "invalid literal and length code", 0},
	{"dynamic: literals incomplete", `1:1 2:2 0:5 0:5` + preTwo + `
		=10                   # literal 0: 2
		=11 127:7 =11 106:7
		=10 =01 0:64`, "invalid literal and length code", 0},
	{"dynamic: distances over-subscribed", `1:1 2:2 0:5 2:5` + preZeroOne + `
		=1 127:7 =1 107:7 =0 =0 =0 =0 0:64`, "invalid distance code", 0},
	{"dynamic: distances incomplete", `1:1 2:2 0:5 0:5` + preTwo + `
		=01 =11 127:7 =11 106:7 =01
		=10                   # distance 0: 2
		0:64`, "invalid distance code", 0},
}

func TestCases(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := assemble(t, c.text)
			want, wantErr := io.ReadAll(flate.NewReader(bytes.NewReader(in)))
			got, err := readRaw(in)
			switch {
			case (err == nil) != (wantErr == nil):
				t.Fatalf("%x: %v, compress/flate: %v", in, err, wantErr)
			case err == nil && !bytes.Equal(got, want):
				t.Fatalf("%x: %x, compress/flate: %x", in, got, want)
			case (err == nil) != (c.err == ""):
				t.Fatalf("%x: %v, want %q", in, err, c.err)
			case err != nil && !strings.Contains(err.Error(), c.err):
				t.Fatalf("%x: %v, want %q", in, err, c.err)
			case err != nil && !errors.Is(err, fault.ErrCorrupt):
				t.Fatalf("%x: %v is no ErrCorrupt", in, err)
			case len(got) != c.out:
				t.Fatalf("%x: %d bytes, want %d", in, len(got), c.out)
			}
			if strings.Contains(c.err, "unexpected end") {
				return
			}
			// The last bytes of the input are plainLoop's. With more behind them,
			// those are the inner loops' to judge.
			more := append(in, noise(500, 1)...)
			if got, err := readRaw(more); len(got) != c.out || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("%x, with more behind: %d bytes, %v; want %d, %q", in, len(got), err, c.out, c.err)
			}
			checkFlate(t, more)
		})
	}
}
