//go:build linux

package fstree

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Diff says how got differs from want, one line a difference; it is empty when
// the trees are equal.
func Diff(got, want Tree) []string {
	union := make(map[string]bool, len(got)+len(want))
	for p := range got {
		union[p] = true
	}
	for p := range want {
		union[p] = true
	}

	var lines []string
	for _, p := range slices.Sorted(maps.Keys(union)) {
		g, inGot := got[p]
		w, inWant := want[p]
		switch {
		case !inGot:
			lines = append(lines, fmt.Sprintf("%q: missing; want a %s", p, w.Type))
		case !inWant:
			lines = append(lines, fmt.Sprintf("%q: unexpected %s", p, g.Type))
		case g.Type != w.Type:
			lines = append(lines, fmt.Sprintf("%q: is a %s, want a %s", p, g.Type, w.Type))
		default:
			for _, d := range entryDiff(g, w) {
				lines = append(lines, fmt.Sprintf("%q: %s", p, d))
			}
		}
	}
	return lines
}

func entryDiff(g, w Entry) []string {
	var lines []string
	differ := func(field string, got, want any) {
		if got != want {
			lines = append(lines, fmt.Sprintf("%s %v, want %v", field, got, want))
		}
	}
	differ("mode", octal(g.Mode), octal(w.Mode))
	differ("uid", g.UID, w.UID)
	differ("gid", g.GID, w.GID)
	differ("size", g.Size, w.Size)
	differ("mtime", stamp(g.Mtime), stamp(w.Mtime))
	differ("nlink", g.Nlink, w.Nlink)
	differ("rdev", g.Rdev, w.Rdev)
	differ("target", quote(g.Target), quote(w.Target))
	differ("sha256", g.Sum, w.Sum)
	differ("hard link to", quote(g.Link), quote(w.Link))
	names := make(map[string]bool)
	for n := range g.Xattrs {
		names[n] = true
	}
	for n := range w.Xattrs {
		names[n] = true
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		gv, inGot := g.Xattrs[n]
		wv, inWant := w.Xattrs[n]
		differ("xattr "+n, value(gv, inGot), value(wv, inWant))
	}
	return lines
}

func octal(m uint32) string { return fmt.Sprintf("%04o", m) }

func stamp(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

func quote(s string) string {
	if s == "" {
		return "none"
	}
	return fmt.Sprintf("%q", s)
}

func value(v string, present bool) string {
	if !present {
		return "none"
	}
	if len(v) > 40 {
		return fmt.Sprintf("%q... (%d bytes)", v[:40], len(v))
	}
	return fmt.Sprintf("%q", v)
}

// Equal lists two directories and fails the test with their differences, the
// first thirty of them.
func Equal(t testing.TB, got, want string, o Options) {
	t.Helper()
	w, err := List(want, o)
	if err != nil {
		t.Fatal(err)
	}
	EqualTree(t, got, w, o)
}

// EqualTree is Equal where what is wanted has been listed before.
func EqualTree(t testing.TB, got string, want Tree, o Options) {
	t.Helper()
	g, err := List(got, o)
	if err != nil {
		t.Fatal(err)
	}
	lines := Diff(g, want)
	if len(lines) == 0 {
		return
	}
	more := ""
	if len(lines) > 30 {
		more = fmt.Sprintf("\n... and %d more", len(lines)-30)
		lines = lines[:30]
	}
	t.Errorf("%s (%d entries) is not the tree wanted (%d entries):\n%s%s", got, len(g), len(want), strings.Join(lines, "\n"), more)
}
