package rootfs

import (
	"errors"
	"fmt"
	"path"
)

// A forwardLink is a hard link that came before its target.
type forwardLink struct{ path, target string }

// postpone keeps a hard link whose target is not there until the layer's end.
// What has its name now gives it up: only later entries go before it.
func (t *Tree) postpone(name, target string) error {
	dir, base, err := t.parentOf(name, true)
	if err != nil {
		return err
	}
	if base == "" {
		return errRootType
	}
	if dir.child(base) != nil {
		t.unlink(dir, base)
	}
	t.forward = append(t.forward, forwardLink{name, target})
	return nil
}

// EndLayer settles what is known only now that the layer is whole.
func (t *Tree) EndLayer() error {
	if err := t.linkForward(); err != nil {
		return err
	}
	if t.opaque {
		t.dropNeedless(t.root, false)
	}
	return nil
}

// linkForward makes the hard links whose targets came behind them.
func (t *Tree) linkForward() error {
	links := t.forward
	t.forward = nil
	// A link may wait for another one, and that one for a third: what they
	// wait for is made first, so that a long chain is not walked link by link
	// again and again.
	at := make(map[string]int, len(links))
	for k, l := range links {
		at[path.Clean("/"+l.path)] = k
	}
	begun := make([]bool, len(links))
	var still []forwardLink
	for k := range links {
		if begun[k] || at[path.Clean("/"+links[k].path)] != k { // a later one has the same name
			continue
		}
		begun[k] = true
		for chain := []int{k}; len(chain) > 0; {
			l := links[chain[len(chain)-1]]
			err := t.hardLink(l.path, l.target, true)
			if errors.Is(err, errNoTarget) {
				if next, ok := at[path.Clean("/"+l.target)]; ok && !begun[next] {
					begun[next] = true
					chain = append(chain, next)
					continue
				}
				still = append(still, l)
			} else if err != nil {
				return fmt.Errorf("%q: %w", l.path, err)
			}
			chain = chain[:len(chain)-1]
		}
	}
	return t.retry(still)
}

// maxRetries bounds how often links are tried again that refer to each other
// by way of symbolic links, which their paths do not show.
const maxRetries = 40

func (t *Tree) retry(links []forwardLink) error {
	for range maxRetries {
		var still []forwardLink
		for _, l := range links {
			err := t.hardLink(l.path, l.target, true)
			if errors.Is(err, errNoTarget) {
				still = append(still, l)
			} else if err != nil {
				return fmt.Errorf("%q: %w", l.path, err)
			}
		}
		if len(still) == len(links) {
			break
		}
		links = still
	}
	if len(links) > 0 {
		return fmt.Errorf("%q: hard link to %q: %w", links[0].path, links[0].target, errNoTarget)
	}
	return nil
}
