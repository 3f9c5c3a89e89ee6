package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync/atomic"
	"text/tabwriter"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// pointInfo is what --show says of a checkpoint.
type pointInfo struct {
	In     int64 `json:"in"`
	Bits   uint8 `json:"bits"`
	Out    int64 `json:"out"`
	Window int   `json:"window"` // bytes that are not zero
}

// indexInfo is what --show says.
type indexInfo struct {
	SpanSize int64       `json:"spanSize"`
	Points   []pointInfo `json:"points"`
}

func (c *command) show() error {
	x, err := c.load(c.flags.Show, -1)
	if err != nil {
		return err
	}
	info := indexInfo{SpanSize: x.SpanSize}
	for _, p := range x.Points {
		used := 0
		for _, b := range p.Window {
			if b != 0 {
				used++
			}
		}
		info.Points = append(info.Points, pointInfo{p.In, p.Bits, p.Out, used})
	}
	if c.flags.JSON {
		e := json.NewEncoder(c.env.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(info)
	}
	fmt.Fprintf(c.env.Stdout, "%d checkpoints, at least %s between two\n", len(info.Points), cli.Size(info.SpanSize))
	w := tabwriter.NewWriter(c.env.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "POINT\tIN\tBITS\tOUT\tSPAN\tWINDOW\t")
	for i, p := range info.Points {
		span := "to the end"
		if i+1 < len(info.Points) {
			span = fmt.Sprint(info.Points[i+1].Out - p.Out)
		}
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%s\t%d\t\n", i, p.In, p.Bits, p.Out, span, p.Window)
	}
	return w.Flush()
}

func (c *command) verify(ctx context.Context) error {
	blob, size, err := c.openBlob()
	if err != nil {
		return err
	}
	defer blob.Close()
	x, err := c.load(c.flags.Verify, size)
	if err != nil {
		return err
	}
	c.progress.Start(c.flags.File, size)
	var used atomic.Int64
	n, err := x.Verify(ctx, blob, c.flags.Jobs, func(n int64) { c.progress.Set(used.Add(n)) })
	c.progress.End()
	if err != nil {
		return fmt.Errorf("%s: %w", c.flags.File, err)
	}
	if !c.flags.Quiet {
		fmt.Fprintf(c.env.Stdout, "%s: %d spans of %d bytes are good\n", c.flags.Verify, len(x.Points), n)
	}
	return nil
}

func (c *command) read(ctx context.Context) error {
	off, length, err := parseRange(c.flags.Read)
	if err != nil {
		return err
	}
	blob, size, err := c.openBlob()
	if err != nil {
		return err
	}
	defer blob.Close()
	x, err := c.load(c.flags.Zinfo, size)
	if err != nil {
		return err
	}
	w, err := c.env.BinaryStdout()
	if err != nil {
		return err
	}
	// The ReaderAt goes on where the last read ended.
	r := zinfo.NewReaderAt(blob, x)
	buf := make([]byte, 1<<18)
	for end := off + length; off < end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
		if err == io.EOF {
			if end == math.MaxInt64 {
				break
			}
			err = fmt.Errorf("the data ends %d bytes before the end of %s", end-off, c.flags.Read)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", c.flags.File, err), w.Flush())
		}
	}
	return w.Flush()
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
