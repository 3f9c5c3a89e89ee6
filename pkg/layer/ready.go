package layer

// ReadReady fills p from off if that is within one span that is in the cache,
// and reports whether it did. It never waits.
func (l *Lazy) ReadReady(p []byte, off int64) bool {
	if off < 0 || off >= l.size || int64(len(p)) > l.size-off {
		return false
	}
	i := l.units.find(off)
	_, _, out, outEnd := l.units.span(i)
	if off+int64(len(p)) > outEnd || l.spillable(i) {
		return false
	}
	b, ok := l.cache.Lookup(l.spanKey(i))
	if !ok || len(p) == 0 || l.whole.err() != nil {
		return false
	}
	copy(p, b[off-out:])
	l.note(off, int64(len(p)))
	return true
}
