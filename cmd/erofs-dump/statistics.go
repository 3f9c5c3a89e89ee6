package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// statistics counts what an image's tree is made of. An inode with several
// names counts once.
type statistics struct {
	Types     map[string]int `json:"types"`
	Compact   int            `json:"compactInodes"`
	Extended  int            `json:"extendedInodes"`
	Layouts   map[string]int `json:"layouts"` // of what has contents
	Names     int            `json:"names"`
	FileBytes int64          `json:"fileBytes"`     // the files' sizes
	Holes     int64          `json:"holeBytes"`     // of compressed and chunk-based files
	XattrArea int64          `json:"xattrBytes"`    // the inodes' own; shared values not counted
	WithXattr int            `json:"withXattrs"`    // inodes
	Encoded   int64          `json:"encodedBytes"`  // compressed extents, as they are stored
	Decoded   int64          `json:"decodedBytes"`  // the same, decoded
	Fragments int64          `json:"fragmentBytes"` // in the packed inode
}

var layoutNames = [...]string{"flat-plain", "compressed-full", "flat-inline", "compressed-compact", "chunk-based"}

func (d *dump) statistics(ctx context.Context, s *statistics) error {
	s.Types, s.Layouts = make(map[string]int), make(map[string]int)
	seen := make(map[uint64]bool) // inodes with several names
	return d.fsys.Walk(d.fsys.RootNid(), func(name string, st *erofs.Stat) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.Names++
		if st.Nlink > 1 && !st.IsDir() {
			if seen[st.Nid] {
				return nil
			}
			seen[st.Nid] = true
		}
		s.Types[st.Type()]++
		if st.Extended {
			s.Extended++
		} else {
			s.Compact++
		}
		if st.XattrSize > 0 {
			s.WithXattr++
			s.XattrArea += int64(st.XattrSize)
		}
		if st.IsRegular() || st.IsDir() || st.IsSymlink() {
			s.Layouts[layoutNames[st.Layout]]++
		}
		if !st.IsRegular() {
			return nil
		}
		s.FileBytes += st.Size
		switch st.Layout {
		case ondisk.LayoutFlatPlain, ondisk.LayoutFlatInline:
			return nil // nothing to learn from the extents
		}
		err := d.fsys.Extents(st.Nid, func(e erofs.FileExtent) error {
			switch e.Kind {
			case erofs.ExtentHole:
				s.Holes += e.Length
			case erofs.ExtentFragment:
				s.Fragments += e.Length
			case erofs.ExtentEncoded:
				s.Encoded += e.AddrLen
				s.Decoded += e.Length
			}
			return ctx.Err()
		})
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		return nil
	})
}

func (d *dump) printStatistics(s *statistics, row func(name, format string, args ...any)) {
	counts := func(m map[string]int) string {
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			parts = append(parts, fmt.Sprintf("%d %s", m[k], k))
		}
		return strings.Join(parts, ", ")
	}
	types := make(map[string]int)
	for name, n := range s.Types {
		if n != 1 {
			name = strings.Replace(name+"s", "ys", "ies", 1)
		}
		types[name] = n
	}
	row("tree", "%s; %d names", counts(types), s.Names)
	row("file sizes", "%s", cli.Size(s.FileBytes))
	row("forms", "%d compact, %d extended; %d with xattrs (%s)", s.Compact, s.Extended, s.WithXattr, cli.Size(s.XattrArea))
	row("layouts", "%s", counts(s.Layouts))
	if s.Decoded > 0 {
		row("compressed", "%s in %s (%.1f%%)", cli.Size(s.Decoded), cli.Size(s.Encoded), 100*float64(s.Encoded)/float64(s.Decoded))
	}
	if s.Fragments > 0 {
		row("fragments", "%s", cli.Size(s.Fragments))
	}
	if s.Holes > 0 {
		row("holes", "%s", cli.Size(s.Holes))
	}
}
