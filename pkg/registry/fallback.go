package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// kind is what a request names its object by. Some mirrors are trusted with
// digests only, whose content proves itself.
type kind int

const (
	byTag kind = iota
	byDigest
)

// restTime is how long a mirror that failed is asked last.
const restTime = time.Minute

// own is the client of the registry itself.
func (r *Repository) own() *client { return r.all[len(r.all)-1] }

// serves reports whether a place is to be asked for objects of a kind.
func (c *client) serves(k kind) bool {
	return k == byTag && c.place.tags || k == byDigest && c.place.digests
}

// gave notes that a place has given what it was asked for.
func (c *client) gave() {
	if !c.used.Swap(true) && c.place.mirror {
		c.verbose("%s comes from the mirror %s", c.ref.Repository, c.host)
	}
}

// failed notes why another place is asked instead. That a mirror does not have
// everything is how they are; what else goes wrong with one a user will want to
// know.
func (c *client) failed(err error, next *client) {
	say := c.notify
	if errors.Is(err, fault.ErrNotFound) {
		say = c.verbose
	} else {
		c.rests.Store(time.Now().Add(restTime).UnixNano())
	}
	say("%s: %v; trying %s", c.host, err, next.host)
}

// resting reports whether a place failed lately.
func (c *client) resting() bool { return c.rests.Load() > time.Now().UnixNano() }

// each asks one place after another until one has an answer. The error is the
// last one's: that is the registry itself.
func (r *Repository) each(ctx context.Context, k kind, f func(*client) error) error {
	list := slices.DeleteFunc(slices.Clone(r.all), func(c *client) bool { return !c.serves(k) })
	if len(list) == 0 {
		return errNowhere
	}
	slices.SortStableFunc(list, func(a, b *client) int { return compare(a.resting(), b.resting()) })
	for i, c := range list {
		err := f(c)
		if err == nil {
			c.gave()
			return nil
		}
		if ctx.Err() != nil || i+1 == len(list) {
			return err
		}
		c.failed(err, list[i+1])
	}
	return nil // not reached: the last one returns
}

// compare puts false before true.
func compare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// errNowhere is for a configuration that leaves nobody to ask.
var errNowhere = fmt.Errorf("the configuration of mirrors names no place that may be asked: %w", fault.ErrNotFound)

// origins are the places to ask for a blob, at least one.
func (r *Repository) origins(d digest.Digest) (list []*origin, err error) {
	for _, c := range r.all {
		if c.serves(byDigest) {
			list = append(list, &origin{c: c, u: c.url("blobs", d.String())})
		}
	}
	if len(list) == 0 {
		err = errNowhere
	}
	return list, err
}

// rested puts the origins that failed lately last.
func rested(list []*origin) []*origin {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *origin) int { return compare(a.c.resting(), b.c.resting()) })
	return list
}
