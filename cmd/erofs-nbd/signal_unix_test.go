//go:build unix

package main

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStatsSignal: SIGUSR1 makes a server say what it has read, and go on.
func TestStatsSignal(t *testing.T) {
	f := newFixture(t)
	_, ref := serveLayout(t, f.im.Dir)
	s := start(t, f.lazyArgs(ref)...)
	f.same(t, readAll(t, s.uri))
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(s.stderr.String(), "layers: "); {
		if time.Now().After(deadline) {
			t.Fatalf("stderr: %s", s.stderr)
		}
		time.Sleep(time.Millisecond)
	}
	f.same(t, readAll(t, s.uri))
}
