package inflate

// A Trace notes which bytes of a window the output after it is copied from.
// Usually those are a tenth of it; a window with the others zeroed does as
// well for resuming, and compresses to a sixth.
type Trace struct {
	used [WindowSize / 64]uint64
}

// StartTrace makes z note in t, which it clears, what the output behind the
// boundary at hand takes from the window before it. It ends by itself with the
// member or 32 KiB on, beyond which no match reaches back that far. It may only
// be called by the boundary hook, and ends the one before it.
func (z *Reader) StartTrace(t *Trace) {
	*t = Trace{}
	z.trace = t
	z.tpos = z.op
	z.tend = z.op + WindowSize
}

// Apply zeroes the bytes of a window that were not used, and reports whether
// any was.
func (t *Trace) Apply(window []byte) bool {
	any := false
	for i, w := range t.used {
		switch w {
		case 0:
			clear(window[64*i : 64*i+64])
			continue
		case 1<<64 - 1:
		default:
			for j := range 64 {
				if w>>j&1 == 0 {
					window[64*i+j] = 0
				}
			}
		}
		any = true
	}
	return any
}

// mark notes that n bytes from position src of out on are used, so far as they
// are in the window that ends at tpos.
func (z *Reader) mark(src, n int) {
	first := src - (z.tpos - WindowSize)
	last := min(first+n, WindowSize)
	for i := max(first, 0); i < last; i++ {
		z.trace.used[i>>6] |= 1 << (i & 63)
	}
}

// tracedLoop does what loop does, up to the end of the trace, one plain step
// at a time: 32 KiB in a span of 4 MiB do not need to be fast. It is the one of
// the loops that can be read as the specification, RFC 1951 section 3.2.3.
func (z *Reader) tracedLoop() result {
	lim := min(z.olim, z.tend)
	for z.op < lim && z.ip <= z.ilim {
		z.refill()
		e := z.lit[z.b&(1<<litBits-1)]
		if e&entSubtable != 0 {
			z.drop(litBits)
			e = z.lit[uint64(e>>16)+z.b&(1<<(e>>8&15)-1)]
		}
		switch {
		case e&entLiteral != 0:
			z.drop(uint(e & 0xff))
			z.out[z.op] = byte(e >> 16)
			z.op++
			continue
		case e&entEnd != 0:
			z.drop(uint(e & 0xff))
			return resEnd
		case e&entExceptional != 0:
			return resSymbol
		}
		n := z.value(e)
		// 20 of 56 bits may be gone, and 28 may be needed.
		e = z.dist[z.b&(1<<distBits-1)]
		if e&entSubtable != 0 {
			z.drop(distBits)
			e = z.dist[uint64(e>>16)+z.b&(1<<(e>>8&15)-1)]
		}
		if e&entExceptional != 0 {
			return resDist
		}
		src := z.op - z.value(e)
		if src < z.floor {
			return resTooFar
		}
		z.mark(src, n)
		for range n {
			z.out[z.op] = z.out[src]
			z.op++
			src++
		}
	}
	return resLimit
}

// value uses up an entry's code and extra bits, and adds those to its base.
func (z *Reader) value(e uint32) int {
	total, code := e&0xff, e>>8&15
	v := int(e>>16) + int(z.b&(1<<total-1)>>code)
	z.drop(uint(total))
	return v
}
