package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/ociarchive"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// input is what build reads the layers from.
type input struct {
	build.Layers
	manifest *ocispec.Descriptor // of an image
	closers  []io.Closer
}

func (in *input) Close() error {
	var err error
	for _, c := range in.closers {
		err = errors.Join(err, c.Close())
	}
	return err
}

// open finds out what the inputs are. spool is a directory for an archive's
// blobs that come too early.
func (f *flags) open(ctx context.Context, env *cli.Env, spool string) (_ *input, err error) {
	names := f.In
	if len(names) == 0 {
		names = []string{"-"}
	}
	in := &input{}
	defer func() {
		if err != nil {
			in.Close()
		}
	}()
	if len(names) > 1 {
		for _, n := range names {
			if n == "-" {
				return nil, cli.Usagef("stdin among several layers: name them all")
			}
		}
		in.Layers = &files{env: env, names: names, in: in, whole: f.NoEnd}
		return in, nil
	}
	file, err := env.Open(names[0])
	if err != nil {
		return nil, err
	}
	in.closers = append(in.closers, file)
	_, _, regular := cli.Regular(file)
	head, r, err := peek(file, regular)
	if err != nil {
		return nil, err
	}
	image := f.Format == "image"
	kind := layer.Sniff(head)
	if f.Format == "auto" {
		image = ociarchive.IsArchive(head) || kind != layer.Plain && ociarchive.IsArchive(decompress(ctx, head))
	}
	if !image {
		if len(head) == 0 {
			return nil, fmt.Errorf("%s: empty input: %w", cli.Label(names[0]), io.ErrUnexpectedEOF)
		}
		if f.Platform != "" {
			return nil, cli.Usagef("--platform: %s is a layer, not an image", cli.Label(names[0]))
		}
		one := &build.Layer{Name: cli.Label(names[0]), Blob: r, Whole: regular || f.NoEnd}
		if f.Digest != "" {
			one.Descriptor = &ocispec.Descriptor{Digest: digest.Digest(f.Digest)}
		}
		in.Layers = build.List(one)
		return in, nil
	}
	if f.Digest != "" {
		return nil, cli.Usagef("--digest is for a single layer: %s is an image, whose digests are inside", cli.Label(names[0]))
	}
	if kind != layer.Plain {
		lr := layer.NewReader(ctx, r, layer.Options{})
		in.closers = append(in.closers, lr)
		r = lr
	}
	o := ociarchive.ReaderOptions{SpoolDir: spool}
	if f.Platform != "" {
		if o.Platform, err = ociimage.ParsePlatform(f.Platform); err != nil {
			return nil, cli.Usagef("--platform: %v", err)
		}
	}
	a, err := ociarchive.NewReader(r, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cli.Label(names[0]), err)
	}
	in.closers = append(in.closers, a)
	// What the index says about the image must not depend on the tag it had, or
	// on where it came from. docker save's older form has no manifest.
	if m := a.Image().Manifest; m.Digest != "" {
		in.manifest = &ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}
	}
	in.Layers = &archive{a: a}
	return in, nil
}

// headSize is enough to see the first tar header behind whatever a header may
// hold: a whole block of zstd (128 KiB) or chunk of xz (64 KiB).
const headSize = 256 << 10

// peek shows the beginning of an input. A regular file stays one, for what
// reads at offsets.
func peek(file io.Reader, regular bool) ([]byte, io.Reader, error) {
	if f, _, ok := cli.Regular(file); ok && regular {
		head := make([]byte, headSize)
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, nil, err
		}
		n, err := f.ReadAt(head, at)
		if err != nil && err != io.EOF {
			return nil, nil, err
		}
		return head[:n], f, nil
	}
	r := bufio.NewReaderSize(file, headSize)
	// One block of a plain tar tells, and there may be no more for a while.
	head, err := r.Peek(512)
	if err == nil && layer.Sniff(head) != layer.Plain {
		head, err = r.Peek(headSize)
	}
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	if n := r.Buffered(); n > len(head) {
		head, _ = r.Peek(n)
	}
	return head, r, nil
}

// decompress gives what can be had of the beginning of a stream that is cut:
// two tar headers are enough for IsArchive.
func decompress(ctx context.Context, head []byte) []byte {
	r := layer.NewReader(ctx, bytes.NewReader(head), layer.Options{})
	defer r.Close()
	p, _ := r.Peek(4 << 10)
	return bytes.Clone(p)
}

// files are layers that are opened one after the other.
type files struct {
	env   *cli.Env
	names []string
	next  int
	in    *input
	whole bool // even if they are no regular files
}

func (f *files) Len() int { return len(f.names) }

func (f *files) Next() (*build.Layer, error) {
	if f.next == len(f.names) {
		return nil, io.EOF
	}
	name := f.names[f.next]
	f.next++
	file, err := f.env.Open(name)
	if err != nil {
		return nil, err
	}
	f.in.closers = append(f.in.closers, file)
	_, _, regular := cli.Regular(file)
	return &build.Layer{Name: name, Blob: file, Whole: regular || f.whole}, nil
}

// archive are the layers of an image.
type archive struct {
	a *ociarchive.Reader
	n int
}

func (a *archive) Len() int { return len(a.a.Image().Layers) }

func (a *archive) Next() (*build.Layer, error) {
	d, r, err := a.a.NextLayer()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("layer %d (%s)", a.n, d.Digest)
	a.n++
	return &build.Layer{Name: name, Blob: r, Descriptor: &d}, nil
}
