package inflate

import (
	"bytes"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
)

// cycle gives head once and then the same bytes times times over.
type cycle struct {
	head, body []byte
	times, off int
}

func (c *cycle) Read(p []byte) (n int, err error) {
	n = copy(p, c.head)
	if c.head = c.head[n:]; n > 0 {
		return n, nil
	}
	for n < len(p) && c.times > 0 {
		k := copy(p[n:], c.body[c.off:])
		n += k
		if c.off += k; c.off == len(c.body) {
			c.off = 0
			c.times--
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// repeatBits repeats a bit string until it ends on a byte's edge, so that it
// can be put behind itself.
func repeatBits(t *testing.T, text string) []byte {
	var w bitWriter
	for {
		for _, s := range bytes.Fields([]byte(text)) {
			if err := w.word(string(s)); err != nil {
				t.Fatal(err)
			}
		}
		if w.n == 0 {
			return w.b
		}
	}
}

// Bombs: input made so that a little of it makes much work. Memory must not
// grow, and neither must the work for each byte of input: the number of
// boundaries and of bytes that come out of it.
func TestBombs(t *testing.T) {
	header := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	zeros := gzipped(t, make([]byte, 1<<20))
	for _, c := range []struct {
		name       string
		head, body []byte
		times      int
		boundaries float64 // for each byte of input, at most
		ratio      float64 // bytes out for each byte of input, at most
	}{
		{"1032 to 1", zeros, zeros, 300, 0.02, 1032},
		{"empty stored blocks", header, []byte{0, 0, 0, 0xff, 0xff}, 1 << 20, 0.2, 0},
		{"empty fixed blocks", header, repeatBits(t, "0:1 1:2 =0000000"), 1 << 18, 0.8, 0},
		{"empty dynamic blocks", header, repeatBits(t, "0:1 2:2 0:5 0:5 14:4 0:3*2 1:3 0:3*14 1:3 =1 127:7 =1 107:7 =0 =0 =0"), 1 << 15, 0.1, 0},
		{"empty members", nil, gzipped(t, nil), 1 << 18, 0.05, 0},
		{"members of a byte", nil, gzipped(t, []byte("a")), 1 << 18, 0.1, 0.05},
		{"trailing zeros", gzipped(t, []byte("a")), make([]byte, 1<<16), 200, 0.01, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := &cycle{head: c.head, body: c.body, times: c.times}
			z := NewReader(src)
			boundaries := 0
			z.OnBoundary(func(Boundary) { boundaries++ })
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			out, err := z.WriteTo(io.Discard)
			runtime.ReadMemStats(&after)
			// Those that never come to a final block end as cut off.
			if _, bad := err.(*Error); err != nil && !bad {
				t.Fatal(err)
			}
			in := float64(z.InputOffset())
			if want := float64(c.times*len(c.body) + len(c.head)); in != want {
				t.Errorf("stopped after %.0f of %.0f bytes: %v", in, want, err)
			}
			if got := float64(boundaries) / in; got > c.boundaries {
				t.Errorf("%.3f boundaries a byte, more than %.3f", got, c.boundaries)
			}
			if got := float64(out) / in; got > c.ratio {
				t.Errorf("%.1f bytes out for one in, more than %.1f", got, c.ratio)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
				t.Errorf("allocated %d bytes", n)
			}
		})
	}
}

// The tables of the worst codes there are: the sizes in huffman.go must do.
func TestLargestTables(t *testing.T) {
	for _, c := range []struct {
		name  string
		entry []uint32
		root  uint
		size  int
	}{
		{"literals", litEntry[:286], litBits, litSize},
		{"distances", distEntry[:30], distBits, distSize},
	} {
		t.Run(c.name, func(t *testing.T) {
			// What takes most room is a code whose long part is spread over as
			// many root prefixes as can be; try all ways to give lengths the
			// number of leaves that halving one after the other allows.
			table := make([]uint32, c.size)
			var sorted [maxLit]uint16
			most := 0
			for short := 1; short <= int(c.root); short++ {
				for long := int(c.root) + 1; long <= maxBits; long++ {
					lens := spread(len(c.entry), uint8(short), uint8(long))
					clear(table)
					if _, ok := buildTable(table, c.root, c.entry, lens, false, &sorted); !ok {
						t.Fatalf("%d, %d: not complete", short, long)
					}
					for i := len(table); i > 0; i-- {
						if table[i-1] != 0 {
							most = max(most, i)
							break
						}
					}
				}
			}
			t.Logf("%d of %d entries", most, c.size)
		})
	}
}

// What a block's tables cost is bounded by what its header costs the attacker,
// so that blocks without data are not much dearer than data, byte for byte.
func TestTableWork(t *testing.T) {
	const limit = 12 // entries for each bit of a header
	var codes [][]uint8
	for n := 2; n <= 286; n++ {
		for short := 1; 1<<short <= n; short++ {
			for long := short + 1; long <= maxBits; long++ {
				codes = append(codes, spread(n, uint8(short), uint8(long)))
			}
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		codes = append(codes, randomLens(r, 286, 2+r.IntN(285)))
	}
	// One code and then zeros.
	codes = append(codes, []uint8{1})
	table := make([]uint32, litSize)
	var sorted [maxLit]uint16
	worst := 0.0
	for _, lens := range codes {
		if len(lens) < 257 {
			lens = append(lens[:len(lens):len(lens)], make([]uint8, 257-len(lens))...)
		}
		lens[0], lens[256] = lens[256], lens[0]
		clear(table)
		root, ok := buildTable(table, litBits, litEntry[:], lens, true, &sorted)
		if !ok {
			t.Fatalf("%v: not complete", lens)
		}
		size := 1 << root
		for i := size; i < len(table); i++ {
			if table[i] != 0 {
				size = i + 1
			}
		}
		var w bitWriter
		w.shortDynamic(false, lens, []uint8{0})
		if got := float64(size) / float64(8*len(w.b)); got > worst {
			worst = got
			if got > limit {
				t.Fatalf("%d entries for %d bytes of header: %v", size, len(w.b), lens)
			}
		}
	}
	t.Logf("at worst %.1f entries for each bit", worst)
}

// spread makes a complete code of at most n symbols: leaves at the length
// short, each split further, down to length long, while there are symbols left.
func spread(n int, short, long uint8) []uint8 {
	lens := make([]uint8, 0, n)
	for range 1 << short {
		lens = append(lens, short)
		if len(lens) == n {
			break
		}
	}
	if len(lens) < 1<<short {
		// Too many: begin with two.
		lens = append(lens[:0], 1, 1)
	}
	for i := 0; i < len(lens); i++ {
		for lens[i] < long && len(lens) < n {
			lens[i]++
			lens = append(lens, lens[i])
			if lens[i] == long {
				break
			}
		}
	}
	return lens
}
