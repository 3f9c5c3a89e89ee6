//go:build libdeflate && cgo

// Libdeflate compares pkg/inflate with libdeflate, klauspost/compress and
// compress/gzip on the gzip files given:
//
//	go run -tags libdeflate ./bench/libdeflate layer.tar.gz ...
//
// It needs libdeflate's header and library (Debian: libdeflate-dev). The
// decoders take turns in one process, and the best of several rounds counts.
// What is measured is the processor time of the thread, which other processes
// disturb far less than what a clock shows: none of the decoders starts
// another one.
package main

/*
#cgo LDFLAGS: -ldeflate
#include <libdeflate.h>
#include <stddef.h>
#include <time.h>

static long long cpu(void) {
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static size_t member(struct libdeflate_decompressor *d, const void *in, size_t nin, void *out, size_t nout, size_t *used) {
	size_t n = 0;
	if (libdeflate_gzip_decompress_ex(d, in, nin, out, nout, used, &n) != LIBDEFLATE_SUCCESS)
		*used = 0;
	return n;
}
*/
import "C"

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"text/tabwriter"
	"time"
	"unsafe"

	kgzip "github.com/klauspost/compress/gzip"

	"github.com/layerpipe/layerpipe/pkg/inflate"
)

func main() {
	rounds := flag.Int("rounds", 9, "rounds, of which the best counts")
	flag.Parse()
	runtime.LockOSThread()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "file\tMB\tlibdeflate\tpkg/inflate\tklauspost\tcompress/gzip\tof libdeflate\ttimes klauspost\t")
	for _, name := range flag.Args() {
		if err := compare(w, name, *rounds); err != nil {
			fmt.Fprintf(os.Stderr, "libdeflate: %s: %v\n", name, err)
			os.Exit(1)
		}
	}
	w.Flush()
}

// compare prints a line of output rates in MB/s.
func compare(w io.Writer, name string, rounds int) error {
	in, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	size, err := inflate.NewReader(bytes.NewReader(in)).WriteTo(io.Discard)
	if err != nil {
		return err
	}
	out := make([]byte, size+1)
	d := C.libdeflate_alloc_decompressor()
	defer C.libdeflate_free_decompressor(d)
	z := inflate.NewReader(nil)
	decoders := []func() (int64, error){
		func() (int64, error) { return libdeflate(d, in, out) },
		func() (int64, error) {
			z.Reset(bytes.NewReader(in))
			return z.WriteTo(io.Discard)
		},
		func() (int64, error) {
			r, err := kgzip.NewReader(bytes.NewReader(in))
			if err != nil {
				return 0, err
			}
			return io.Copy(io.Discard, r)
		},
		func() (int64, error) {
			r, err := gzip.NewReader(bytes.NewReader(in))
			if err != nil {
				return 0, err
			}
			return io.Copy(io.Discard, r)
		},
	}
	best := make([]time.Duration, len(decoders))
	for range rounds {
		for i, decode := range decoders {
			begin := C.cpu()
			n, err := decode()
			t := time.Duration(C.cpu() - begin)
			if err != nil || n != size {
				return fmt.Errorf("decoder %d: %d of %d bytes: %v", i, n, size, err)
			}
			if best[i] == 0 || t < best[i] {
				best[i] = t
			}
		}
	}
	fmt.Fprintf(w, "%s\t%d\t", name, size/1e6)
	for _, t := range best {
		fmt.Fprintf(w, "%.0f\t", float64(size)/1e6/t.Seconds())
	}
	fmt.Fprintf(w, "%.2f\t%.2f\t\n", best[0].Seconds()/best[1].Seconds(), best[2].Seconds()/best[1].Seconds())
	return nil
}

// libdeflate decodes all members of in.
func libdeflate(d *C.struct_libdeflate_decompressor, in, out []byte) (int64, error) {
	var total int64
	for len(in) > 0 && in[0] != 0 {
		var used C.size_t
		n := C.member(d, unsafe.Pointer(&in[0]), C.size_t(len(in)), unsafe.Pointer(&out[total]), C.size_t(int64(len(out))-total), &used)
		if used == 0 {
			return total, errors.New("libdeflate: bad data")
		}
		total += int64(n)
		in = in[used:]
	}
	return total, nil
}
