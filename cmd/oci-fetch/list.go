package main

import (
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
	if asJSON {
		return cli.PrintJSON(w, listing{img.Name, img.Manifest, img.Config, notNull(img.Layers), blobBytes(img.Layers)})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "LAYER\tMEDIA TYPE\tSIZE\tDIGEST")
	for i, l := range img.Layers {
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\n", i, cli.Printable(l.MediaType), cli.Size(l.Size), l.Digest)
	}
	fmt.Fprintf(tw, "config\t%s\t%s\t%s\n", cli.Printable(img.Config.MediaType), cli.Size(img.Config.Size), img.Config.Digest)
	fmt.Fprintf(tw, "manifest\t%s\t%s\t%s\n", cli.Printable(img.Manifest.MediaType), cli.Size(img.Manifest.Size), img.Manifest.Digest)
	return tw.Flush()
}

// setListing is what --list --json --all-platforms prints.
type setListing struct {
	Reference string               `json:"reference"`
	Root      ocispec.Descriptor   `json:"root"`
	Images    []imageListing       `json:"images"`
	Blobs     []ocispec.Descriptor `json:"blobs"`
	Size      int64                `json:"size"` // bytes of the blobs
}

type imageListing struct {
	Manifest ocispec.Descriptor   `json:"manifest"`
	Config   ocispec.Descriptor   `json:"config"`
	Layers   []ocispec.Descriptor `json:"layers"`
}

func listAll(w io.Writer, set *source.Set, asJSON bool) error {
	if asJSON {
		l := setListing{set.Name, set.Root, []imageListing{}, notNull(set.Blobs), blobBytes(set.Blobs)}
		for _, img := range set.Images {
			l.Images = append(l.Images, imageListing{img.Manifest, img.Config, notNull(img.Layers)})
		}
		return cli.PrintJSON(w, l)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PLATFORM\tLAYERS\tSIZE\tDIGEST")
	for _, img := range set.Images {
		platform := "-"
		if p := img.Manifest.Platform; p != nil {
			platform = cli.Printable(ociimage.FormatPlatform(*p))
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", platform, len(img.Layers), cli.Size(blobBytes(img.Layers)), img.Manifest.Digest)
	}
	fmt.Fprintf(tw, "all\t%d\t%s\t%s\n", len(set.Blobs)-countConfigs(set), cli.Size(blobBytes(set.Blobs)), set.Root.Digest)
	return tw.Flush()
}

// countConfigs is how many of a set's blobs are its configs, each counted once.
func countConfigs(set *source.Set) int {
	seen := make(map[digest.Digest]bool)
	for _, img := range set.Images {
		seen[img.Config.Digest] = true
	}
	return len(seen)
}

// referrersListing is what --referrers --json prints.
type referrersListing struct {
	Reference string               `json:"reference"`
	Subject   ocispec.Descriptor   `json:"subject"`
	Referrers []ocispec.Descriptor `json:"referrers"`
}

func listReferrers(w io.Writer, ref string, subject ocispec.Descriptor, found []ocispec.Descriptor, asJSON bool) error {
	if asJSON {
		return cli.PrintJSON(w, referrersListing{ref, subject, notNull(found)})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ARTIFACT TYPE\tSIZE\tDIGEST")
	for _, d := range found {
		kind := d.ArtifactType
		if kind == "" {
			kind = "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", cli.Printable(kind), cli.Size(d.Size), d.Digest)
	}
	return tw.Flush()
}

// notNull makes a list that is absent one that is empty.
func notNull(list []ocispec.Descriptor) []ocispec.Descriptor {
	if list == nil {
		return []ocispec.Descriptor{}
	}
	return list
}

// blobBytes is the size of all blobs; one that is listed twice is fetched once.
func blobBytes(list []ocispec.Descriptor) (n int64) {
	seen := make(map[digest.Digest]bool)
	for _, l := range list {
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
	return fmt.Sprintf("%s, %s of %s", s, cli.Count(len(img.Layers), "layer"), cli.Size(blobBytes(img.Layers)))
}
