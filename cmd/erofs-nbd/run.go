package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/cmd/internal/regflags"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/nbd"
	"github.com/layerpipe/layerpipe/pkg/spancache"
)

const description = `Serve an EROFS image over NBD, read-only.

IMAGE is a local image. With --index it is an index made by tar2erofs -i, and the layers are read on demand from where --blob says: a registry's repository, oci:DIR, oci-archive:FILE, or the layers in files, one --blob for each from the lowest up. The index knows the layers by digest and verifies what it reads; a tag that has moved does no harm. With --blob and --layer alone it is a layer that is an EROFS image itself.

The NBD URI is printed when the server is ready; with --attach and --mount, where the kernel is the client, its device. SIGTERM and SIGINT let it finish what it is doing and end it with exit code 0.

  erofs-nbd --index golang.erofs --blob golang:1.26 --run 'nbdcopy "$uri" golang.img'
  erofs-nbd --index golang.erofs --blob golang:1.26 --mount /mnt --daemon`

type flags struct {
	Index           string   `placeholder:"FILE" help:"Index image whose layers are served behind it."`
	Blob            []string `sep:"none" placeholder:"REF" help:"Where the layers are: an image's reference, or a file for each."`
	Layer           string   `placeholder:"N|DIGEST" help:"Of the image, the one layer to serve, or that --zinfo or --seek is for; 0 is the lowest."`
	Zinfo           string   `placeholder:"FILE" help:"Checkpoints of the layer, for an index that has no seek section."`
	Seek            string   `placeholder:"FILE" help:"Seek data of the layer, made by gzindex --seek, for an index that has none: what is read is verified then."`
	RequireVerified bool     `help:"Refuse layers that cannot be verified as they are read."`
	CacheSize       cli.Size `default:"256MiB" placeholder:"BYTES" help:"Memory for what was read of the layers (default ${default})."`
	Tmpdir          string   `placeholder:"DIR" help:"For what is too large for memory (default: the system's)."`
	Verbose         bool     `short:"v" help:"Say which mirror is used, and when a layer that could not be verified has proved right as a whole."`
	Stats           bool     `help:"At the end, say on stderr what was read. SIGUSR1 makes it say so at once."`

	listenFlags    `group:"Listening:"`
	regflags.Flags `group:"Images and registries:"`
	cacheFlags     `group:"Fetching ahead, and counting:"`
	attachFlags    `group:"The kernel's NBD devices, and mounts:"`
	Image          string `arg:"" optional:"" help:"Local image to serve."`

	// Pinned is the layer that --layer meant when the device was attached.
	Pinned *ocispec.Descriptor `kong:"-"`
}

// listenFlags are for the clients that connect to a socket.
type listenFlags struct {
	Listen  string `placeholder:"unix:PATH|tcp:HOST:PORT" help:"Where to listen (default: a socket in a new directory under $$XDG_RUNTIME_DIR or /run)."`
	Run     string `placeholder:"COMMAND" help:"Run a shell command with $$uri set, and serve as long as it runs; its exit code is ours."`
	TLSCert string `name:"tls-cert" placeholder:"FILE" help:"Serve over TLS, with this certificate."`
	TLSKey  string `name:"tls-key" placeholder:"FILE" help:"Its key."`
	TLSCA   string `name:"tls-ca" placeholder:"FILE" help:"Only clients with a certificate of this authority."`
}

