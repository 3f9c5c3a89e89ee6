// Package build makes EROFS images of layers: the build flow, from the bytes
// of layers to an image.
//
//	blob -> layer (verify, decompress, checkpoints) -> tar entries -> rootfs tree -> EROFS writer
//
// A whole image holds its files' data; an index image holds metadata and the
// seek section, and the data stays in the layers.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// Layers gives an image's layers, from the lowest up.
type Layers interface {
	// Len is how many there are.
	Len() int
	// Next opens the next layer; what the last one left unread may be skipped.
	// It returns io.EOF behind the last one, if all is well.
	Next() (*Layer, error)
}

// A Layer is the input that a layer is read from.
type Layer struct {
	Name string // for messages
	Blob io.Reader
	// Descriptor is what the blob must be. Nil: it is what it is, and then a
	// missing end of the archive is an error.
	Descriptor *ocispec.Descriptor
	// Whole says that the input cannot have been cut short, although it has no
	// descriptor; a missing end marker is worth a warning then.
	Whole bool
}

// List gives layers that are open already, from the lowest up.
func List(l ...*Layer) Layers {
	return &list{l, 0}
}

type list struct {
	layers []*Layer
	next   int
}

func (l *list) Len() int { return len(l.layers) }

func (l *list) Next() (*Layer, error) {
	if l.next == len(l.layers) {
		return nil, io.EOF
	}
	l.next++
	return l.layers[l.next-1], nil
}

// Options says how to build. The zero value makes a whole image.
type Options struct {
	Index     bool  // metadata alone, for data that stays in the layers
	BlockSize int   // bytes; 0: 4096. An index has 512 always.
	SpanSize  int64 // of an index's checkpoints, uncompressed bytes; 0: 4 MiB
	NoInline  bool  // see erofs.WriterOptions

	Whiteouts rootfs.Whiteouts
	Owners    Owners
	Times     Times
	// Exclude are patterns of what to leave out, with all that is below it. One
	// without a slash is held against names, wherever they are; one with a slash
	// against whole paths from the root ("/tmp" is the root's tmp alone).
	// Patterns see the finished tree, not the archives' entries, so that neither
	// a path through a symbolic link nor a hard link gets around them: a file
	// that has another name stays under that one.
	//
	//	?      any character but a slash
	//	*      any number of those
	//	**     any characters
	//	[a-z]  one of these, [!a-z] none of them; [[:alpha:]] and so on are ASCII's
	//	\c     c itself
	//
	// Characters are UTF-8's, in every locale; a byte that belongs to none is one
	// by itself.
	Exclude []string
	// XattrPrefixes: see erofs.WriterOptions.
	XattrPrefixes []string

	UUID     *[16]byte // nil: derived from the layers and the options
	Label    string
	Manifest *ocispec.Descriptor // noted in the seek section

	Warn     func(string)                      // of what is not as it should be; may be nil
	Progress func(layer int, n int64, e int64) // uncompressed bytes and entries so far; may be nil
}

// A Result tells what was built.
type Result struct {
	erofs.WriteStats
	Layers      []seek.Layer // of a whole image without spans
	Entries     int64        // read from all layers
	SeekSection int64        // bytes
}

// Image builds an image in out, which must be empty; so must tails, a
// temporary file that the caller deletes. On an error what out holds is no
// image.
func Image(ctx context.Context, out, tails erofs.Storage, layers Layers, o Options) (*Result, error) {
	wo := erofs.WriterOptions{BlockSize: o.BlockSize, NoInline: o.NoInline, XattrPrefixes: o.XattrPrefixes}
	var exclude []*regexp.Regexp
	for _, glob := range o.Exclude {
		re, err := compileGlob(glob)
		if err != nil {
			return nil, err
		}
		exclude = append(exclude, re)
	}
	if o.Index {
		wo.BlockSize, wo.Devices = erofs.IndexBlockSize, layers.Len()
	}
	w, err := erofs.NewWriter(out, tails, wo)
	if err != nil {
		return nil, err
	}
	b := &builder{opts: o, w: w, exclude: exclude, tree: rootfs.New(rootfs.Options{Whiteouts: o.Whiteouts})}
	for {
		l, err := layers.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := b.layer(ctx, l); err != nil {
			return nil, fmt.Errorf("%s: %w", l.Name, err)
		}
	}
	return b.finish()
}

