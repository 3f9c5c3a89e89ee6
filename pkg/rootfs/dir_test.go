package rootfs

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestDirectory holds the table of names to a map, through many additions and
// removals, with long runs of each.
func TestDirectory(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	tree := New(Options{})
	d := &directory{}
	want := map[string]*Inode{}
	for step := range 200_000 {
		name := fmt.Sprint("name", rng.IntN(3000))
		switch k := d.find(name); {
		case (k >= 0) != (want[name] != nil):
			t.Fatalf("step %d: %s at %d, want %v", step, name, k, want[name])
		case k >= 0 && d.list[k].inode != want[name]:
			t.Fatalf("step %d: %s is another inode", step, name)
		case k >= 0 && (step/20_000%2 == 1 || rng.IntN(4) == 0):
			d.remove(k)
			delete(want, name)
		case k < 0 && (step/20_000%2 == 0 || rng.IntN(4) == 0):
			i := tree.newInode()
			if err := d.add(name, i, 1); err != nil {
				t.Fatal(err)
			}
			want[name] = i
		}
		if step%30_000 == 0 {
			d.sort()
		}
	}
	if len(d.list) != len(want) {
		t.Errorf("%d names, want %d", len(d.list), len(want))
	}
	if len(d.names) > 3000*len("name1234")+2*4096 {
		t.Errorf("%d bytes of names for %d of them", len(d.names), len(d.list))
	}
	if 4*(len(d.list)+d.gone) > 3*len(d.index) && d.index != nil {
		t.Errorf("index of %d slots has %d in use and %d gone", len(d.index), len(d.list), d.gone)
	}
	for name, i := range want {
		if k := d.find(name); k < 0 || d.list[k].inode != i {
			t.Errorf("%s: lost", name)
		}
	}
}
