//go:build unix

package main

import (
	"strings"
	"syscall"
	"testing"
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
	eventually(t, func() bool { return strings.Contains(s.stderr.String(), "layers: ") }, func() string { return s.stderr.String() })
	f.same(t, readAll(t, s.uri))
}
