package erofs_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/erofs"
)

var errBudget = errors.New("enough for one input")

// FuzzRead reads damaged images: no panic, no end that does not come, and no
// more memory than an extent takes. It starts from the golden images, our own
// writer's, and one of encoded extents for each size of their records.
func FuzzRead(f *testing.F) {
	for _, g := range golden {
		img, err := os.ReadFile(goldenFile(g.name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(img)
	}
	f.Add(sampleImage(f))
	index, layer := indexOf(f)
	f.Add(append(index, layer...))
	for _, recsz := range []int{16, 32} {
		image, blob, _ := encodedImage(f, recsz)
		f.Add(append(image, blob...))
	}
	f.Fuzz(readDamaged)
}

// readDamaged reads as much of an image as an input of a fuzzer is worth.
func readDamaged(t *testing.T, img []byte) {
	fsys, err := erofs.Open(bytes.NewReader(img), erofs.WithoutChecksum())
	if err != nil {
		return
	}
	fsys.Devices()
	entries, bytesLeft := 2000, int64(8<<20)
	fsys.Walk(fsys.RootNid(), func(_ string, st *erofs.Stat) error {
		if entries--; entries < 0 {
			return errBudget
		}
		fsys.Xattrs(st.Nid)
		fsys.ReadLinkNid(st.Nid)
		extents := 200
		fsys.Extents(st.Nid, func(erofs.FileExtent) error {
			if extents--; extents < 0 {
				return errBudget
			}
			return nil
		})
		o, err := fsys.OpenNid(st.Nid)
		if err != nil {
			return nil
		}
		buf := make([]byte, 4096)
		for _, off := range []int64{0, st.Size / 2, st.Size - 4096, st.Size - 1} {
			if off < 0 || bytesLeft < 0 {
				continue
			}
			n, err := o.ReadAt(buf, off)
			bytesLeft -= int64(n) + 64<<10
			if n < len(buf) && err == nil {
				t.Fatalf("nid %d: %d of %d bytes at %d, and no error", st.Nid, n, len(buf), off)
			}
			if err == io.EOF && off+int64(n) != st.Size {
				t.Fatalf("nid %d: EOF at %d of %d", st.Nid, off+int64(n), st.Size)
			}
		}
		return nil
	})
	problems := 0
	fsys.Check(t.Context(), erofs.CheckOptions{}, func(erofs.Problem) { problems++ })
}
