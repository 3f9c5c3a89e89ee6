package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// A Range is a range of an uncompressed layer, which the digest of its blob
// names.
type Range struct {
	Layer digest.Digest
	Off   int64 // bytes
	Size  int64
}

const (
	// warmers is how many ranges are fetched at once ahead of their use.
	warmers = 4
	// maxWarm bounds how much of a list is fetched at once because it lies side
	// by side, in bytes, and lookahead how far such neighbours may be apart in
	// the list.
	maxWarm   = 16 << 20
	lookahead = 64
)

// Warm fetches ranges, in their order, before they are read, and gives way to
// reads. What fits into memory waits there, the rest in the store. What is not
// on this disk is left out. It returns when all is there.
func (d *Disk) Warm(ctx context.Context, list []Range, memory int64) error {
	var g errgroup.Group // one that fails does not end the others
	g.SetLimit(warmers)
	done := make([]bool, len(list))
	for i := range list {
		if done[i] {
			continue
		}
		r := list[i]
		// Neighbours that come a little later come with it.
		for j := i + 1; j < min(i+lookahead, len(list)) && r.Size < maxWarm; j++ {
			if n := &list[j]; !done[j] && n.Layer == r.Layer && n.Off == r.Off+r.Size {
				r.Size += n.Size
				done[j] = true
			}
		}
		k := slices.Index(d.digests, r.Layer)
		if k < 0 || ctx.Err() != nil {
			continue
		}
		fits := memory >= r.Size
		if fits {
			memory -= r.Size
		} else if !d.layers[k].Stored() {
			continue
		}
		g.Go(func() error { return d.layers[k].Ahead(ctx, r.Off, r.Size, fits) })
	}
	return g.Wait()
}

// Fill fetches all layers in idle time: into the store, or without one into
// memory, which it fills up to so many bytes.
func (d *Disk) Fill(ctx context.Context, memory int64) error {
	var errs []error
	for i, l := range d.layers {
		if slices.Index(d.digests, d.digests[i]) < i {
			continue // a blob that is two layers
		}
		// What is wrong with one span is no reason to do without the others.
		if err := l.Fill(ctx, &memory); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return errors.Join(errs...)
}

// A recorded list is text: a line with its name and version, then one for each
// range, in the order of their first use.
const (
	recordHead = "layerpipe-reads 1"
	// maxRecord bounds the ranges of a list. In spans of 4 MiB that is 4 TiB.
	maxRecord = 1 << 20
)

// A Recorder writes a recorded list.
type Recorder struct {
	mu   sync.Mutex
	w    io.Writer
	n    int
	seen map[Range]bool // a blob that is two layers is read once
	err  error
}

// NewRecorder starts a list.
func NewRecorder(w io.Writer) *Recorder {
	_, err := fmt.Fprintln(w, recordHead)
	return &Recorder{w: w, seen: make(map[Range]bool), err: err}
}

// Add adds a range, unless it is in the list.
func (r *Recorder) Add(x Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || x.Layer == "" || r.seen[x] || r.n == maxRecord {
		return
	}
	r.seen[x] = true
	r.n++
	_, r.err = fmt.Fprintf(r.w, "%s %d %d\n", x.Layer, x.Off, x.Size)
}

// Err is the first error of the writer, if any.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// ReadRecord reads a recorded list.
func ReadRecord(r io.Reader) ([]Range, error) {
	sc := bufio.NewScanner(io.LimitReader(r, maxRecord*256))
	sc.Buffer(nil, 1024)
	if !sc.Scan() || sc.Text() != recordHead {
		if err := sc.Err(); err != nil {
			return nil, fmt.Errorf("line 1: %w: %w", err, fault.ErrCorrupt)
		}
		return nil, fmt.Errorf("line 1 is not %q: %w", recordHead, fault.ErrCorrupt)
	}
	var list []Range
	for line := 2; sc.Scan(); line++ {
		x, err := parseRange(sc.Text())
		if err != nil || len(list) == maxRecord {
			return nil, fmt.Errorf("line %d is no range of a layer: %w", line, fault.ErrCorrupt)
		}
		list = append(list, x)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w: %w", len(list)+2, err, fault.ErrCorrupt)
	}
	return list, nil
}

var errRange = errors.New("not a range")

func parseRange(s string) (x Range, err error) {
	f := strings.Fields(s)
	if len(f) != 3 {
		return x, errRange
	}
	x.Layer = digest.Digest(f[0])
	if err := x.Layer.Validate(); err != nil {
		return x, err
	}
	// 60 bits: sums of them do not overflow.
	off, err1 := strconv.ParseUint(f[1], 10, 60)
	size, err2 := strconv.ParseUint(f[2], 10, 60)
	if err1 != nil || err2 != nil || size == 0 {
		return x, errRange
	}
	x.Off, x.Size = int64(off), int64(size)
	return x, nil
}
