package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
	"github.com/layerpipe/layerpipe/pkg/source"
)

// listing is what --list --json prints; the names within are OCI's.
type listing struct {
	Reference string               `json:"reference"`
	Manifest  ocispec.Descriptor   `json:"manifest"`
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Size      int64                `json:"size"` // bytes of the layers, each blob once
}

func list(w io.Writer, img *source.Image, asJSON bool) error {
	size := layerBytes(img)
	if asJSON {
		layers := img.Layers
		if layers == nil {
			layers = []ocispec.Descriptor{}
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(listing{img.Name, img.Manifest, img.Config, layers, size})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "LAYER\tMEDIA TYPE\tSIZE\tDIGEST")
	for i, l := range img.Layers {
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\n", i, printable(l.MediaType), cli.Size(l.Size), l.Digest)
	}
	fmt.Fprintf(tw, "config\t%s\t%s\t%s\n", printable(img.Config.MediaType), cli.Size(img.Config.Size), img.Config.Digest)
	fmt.Fprintf(tw, "manifest\t%s\t%s\t%s\n", printable(img.Manifest.MediaType), cli.Size(img.Manifest.Size), img.Manifest.Digest)
	return tw.Flush()
}

// printable keeps what an image calls its parts from driving the terminal.
func printable(s string) string {
	out := []rune(s)
	for i, r := range out {
		if r < ' ' || r == 0x7f {
			out[i] = '?'
		}
	}
	return string(out)
}

// layerBytes is the size of all layers; a blob that is listed twice is fetched
// once.
func layerBytes(img *source.Image) (n int64) {
	seen := make(map[digest.Digest]bool)
	for _, l := range img.Layers {
		if !seen[l.Digest] {
			seen[l.Digest] = true
			n += l.Size
		}
	}
	return n
}

// describe is an image in a line.
func describe(img *source.Image) string {
	s := fmt.Sprintf("%s is %s", img.Name, img.Manifest.Digest)
	if p := img.Manifest.Platform; p != nil {
		s += " for " + ociimage.FormatPlatform(*p)
	}
	return fmt.Sprintf("%s, %d layers of %s", s, len(img.Layers), cli.Size(layerBytes(img)))
}
