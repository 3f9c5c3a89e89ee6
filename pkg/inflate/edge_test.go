package inflate

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// The inner loops count on how many bits a round can take at most. Here codes
// are as long as can be without a subtable: 11 bits for literals, 8 for
// distances with 13 extra ones; those of lengths have up to 15 and 5. Every sum
// of them up to a refill occurs.
func TestBitBudget(t *testing.T) {
	lit := make([]uint8, 285)
	for s := range 131 {
		lit[s] = uint8(min(s+1, litBits))
		if s >= 4 {
			lit[s] = litBits
		}
	}
	lit[256], lit[281], lit[282], lit[283], lit[284] = 12, 13, 14, 15, 15
	dist := make([]uint8, 30)
	for s := range dist[:18] {
		dist[s] = uint8(s + 1)
		if s >= 4 {
			dist[s] = distBits
		}
	}
	dist[28], dist[29] = distBits, distBits
	litCodes, distCodes := canonical(lit), canonical(dist)

	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 3))
		g := &blockMaker{script: []byte{0x9c, 0x40, byte(seed)}}
		g.stored(false)
		g.w.dynamic(true, lit, dist)
		for range 5000 {
			for range r.IntN(4) {
				s := 4 + r.IntN(127)
				if r.IntN(4) == 0 {
					s = r.IntN(4)
				}
				g.w.code(litCodes[s], lit[s])
				g.out = append(g.out, byte(s))
			}
			m := token{sym: 281 + r.IntN(4), dist: 28 + r.IntN(2), symExtra: r.Uint64N(32)}
			if r.IntN(4) == 0 {
				m.dist = r.IntN(18)
			}
			width := distEntry[m.dist] & 0xff
			m.distExtra = r.Uint64N(1 << width)
			g.w.code(litCodes[m.sym], lit[m.sym])
			g.w.put(m.symExtra, 5)
			g.w.code(distCodes[m.dist], dist[m.dist])
			g.w.put(m.distExtra, uint(width))
			for range int(litEntry[m.sym]>>16) + int(m.symExtra) {
				g.out = append(g.out, g.out[len(g.out)-distance(m)])
			}
		}
		g.w.code(litCodes[256], lit[256])
		if got, err := readRaw(g.w.b); err != nil || !bytes.Equal(got, g.out) {
			t.Fatalf("%d bytes, %v; want %d; or they differ", len(got), err, len(g.out))
		}
		checkFlate(t, g.w.b)
	}
}

// farMatch writes a block of 3 bytes from 32 KiB back.
func (w *bitWriter) farMatch(t *testing.T, final bool) {
	w.put(uint64(b2u(final)), 1)
	w.put(1, 2)
	for _, word := range []string{"=0000001", "=11101", "8191:13", "=0000000"} {
		if err := w.word(word); err != nil {
			t.Fatal(err)
		}
	}
}

// A trace ends no earlier than with the last byte that can refer to its window.
func TestTraceEnd(t *testing.T) {
	g := &blockMaker{script: []byte{0x9c, 0x40, 1, 0x7f, 0xfd, 2}}
	g.stored(false) // 40000 bytes: the traced window
	g.stored(false) // 32765: three less than it reaches
	g.w.farMatch(t, false)
	g.w.farMatch(t, true)
	checkFlate(t, g.w.b)
}

// No match reaches into the member before, also when the output buffer has been
// moved on since the member's start.
func TestMemberFloor(t *testing.T) {
	first := gzipped(t, noise(outSize-1000, 1))
	for _, c := range []struct {
		size int // of the second member, before the match
		ok   bool
	}{{WindowSize - 1, false}, {WindowSize, true}, {WindowSize + 1, true}, {2000, false}} {
		g := &blockMaker{script: []byte{byte(c.size >> 8), byte(c.size), 3}}
		g.w.bytes(0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255)
		g.stored(false)
		g.w.farMatch(t, false)
		g.script = []byte{1, 0, 4}
		g.stored(true) // so that the match is not among the last bytes
		for slower := range 3 {
			z := NewReader(io.MultiReader(bytes.NewReader(first), bytes.NewReader(g.w.b)))
			z.slower = slower
			_, err := io.ReadAll(z)
			// There is no trailer.
			want := "unexpected end"
			if !c.ok {
				want = "before the start"
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("a match after %d bytes, loop %d: %v", c.size, slower, err)
			}
		}
	}
}
