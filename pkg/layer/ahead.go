package layer

import (
	"context"
	"sync"
	"time"

	"github.com/layerpipe/layerpipe/pkg/spancache"
)

// Reading ahead pays where reads go on from where the last ones ended, and for
// long enough: before minRun bytes in a row a sequence gets nothing that it did
// not ask for, since most that is read of an image is a few files here and
// there; of a hundred packages of Go's library, one is longer. From then on the
// window grows with the sequence.
const (
	minRun    = 6 << 20
	maxWindow = 32 << 20
	// Who has read bulkRun bytes in a row reads everything, for all we know: for
	// a while bulkMinRun is enough for another sequence, in any layer.
	bulkRun    = 32 << 20
	bulkMinRun = 1 << 20
	bulkTime   = 5 * time.Second
	// slack is how far a read may be from where it was expected: the kernel's
	// reads overtake each other, and between files are headers and files that
	// nobody reads.
	slack        = 1 << 20
	maxSequences = 16
	// aheadFetch is the most that is fetched at once, of the blob, and
	// maxAhead how many such fetches there are at a time.
	aheadFetch = 4 << 20
	maxAhead   = 8
)

// A sequence is reads that go on from each other.
type sequence struct {
	next    int64  // where the next read is expected
	run     int64  // bytes that were read
	skipped int64  // bytes between them that were not
	ahead   int64  // up to where was read ahead
	limit   int64  // of the window, in bytes
	used    uint64 // when it was last used
}

// sequences are a layer's.
type sequences struct {
	mu     sync.Mutex
	list   []sequence
	clock  uint64
	flying int // fetches ahead
	closed bool
	jobs   sync.WaitGroup
}

// note hears of each read that somebody waits for.
func (l *Lazy) note(off, n int64) {
	if l.opt.OnUse != nil {
		l.noteUse(off, n)
	}
	if l.window <= 0 {
		return
	}
	l.sequences.mu.Lock()
	defer l.sequences.mu.Unlock()
	s := l.sequences.find(off, n, l.window)
	if s.skipped <= s.run/4 && (s.run >= minRun || s.run >= bulkMinRun && l.opt.Gate.bulk()) {
		l.readAhead(s, off)
	}
}

// find returns the sequence that a read belongs to, with the read.
func (t *sequences) find(off, n, limit int64) *sequence {
	t.clock++
	var s *sequence
	oldest := 0
	for i := range t.list {
		c := &t.list[i]
		if d := off - c.next; -slack <= d && d <= slack && (s == nil || max(d, -d) < max(off-s.next, s.next-off)) {
			s = c
		}
		if c.used < t.list[oldest].used {
			oldest = i
		}
	}
	if s == nil {
		if len(t.list) < maxSequences {
			oldest = len(t.list)
			t.list = append(t.list, sequence{})
		}
		s = &t.list[oldest]
		*s = sequence{next: off + n, run: n, limit: limit, used: t.clock}
		return s
	}
	s.used = t.clock
	if off >= s.next {
		s.skipped += off - s.next
		s.run += n
	} else {
		late := min(n, s.skipped) // one that was overtaken
		s.skipped -= late
		s.run += late + max(0, off+n-s.next)
	}
	s.next = max(s.next, off+n)
	if s.skipped > s.run {
		s.run, s.skipped = n, 0
	}
	return s
}

// readAhead fetches what s will need. The lock is held.
func (l *Lazy) readAhead(s *sequence, off int64) {
	if off < s.ahead && !l.cache.Contains(l.spanKey(l.units.find(off))) {
		// It was fetched and had to go before it was used.
		s.limit = max(s.limit/2, 1)
		s.ahead = 0
	}
	if s.run >= bulkRun {
		l.opt.Gate.setBulk()
	}
	if s.next >= l.size {
		return
	}
	window := min(max(s.run, minRun)/2, s.limit)
	if s.ahead < s.next {
		// The unit that is being read is fetched already.
		_, _, _, s.ahead = l.units.span(l.units.find(s.next - 1))
	}
	// Little by little, so that something is always on its way: what is asked
	// for at once arrives at once, and is read in less time than the next takes
	// to come.
	if s.ahead-s.next > window/4*3 {
		return
	}
	for want := min(s.next+window, l.size); s.ahead < want && l.sequences.flying < maxAhead && !l.sequences.closed; {
		first := l.units.find(s.ahead)
		n, end := l.batch(first, want)
		if n == 0 {
			return
		}
		s.ahead = end
		l.sequences.flying++
		l.sequences.jobs.Go(func() {
			l.prefetch(l.ctx, soon, first, n) // whoever needs it sees the error
			l.sequences.mu.Lock()
			defer l.sequences.mu.Unlock()
			l.sequences.flying--
		})
	}
}

// batch is how many units from first on, up to the layer's offset want, are to
// be fetched at once, and where they end: none if the first one is too large
// for memory.
func (l *Lazy) batch(first int, want int64) (n int, end int64) {
	in, _, out, _ := l.units.span(first)
	for i, count := first, l.units.count(); i < count && !l.spillable(i); i++ {
		_, inEnd, unit, e := l.units.span(i)
		if n > 0 && (inEnd-in > aheadFetch || e-out > maxBatch || unit >= want) {
			break
		}
		n, end = n+1, e
	}
	return n, end
}

// prefetch puts units into the cache that are not there.
func (l *Lazy) prefetch(ctx context.Context, u urgency, first, n int) error {
	keys := make([]spancache.Key, n)
	for i := range keys {
		keys[i] = l.spanKey(first + i)
	}
	return l.cache.Prefetch(ctx, keys, func(ctx context.Context, missing []int, urgent <-chan struct{}, put func(int, []byte, error)) {
		l.fill(ctx, demand{u, urgent}, first, missing, put)
	})
}

// noteUse tells of units that are used for the first time.
func (l *Lazy) noteUse(off, n int64) {
	for i, last := l.units.find(off), l.units.find(off+n-1); i <= last; i++ {
		bit := uint64(1) << (i % 64)
		if word := &l.used[i/64]; word.Load()&bit == 0 && word.Or(bit)&bit == 0 {
			_, _, out, end := l.units.span(i)
			l.opt.OnUse(out, end-out)
		}
	}
}
