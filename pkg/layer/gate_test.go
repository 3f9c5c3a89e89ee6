package layer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A fetchTest is a fetch that runs until it is told to end, or cut off.
type fetchTest struct {
	began chan struct{} // once for each time
	end   chan struct{}
	cut   atomic.Int64
	done  chan error
}

func fetching(g *Gate, d demand) *fetchTest {
	f := &fetchTest{began: make(chan struct{}, 10), end: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		f.done <- g.do(context.Background(), d, func(ctx context.Context) (int, error) {
			f.began <- struct{}{}
			select {
			case <-f.end:
				return 10, nil
			case <-ctx.Done():
				f.cut.Add(1)
				return 5, ctx.Err()
			}
		})
	}()
	return f
}

// waits fails if the fetch begins although something else is under way.
func (f *fetchTest) waits(t *testing.T, what string) {
	t.Helper()
	select {
	case <-f.began:
		t.Errorf("%s: began", what)
	case <-time.After(20 * time.Millisecond):
	}
}

func (f *fetchTest) finish(t *testing.T) {
	t.Helper()
	close(f.end)
	if err := <-f.done; err != nil {
		t.Error(err)
	}
}

// TestGate: a read that somebody waits for goes at once; what is ahead is cut
// off, waits, and goes on; what is idle gives way to both.
func TestGate(t *testing.T) {
	g := new(Gate)
	gentle := fetching(g, demand{urgency: idle})
	<-gentle.began
	ahead := fetching(g, demand{urgency: soon})
	<-ahead.began
	gentle.waits(t, "idle while something is read ahead")
	if gentle.cut.Load() != 1 || g.Cut() != 1 {
		t.Error("idle did not give way")
	}
	first := fetching(g, demand{urgency: now})
	<-first.began
	second := fetching(g, demand{urgency: now})
	<-second.began
	ahead.waits(t, "ahead while somebody waits")
	if ahead.cut.Load() != 1 {
		t.Error("ahead did not give way")
	}
	first.finish(t)
	ahead.waits(t, "ahead while somebody still waits")
	second.finish(t)
	<-ahead.began
	gentle.waits(t, "idle while something is read ahead")
	ahead.finish(t)
	<-gentle.began
	gentle.finish(t)
}

// TestGateUrgent: what somebody waits for after all is not cut off, goes if it
// waited, and lets what is ahead of it alone.
func TestGateUrgent(t *testing.T) {
	g := new(Gate)
	urgent := make(chan struct{})
	running := fetching(g, demand{soon, urgent})
	<-running.began
	other := fetching(g, demand{soon, nil})
	<-other.began
	close(urgent)
	for cut := 1; cut > 0; { // until the gate has heard
		g.mu.Lock()
		cut = len(g.cut) - 1
		g.mu.Unlock()
	}
	if other.cut.Load() != 0 {
		t.Error("one that became urgent cut off another")
	}
	read := fetching(g, demand{urgency: now})
	<-read.began
	other.waits(t, "ahead")
	if running.cut.Load() != 0 || other.cut.Load() != 1 {
		t.Error("the wrong one was cut off")
	}
	late := make(chan struct{})
	waiting := fetching(g, demand{soon, late})
	waiting.waits(t, "ahead")
	close(late)
	<-waiting.began
	waiting.finish(t)
	running.finish(t)
	read.finish(t)
	<-other.began
	other.finish(t)
}

// TestGateErrors: an error is not taken for having been cut off, and who gives
// up does not wait.
func TestGateErrors(t *testing.T) {
	g := new(Gate)
	bad := errors.New("bad")
	for _, u := range []urgency{now, soon, idle} {
		if err := g.do(context.Background(), demand{urgency: u}, func(context.Context) (int, error) { return 0, bad }); err != bad {
			t.Errorf("%d: %v", u, err)
		}
	}
	read := fetching(g, demand{urgency: now})
	<-read.began
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		ended <- g.do(ctx, demand{urgency: idle}, func(context.Context) (int, error) { t.Error("began"); return 0, nil })
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	read.finish(t)
}

// TestGateBandwidth: idle fetches are as far apart as their bytes take.
func TestGateBandwidth(t *testing.T) {
	g := &Gate{Bandwidth: 1e6}
	began := time.Now()
	for range 3 {
		g.do(context.Background(), demand{urgency: idle}, func(context.Context) (int, error) { return 50_000, nil })
	}
	if d := time.Since(began); d < 100*time.Millisecond {
		t.Errorf("two pauses of 50 ms took %s", d)
	}
}

// TestGateRace: whatever comes together, everything ends.
func TestGateRace(t *testing.T) {
	g := new(Gate)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			urgent := make(chan struct{})
			if i%5 == 0 {
				time.AfterFunc(time.Millisecond, func() { close(urgent) })
			}
			left := 3
			err := g.do(context.Background(), demand{urgency(i % 3), urgent}, func(ctx context.Context) (int, error) {
				for ; left > 0; left-- {
					select {
					case <-ctx.Done():
						return 0, ctx.Err()
					case <-time.After(time.Millisecond):
					}
				}
				return 3, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if g.now+g.soon+g.idle+len(g.cut) != 0 {
		t.Errorf("%d, %d, %d are under way, %d may be cut off", g.now, g.soon, g.idle, len(g.cut))
	}
}