func run(ctx context.Context, env *cli.Env) (err error) {
	var f flags
	if err := cli.Parse(env, &f, description); err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	if err := f.checkAlone(); err != nil {
		return err
	}
	switch {
	case f.List:
		return f.list(env)
	case f.Detach != "":
		return f.detach()
	case f.Reattach == "all":
		return f.reattachAll(ctx, env)
	case f.Daemon && !isDaemon():
		return startDaemon(ctx, env, env.Args)
	}
	var old *takeover
	if f.Reattach != "" {
		if old, err = f.take(); err != nil {
			return err
		}
	} else if err := f.prepare(); err != nil {
		return err
	}
	tlsConfig, err := f.tls()
	if err != nil {
		return err
	}
	if isDaemon() {
		env.Stderr = &switchedWriter{w: env.Stderr}
	}
	log := newLog(env)
	defer log.flush()
	caching, err := f.openCaching(env, log)
	if err != nil {
		return err
	}
	caching.serving.Store(old != nil) // somebody has been reading it
	stats := &statistics{began: time.Now(), memory: spancache.New(int64(f.CacheSize)), caching: caching}
	d, err := f.open(ctx, env, log, stats.memory, caching)
	if err != nil {
		return errors.Join(err, caching.close())
	}
	defer func() { err = errors.Join(err, d.Close(), caching.close()) }()
	if !d.Verified() {
		if f.RequireVerified {
			return fmt.Errorf("%s: --require-verified: there are no digests to verify the layer by: %w", f.name(), fault.ErrIntegrity)
		}
		env.Errorf("warning: %s: the layer's data cannot be verified as it is read (but for what gzip's own checksums cover)", f.name())
	}
	stats.disk = d.Disk
	env.Serving()
	caching.serving.Store(true)
	s := &nbd.Server{
		Exports: []nbd.Export{{Description: f.name(), Device: stats.device()}},
		TLS:     tlsConfig,
		Logf:    log.printf,
		OnError: func(_ *nbd.Export, off int64, n int, err error) {
			log.printf("I/O error: %d bytes at %d: %v", n, off, err)
		},
	}
	stats.server = s
	endStats, err := stats.serve(ctx, env, f.Metrics)
	if err != nil {
		return err
	}
	defer endStats()
	caching.start(ctx, d.Disk)
	if old != nil || f.attaching() {
		err = f.serveKernel(ctx, env, log, s, old)
	} else {
		err = f.serveSocket(ctx, env, s)
	}
	caching.stop()
	log.flush()
	if f.Stats {
		stats.print(env)
	}
	return err
}

// prepare looks for what has to be there before anything is opened.
func (f *flags) prepare() error {
	if f.attaching() || f.Daemon {
		if err := f.absolute(); err != nil {
			return err
		}
	}
	if f.attaching() {
		return f.probe()
	}
	return nil
}

// serveSocket serves until ctx is done or the command has ended.
func (f *flags) serveSocket(ctx context.Context, env *cli.Env, s *nbd.Server) error {
	l, err := listen(f.Listen)
	if err != nil {
		return err
	}
	defer l.Close()
	uri := l.uri(s.TLS != nil)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	if f.Run == "" {
		if _, err := fmt.Fprintln(env.Stdout, uri); err != nil {
			return errors.Join(fmt.Errorf("stdout: %w", err), stopped(stop, served))
		}
		if err := tellReady(env); err != nil {
			return errors.Join(err, stopped(stop, served))
		}
		return <-served
	}
	err = runCommand(ctx, env, f.Run, uri)
	return errors.Join(err, stopped(stop, served))
}

// stopped ends the server and waits for it.
func stopped(stop func(), served <-chan error) error {
	stop()
	return <-served
}

// name is what is served, for messages.
func (f *flags) name() string {
	switch {
	case f.Image != "":
		return f.Image
	case f.Index != "":
		return f.Index
	}
	return f.Blob[0]
}

// check looks for flags that do not go together, before anything is touched.
func (f *flags) check() error {
	if err := f.checkAttach(); err != nil || f.action() != "" {
		return err
	}
	if err := f.checkCache(); err != nil {
		return err
	}
	switch {
	case f.Image != "" && (f.Index != "" || len(f.Blob) > 0):
		return cli.Usagef("either an image, or --index and --blob")
	case f.Image == "" && f.Index == "" && len(f.Blob) == 0:
		return cli.Usagef("nothing to serve: give an image, or --index and --blob")
	case f.Index != "" && len(f.Blob) == 0:
		return cli.Usagef("--index needs --blob: where the layers are")
	case f.Index == "" && len(f.Blob) > 0 && f.Layer == "":
		return cli.Usagef("--blob needs --index, or --layer for a layer that is an EROFS image")
	case f.Index == "" && len(f.Blob) > 1:
		return cli.Usagef("--layer takes one --blob")
	case f.Layer != "" && len(f.Blob) == 0:
		return cli.Usagef("--layer needs --blob")
	case f.Zinfo != "" && f.Index == "":
		return cli.Usagef("--zinfo needs --index")
	case f.Seek != "" && f.Index == "":
		return cli.Usagef("--seek needs --index")
	case f.Seek != "" && f.Zinfo != "":
		return cli.Usagef("either --seek or --zinfo")
	case (f.TLSCert == "") != (f.TLSKey == ""):
		return cli.Usagef("--tls-cert and --tls-key belong together")
	case f.TLSCA != "" && f.TLSCert == "":
		return cli.Usagef("--tls-ca needs --tls-cert")
	}
	return nil
}
