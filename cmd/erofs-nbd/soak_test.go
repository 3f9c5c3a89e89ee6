package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// TestSoak: clients that read at random while the registry does what it likes
// get the right bytes or EIO, and never wait for ever; when it behaves again,
// so does all. It goes on for as long as $SOAK says, and the memory that it
// takes must not grow then.
func TestSoak(t *testing.T) {
	f := newFixture(t)
	modes := map[string][]string{
		"memory":   nil,
		"disk":     {"--cache-dir", t.TempDir(), "--cache-dir-size", "3MiB"},
		"prefetch": {"--cache-dir", t.TempDir(), "--prefetch", "all", "--cache-dir-size", "3MiB"},
	}
	long, err := time.ParseDuration(cmp.Or(os.Getenv("SOAK"), "0s"))
	if err != nil {
		t.Fatalf("$SOAK: %v", err)
	}
	if long == 0 {
		together(t, modes, func(t *testing.T, args []string) { soak(t, f, 0, args...) })
		return
	}
	for name, args := range modes { // what one takes must not be counted for another
		t.Run(name, func(t *testing.T) { soak(t, f, long/time.Duration(len(modes)), args...) })
	}
}

const (
	soakClients = 8
	soakReads   = 40 // of each client in a round
	// soakSlack is what the heap may grow by, in bytes: more than what any one
	// moment takes, less than a leak leaves behind in a minute of thousands of
	// reads.
	soakSlack = 8 << 20
	// soakConnections is by how many goroutines more there may be: three for each
	// connection to the registry that is kept, of which there are sometimes none.
	soakConnections = 48
)

func soak(t *testing.T, f *fixture, long time.Duration, args ...string) {
	reg, ref := serveLayout(t, f.im.Dir)
	s := start(t, f.lazyArgs(ref, append(args, "--cache-size", "2MiB")...)...)
	var good, bad atomic.Int64
	var early, late usage
	seed := uint64(time.Now().UnixNano())
	faults := soakFaults(reg, seed, long > 0)
	began := time.Now()
	lacks := func() (kinds []string) { // what has not happened yet
		for _, fault := range faults {
			if fault.delivered.Load() == 0 {
				kinds = append(kinds, fault.name)
			}
		}
		if good.Load() == 0 || bad.Load() == 0 {
			kinds = append(kinds, "EIO, or none")
		}
		return kinds
	}
	rounds := 0
	for ; time.Since(began) < long || len(lacks()) > 0 && rounds < 50; rounds++ {
		hang := time.AfterFunc(3*time.Minute, func() { panic("a read does not end") })
		var wg sync.WaitGroup
		for g := range uint64(soakClients) {
			c, err := nbdclient.Dial(s.uri)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				soakReader(t, c, f, rand.New(rand.NewPCG(seed+uint64(rounds), g)), &good, &bad)
			})
		}
		wg.Wait()
		hang.Stop()
		reg.Reset() // its log grows
		if late = use(); time.Since(began) < long/4 || rounds == 0 {
			early = late
		}
	}
	t.Logf("seed %d: %d rounds, %d reads were good, %d EIO; %v early, %v late", seed, rounds, good.Load(), bad.Load(), early, late)
	if missing := lacks(); len(missing) > 0 {
		t.Errorf("no read met these: %s", strings.Join(missing, ", "))
	}
	if long > 0 && (late.heap > early.heap+soakSlack || late.goroutines > early.goroutines+soakConnections) {
		t.Errorf("it grows: %v early, %v late", early, late)
	}
	reg.ClearFaults()
	f.same(t, readAll(t, s.uri))
}

// soakReader reads, and leaves in the midst of a read.
func soakReader(t *testing.T, c *nbdclient.Client, f *fixture, rng *rand.Rand, good, bad *atomic.Int64) {
	size := int64(len(f.disk))
	for range soakReads {
		off := rng.Int64N(size)
		p := make([]byte, min(1+rng.Int64N(300_000), size-off))
		_, err := c.ReadAt(p, off)
		switch {
		case errors.Is(err, nbdclient.EIO):
			bad.Add(1)
		case err != nil:
			t.Errorf("%d bytes at %d: %v", len(p), off, err)
			return
		case !bytes.Equal(p, f.disk[off:][:len(p)]):
			t.Errorf("%d bytes at %d: wrong bytes", len(p), off)
		default:
			good.Add(1)
		}
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		c.ReadAt(make([]byte, 1<<20), rng.Int64N(size-1<<20))
	}()
	time.Sleep(time.Millisecond)
	c.Abandon()
	<-left
}

// A soakFault is one kind of fault, and how often it happened.
type soakFault struct {
	name      string
	serve     func(http.ResponseWriter, *http.Request, http.Handler)
	delivered atomic.Int64
}

// soakFaults lets one request for a blob in twelve go wrong, in some way.
func soakFaults(reg *testregistry.Registry, seed uint64, long bool) []*soakFault {
	faults := []*soakFault{
		{name: "unavailable", serve: testregistry.Status(http.StatusServiceUnavailable, "Retry-After", "0")},
		{name: "cut", serve: testregistry.Cut(1000)},
		{name: "flipped", serve: testregistry.Flip(500)},
		{name: "another range", serve: testregistry.Header(func(h http.Header) { h.Set("Content-Range", "bytes 0-9/10") })},
		{name: "not found", serve: testregistry.Status(http.StatusNotFound)},
	}
	stall := &soakFault{name: "stalled", serve: testregistry.Stall(3000)}
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 0))
	choose := func() *soakFault {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case long && rng.IntN(2500) == 0: // it takes seconds each time
			return stall
		case rng.IntN(12) == 0:
			return faults[rng.IntN(len(faults))]
		}
		return nil
	}
	reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		f := choose()
		if f == nil {
			next.ServeHTTP(w, req)
			return
		}
		f.delivered.Add(1)
		f.serve(w, req, next)
	}})
	if long {
		return append(slices.Clone(faults), stall)
	}
	return faults
}

// usage is what the process takes: bytes of heap, and goroutines.
type usage struct {
	heap       uint64
	goroutines int
}

func (u usage) String() string {
	return fmt.Sprintf("%.1f MB, %d goroutines", float64(u.heap)/1e6, u.goroutines)
}

// use tells what is in use once nothing is under way: the least of what is
// seen for a while, since prefetching goes on.
func use() usage {
	var m runtime.MemStats
	least := usage{math.MaxUint64, math.MaxInt}
	for range 10 {
		time.Sleep(20 * time.Millisecond)
		runtime.GC()
		runtime.ReadMemStats(&m)
		least = usage{min(least.heap, m.HeapAlloc), min(least.goroutines, runtime.NumGoroutine())}
	}
	return least
}

// TestNoRanges: a registry that cannot serve parts is an error that says so,
// when it starts, not a download for each read.
func TestNoRanges(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	reg.NoRanges()
	code, out, errs := invoke(t, "--index", f.index, "--blob", ref, "--plain-http")
	if code != 1 || out != "" || !strings.Contains(errs, "does not support ranges") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errs)
	}
}
