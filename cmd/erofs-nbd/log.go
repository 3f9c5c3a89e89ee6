package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
)

// Limits of what goes to stderr: a client that retries a bad read does so
// hundreds of times a second.
const (
	logBurst = 10
	logEvery = time.Second
	// logQueue is how many lines wait for who reads stderr. It may be a pipe that
	// nobody empties, or a log daemon that waits for a file on our own mount:
	// no read may wait for that.
	logQueue = 4 * logBurst
	// logPatience is how long the end waits for that.
	logPatience = time.Second
)

// A log prints lines on stderr, at most logBurst at once and one every
// logEvery after that. What is left out is counted. Nobody waits for it.
type log struct {
	now   func() time.Time
	lines chan string
	ended chan struct{} // all lines are printed

	mu     sync.Mutex
	closed bool
	tokens float64
	last   time.Time
	missed int
}

func newLog(env *cli.Env) *log {
	l := &log{now: time.Now, tokens: logBurst, lines: make(chan string, logQueue), ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		for line := range l.lines {
			env.Errorf("%s", line)
		}
	}()
	return l
}

func (l *log) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	now := l.now()
	if !l.last.IsZero() {
		l.tokens = min(logBurst, l.tokens+float64(now.Sub(l.last))/float64(logEvery))
	}
	l.last = now
	if l.tokens < 1 || !l.sayMissed() || !l.say(fmt.Sprintf(format, args...)) {
		l.missed++
		return
	}
	l.tokens--
}

// say reports whether there was room for a line.
func (l *log) say(line string) bool {
	select {
	case l.lines <- line:
		return true
	default:
		return false
	}
}

// sayMissed tells what was left out, if anything was and there is room for it.
func (l *log) sayMissed() bool {
	if l.missed > 0 {
		if !l.say(fmt.Sprintf("%d more messages like these", l.missed)) {
			return false
		}
		l.missed = 0
	}
	return true
}

// flush ends the log, and sees what there is printed if somebody takes it.
func (l *log) flush() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		l.sayMissed()
		close(l.lines)
	}
	l.mu.Unlock()
	select {
	case <-l.ended:
	case <-time.After(logPatience):
	}
}

// A switchedWriter writes to what it was last told to: a daemon's stderr becomes
// the system's log while others already have something to say.
type switchedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *switchedWriter) set(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w = w
}

func (s *switchedWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