type builder struct {
	opts    Options
	exclude []*regexp.Regexp
	w       *erofs.Writer
	tree    *rootfs.Tree
	windows seek.WindowBudget
	res     Result
}

// layer applies one layer to the tree.
func (b *builder) layer(ctx context.Context, l *Layer) error {
	r := layer.NewReader(ctx, l.Blob, layer.Options{Descriptor: l.Descriptor, Seek: b.opts.Index, SpanSize: b.opts.SpanSize, Windows: &b.windows})
	defer r.Close()
	n := len(b.res.Layers)
	size, err := b.entries(n, l, r)
	if err != nil {
		return err
	}
	// What follows the archive's end belongs to the blob, whose digest is only
	// known to match when all of it was read.
	for err == nil {
		var skipped int64
		skipped, err = r.Discard(1 << 40)
		size += skipped
	}
	if err != io.EOF {
		return err
	}
	desc := ocispec.Descriptor{MediaType: r.Kind().MediaType(), Digest: r.Digest(), Size: r.BlobSize()}
	if l.Descriptor != nil {
		desc.MediaType = l.Descriptor.MediaType
	}
	sl := seek.Layer{Descriptor: desc, Size: size}
	if b.opts.Index {
		s, err := r.Seek()
		if err != nil {
			return err
		}
		s.Descriptor = desc
		sl = *s
	}
	b.res.Layers = append(b.res.Layers, sl)
	return nil
}

func (b *builder) warn(format string, args ...any) {
	if b.opts.Warn != nil {
		b.opts.Warn(fmt.Sprintf(format, args...))
	}
}

// finish writes the metadata.
func (b *builder) finish() (*Result, error) {
	if err := b.edit(); err != nil {
		return nil, err
	}
	fin := erofs.Final{UUID: b.uuid(), Label: b.opts.Label, BuildTime: b.opts.Times.Build}
	if b.opts.Index {
		for _, l := range b.res.Layers {
			fin.Devices = append(fin.Devices, erofs.DeviceSpec{Tag: l.Tag(), Size: l.Size})
		}
		// Compressing the windows takes as long as all the rest: side by side.
		var body []byte
		var err error
		var made sync.WaitGroup
		made.Go(func() {
			s := seek.Section{Layers: b.res.Layers, Manifest: b.opts.Manifest}
			body, err = s.MarshalBinary()
		})
		defer made.Wait()
		fin.Trailer = func(int64) ([]byte, error) {
			made.Wait()
			b.res.SeekSection = int64(len(body))
			return body, err
		}
	}
	st, err := b.w.Finish(b.tree, fin)
	if err != nil {
		return nil, err
	}
	b.res.WriteStats = *st
	return &b.res, nil
}

// uuid is derived from all that the image depends on, so that the same input
// gives the same bytes and different images can be told apart. Its form is
// RFC 9562's version 8.
func (b *builder) uuid() (u [16]byte) {
	if b.opts.UUID != nil {
		return *b.opts.UUID
	}
	h := sha256.New()
	o := &b.opts
	fmt.Fprintf(h, "layerpipe\x00%t %d %d %t %d %q\x00", o.Index, b.w.BlockSize(), o.SpanSize, o.NoInline, o.Whiteouts, o.Label)
	fmt.Fprintf(h, "%s\x00%s\x00%q %q\x00", &o.Owners, &o.Times, o.Exclude, o.XattrPrefixes)
	for _, l := range b.res.Layers {
		io.WriteString(h, l.Descriptor.Digest.String())
		binary.Write(h, binary.LittleEndian, l.Size)
	}
	copy(u[:], h.Sum(nil))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}
