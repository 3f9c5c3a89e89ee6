package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/disk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/source"
	"github.com/layerpipe/layerpipe/pkg/spancache"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// blobs is where the layers are: files, or a source.
type blobs struct {
	files  []string
	source source.Source
}

func (b *blobs) Close() error {
	if b.source == nil {
		return nil
	}
	return b.source.Close()
}

// isFile tells a layer's file from a reference: it exists, or can only be
// meant as a path.
func isFile(name string) bool {
	if source.IsLocal(name) {
		return false
	}
	if st, err := os.Stat(name); err == nil && !st.IsDir() {
		return true
	}
	return filepath.IsAbs(name) || len(name) > 1 && name[0] == '.' && (os.IsPathSeparator(name[1]) || name[1] == '.')
}

// A read that waits for a registry that does not answer has to fail before the
// kernel's block layer loses its patience, which takes 30 seconds: five timeouts
// and the pauses between them, 0.5, 1, 2 and 4 seconds at the most. These are
// also what a registry has to restart. One that answers, and asks for more
// patience, gets no more.
const (
	readIdle     = 4 * time.Second
	readFailures = 5
	// startPatience is how long a start waits for a registry that it can do
	// without for now.
	startPatience = 5 * time.Second
)

func (f *flags) openBlobs(env *cli.Env, log *log, caching *caching) (*blobs, error) {
	files := 0
	for _, name := range f.Blob {
		if isFile(name) {
			files++
		}
	}
	switch {
	case files == len(f.Blob):
		return &blobs{files: f.Blob}, nil
	case len(f.Blob) > 1:
		return nil, cli.Usagef("several --blob are one file for each layer, and not all of these are files")
	}
	o, err := f.Flags.Options(env)
	if err != nil {
		return nil, err
	}
	o.IdleTimeout, o.Retries, o.LongestAsked = readIdle, readFailures, readIdle
	o.Requests, o.Expected = &caching.gets, &caching.serving
	o.Notify = func(line string) { log.printf("%s", line) }
	if f.Verbose {
		o.Verbose = o.Notify
	}
	reg := f.Flags
	if f.spans() && !caching.useDir(env, f.CacheDir, int64(f.CacheDirSize)) {
		reg.CacheDir = "" // whole blobs would not fare better
	}
	s, err := reg.Open(f.Blob[0], o)
	if err != nil {
		return nil, err
	}
	return &blobs{source: s}, nil
}

// closing is a disk together with the source that its blobs come from.
type closing struct {
	*disk.Disk
	blobs *blobs
}

func (c *closing) Close() error { return errors.Join(c.Disk.Close(), c.blobs.Close()) }

// open makes the disk that the flags ask for.
func (f *flags) open(ctx context.Context, env *cli.Env, log *log, cache *spancache.Cache, caching *caching) (_ *closing, err error) {
	if f.Image != "" {
		d, err := disk.OpenImage(f.Image)
		return &closing{d, &blobs{}}, err
	}
	var x *disk.Index
	if f.Index != "" {
		// The index comes first: it needs no network to be wrong.
		if x, err = disk.OpenIndex(f.Index); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				x.Close()
			}
		}()
	}
	b, err := f.openBlobs(env, log, caching)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	o := disk.Options{Cache: cache, SpillDir: f.Tmpdir, Probe: b.files != nil}
	caching.options(&o, int64(f.Bandwidth))
	var d *disk.Disk
	switch {
	case x == nil:
		d, err = f.openNative(ctx, b, o)
	case x.Section != nil:
		d, err = f.openIndex(ctx, env, x, b, o)
	default:
		d, err = f.openForeign(ctx, x, b, o)
	}
	if err != nil {
		return nil, err
	}
	return &closing{d, b}, nil
}

func (f *flags) openIndex(ctx context.Context, env *cli.Env, x *disk.Index, b *blobs, o disk.Options) (*disk.Disk, error) {
	if f.Zinfo != "" || f.Seek != "" || f.Layer != "" {
		return nil, cli.Usagef("%s has a seek section: --layer, --zinfo and --seek are for indexes without one", f.Index)
	}
	if b.source != nil {
		d, err := x.Join(ctx, disk.FromSource(b.source), o)
		if err != nil {
			return nil, err
		}
		if err := checkSource(ctx, env, x, b.source, d); err != nil {
			d.Close()
			return nil, err
		}
		return d, nil
	}
	if got, want := len(b.files), len(x.Section.Layers); got != want {
		return nil, cli.Usagef("%s has %d layers, but --blob names %d files", f.Index, want, got)
	}
	return x.Join(ctx, disk.FromFiles(b.files), o)
}

