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
