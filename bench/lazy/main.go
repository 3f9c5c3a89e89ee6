// Lazy measures what it takes to read an image whose layers lie in a registry,
// behind a link of 20 ms and 100 Mbit/s, with nothing at hand but the index. It
// makes the image out of this machine's Go toolchain, and runs the real
// commands:
//
//	make bench BENCH=lazy
//
// Each line is a server that has just started, with empty caches; time and
// requests count from when it is ready, but for the first byte, where they
// count from its start. GETs and bytes are the registry's own count. Where there is a bound in a line, the
// exit code says whether it was kept.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/source"
)

func main() {
	b := &bench{}
	flag.StringVar(&b.bin, "bin", "bin", "directory of the commands")
	flag.DurationVar(&b.link.Delay, "delay", 20*time.Millisecond, "what each request takes to get to the registry")
	mbit := flag.Int64("mbit", 100, "bandwidth of the link in Mbit/s")
	flag.StringVar(&b.flags, "flags", "", "more flags for erofs-nbd, such as --stats")
	only := flag.String("only", "", "of whole, first, sources, file, four, tree, cached, recorded, gentle the ones that contain this")
	layout := flag.String("image", "", "OCI layout directory to take (default: one made here)")
	flag.Parse()
	b.link.Bandwidth = *mbit * 1e6 / 8
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.run(ctx, *layout, *only); err != nil {
		fmt.Fprintf(os.Stderr, "lazy: %v\n", err)
		os.Exit(1)
	}
	if b.missed > 0 {
		fmt.Fprintf(os.Stderr, "lazy: %d bounds were not kept\n", b.missed)
		os.Exit(1)
	}
}

// A bench is one run.
type bench struct {
	bin, dir string
	flags    string // for erofs-nbd
	reg      *testregistry.Registry
	link     testregistry.Link
	ref      string
	image    *image
	table    *tabwriter.Writer
	plain    time.Duration // for downloading all layers
	missed   int           // bounds
}

func (b *bench) run(ctx context.Context, layout, only string) (err error) {
	if b.dir, err = os.MkdirTemp("", "layerpipe-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if layout == "" {
		layout = filepath.Join(b.dir, "image")
		if _, err := testimage.Golang(layout, testimage.Options{}); err != nil {
			return err
		}
	}
	b.reg = testregistry.New()
	if err := b.reg.AddLayout("golang", layout); err != nil {
		return err
	}
	b.link.Handler = b.reg
	host, stop, err := b.link.Listen()
	if err != nil {
		return err
	}
	defer stop()
	b.ref = host + "/golang"

	index := filepath.Join(b.dir, "index.erofs")
	if err := b.pipe(ctx, "oci:"+layout, "-i", index); err != nil {
		return err
	}
	if b.image, err = openImage(index); err != nil {
		return err
	}
	b.table = tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(b.table, "what\tseconds\tGETs\tMB fetched\tMB read\tfetched/read\tspans\tGETs/span\tbytes/spans'\tbounds")
	if err := b.download(ctx); err != nil {
		return err
	}
	b.table.Flush()
	for _, l := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"whole", b.whole}, {"first", b.firstByte}, {"sources", b.packageSources}, {"file", b.bigFile}, {"four", b.fourReaders},
		{"tree", b.tree}, {"cached", b.treeFromDisk}, {"recorded", b.recorded}, {"gentle", b.gentle},
	} {
		if !strings.Contains(l.name, only) {
			continue
		}
		if err := l.f(ctx); err != nil {
			return err
		}
		b.table.Flush()
	}
	return nil
}

func (b *bench) tool(name string) string {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(b.bin, name)
}

// pipe is oci-fetch REF | tar2erofs ARGS.
func (b *bench) pipe(ctx context.Context, ref string, args ...string) error {
	fetch := exec.CommandContext(ctx, b.tool("oci-fetch"), "--plain-http", ref)
	make := exec.CommandContext(ctx, b.tool("tar2erofs"), args...)
	fetch.Stderr, make.Stderr = os.Stderr, os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	fetch.Stdout, make.Stdin = w, r
	err = fetch.Start()
	w.Close()
	if err == nil {
		err = make.Run()
	}
	r.Close()
	if err2 := fetch.Wait(); err == nil {
		err = err2
	}
	return err
}

// download fetches all layers, one after another, and drops them: what nobody
// can be faster than who reads everything.
func (b *bench) download(ctx context.Context) error {
	b.reg.Reset()
	s, err := source.Open(b.ref, source.Options{PlainHTTP: true})
	if err != nil {
		return err
	}
	defer s.Close()
	img, err := s.Resolve(ctx, nil)
	if err != nil {
		return err
	}
	b.reg.Reset()
	began := time.Now()
	for _, d := range img.Layers {
		blob, err := s.Blob(ctx, d)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, blob)
		blob.Close()
		if err != nil {
			return err
		}
	}
	b.plain = time.Since(began)
	b.row(result{what: "plain download", took: b.plain}, b.count())
	return nil
}

// whole is the way without laziness.
func (b *bench) whole(ctx context.Context) error {
	b.reg.Reset()
	began := time.Now()
	if err := b.pipe(ctx, b.ref, filepath.Join(b.dir, "whole.erofs")); err != nil {
		return err
	}
	b.row(result{what: "oci-fetch | tar2erofs, whole", took: time.Since(began)}, b.count())
	return nil
}

// counts are the registry's.
type counts struct {
	gets  int
	bytes int64
}

func (b *bench) count() (c counts) {
	for _, q := range b.reg.Requests() {
		c.gets++
		c.bytes += q.Bytes
	}
	return c
}

// A result is a line of the table.
type result struct {
	what   string
	took   time.Duration
	read   int64 // bytes
	spans  int
	stored int64 // bytes of those spans in the blobs
	note   string
}

func (b *bench) row(r result, c counts) {
	mb := func(n int64) string { return fmt.Sprintf("%.2f", float64(n)/1e6) }
	ratio := func(a, b float64) string {
		if b == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f", a/b)
	}
	fmt.Fprintf(b.table, "%s\t%.2f\t%d\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", r.what, r.took.Seconds(), c.gets, mb(c.bytes), mb(r.read),
		ratio(float64(c.bytes), float64(r.read)), r.spans, ratio(float64(c.gets), float64(r.spans)), ratio(float64(c.bytes), float64(r.stored)), r.note)
}

// bound says whether a value keeps its bound, for the table.
func (b *bench) bound(what string, value, bound float64) string {
	verdict := "ok"
	if value > bound {
		verdict = "MISSED"
		b.missed++
	}
	return fmt.Sprintf("%s %.2f <= %g: %s", what, value, bound, verdict)
}
