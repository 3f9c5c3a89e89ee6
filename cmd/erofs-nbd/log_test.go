package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
)

// TestLogIsLimited: a client that retries does not flood stderr, and what was
// left out is counted.
func TestLogIsLimited(t *testing.T) {
	var stderr bytes.Buffer
	now := time.Unix(1000, 0)
	l := newLog(&cli.Env{Name: "x", Stderr: &stderr})
	l.now = func() time.Time { return now }
	for range 1000 {
		l.printf("bad")
	}
	now = now.Add(logEvery)
	l.printf("late")
	l.printf("last")
	l.flush()
	l.flush()
	l.printf("too late")
	want := strings.Repeat("x: bad\n", logBurst) + "x: 990 more messages like these\nx: late\nx: 1 more messages like these\n"
	if got := stderr.String(); got != want {
		t.Errorf("%s", got)
	}
}

// A stuck writer takes nothing until it is released.
type stuck struct {
	release chan struct{}
	bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	return s.Buffer.Write(p)
}

// TestLogIsStuck: nobody waits for who does not read stderr.
func TestLogIsStuck(t *testing.T) {
	stderr := &stuck{release: make(chan struct{})}
	now := time.Unix(1000, 0)
	l := newLog(&cli.Env{Name: "x", Stderr: stderr})
	l.now = func() time.Time { now = now.Add(logEvery); return now }
	const lines = 1000
	for range lines {
		l.printf("line")
	}
	l.flush() // gives up
	close(stderr.release)
	<-l.ended
	printed, missed := strings.Count(stderr.String(), "x: line\n"), l.missed
	for line := range strings.Lines(stderr.String()) {
		n := 0
		fmt.Sscanf(line, "x: %d more messages", &n)
		missed += n
	}
	if printed < logQueue/2 || printed > 2*logQueue || printed+missed != lines {
		t.Errorf("%d lines are printed, %d missed", printed, missed)
	}
}

// TestSwitchedWriter: all that is said goes to one place or to the other, also
// while that changes.
func TestSwitchedWriter(t *testing.T) {
	var before, after bytes.Buffer
	w := &switchedWriter{w: &before}
	env := &cli.Env{Name: "x", Stderr: w}
	const lines = 100
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range lines {
				env.Errorf("line")
			}
		})
	}
	w.set(&after)
	wg.Wait()
	env.Errorf("last")
	if n := strings.Count(before.String()+after.String(), "x: line\n"); n != 4*lines || !strings.HasSuffix(after.String(), "x: last\n") {
		t.Errorf("%d lines, %q", n, after.String())
	}
}
