package main

import (
	"bufio"
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/layerpipe/layerpipe/pkg/inflate"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

func uncompressed(name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return inflate.NewReader(f).WriteTo(io.Discard)
}

// readInProcess compares reads at random offsets, the same for both: by
// zinfo.ReaderAt, and by compress/flate from the checkpoint before.
func readInProcess(name, index string, rounds int) error {
	size, err := uncompressed(name)
	if err != nil {
		return err
	}
	blob, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	f, err := os.Open(index)
	if err != nil {
		return err
	}
	defer f.Close()
	x, err := zinfo.Load(f, int64(len(blob)))
	if err != nil {
		return err
	}
	fmt.Printf("\nrandom reads, ms each, best of %d rounds of 20\n%18s %14s %14s %6s\n", rounds, "", "zinfo.ReaderAt", "compress/flate", "ratio")
	for _, n := range []int{4 << 10, 128 << 10} {
		want, got := make([]byte, n), make([]byte, n)
		var ours, theirs time.Duration
		r := zinfo.NewReaderAt(bytes.NewReader(blob), x)
		for round := range rounds {
			var a, b time.Duration
			rnd := rand.New(rand.NewPCG(1, uint64(round)))
			for range 20 {
				off := rnd.Int64N(size - int64(n))
				t0 := time.Now()
				if err := reinflate(blob, x, want, off); err != nil {
					return err
				}
				t1 := time.Now()
				if _, err := r.ReadAt(got, off); err != nil {
					return err
				}
				a, b = a+time.Since(t1), b+t1.Sub(t0)
				if !bytes.Equal(got, want) {
					return fmt.Errorf("%d bytes at %d differ", n, off)
				}
			}
			if round == 0 || a < ours {
				ours = a
			}
			if round == 0 || b < theirs {
				theirs = b
			}
		}
		fmt.Printf("%14d KiB %14.2f %14.2f %6.2f\n", n>>10, ours.Seconds()*1e3/20, theirs.Seconds()*1e3/20, ours.Seconds()/theirs.Seconds())
	}
	return nil
}

// reinflate is what one does without a package for it. It does not cross
// members.
func reinflate(blob []byte, x *zinfo.Index, p []byte, off int64) error {
	i := x.Find(off)
	pt := &x.Points[i]
	window := pt.Window
	if window == nil {
		window = make([]byte, zinfo.WindowSize)
	}
	src := io.MultiReader(bytes.NewReader(lead(blob, pt)), bytes.NewReader(blob[pt.In:]))
	r := flate.NewReaderDict(bufio.NewReader(src), window)
	if _, err := io.CopyN(io.Discard, r, off-pt.Out); err != nil {
		return err
	}
	_, err := io.ReadFull(r, p)
	return err
}

// lead is what to put before the input at a point that is not on a byte's edge,
// which is where compress/flate has to start: blocks without output, as many
// bits as are missing. Shifting the input instead would move stored blocks off
// the edges on which they must be.
func lead(blob []byte, pt *zinfo.Point) []byte {
	if pt.Bits == 0 {
		return nil
	}
	var b []byte
	n := 0
	put := func(v, width int) {
		for k := range width {
			if n&7 == 0 {
				b = append(b, 0)
			}
			b[n/8] |= byte(v>>k&1) << (n & 7)
			n++
		}
	}
	if pt.Bits&1 != 0 {
		// A dynamic block of 91 bits: 257 literal and length codes, of which
		// only the end has one, of a bit, and two distance codes of a bit.
		put(0|2<<1|0<<3|1<<8|14<<13, 17)
		put(0, 6)
		put(1, 3)    // 18, zeros, has a bit
		put(0, 14*3) // in the order of RFC 1951 down to ...
		put(1, 3)    // 1, a length of one
		put(1|127<<1|1<<8|107<<9, 16)
		put(0, 4) // the lengths of the end and of the distances; the end
	}
	for n&7 != 8-int(pt.Bits) {
		put(0|1<<1, 10) // a fixed block
	}
	b[len(b)-1] |= blob[pt.In-1] &^ (1<<(8-pt.Bits) - 1)
	return b
}
