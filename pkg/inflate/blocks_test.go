package inflate

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// FuzzBlocks makes valid streams, where FuzzRaw mostly finds new ways to be
// invalid: a script of bytes chooses blocks of every type, codes of every shape,
// and matches at the edges of lengths and distances. What must come out is known
// without any decoder.
func FuzzBlocks(f *testing.F) {
	for _, script := range blockScripts {
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) { checkBlocks(t, script) })
}

var blockScripts = [][]byte{
	nil,
	{0, 255, 255, 1},                       // a long stored block
	{1, 20, 3, 200, 1, 9, 100, 255},        // literals, matches
	{2, 0, 60, 7, 4, 20, 8, 250, 3, 255},   // a flat code
	{3, 0, 90, 1, 4, 1, 30, 200, 255, 255}, // a ladder
	{0, 255, 255, 1, 6, 7, 30, 10, 4, 250, 9, 251, 12, 252, 255, 1, 5, 6, 255, 3, 3, 2, 255},
	{0, 255, 255, 1, 1, 127, 29, 5, 255, 2, 127, 29, 5, 128, 29, 5, 255}, // 258 bytes from 32 KiB back
	bytes.Repeat([]byte{4}, 40), // empty blocks
}

func TestBlocks(t *testing.T) {
	longest, farthest := 0, 0
	for seed := range uint64(30) {
		g := checkBlocks(t, noise(20+int(seed)*25, seed))
		longest, farthest = max(longest, len(g.out)), max(farthest, g.farthest)
	}
	if longest < outEnd || farthest < WindowSize {
		t.Errorf("at most %d bytes, from %d back: the generator does not get far", longest, farthest)
	}
}

func checkBlocks(t *testing.T, script []byte) *blockMaker {
	t.Helper()
	g := &blockMaker{script: script}
	in, want := g.make()
	if got, err := readRaw(in); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v; want %d; or they differ", len(got), err, len(want))
	}
	checkFlate(t, in)
	return g
}

// A blockMaker turns a script into a stream and what it decodes to.
type blockMaker struct {
	script []byte
	w      bitWriter
	out    []byte

	farthest int // that a match has gone back
}

// next is the script's next byte, or 0 behind its end.
func (g *blockMaker) next() int {
	if len(g.script) == 0 {
		return 0
	}
	c := g.script[0]
	g.script = g.script[1:]
	return int(c)
}

// maxMade bounds what a script can ask for: enough to move the output buffer on
// several times.
const maxMade = 1 << 20

func (g *blockMaker) make() (in, out []byte) {
	for last := false; !last; {
		kind := g.next()
		last = len(g.script) == 0 || len(g.out) >= maxMade || len(g.w.b) > 4*maxMade
		switch kind % 5 {
		case 0:
			g.stored(last)
		case 4:
			g.block(last, nil, kind)
		default:
			g.block(last, g.tokens(), kind)
		}
	}
	return g.w.b, g.out
}

func (g *blockMaker) stored(last bool) {
	p := noise(g.next()<<8|g.next(), uint64(g.next()))
	g.w.put(uint64(b2u(last)), 3)
	n := len(p)
	g.w.bytes(byte(n), byte(n>>8), ^byte(n), ^byte(n>>8))
	g.w.bytes(p...)
	g.out = append(g.out, p...)
}

// A token is a symbol of the literal and length code, and if that is a length a
// distance: symbols and extra bits.
type token struct {
	sym, dist           int
	symExtra, distExtra uint64
}

