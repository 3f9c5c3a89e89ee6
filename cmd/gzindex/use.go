package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync/atomic"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// An index is one of the two.
type index struct {
	zinfo *zinfo.Index // its windows may still be in the file
	seek  *seek.Section
	layer *seek.Layer // of the section: the one that is the blob
	io.Closer
}

// load reads an index, of whichever format, of a blob of that size, or -1 for
// the index alone.
func (c *command) load(name string, blobSize int64) (*index, error) {
	r, err := c.env.Open(name)
	if err != nil {
		return nil, err
	}
	x := &index{Closer: r}
	if f, size, regular := cli.Regular(r); regular {
		if x.seek, err = seek.Read(f, size); errors.Is(err, fault.ErrNotFound) {
			if x.zinfo, err = zinfo.Open(f, size, blobSize); err != nil {
				head := make([]byte, sniffed)
				n, _ := f.ReadAt(head, 0)
				err = foreign(head[:n], false, err)
			}
		}
	} else {
		err = x.loadPiped(r, blobSize)
	}
	if err == nil && x.seek != nil && blobSize >= 0 {
		x.layer, err = x.seek.Find("", blobSize)
		if errors.Is(err, fault.ErrNotFound) && len(x.seek.Layers) == 1 {
			err = fmt.Errorf("this is of a file of %d bytes, not of %d: %w", x.seek.Layers[0].Descriptor.Size, blobSize, fault.ErrIntegrity)
		}
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("%s: %w", cli.Label(name), err)
	}
	return x, nil
}

// foreign says of a file that is no index of ours what it is, where its first
// bytes tell: a zinfo has no magic, and what is wrong with gzip data taken for
// one helps nobody.
func foreign(head []byte, piped bool, err error) error {
	var what string
	image := len(head) >= sniffed && binary.LittleEndian.Uint32(head[ondisk.SuperOffset:]) == ondisk.Magic
	at := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	switch {
	case seek.Begins(head):
		return fmt.Errorf("this is a seek section without its end: cut short, or with data behind it: %w", fault.ErrCorrupt)
	case !errors.Is(err, fault.ErrCorrupt):
		return err
	case at(8, "gzipindx"), at(8, "gzipindX"):
		what = "an index of gztool's"
	case at(0, "GZIDX"):
		what = "an index of indexed_gzip's"
	case image && piped:
		what = "an EROFS image, whose seek section cannot be had from a pipe"
	case image:
		what = "an EROFS image that does not end in a seek section"
	case layer.Sniff(head) != layer.Plain:
		what = layer.Sniff(head).String() + " data"
	default:
		return err
	}
	return fmt.Errorf("this is %s, not a zinfo or a seek section: %w", what, fault.ErrUnsupported)
}

// sniffed is how much foreign wants to see of a file: up to a superblock.
const sniffed = ondisk.SuperOffset + 4

// loadPiped tells the formats apart by their first bytes. Where a section has the
// beginning of its JSON a zinfo has a span size: one of petabytes then.
func (x *index) loadPiped(r io.Reader, blobSize int64) error {
	br := bufio.NewReader(r)
	head, _ := br.Peek(sniffed)
	head = bytes.Clone(head)
	if !seek.Begins(head) {
		var err error
		if x.zinfo, err = zinfo.Load(br, blobSize); err != nil {
			err = foreign(head, true, err)
		}
		return err
	}
	b, err := io.ReadAll(io.LimitReader(br, maxPiped))
	if err == nil {
		if x.seek, err = seek.Read(bytes.NewReader(b), int64(len(b))); errors.Is(err, fault.ErrNotFound) {
			err = foreign(head, true, err)
		}
	}
	return err
}

// maxPiped bounds a seek section that comes from a pipe: more than 256 MiB and
// a footer no reader takes.
const maxPiped = 257 << 20

func (c *command) verify(ctx context.Context) error {
	blob, size, err := c.openBlob()
	if err != nil {
		return err
	}
	defer blob.Close()
	x, err := c.load(string(c.flags.Verify), size)
	if err != nil {
		return err
	}
	defer x.Close()
	c.progress.Start(c.flags.File, size)
	var used atomic.Int64
	progress := func(n int64) { c.progress.Set(used.Add(n)) }
	var spans int
	var n int64
	if l := x.layer; l != nil {
		spans, n = len(l.Spans), l.Size
		err = verifySeek(ctx, &fileBlob{blob, size}, l, c.flags.Jobs, progress)
	} else {
		spans = len(x.zinfo.Points)
		n, err = x.zinfo.Verify(ctx, blob, c.flags.Jobs, progress)
	}
	c.progress.End()
	if err != nil {
		return fmt.Errorf("%s: %w", c.flags.File, err)
	}
	if !c.flags.Quiet {
		_, err = fmt.Fprintf(c.env.Stdout, "%s is good: %s, %d bytes\n", cli.Label(string(c.flags.Verify)), cli.Count(spans, "span"), n)
	}
	return err
}

func (c *command) read(ctx context.Context) error {
	off, length, err := parseRange(string(c.flags.Read))
	if err != nil {
		return err
	}
	blob, size, err := c.openBlob()
	if err != nil {
		return err
	}
	defer blob.Close()
	x, err := c.load(string(c.flags.Zinfo), size)
	if err != nil {
		return err
	}
	defer x.Close()
	r, err := x.open(ctx, &fileBlob{blob, size})
	if err != nil {
		return fmt.Errorf("%s: %w", c.flags.File, err)
	}
	defer r.Close()
	w, err := c.env.BinaryStdout()
	if err != nil {
		return err
	}
	err = c.copyRange(ctx, w, r, off, length)
	// What there is in front of an error is good, and is written.
	if flushErr := w.Flush(); err == nil {
		err = flushErr
	}
	return err
}

// copyRange copies what --read asks for. A range without a length ends at
// math.MaxInt64, and is whole wherever the data ends.
func (c *command) copyRange(ctx context.Context, w io.Writer, r io.ReaderAt, off, length int64) error {
	buf := make([]byte, min(length, 1<<18))
	for start, end := off, off+length; off < end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
		if err == io.EOF {
			switch {
			case end == math.MaxInt64:
				return nil
			case off == start:
				err = fmt.Errorf("the data ends at or before the offset of %s", c.flags.Read)
			default:
				err = fmt.Errorf("the data ends %d bytes before the end of %s", end-off, c.flags.Read)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.flags.File, err)
		}
	}
	return nil
}

// parseRange reads OFFSET:LENGTH. Without a length it goes up to the last byte
// there could be.
func parseRange(s string) (off, length int64, err error) {
	a, b, ok := strings.Cut(s, ":")
	var n, m cli.Size
	if a == "" || !ok || n.UnmarshalText([]byte(a)) != nil || b != "" && m.UnmarshalText([]byte(b)) != nil || int64(m) > math.MaxInt64-1-int64(n) {
		return 0, 0, cli.Usagef("--read %s: give OFFSET:LENGTH, like 1000000:4KiB, or OFFSET:", s)
	}
	if b == "" {
		return int64(n), math.MaxInt64 - int64(n), nil
	}
	return int64(n), int64(m), nil
}
