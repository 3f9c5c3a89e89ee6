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
)

// A log prints lines on stderr, at most logBurst at once and one every
// logEvery after that. What is left out is counted.
type log struct {
	env *cli.Env
	now func() time.Time

	mu     sync.Mutex
	tokens float64
	last   time.Time
	missed int
}

func newLog(env *cli.Env) *log {
	return &log{env: env, now: time.Now, tokens: logBurst}
}

func (l *log) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if !l.last.IsZero() {
		l.tokens = min(logBurst, l.tokens+float64(now.Sub(l.last))/float64(logEvery))
	}
	l.last = now
	if l.tokens < 1 {
		l.missed++
		return
	}
	l.tokens--
	l.sayMissed()
	l.env.Errorf("%s", fmt.Sprintf(format, args...))
}

func (l *log) sayMissed() {
	if l.missed > 0 {
		l.env.Errorf("%d more messages like these", l.missed)
		l.missed = 0
	}
}

// flush tells at the end what was left out.
func (l *log) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sayMissed()
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