// tokens reads a block's contents, up to the byte 255, and appends what they
// stand for to the output.
func (g *blockMaker) tokens() (list []token) {
	for c := g.next(); c != 255 && len(g.out) < maxMade && len(g.script) > 0; c = g.next() {
		if c < 100 || len(g.out) == 0 { // literals
			for _, b := range noise(1+c%50, uint64(c)) {
				if c&1 == 0 {
					b = 'a' + b&3
				}
				list = append(list, token{sym: int(b)})
				g.out = append(g.out, b)
			}
			continue
		}
		// One match, or many of them.
		m := token{sym: 257 + (c-100)%29, dist: g.next() % 30}
		times := 1
		if c >= 240 {
			times = 1 + g.next()
		}
		// Extra bits: none, all, or some.
		edge := g.next()
		m.symExtra, m.distExtra = edgeBits(edge&3, litEntry[m.sym]&0xff), edgeBits(edge>>2&3, distEntry[m.dist]&0xff)
		for range times {
			d := m
			// As far back as there is output, and no further.
			for distance(d) > len(g.out) {
				if d.distExtra > 0 {
					d.distExtra /= 2
				} else {
					d.dist--
				}
			}
			list = append(list, d)
			g.farthest = max(g.farthest, distance(d))
			n := int(litEntry[d.sym]>>16) + int(d.symExtra)
			for range n {
				g.out = append(g.out, g.out[len(g.out)-distance(d)])
			}
		}
	}
	return list
}

func distance(m token) int { return int(distEntry[m.dist]>>16) + int(m.distExtra) }

func edgeBits(which int, width uint32) uint64 {
	all := uint64(1)<<width - 1
	return []uint64{0, all, all / 2, all & 0x5555}[which]
}

// block writes tokens with the fixed code, or one that is made for them.
func (g *blockMaker) block(last bool, list []token, kind int) {
	var lit, dist []uint8
	if kind%5 == 1 {
		lit, dist = make([]uint8, maxLit), make([]uint8, maxDist)
		for s := range lit {
			lit[s] = 8 + uint8(b2u(s >= 144 && s < 256)) - uint8(b2u(s >= 256 && s < 280))
		}
		for s := range dist {
			dist[s] = 5
		}
		g.w.put(uint64(b2u(last)), 1)
		g.w.put(1, 2)
	} else {
		lit, dist = make([]uint8, 286), make([]uint8, 30)
		for _, m := range list {
			if lit[m.sym] = 1; m.sym > 256 {
				dist[m.dist] = 1
			}
		}
		lit[256] = 1
		r := rand.New(rand.NewPCG(uint64(kind), uint64(g.next())))
		lit, dist = g.shape(r, lit, 257), g.shape(r, dist, 1)
		if kind&8 == 0 {
			g.w.dynamic(last, lit, dist)
		} else {
			g.w.shortDynamic(last, lit, dist)
		}
	}
	litCodes, distCodes := canonical(lit), canonical(dist)
	for _, m := range list {
		g.w.code(litCodes[m.sym], lit[m.sym])
		if m.sym > 256 {
			g.w.put(m.symExtra, uint(litEntry[m.sym]&0xff))
			g.w.code(distCodes[m.dist], dist[m.dist])
			g.w.put(m.distExtra, uint(distEntry[m.dist]&0xff))
		}
	}
	g.w.code(litCodes[256], lit[256])
}

// shape gives the symbols that are used, and some that are not, lengths that
// make a complete code: a flat one, one as deep as can be, or any. Those behind
// the last used one, but for the first least, are left out.
func (g *blockMaker) shape(r *rand.Rand, used []uint8, least int) []uint8 {
	var syms []int
	more := r.IntN(4)
	for s := range used {
		if used[s] != 0 || more > 0 && r.IntN(1<<(2*more)) == 0 {
			syms = append(syms, s)
		}
	}
	// The only codes that may be incomplete: none, and one of a bit.
	if len(syms) == 1 && least > 1 {
		syms = append(syms, (syms[0]+1)%256)
	}
	leaves := []uint8{1}
	if len(syms) > 1 {
		leaves = []uint8{1, 1}
	}
	how := r.IntN(3)
	for len(leaves) < len(syms) {
		best := -1
		for i, l := range leaves {
			switch {
			case l == maxBits:
			case best < 0, how == 0 && l < leaves[best], how == 1 && l > leaves[best], how == 2 && r.IntN(i+1) == 0:
				best = i
			}
		}
		leaves[best]++
		leaves = append(leaves, leaves[best])
	}
	r.Shuffle(len(leaves), func(i, j int) { leaves[i], leaves[j] = leaves[j], leaves[i] })
	lens := make([]uint8, len(used))
	end := least
	for i, s := range syms {
		lens[s] = leaves[i]
		end = max(end, s+1)
	}
	return lens[:end]
}
