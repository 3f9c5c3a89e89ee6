package inflate_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/inflate"
)

func gzipped(parts ...string) []byte {
	var b bytes.Buffer
	for _, part := range parts {
		w := gzip.NewWriter(&b)
		io.WriteString(w, part)
		w.Close()
	}
	return b.Bytes()
}

// A file of several members is one stream, as it is for gzip(1).
func ExampleReader() {
	in := gzipped("hello, ", "world\n")
	if _, err := inflate.NewReader(bytes.NewReader(in)).WriteTo(os.Stdout); err != nil {
		log.Fatal(err)
	}
	// Whatever is wrong with it, the error says where.
	cut := in[:len(in)-3]
	_, err := io.Copy(io.Discard, inflate.NewReader(bytes.NewReader(cut)))
	if e, ok := errors.AsType[*inflate.Error](err); ok && e.Off == int64(len(cut)) {
		fmt.Println(e.Msg)
	}
	// Output:
	// hello, world
	// unexpected end of input
}

// What is noted at a boundary is enough to go on from there, without what lies
// before it.
func ExampleReader_Resume() {
	var in bytes.Buffer
	w := gzip.NewWriter(&in)
	for i := range 5 {
		fmt.Fprintf(w, "part %d, and what it has in common with the others\n", i)
		w.Flush() // ends a block
	}
	w.Close()

	var at inflate.Boundary
	window := make([]byte, inflate.WindowSize)
	z := inflate.NewReader(&in)
	blob := bytes.Clone(in.Bytes())
	z.OnBoundary(func(b inflate.Boundary) {
		if b.Out > 0 && at.Out == 0 {
			at = b
			z.Window(window)
		}
	})
	if _, err := z.WriteTo(io.Discard); err != nil {
		log.Fatal(err)
	}

	start := at.In
	if at.Bits > 0 {
		start--
	}
	z.Resume(bytes.NewReader(blob[start:]), at, window)
	rest, err := io.ReadAll(z)
	if err != nil {
		log.Fatal(err)
	}
	first, _, _ := strings.Cut(string(rest), ",")
	fmt.Println(first)
	// Output: part 1
}
