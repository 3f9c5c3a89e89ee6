package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/blockmap"
	"github.com/layerpipe/layerpipe/pkg/disk"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/nbd"
	"github.com/layerpipe/layerpipe/pkg/spancache"
)

// latencyBounds are the upper bounds of the classes that reads are counted in:
// from what comes out of memory to what a registry takes to be given up.
var latencyBounds = [...]time.Duration{
	100 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
}

// latencies count reads by how long they took.
type latencies struct {
	class [len(latencyBounds) + 1]atomic.Int64
	sum   atomic.Int64 // nanoseconds
}

func (l *latencies) add(d time.Duration) {
	i := 0
	for i < len(latencyBounds) && d > latencyBounds[i] {
		i++
	}
	l.class[i].Add(1)
	l.sum.Add(int64(d))
}

// quantile is a bound that a part q of the reads kept, or 0 for one beyond all
// bounds.
func (l *latencies) quantile(q float64) time.Duration {
	var n, sum int64
	for i := range l.class {
		n += l.class[i].Load()
	}
	for i := range latencyBounds {
		if sum += l.class[i].Load(); float64(sum) >= q*float64(n) {
			return latencyBounds[i]
		}
	}
	return 0
}

// measured is a device whose reads are counted by what they took.
type measured struct {
	*disk.Disk
	l *latencies
}

var (
	_ nbd.ReadyDevice  = measured{}
	_ nbd.ExtentDevice = measured{}
	_ blockmap.Ready   = measured{}
)

func (m measured) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	began := time.Now()
	n, err := m.Disk.ReadAtContext(ctx, p, off)
	m.l.add(time.Since(began))
	return n, err
}

// ReadReady takes no time to speak of, least of all that of two looks at the
// clock.
func (m measured) ReadReady(p []byte, off int64) bool {
	ok := m.Disk.ReadReady(p, off)
	if ok {
		m.l.class[0].Add(1)
	}
	return ok
}

// statistics is where the counters of all stages are.
type statistics struct {
	began   time.Time
	server  *nbd.Server
	disk    *disk.Disk
	memory  *spancache.Cache
	caching *caching
	reads   latencies
}

// print prints one line for each stage, from the client to the network.
func (s *statistics) print(env *cli.Env) {
	n := s.server.Stats()
	env.Errorf("served %d connections in %.1f s: %d reads, %s, %d errors", n.Served, time.Since(s.began).Seconds(), n.Reads, cli.Size(n.Bytes), n.Failed)
	if s.disk.Layers() == 0 {
		return
	}
	env.Errorf("latency: half of the reads within %s, 99 of 100 within %s", s.within(0.5), s.within(0.99))
	c := s.memory.Stats()
	env.Errorf("cache: %d hits, %d misses, %d shared, %d evicted, %s held", c.Hits, c.Misses, c.Shared, c.Evicted, cli.Size(c.Bytes))
	if s.caching.store != nil {
		d := s.caching.store.Stats()
		env.Errorf("cache directory: %d hits, %d misses, %s read, %s written, %d writes failed, %d evicted, %d were wrong", d.Hits, d.Misses, cli.Size(d.Read), cli.Size(d.Written), d.Failed, d.Evicted, d.Dropped)
	}
	l := s.disk.Stats()
	env.Errorf("layers: %d fetches, %s decoded, %d retries; of the fetches %d were ahead (%s), %d in idle time (%s)", l.Fetches, cli.Size(l.Decoded), l.Retries,
		l.AheadFetches, cli.Size(l.AheadFetched), l.IdleFetches, cli.Size(l.IdleFetched))
	env.Errorf("network: %d requests, %s fetched for %s delivered%s", s.caching.gets.Load(), cli.Size(l.Fetched), cli.Size(n.Bytes), share(l.Fetched, n.Bytes))
}

// share is how many bytes were fetched for each that was delivered.
func share(fetched, delivered int64) string {
	if delivered == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.2f)", float64(fetched)/float64(delivered))
}

func (s *statistics) within(q float64) string {
	if d := s.reads.quantile(q); d > 0 {
		return d.String()
	}
	return "more than " + latencyBounds[len(latencyBounds)-1].String()
}

// device is the disk as the server is to have it. Reads of a local image are
// not measured: that would be most of what they take.
func (s *statistics) device() nbd.Device {
	if s.disk.Layers() == 0 {
		return s.disk
	}
	return measured{s.disk, &s.reads}
}

// fetchKinds splits the fetches by what they were for.
func fetchKinds(l layer.LazyStats) [3]struct {
	name           string
	fetches, bytes int64
} {
	return [3]struct {
		name           string
		fetches, bytes int64
	}{
		{"read", l.Fetches - l.AheadFetches - l.IdleFetches, l.Fetched - l.AheadFetched - l.IdleFetched},
		{"ahead", l.AheadFetches, l.AheadFetched},
		{"idle", l.IdleFetches, l.IdleFetched},
	}
}

// serve answers those who ask for the counters while the server runs.
func (s *statistics) serve(ctx context.Context, env *cli.Env, addr string) (end func(), err error) {
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if addr != "" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			stop()
			return nil, fmt.Errorf("--metrics: %w", err)
		}
		env.Errorf("metrics at http://%s/metrics", l.Addr())
		wg.Go(func() { serveMetrics(ctx, l, s) })
	}
	onStatsSignal(ctx, func() { s.print(env) })
	return func() {
		stop()
		wg.Wait()
	}, nil
}
