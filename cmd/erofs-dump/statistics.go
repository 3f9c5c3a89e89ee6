package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
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
	Stored    int64          `json:"storedBytes"`   // what they take up; what files share counts for each
	Holes     int64          `json:"holeBytes"`     // of compressed and chunk-based files
	XattrArea int64          `json:"xattrBytes"`    // the inodes' own; shared values not counted
	WithXattr int            `json:"withXattrs"`    // inodes
	Encoded   int64          `json:"encodedBytes"`  // compressed extents, as they are stored
	Decoded   int64          `json:"decodedBytes"`  // the same, decoded
	Fragments int64          `json:"fragmentBytes"` // in the packed inode
	Sizes     histogram      `json:"sizes"`         // of files
	OnDisk    histogram      `json:"storedSizes"`   // of the same files
	Suffixes  []suffix       `json:"suffixes"`      // of files' names, the most frequent ones

	room int64 // how many more extents there may be
}

// histogram counts sizes by powers of two, from 1 KiB on.
type histogram []bucket

type bucket struct {
	Below int64 `json:"below"` // bytes
	Files int   `json:"files"`
}

func (h *histogram) add(size int64) {
	below := int64(1 << 10)
	for below <= size && below < 1<<62 {
		below <<= 1
	}
	i, ok := slices.BinarySearchFunc(*h, below, func(b bucket, below int64) int { return cmp.Compare(b.Below, below) })
	if !ok {
		*h = slices.Insert(*h, i, bucket{Below: below})
	}
	(*h)[i].Files++
}

// print prints a histogram, a few sizes to a row.
func (h histogram) print(name string, row func(name, format string, args ...any)) {
	for part := range slices.Chunk(h, 6) {
		var list []string
		for _, b := range part {
			// A power of two has no digits behind the point.
			size := strings.Replace(cli.Size(b.Below).String(), ".00", "", 1)
			list = append(list, fmt.Sprintf("%d below %s", b.Files, strings.Replace(size, ".0", "", 1)))
		}
		row(name, "%s", strings.Join(list, ", "))
		name = ""
	}
}

// suffix is the end of some files' names, from the last dot on.
type suffix struct {
	Suffix string `json:"suffix"`
	Files  int    `json:"files"`
}

const (
	maxSuffixes  = 10     // shown
	manySuffixes = 10_000 // counted: an image may have as many as files
)

var layoutNames = [...]string{"flat-plain", "compressed-full", "flat-inline", "compressed-compact", "chunk-based"}

func (d *dump) statistics(ctx context.Context, s *statistics) error {
	s.Types, s.Layouts = make(map[string]int), make(map[string]int)
	// Files whose indexes share bytes may have as many extents as the image has
	// bytes, squared. Sound ones have a few bytes of index, or of what it is
	// decoded from, for each.
	s.room = 64 * min(d.size, 1<<50)
	seen := make(map[uint64]bool) // inodes with several names
	suffixes := make(map[string]int)
	err := d.fsys.Walk(d.fsys.RootNid(), func(name string, st *erofs.Stat) error {
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
		s.inode(st)
		if !st.IsRegular() {
			return nil
		}
		if end := path.Ext(name); end != "" && (suffixes[end] > 0 || len(suffixes) < manySuffixes) {
			suffixes[end]++
		}
		if err := s.contents(ctx, d.fsys, st); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		return nil
	})
	for _, end := range slices.Sorted(maps.Keys(suffixes)) {
		s.Suffixes = append(s.Suffixes, suffix{end, suffixes[end]})
	}
	slices.SortStableFunc(s.Suffixes, func(a, b suffix) int { return cmp.Compare(b.Files, a.Files) })
	s.Suffixes = s.Suffixes[:min(len(s.Suffixes), maxSuffixes)]
	return err
}

// inode counts an inode of any type.
func (s *statistics) inode(st *erofs.Stat) {
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
}

// contents counts a file's bytes.
func (s *statistics) contents(ctx context.Context, fsys *erofs.FS, st *erofs.Stat) error {
	stored := int64(0)
	switch st.Layout {
	case ondisk.LayoutFlatPlain, ondisk.LayoutFlatInline:
		stored = st.Size // nothing to learn from the extents
	default:
		err := fsys.Extents(st.Nid, func(e erofs.FileExtent) error {
			if s.room--; s.room < 0 {
				return fmt.Errorf("more extents than there are bytes for: %w", fault.ErrCorrupt)
			}
			switch e.Kind {
			case erofs.ExtentHole:
				s.Holes += e.Length
			case erofs.ExtentFragment:
				s.Fragments += e.Length
			case erofs.ExtentEncoded:
				s.Encoded += e.AddrLen
				s.Decoded += e.Length
				stored += e.AddrLen
			default:
				stored += e.AddrLen
			}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
	}
	s.FileBytes += st.Size
	s.Stored += stored
	s.Sizes.add(st.Size)
	s.OnDisk.add(stored)
	return nil
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
	row("inode sizes", "%d of 32 bytes, %d of 64; %d with xattrs (%s)", s.Compact, s.Extended, s.WithXattr, cli.Size(s.XattrArea))
	row("layouts", "%s", counts(s.Layouts))
	if s.FileBytes > 0 {
		row("files", "%s, stored in %s (%s)", cli.Size(s.FileBytes), cli.Size(s.Stored), percent(s.Stored, s.FileBytes))
		s.Sizes.print("sizes", row)
		s.OnDisk.print("stored sizes", row)
	}
	if len(s.Suffixes) > 0 {
		var parts []string
		for _, x := range s.Suffixes {
			parts = append(parts, fmt.Sprintf("%d %s", x.Files, quoteName(x.Suffix)))
		}
		row("suffixes", "%s", strings.Join(parts, ", "))
	}
	if s.Decoded > 0 {
		row("compressed", "%s in %s (%s)", cli.Size(s.Decoded), cli.Size(s.Encoded), percent(s.Encoded, s.Decoded))
	}
	if s.Fragments > 0 {
		row("fragments", "%s", cli.Size(s.Fragments))
	}
	if s.Holes > 0 {
		row("holes", "%s", cli.Size(s.Holes))
	}
}

func percent(part, whole int64) string {
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(max(whole, 1)))
}
