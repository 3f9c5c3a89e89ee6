package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/rootfs"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// TestDeadIsGone deletes files among sparse and other ones: what they held is
// nowhere in the image, which takes what is left and little more, and the others
// keep their contents.
func TestDeadIsGone(t *testing.T) {
	const dead = 0xDE // the others have no such byte
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 7))
		w, out := testWriter(t, WriterOptions{BlockSize: 512 << rng.IntN(4), NoInline: rng.IntN(4) == 0})
		tree := rootfs.New(rootfs.Options{})
		want := map[string][]byte{}
		live := int64(0) // bytes of live files, whole chunks
		largest := int64(0)
		for layer := range 2 {
			if err := tree.BeginLayer(); err != nil {
				t.Fatal(err)
			}
			for k := range 24 {
				name := fmt.Sprint(k)
				if layer == 1 {
					if rng.IntN(2) == 0 { // replaced: by an empty file, or by another one
						data := make([]byte, rng.IntN(2)*rng.IntN(4000))
						want[name] = data
						i := addEntry(t, tree, &tarstream.Entry{Name: name, Size: int64(len(data))})
						if err := w.Add(i, onceData(data)); err != nil {
							t.Fatal(err)
						}
					}
					continue
				}
				e := &tarstream.Entry{Name: name, Size: int64(rng.IntN(40_000))}
				if rng.IntN(4) == 0 {
					e.Size *= 8
				}
				content := make([]byte, e.Size)
				stored := content
				fill := func(p []byte) {
					for n := range p {
						p[n] = byte(1 + rng.IntN(100))
					}
				}
				if rng.IntN(2) == 0 {
					stored, e.Sparse = nil, []tarstream.Extent{}
					for at := rng.Int64N(9000); at < e.Size; {
						n := min(1+rng.Int64N(9000), e.Size-at)
						e.Sparse = append(e.Sparse, tarstream.Extent{Offset: at, Length: n})
						fill(content[at:][:n])
						stored = append(stored, content[at:][:n]...)
						at += n + 1 + rng.Int64N(20_000)
					}
				} else {
					fill(content)
				}
				want[name] = content
				if err := w.Add(addEntry(t, tree, e), onceData(stored)); err != nil {
					t.Fatal(err)
				}
			}
		}
		// What no file has any more gets a mark.
		p := &plan{w: w}
		if err := p.gather(tree); err != nil {
			t.Fatal(err)
		}
		used := map[int64]bool{} // blocks
		for _, i := range p.inodes {
			n := p.dataBlocks(i)
			live += n << w.bits
			for b := range n {
				used[i.Offset>>w.bits+b] = true
			}
			if isSparse(i) {
				largest = max(largest, n<<w.bits)
			}
		}
		if err := w.data.flush(); err != nil {
			t.Fatal(err)
		}
		for at := w.first; at < w.data.off; at += w.bs {
			if !used[at>>w.bits] {
				if _, err := out.WriteAt(bytes.Repeat([]byte{dead}, int(w.bs)), at); err != nil {
					t.Fatal(err)
				}
			}
		}
		st, err := w.Finish(tree, Final{})
		if err != nil {
			t.Fatal(err)
		}
		if rest := st.Size - st.Metadata - w.first - live; rest > live/64+largest/4+8*w.bs {
			t.Errorf("seed %d: %d bytes beside %d of data", seed, rest, live)
		}
		image, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(image, bytes.Repeat([]byte{dead}, 64)); at >= 0 {
			t.Errorf("seed %d: the image has deleted data at %d", seed, at)
		}
		fsys, err := Open(out)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range want {
			if got, err := fs.ReadFile(fsys, name); err != nil || !bytes.Equal(got, data) {
				t.Errorf("seed %d: %s: %d bytes that are not the %d put in: %v", seed, name, len(got), len(data), err)
			}
		}
		if t.Failed() {
			return
		}
	}
}
