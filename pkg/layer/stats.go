package layer

import "sync/atomic"

// LazyStats counts what was read of a blob, and what was made of it.
type LazyStats struct {
	Fetches int64 // reads of the blob
	Fetched int64 // bytes of those
	// Of these, reads and bytes that nobody waited for when they began: ahead
	// of a sequence of reads or by a recorded list, and in idle time.
	AheadFetches, AheadFetched int64
	IdleFetches, IdleFetched   int64

	Loads   int64 // parts that came from the store
	Loaded  int64 // bytes of those
	Decoded int64 // bytes made of all that
	Retries int64 // fetches because bytes did not match or did not decode
}

// Add adds another layer's counters.
func (s *LazyStats) Add(t LazyStats) {
	s.Fetches += t.Fetches
	s.Fetched += t.Fetched
	s.AheadFetches += t.AheadFetches
	s.AheadFetched += t.AheadFetched
	s.IdleFetches += t.IdleFetches
	s.IdleFetched += t.IdleFetched
	s.Loads += t.Loads
	s.Loaded += t.Loaded
	s.Decoded += t.Decoded
	s.Retries += t.Retries
}

type lazyStats struct {
	fetches, fetched                [urgencies]atomic.Int64
	loads, loaded, decoded, retries atomic.Int64
}

// Stats returns the counters.
func (l *Lazy) Stats() (s LazyStats) {
	for u := range urgencies {
		s.Fetches += l.stats.fetches[u].Load()
		s.Fetched += l.stats.fetched[u].Load()
	}
	s.AheadFetches, s.AheadFetched = l.stats.fetches[soon].Load(), l.stats.fetched[soon].Load()
	s.IdleFetches, s.IdleFetched = l.stats.fetches[idle].Load(), l.stats.fetched[idle].Load()
	s.Loads, s.Loaded = l.stats.loads.Load(), l.stats.loaded.Load()
	s.Decoded, s.Retries = l.stats.decoded.Load(), l.stats.retries.Load()
	return s
}
