package zinfo_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log"

	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// layer is a gzip file of many lines.
func layer() []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	for i := range 200_000 {
		fmt.Fprintf(w, "line %7d\n", i)
	}
	w.Close()
	return b.Bytes()
}

// An index is made while the data goes by, and serves to read any part of it
// later.
func Example() {
	blob := layer()
	r := zinfo.NewReader(bytes.NewReader(blob), zinfo.Options{SpanSize: 256 << 10})
	if _, err := io.Copy(io.Discard, r); err != nil { // or to where the data is wanted
		log.Fatal(err)
	}
	x, err := r.Index()
	if err != nil {
		log.Fatal(err)
	}
	var file bytes.Buffer // SOCI's format
	if _, err := x.WriteTo(&file); err != nil {
		log.Fatal(err)
	}

	x, err = zinfo.Open(bytes.NewReader(file.Bytes()), int64(file.Len()), int64(len(blob)))
	if err != nil {
		log.Fatal(err)
	}
	line := make([]byte, 13)
	if _, err := zinfo.NewReaderAt(bytes.NewReader(blob), x).ReadAt(line, 13*123_456); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", line)
	// Output: line  123456
}
