package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Metrics are served by hand rather than by net/http, which only pkg/registry
// uses: one page needs no more than this, and what a client can make of it is
// easy to see.
const (
	metricsClients = 8                // at the same time
	metricsTime    = 10 * time.Second // for one request and its answer
	metricsRequest = 8 << 10          // bytes of a request at most
)

// serveMetrics answers until ctx is done.
func serveMetrics(ctx context.Context, l net.Listener, s *statistics) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, metricsClients)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			select { // out of descriptors, most likely
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
				return
			}
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			conn.SetDeadline(time.Now().Add(metricsTime))
			answerMetrics(conn, s)
		})
	}
}

// answerMetrics answers one request (RFC 9112).
func answerMetrics(conn io.ReadWriter, s *statistics) {
	r := bufio.NewReader(io.LimitReader(conn, metricsRequest))
	request, err := r.ReadString('\n')
	if err != nil {
		return
	}
	for line := request; strings.TrimRight(line, "\r\n") != ""; {
		if line, err = r.ReadString('\n'); err != nil {
			return
		}
	}
	method, rest, _ := strings.Cut(strings.TrimRight(request, "\r\n"), " ")
	target, version, _ := strings.Cut(rest, " ")
	path, _, _ := strings.Cut(target, "?")
	status, body := "200 OK", ""
	switch {
	case !strings.HasPrefix(version, "HTTP/1."):
		status = "400 Bad Request"
	case path != "/metrics":
		status = "404 Not Found"
	case method != "GET" && method != "HEAD":
		status = "405 Method Not Allowed\r\nAllow: GET, HEAD"
	default:
		var b strings.Builder
		s.prometheus(&b)
		body = b.String()
	}
	fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", status, len(body))
	if method != "HEAD" {
		io.WriteString(conn, body)
	}
}

// prometheus writes all counters in Prometheus's text format, version 0.0.4.
func (s *statistics) prometheus(w io.Writer) {
	metric := func(name, kind, help string, value int64) {
		fmt.Fprintf(w, "# HELP layerpipe_%s %s\n# TYPE layerpipe_%s %s\nlayerpipe_%s %d\n", name, help, name, kind, name, value)
	}
	n := s.server.Stats()
	metric("connections", "gauge", "NBD clients that are connected.", n.Conns)
	metric("reads_total", "counter", "Reads answered with data.", n.Reads)
	metric("read_bytes_total", "counter", "Bytes in those answers.", n.Bytes)
	metric("read_errors_total", "counter", "Reads that failed.", n.Failed)
	if s.disk.Layers() == 0 {
		return
	}
	s.histogram(w)
	c := s.memory.Stats()
	metric("cache_hits_total", "counter", "Spans that were in memory.", c.Hits)
	metric("cache_misses_total", "counter", "Spans that were not.", c.Misses)
	metric("cache_shared_total", "counter", "Spans that somebody was making already.", c.Shared)
	metric("cache_evicted_total", "counter", "Spans that had to go.", c.Evicted)
	metric("cache_bytes", "gauge", "Bytes of memory that hold spans.", c.Bytes)
	if s.caching.store != nil {
		d := s.caching.store.Stats()
		metric("store_hits_total", "counter", "Parts of blobs that were in the cache directory.", d.Hits)
		metric("store_misses_total", "counter", "Parts that were not.", d.Misses)
		metric("store_read_bytes_total", "counter", "Bytes read from the cache directory.", d.Read)
		metric("store_written_bytes_total", "counter", "Bytes written to it.", d.Written)
		metric("store_failed_total", "counter", "Writes to it that failed.", d.Failed)
		metric("store_evicted_total", "counter", "Files that had to go.", d.Evicted)
		metric("store_wrong_total", "counter", "Files that were not what they should be.", d.Dropped)
		metric("store_bytes", "gauge", "Bytes in it, of all processes, when last counted.", d.Used)
	}
	metric("requests_total", "counter", "HTTP requests to the registry.", s.caching.gets.Load())
	l := s.disk.Stats()
	kinds := fetchKinds(l)
	fmt.Fprint(w, "# HELP layerpipe_fetches_total Reads of blobs, by what they were for.\n# TYPE layerpipe_fetches_total counter\n")
	for _, k := range kinds {
		fmt.Fprintf(w, "layerpipe_fetches_total{for=%q} %d\n", k.name, k.fetches)
	}
	fmt.Fprint(w, "# HELP layerpipe_fetched_bytes_total Bytes of those.\n# TYPE layerpipe_fetched_bytes_total counter\n")
	for _, k := range kinds {
		fmt.Fprintf(w, "layerpipe_fetched_bytes_total{for=%q} %d\n", k.name, k.bytes)
	}
	metric("decoded_bytes_total", "counter", "Bytes that were made of what was fetched.", l.Decoded)
	metric("retries_total", "counter", "Fetches because bytes were wrong.", l.Retries)
}

// histogram writes how long reads took.
func (s *statistics) histogram(w io.Writer) {
	fmt.Fprint(w, "# HELP layerpipe_read_seconds What reads took.\n# TYPE layerpipe_read_seconds histogram\n")
	var sum int64
	for i, bound := range latencyBounds {
		sum += s.reads.class[i].Load()
		fmt.Fprintf(w, "layerpipe_read_seconds_bucket{le=\"%g\"} %d\n", bound.Seconds(), sum)
	}
	sum += s.reads.class[len(latencyBounds)].Load()
	fmt.Fprintf(w, "layerpipe_read_seconds_bucket{le=\"+Inf\"} %d\n", sum)
	fmt.Fprintf(w, "layerpipe_read_seconds_sum %g\nlayerpipe_read_seconds_count %d\n", time.Duration(s.reads.sum.Load()).Seconds(), sum)
}