// checkSource asks for a layer, unless all layers are cached. Where something
// is, a registry that cannot be reached is a warning: it may come back before
// anything else is read. What it says itself counts in any case.
func checkSource(ctx context.Context, env *cli.Env, x *disk.Index, s source.Source, d *disk.Disk) error {
	have, all := d.Kept()
	switch {
	case have == 0:
		return x.Probe(ctx, s)
	case have == all:
		return nil
	}
	short, cancel := context.WithTimeoutCause(ctx, startPatience, fmt.Errorf("no answer within %s", startPatience))
	defer cancel()
	err := x.Probe(short, s)
	if err == nil || ctx.Err() != nil {
		return err
	}
	for _, said := range []error{fault.ErrUnauthorized, fault.ErrNotFound, fault.ErrIntegrity, fault.ErrUnsupported, fault.ErrUsage} {
		if errors.Is(err, said) {
			return err
		}
	}
	env.Errorf("warning: %v; only what is cached can be read for now, %d of %d spans", err, have, all)
	return nil
}

func (f *flags) openForeign(ctx context.Context, x *disk.Index, b *blobs, o disk.Options) (*disk.Disk, error) {
	desc, blob, err := f.oneLayer(ctx, b)
	if err != nil {
		return nil, err
	}
	name := desc.Digest.String()
	if b.files != nil {
		name = b.files[0]
	}
	if f.Seek != "" {
		l, err := loadSeek(f.Seek, desc.Digest, blob.Size())
		if err != nil {
			blob.Close()
			return nil, err
		}
		return x.JoinSeek(ctx, name, blob, desc, l, o)
	}
	var z *zinfo.Index
	if f.Zinfo != "" {
		if z, err = loadZinfo(f.Zinfo, blob.Size()); err != nil {
			blob.Close()
			return nil, err
		}
	}
	return x.JoinForeign(ctx, name, blob, desc, z, o)
}

func loadZinfo(name string, blobSize int64) (*zinfo.Index, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	z, err := zinfo.Load(file, blobSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return z, nil
}

// loadSeek reads a seek section from a file, and picks the layer.
func loadSeek(name string, d digest.Digest, blobSize int64) (*seek.Layer, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	s, err := seek.Read(file, st.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l, err := s.Find(d, blobSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}

func (f *flags) openNative(ctx context.Context, b *blobs, o disk.Options) (*disk.Disk, error) {
	if b.files != nil {
		return nil, cli.Usagef("%s is a file: to serve an image, name it without --blob", b.files[0])
	}
	desc, blob, err := f.oneLayer(ctx, b)
	if err != nil {
		return nil, err
	}
	return disk.OpenNative(ctx, blob, desc, o)
}

// oneLayer opens the layer that --layer names, or the only file.
func (f *flags) oneLayer(ctx context.Context, b *blobs) (d ocispec.Descriptor, _ source.BlobReader, err error) {
	if b.files != nil {
		if len(b.files) > 1 || f.Layer != "" {
			return d, nil, cli.Usagef("%s is for one layer: give its file, without --layer", f.Index)
		}
		blob, err := disk.OpenBlob(b.files[0])
		return d, blob, err
	}
	if f.Layer == "" {
		return d, nil, cli.Usagef("%s has no seek section: say with --layer which layer it is for", f.Index)
	}
	if f.Pinned != nil { // whatever the tag points to by now
		blob, err := b.source.BlobAt(ctx, *f.Pinned)
		return *f.Pinned, blob, err
	}
	platform, err := f.Target()
	if err != nil {
		return d, nil, err
	}
	img, err := b.source.Resolve(ctx, platform)
	if err != nil {
		return d, nil, err
	}
	if d, err = pickLayer(img, f.Layer); err != nil {
		return d, nil, err
	}
	f.Pinned = &d
	blob, err := b.source.BlobAt(ctx, d)
	return d, blob, err
}

// pickLayer finds a layer by number, from 0 for the lowest, or digest.
func pickLayer(img *source.Image, s string) (d ocispec.Descriptor, err error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n >= len(img.Layers) {
			return d, fmt.Errorf("%s has %d layers, there is no layer %d: %w", img.Name, len(img.Layers), n, fault.ErrNotFound)
		}
		return img.Layers[n], nil
	}
	want := digest.Digest(s)
	if err := want.Validate(); err != nil {
		return d, cli.Usagef("--layer %q: neither a number nor a digest", s)
	}
	for _, l := range img.Layers {
		if l.Digest == want {
			return l, nil
		}
	}
	return d, fmt.Errorf("%s has no layer %s: %w", img.Name, want, fault.ErrNotFound)
}

// tls is the server's side of TLS, or nil.
func (f *flags) tls() (*tls.Config, error) {
	if f.TLSCert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", f.TLSCert, f.TLSKey, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if f.TLSCA != "" {
		b, err := os.ReadFile(f.TLSCA)
		if err != nil {
			return nil, err
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(b) {
			return nil, fault.Usagef("%s: no certificate in it", f.TLSCA)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}
