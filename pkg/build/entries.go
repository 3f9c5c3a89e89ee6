package build

import (
	"errors"
	"fmt"
	"io"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// entries applies the entries of the n-th layer (from 0), and returns how many
// bytes the archive has up to its end marker.
func (b *builder) entries(n int, l *Layer, r *layer.Reader) (int64, error) {
	if err := b.tree.BeginLayer(); err != nil {
		return 0, err
	}
	tr := tarstream.NewReader(r)
	tr.Warn = func(msg string) { b.warn("%s: %s", l.Name, msg) }
	for {
		e, err := tr.Next()
		if err == io.EOF {
			break
		}
		if errors.Is(err, tarstream.ErrNoEndMarker) {
			// A digest that matches says that the layer is meant like that.
			if l.Descriptor == nil && !l.Whole {
				return 0, err
			}
			b.warn("%s: %v", l.Name, err)
			break
		}
		if err != nil {
			return 0, err
		}
		b.res.Entries++
		if err := b.entry(n, e, tr); err != nil {
			return 0, err
		}
		if b.opts.Progress != nil {
			b.opts.Progress(n, tr.Offset(), b.res.Entries)
		}
	}
	return tr.Offset(), b.tree.EndLayer()
}

func (b *builder) entry(n int, e *tarstream.Entry, tr *tarstream.Reader) error {
	b.dropForeignXattrs(e)
	if err := erofs.CheckXattrs(e.Xattrs); err != nil {
		return fmt.Errorf("%q: %w", e.Name, err)
	}
	i, err := b.tree.Apply(e)
	if i == nil || err != nil {
		return err
	}
	if b.opts.Index {
		i.Device, i.Offset = uint16(n+1), e.DataOffset
		ok, err := b.w.Map(i)
		if err != nil {
			return fmt.Errorf("%q: %w", e.Name, err)
		}
		if i.Size == 0 || ok {
			return nil
		}
	}
	if err := b.w.Add(i, tr.Data); err != nil {
		return fmt.Errorf("%q: %w", e.Name, err)
	}
	return nil
}

// dropForeignXattrs leaves out what no Linux filesystem would keep either:
// archives made on other systems carry such ("com.apple.provenance").
func (b *builder) dropForeignXattrs(e *tarstream.Entry) {
	kept := e.Xattrs[:0]
	for _, x := range e.Xattrs {
		if erofs.XattrSupported(x.Name) {
			kept = append(kept, x)
		} else {
			b.warn("%q: xattr %q left out: EROFS has no such namespace", e.Name, x.Name)
		}
	}
	e.Xattrs = kept
}
