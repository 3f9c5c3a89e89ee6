package zinfo

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
)

// What other programs compress is indexed, verified and read: each of them cuts
// blocks and members in its own way.
func TestProducers(t *testing.T) {
	data := sample(3_000_000, 14)
	for _, command := range []string{
		"gzip -1", "gzip -6", "gzip -9 --rsyncable",
		"pigz -p 4", "pigz -p 4 --independent", "pigz -H", "pigz -U", "pigz -0",
		"zstd -q --format=gzip",
	} {
		t.Run(command, func(t *testing.T) {
			args := strings.Fields(command)
			cmd := exec.Command(interop.Tool(t, args[0]), args[1:]...)
			cmd.Stdin = bytes.NewReader(data)
			in, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			x := build(t, in, Options{SpanSize: 200_000})
			if n, err := x.Verify(t.Context(), bytes.NewReader(in), 2, nil); err != nil || n != int64(len(data)) {
				t.Fatalf("Verify: %d, %v", n, err)
			}
			at := NewReaderAt(bytes.NewReader(in), x)
			rnd := rand.New(rand.NewPCG(1, 2))
			p := make([]byte, 10_000)
			for range 30 {
				off := rnd.IntN(len(data))
				n, err := at.ReadAt(p, int64(off))
				if want := data[off:min(off+len(p), len(data))]; !bytes.Equal(p[:n], want) || err != nil && err != io.EOF {
					t.Fatalf("at %d: %d, %v", off, n, err)
				}
			}
		})
	}
}
