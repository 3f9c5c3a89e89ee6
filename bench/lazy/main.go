// Lazy measures what it takes to read an image whose layers lie in a registry,
// behind a link of 20 ms and 100 Mbit/s, with nothing at hand but the index. It
// makes the image out of this machine's Go toolchain, and runs the real
// commands:
//
//	make bench BENCH=lazy
//
// Each line is a server that has just started, with empty caches; time and
// requests count from when it is ready, but for the first byte and for what is
// mounted, where they count from its start. GETs and bytes are the registry's
// own count; the bytes read are those of files, or what a device gave to the
// kernel. Where there is a bound in a line, the exit code says whether it was
// kept.
//
// What is mounted is so through the kernel's NBD driver, or else nbdfuse and a
// loop device. With $MOUNT_EROFS, the name of a mount.erofs, a virtual machine
// with that driver is booted (see internal/vm), and both mount there.
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
	only := flag.String("only", "", "of whole, first, sources, file, four, tree, cached, recorded, gentle, mounted, vm the ones that contain this")
	layout := flag.String("image", "", "OCI layout directory to take (default: one made here)")
	flag.BoolVar(&b.boot, "vm", false, "boot the virtual machine even without $MOUNT_EROFS")
	flag.Parse()
	b.mountErofs = os.Getenv("MOUNT_EROFS")
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
	layout   string // the image
	boot     bool   // a virtual machine in any case
	// mountErofs is a mount.erofs, and other what it mounts.
	mountErofs string
	other      otherIndex
	plain      time.Duration // for downloading all layers
	whole      time.Duration // for fetching and unpacking the image; 0: not known
	missed     int           // bounds
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
	b.layout = layout
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
	if b.mountErofs != "" {
		if err := b.makeOther(ctx); err != nil {
			return err
		}
	}
	header()
	if err := b.download(ctx); err != nil {
		return err
	}
	for _, l := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"whole", b.fetchWhole}, {"first", b.firstByte}, {"sources", b.packageSources}, {"file", b.bigFile}, {"four", b.fourReaders},
		{"tree", b.tree}, {"cached", b.treeFromDisk}, {"recorded", b.recorded}, {"gentle", b.gentle},
		{"mounted", b.mounted}, {"vm", b.virtual},
	} {
		if !strings.Contains(l.name, only) {
			continue
		}
		if err := l.f(ctx); err != nil {
			return err
		}
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

// fetchWhole is the way without laziness: fetching and unpacking all.
func (b *bench) fetchWhole(ctx context.Context) error {
	b.reg.Reset()
	began := time.Now()
	if err := b.pipe(ctx, b.ref, filepath.Join(b.dir, "whole.erofs")); err != nil {
		return err
	}
	b.whole = time.Since(began)
	b.row(result{what: "fetched and unpacked: oci-fetch | tar2erofs", took: b.whole}, b.count())
	return nil
}
