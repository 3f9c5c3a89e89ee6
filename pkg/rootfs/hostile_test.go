package rootfs

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// These archives took hours where work was quadratic in their entries; a test
// binary's own time limit is what they run against.

func add(t *testing.T, tree *Tree, e *tarstream.Entry) {
	t.Helper()
	if _, err := tree.Apply(e); err != nil {
		t.Fatal(err)
	}
}

func begin(t *testing.T, tree *Tree) {
	t.Helper()
	if err := tree.BeginLayer(); err != nil {
		t.Fatal(err)
	}
}

// TestLongLinkChain: hard links that each wait for the next one.
func TestLongLinkChain(t *testing.T) {
	const n = 200_000
	tree := New(Options{})
	begin(t, tree)
	for k := range n {
		add(t, tree, &tarstream.Entry{Type: tarstream.TypeLink, Name: fmt.Sprint("l", k), Linkname: fmt.Sprint("l", k+1)})
	}
	add(t, tree, &tarstream.Entry{Type: tarstream.TypeRegular, Name: fmt.Sprint("l", n)})
	if err := tree.EndLayer(); err != nil {
		t.Fatal(err)
	}
	if got := tree.Root().Lookup("l0").Nlink; got != n+1 {
		t.Errorf("%d links, want %d", got, n+1)
	}
}

// TestManyWhiteouts: opaque markers and whiteouts of a directory again and
// again, each of which would look at all that is in it.
func TestManyWhiteouts(t *testing.T) {
	const n = 200_000
	tree := New(Options{})
	begin(t, tree)
	add(t, tree, &tarstream.Entry{Type: tarstream.TypeRegular, Name: "d/lower"})
	begin(t, tree)
	for k := range n {
		add(t, tree, &tarstream.Entry{Type: tarstream.TypeRegular, Name: fmt.Sprint("d/", k)})
	}
	for range n {
		add(t, tree, &tarstream.Entry{Type: tarstream.TypeRegular, Name: "d/.wh..wh..opq"})
		add(t, tree, &tarstream.Entry{Type: tarstream.TypeRegular, Name: ".wh.d"})
		add(t, tree, &tarstream.Entry{Type: tarstream.TypeRegular, Name: ".wh..wh..opq"})
	}
	if got := tree.Root().Lookup("d").Len(); got != n {
		t.Errorf("%d entries, want %d", got, n)
	}
	begin(t, tree)
	add(t, tree, &tarstream.Entry{Type: tarstream.TypeRegular, Name: "d/.wh..wh..opq"})
	if got := tree.Root().Lookup("d").Len(); got != 0 {
		t.Errorf("%d entries behind the next layer's opaque marker", got)
	}
}

// TestLinksThatGrow: symbolic links whose targets begin with the next one. The
// names to walk would be gathered in full before the first of them is refused.
func TestLinksThatGrow(t *testing.T) {
	tree := New(Options{})
	begin(t, tree)
	for k := range 200 {
		target := fmt.Sprintf("l%d%s", k+1, strings.Repeat("/x", 2000))
		add(t, tree, &tarstream.Entry{Type: tarstream.TypeSymlink, Name: fmt.Sprint("l", k), Linkname: target})
	}
	allocated := testing.AllocsPerRun(1, func() {
		_, err := tree.Apply(&tarstream.Entry{Type: tarstream.TypeRegular, Name: "l0/f"})
		if !errors.Is(err, fault.ErrUnsupported) {
			t.Errorf("got %v", err)
		}
	})
	if allocated > 50 {
		t.Errorf("%v allocations to refuse it", allocated)
	}
}

// TestManyXattrs: values that all differ stay in memory, so there is a bound to
// them; values that repeat cost nothing.
func TestManyXattrs(t *testing.T) {
	tree := New(Options{})
	begin(t, tree)
	value := strings.Repeat("v", 60_000)
	entry := func(k int, value string) *tarstream.Entry {
		return &tarstream.Entry{Name: fmt.Sprint(k), Type: tarstream.TypeRegular, Xattrs: []tarstream.Xattr{{Name: "user.x", Value: value}}}
	}
	for k := range 2 * maxXattrBytes / len(value) {
		add(t, tree, entry(k, value))
	}
	tree.setSize = maxXattrBytes - 1000 // rather than fill it
	if _, err := tree.Apply(entry(-1, value+"other")); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("more than %d bytes of xattrs: %v", maxXattrBytes, err)
	}
}
