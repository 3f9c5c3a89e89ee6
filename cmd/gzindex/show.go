package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// pointInfo is what --show says of a checkpoint, or of a span's beginning.
type pointInfo struct {
	In      int64 `json:"in"`
	Bits    uint8 `json:"bits"`
	Out     int64 `json:"out"`
	Window  int   `json:"window"`            // bytes that are not zero
	Digests int   `json:"digests,omitempty"` // of a seek section
}

// indexInfo is what --show says of a zinfo.
type indexInfo struct {
	SpanSize int64       `json:"spanSize"`
	Points   []pointInfo `json:"points"`
}

// sectionInfo is what it says of a seek section.
type sectionInfo struct {
	Layers []layerInfo `json:"layers"`
}

type layerInfo struct {
	Kind      string      `json:"kind"`
	MediaType string      `json:"mediaType,omitempty"`
	Digest    string      `json:"digest"`
	BlobSize  int64       `json:"blobSize"`
	Size      int64       `json:"size"`
	Spans     []pointInfo `json:"spans"`
}

func (c *command) show() error {
	x, err := c.load(string(c.flags.Show), -1)
	if err != nil {
		return err
	}
	defer x.Close()
	if x.seek != nil {
		return c.showSection(x.seek)
	}
	info := indexInfo{SpanSize: x.zinfo.SpanSize}
	var window [zinfo.WindowSize]byte
	for i, p := range x.zinfo.Points {
		if err := x.zinfo.ReadWindow(i, window[:]); err != nil {
			return fmt.Errorf("%s: %w", c.flags.Show, err)
		}
		info.Points = append(info.Points, pointInfo{In: p.In, Bits: p.Bits, Out: p.Out, Window: nonZero(window[:])})
	}
	if c.flags.JSON {
		return cli.PrintJSON(c.env.Stdout, info)
	}
	fmt.Fprintf(c.env.Stdout, "%s, at least %s between two\n", cli.Count(len(info.Points), "checkpoint"), cli.Size(info.SpanSize))
	return showPoints(c.env.Stdout, "POINT", info.Points, -1)
}

func (c *command) showSection(s *seek.Section) error {
	info := sectionInfo{Layers: []layerInfo{}}
	var window [zinfo.WindowSize]byte
	for i := range s.Layers {
		l := &s.Layers[i]
		d := &l.Descriptor
		li := layerInfo{Kind: l.Kind.String(), MediaType: d.MediaType, Digest: d.Digest.String(), BlobSize: d.Size, Size: l.Size, Spans: []pointInfo{}}
		for _, sp := range l.Spans {
			sp.Window.Unpack(window[:])
			li.Spans = append(li.Spans, pointInfo{sp.In, sp.Bits, sp.Out, nonZero(window[:]), len(sp.Digests)})
		}
		info.Layers = append(info.Layers, li)
	}
	if c.flags.JSON {
		return cli.PrintJSON(c.env.Stdout, info)
	}
	for _, l := range info.Layers {
		fmt.Fprintf(c.env.Stdout, "%s, %s, %d bytes, uncompressed %d, in %s\n", l.Digest, l.Kind, l.BlobSize, l.Size, cli.Count(len(l.Spans), "span"))
		if err := showPoints(c.env.Stdout, "SPAN", l.Spans, l.Size); err != nil {
			return err
		}
	}
	return nil
}

// showPoints prints a table. size is that of the data, or -1.
func showPoints(out io.Writer, what string, points []pointInfo, size int64) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s\tIN\tBITS\tOUT\tSIZE\tWINDOW\t\n", what)
	for i, p := range points {
		span := "to the end"
		switch {
		case i+1 < len(points):
			span = fmt.Sprint(points[i+1].Out - p.Out)
		case size >= 0:
			span = fmt.Sprint(size - p.Out)
		}
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%s\t%d\t\n", i, p.In, p.Bits, p.Out, span, p.Window)
	}
	return w.Flush()
}

func nonZero(window []byte) (n int) {
	for _, b := range window {
		if b != 0 {
			n++
		}
	}
	return n
}
