package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/erofs"
)

type differenceInfo struct {
	Path    string   `json:"path"`
	Bytes   []byte   `json:"pathBytes,omitempty"` // the path, where JSON cannot hold it
	Change  string   `json:"change"`              // added, removed, changed
	Changes []string `json:"changes,omitempty"`
}

// diff compares with another image. Differences make it fail, as with diff(1).
func (d *dump) diff(ctx context.Context) error {
	var files files
	defer files.close()
	f, err := files.open(d.flags.Path[0])
	if err != nil {
		return err
	}
	other, err := d.open(&files, f, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", d.flags.Path[0], err)
	}
	list := jsonList{w: d.out}
	n := 0
	err = erofs.Diff(ctx, d.fsys, other, func(v erofs.Difference) error {
		n++
		if d.flags.JSON {
			return list.add(differenceInfo{v.Path, notUTF8(v.Path), v.Change.String(), v.Details})
		}
		sign := map[erofs.Change]string{erofs.Added: "+", erofs.Removed: "-", erofs.Changed: "~"}[v.Change]
		line := sign + " " + quoteName(v.Path)
		if len(v.Details) > 0 {
			line += ": " + strings.Join(v.Details, ", ")
		}
		_, err := fmt.Fprintln(d.out, line)
		return err
	})
	if d.flags.JSON {
		if lerr := list.end(); err == nil {
			err = lerr
		}
	}
	if err == nil && n > 0 {
		err = fmt.Errorf("differs from %s in %d paths", d.flags.Path[0], n)
	}
	return err
}
