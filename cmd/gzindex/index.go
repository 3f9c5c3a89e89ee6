package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// index makes an index. Neither it nor what --tee writes appears unless the
// input was good to its end.
func (c *command) index(ctx context.Context) error {
	in, err := c.env.Open(c.flags.File)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := c.checkOutputs(in); err != nil {
		return err
	}
	out, err := c.create(string(c.flags.Output))
	if err != nil {
		return err
	}
	defer out.Close()
	var tee *output
	w := io.Discard
	if c.flags.Tee != "" {
		if tee, err = c.create(string(c.flags.Tee)); err != nil {
			return err
		}
		defer tee.Close()
		w = tee
	}

	_, size, _ := cli.Regular(in)
	c.progress.Start(c.name(), size)
	r := c.maker(ctx, &source{ctx: ctx, r: in, seen: c.progress.Set})
	defer r.Close()
	if err := decode(ctx, r, w); err != nil {
		switch {
		case ctx.Err() != nil:
			return err
		case tee != nil && tee.failed:
			return err // of the output, which says so itself
		case errors.Is(err, zinfo.ErrTooLarge) && c.flags.PerMember:
			err = errors.New("the members are too many for a checkpoint at each: leave out --per-member")
		}
		return fmt.Errorf("%s: %w", c.name(), err)
	}
	if err := r.encode(out); err != nil {
		return err
	}
	c.progress.End()
	if tee != nil {
		if err := tee.commit(); err != nil {
			return err
		}
	}
	return out.commit()
}

// decode writes the decompressed data to w, or gives up with ctx: a read of stdin
// may wait for ever, and a signal must end it. The process then ends before the
// goroutine that reads does, which still has hold of r and w.
func decode(ctx context.Context, r maker, w io.Writer) error {
	done := make(chan error, 1)
	go func() {
		_, err := r.WriteTo(w)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// checkOutputs refuses what would put the index in the place of the input, or
// of what --tee writes: they appear one after the other.
func (c *command) checkOutputs(in io.Reader) error {
	regular := func(st os.FileInfo, err error) bool { return err == nil && st.Mode().IsRegular() }
	out, tee := string(c.flags.Output), string(c.flags.Tee)
	if f, _, ok := cli.Regular(in); ok {
		input, err := f.Stat()
		if err != nil {
			return err
		}
		for _, name := range []string{out, tee} {
			if st, err := os.Stat(name); regular(st, err) && name != "-" && os.SameFile(input, st) {
				return cli.Usagef("%s is the input, and would be replaced", name)
			}
		}
	}
	if out == "" || tee == "" {
		return nil
	}
	a, err := os.Stat(out)
	b, err2 := os.Stat(tee)
	if regular(a, err) && regular(b, err2) && os.SameFile(a, b) || err != nil && filepath.Clean(out) == filepath.Clean(tee) {
		return cli.Usagef("--output and --tee are the same file, %s", out)
	}
	return nil
}

// A maker gives the decompressed data, and makes an index on the way.
type maker interface {
	io.WriterTo
	encode(io.Writer) error // writes the index, after WriteTo
	Close() error
}

func (c *command) maker(ctx context.Context, r io.Reader) maker {
	if c.flags.Seek {
		return &seekMaker{c, layer.NewReader(ctx, r, layer.Options{Seek: true, SpanSize: int64(c.flags.SpanSize)})}
	}
	return &zinfoMaker{zinfo.NewReader(r, zinfo.Options{
		SpanSize:  int64(c.flags.SpanSize),
		Sparse:    c.flags.Sparse,
		PerMember: c.flags.PerMember,
	})}
}

type zinfoMaker struct{ *zinfo.Reader }

func (m *zinfoMaker) encode(w io.Writer) error {
	x, err := m.Index()
	if err == nil {
		_, err = x.WriteTo(w)
	}
	return err
}

func (m *zinfoMaker) Close() error { return nil }

// seekMaker makes a seek section of one layer.
type seekMaker struct {
	c *command
	*layer.Reader
}

func (m *seekMaker) encode(w io.Writer) error {
	l, err := m.Seek()
	if err != nil {
		return fmt.Errorf("%s: %w", m.c.name(), err)
	}
	m.c.warnOfSpans(l)
	b, err := (&seek.Section{Layers: []seek.Layer{*l}}).Append(nil)
	if err != nil {
		return fmt.Errorf("%s: %w", m.c.name(), err)
	}
	_, err = w.Write(b)
	return err
}

// largeSpan is how many decompressed bytes a span may have without a word:
// what a reader keeps in memory.
const largeSpan = 64 << 20

// warnOfSpans says it if the file is such that there is no random access to
// speak of, since nothing can be done about it later.
func (c *command) warnOfSpans(l *seek.Layer) {
	if l.Kind == seek.Plain || c.flags.Quiet {
		return
	}
	var largest int64
	for i := range l.Spans {
		_, _, out, end := l.Range(i)
		largest = max(largest, end-out)
	}
	c.progress.End()
	switch {
	case l.Kind == seek.Zstd && len(l.Spans) == 1 && l.Size > int64(c.flags.SpanSize):
		c.env.Errorf("warning: %s: a single zstd frame of %s: the first read of any part of it decodes it all (compress it in frames: zstd:chunked, pzstd, seekable)", c.name(), cli.Size(l.Size))
	case largest > largeSpan:
		c.env.Errorf("warning: %s: the largest span has %s, which a read of any part of it decodes as a whole", c.name(), cli.Size(largest))
	}
}

// source counts what is read, and stops at a signal.
type source struct {
	ctx  context.Context
	r    io.Reader
	n    int64
	seen func(int64)
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, context.Cause(s.ctx)
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	s.seen(s.n)
	return n, err
}

// output is a file that appears when it is committed, or stdout.
type output struct {
	*bufio.Writer
	file   *cli.Output
	failed bool
}

// create starts an output; "-" and an empty name are stdout.
func (c *command) create(name string) (*output, error) {
	if name == "" || name == "-" {
		w, err := c.env.BinaryStdout()
		return &output{Writer: w}, err
	}
	f, err := cli.Create(name)
	if err != nil {
		return nil, err
	}
	return &output{Writer: bufio.NewWriterSize(f, 1<<18), file: f}, nil
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	o.failed = o.failed || err != nil
	return n, err
}

func (o *output) commit() error {
	if err := o.Flush(); err != nil {
		return err
	}
	if o.file != nil {
		return o.file.Commit()
	}
	return nil
}

// Close drops a file that was not committed.
func (o *output) Close() error {
	if o.file != nil {
		return o.file.Close()
	}
	return nil
}
