// The demo takes a container image from a registry to a file system, both
// ways: whole, and lazily. It makes the image itself, serves it from a registry
// in its own process, and runs the real commands. It needs Go and nothing else;
// what more it can show depends on the machine, and it says what is missing.
//
//	make demo
//	make demo REF=docker.io/library/golang:1.26
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/peakmem"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

func main() {
	peakmem.Init()
	d := demo{}
	flag.StringVar(&d.bin, "bin", "bin", "directory of the commands")
	flag.StringVar(&d.ref, "ref", "", "image to take (default: one made out of this machine's Go)")
	fetchFlags := flag.String("fetch-flags", "", "flags for oci-fetch and erofs-nbd, such as --plain-http")
	keep := flag.Bool("keep", false, "keep the files that were made")
	flag.Parse()
	d.flags = strings.Fields(*fetchFlags)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := d.run(ctx, *keep)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

// A demo is one run; its steps leave here what later ones need.
type demo struct {
	bin   string
	ref   string
	flags []string // for both commands that talk to the registry
	dir   string

	registry *testregistry.Registry // nil: somebody else's
	files    []string               // regular files of the image, for looking at
	uri      string                 // of the NBD server
	atStart  int64                  // bytes the registry had sent when the server was ready
	last     int                    // number of the step
}

func (d *demo) run(ctx context.Context, keep bool) error {
	bin, err := filepath.Abs(d.bin)
	if err != nil {
		return err
	}
	d.bin = bin
	if d.dir, err = os.MkdirTemp("", "layerpipe-demo-"); err != nil {
		return err
	}
	if keep {
		defer fmt.Printf("\nThe files are in %s.\n", d.dir)
	} else {
		defer os.RemoveAll(d.dir)
	}
	start := time.Now()
	if d.ref == "" {
		if err := d.step("Make an image: a small root, this machine's Go toolchain, and a layer that changes both", d.makeImage); err != nil {
			return err
		}
		stop, err := d.serveRegistry()
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := d.step("Whole: the image becomes one EROFS file, in one pass over a pipe", d.whole); err != nil {
		return err
	}
	if err := d.step("Look into it, without mounting", d.look); err != nil {
		return err
	}
	if err := d.step("Lazily: only the index is made; file data stays in the registry", d.index); err != nil {
		return err
	}
	stop, err := d.serve(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := d.step("Read one file of it through NBD", d.readThroughNBD); err != nil {
		return err
	}
	if err := d.step("Mount both", d.mount); err != nil {
		return err
	}
	fmt.Printf("\nAll of it took %s.\n", round(time.Since(start)))
	return nil
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

func (d *demo) makeImage() error {
	im, err := testimage.Golang(d.path("image"), testimage.Options{})
	if err != nil {
		return err
	}
	for i, l := range im.Layers {
		say("layer %d: %s, %s", i, bytesOf(l.Size), l.MediaType)
	}
	d.registry = testregistry.New()
	return d.registry.AddLayout("golang", im.Dir)
}

// serveRegistry makes the image available on a port of the loopback interface.
func (d *demo) serveRegistry() (stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: d.registry, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(listener)
	d.ref = listener.Addr().String() + "/golang"
	d.flags = append(d.flags, "--plain-http")
	say("a registry in this process serves it as %s", d.ref)
	return func() { server.Close() }, nil
}

// served is how much the registry has sent; 0 where it is not ours.
func (d *demo) served() int64 {
	if d.registry == nil {
		return 0
	}
	return d.registry.TotalServed()
}

func (d *demo) fetch() []string {
	return append(append([]string{d.tool("oci-fetch")}, d.flags...), d.ref)
}

func (d *demo) whole() error {
	if err := d.pipeline(d.fetch(), []string{d.tool("tar2erofs"), d.path("whole.erofs")}); err != nil {
		return err
	}
	return d.sizeOf("whole.erofs")
}

func (d *demo) index() error {
	if err := d.pipeline(d.fetch(), []string{d.tool("tar2erofs"), "-i", d.path("index.erofs")}); err != nil {
		return err
	}
	return d.sizeOf("index.erofs")
}

func (d *demo) sizeOf(name string) error {
	st, err := os.Stat(d.path(name))
	if err == nil {
		say("%s: %s", name, bytesOf(st.Size()))
	}
	return err
}

// look opens the whole image, lists its root, and notes the files that later
// steps read.
func (d *demo) look() error {
	if err := d.show(8, d.tool("erofs-dump"), "--ls", d.path("whole.erofs"), "/"); err != nil {
		return err
	}
	f, err := os.Open(d.path("whole.erofs"))
	if err != nil {
		return err
	}
	defer f.Close()
	image, err := erofs.Open(f)
	if err != nil {
		return err
	}
	entries := 0
	err = fs.WalkDir(image, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		entries++
		if !e.Type().IsRegular() {
			return nil
		}
		st, err := e.Info()
		if err == nil && st.Size() >= 512 && st.Size() <= 64<<10 {
			d.files = append(d.files, path)
		}
		return err
	})
	if err == nil && len(d.files) == 0 {
		err = errors.New("the image has no file of a size to look at")
	}
	say("%d entries", entries)
	return err
}

// sample is one of the image's files, a quarter i of the way through it.
func (d *demo) sample(i int) string { return d.files[(len(d.files)-1)*i/4] }

// serve starts erofs-nbd and waits for the address it prints.
func (d *demo) serve(ctx context.Context) (stop func(), err error) {
	err = d.step("Serve the index as a block device, with the registry behind it", func() error {
		before := d.served()
		args := append(append([]string{}, d.flags...), "--index", d.path("index.erofs"), "--blob", d.ref, "--listen", "unix:"+d.path("nbd.sock"))
		d.uri, stop, err = d.server(ctx, d.tool("erofs-nbd"), args...)
		if err != nil {
			return err
		}
		d.atStart = d.served()
		say("%s", d.uri)
		if d.registry != nil {
			say("the registry has sent %s for that", bytesOf(d.atStart-before))
		}
		return nil
	})
	return stop, err
}

func (d *demo) readThroughNBD() error {
	client, err := nbdclient.Dial(d.uri)
	if err != nil {
		return err
	}
	defer client.Close()
	say("the device has %s", bytesOf(client.Size()))
	image, err := erofs.Open(client)
	if err != nil {
		return err
	}
	sample := d.sample(3)
	got, err := fs.ReadFile(image, sample)
	if err != nil {
		return err
	}
	say("/%s: %s", sample, bytesOf(int64(len(got))))
	if d.registry != nil {
		say("the registry has sent %s for that", bytesOf(d.served()-d.atStart))
	}
	want, err := d.output(d.tool("erofs-dump"), "--cat", d.path("whole.erofs"), "/"+sample)
	if err != nil {
		return err
	}
	if string(got) != string(want) {
		return fmt.Errorf("/%s through NBD is not what the whole image has", sample)
	}
	say("the same bytes as in whole.erofs")
	return nil
}

// mount mounts the whole image, and the lazy one where a kernel or FUSE client
// for NBD is at hand.
func (d *demo) mount() error {
	if why := cannotMount(); why != "" {
		say("left out: %s", why)
		return nil
	}
	if err := d.mounted("whole", d.path("whole.erofs"), d.sample(1)); err != nil {
		return err
	}
	file, stop, why, err := d.nbdFile()
	if err != nil {
		return err
	}
	if why != "" {
		say("the lazy one is left out: %s", why)
		return nil
	}
	defer stop()
	before := d.served()
	if err := d.mounted("lazily", file, d.sample(1)); err != nil {
		return err
	}
	if d.registry != nil {
		say("the registry has sent %s for that", bytesOf(d.served()-before))
	}
	return nil
}

// mounted mounts an image, counts what is in it, and reads one file.
func (d *demo) mounted(how, file, sample string) (err error) {
	dir := d.path("mnt-" + how)
	unmount, err := mountErofs(file, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	entries := 0
	err = filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
		entries++
		return err
	})
	if err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(dir, sample))
	if err != nil {
		return err
	}
	want, err := d.output(d.tool("erofs-dump"), "--cat", d.path("whole.erofs"), "/"+sample)
	if err != nil {
		return err
	}
	if string(got) != string(want) {
		return fmt.Errorf("/%s, mounted %s, is not what the whole image has", sample, how)
	}
	say("mounted %s: %d entries; /%s is right", how, entries, sample)
	return nil
}
