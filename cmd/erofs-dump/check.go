package main

import (
	"context"
	"fmt"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// ruleSeek is a rule beyond the file system's own.
const ruleSeek = erofs.Rule("seek-section") // the seek section, where there is one, can be read

type problemInfo struct {
	Rule   erofs.Rule `json:"rule"`
	Path   string     `json:"path,omitempty"`
	Bytes  []byte     `json:"pathBytes,omitempty"` // the path, where JSON cannot hold it
	Nid    uint64     `json:"nid,omitempty"`
	Detail string     `json:"detail"`
}

// check checks the image. It fails with fault.ErrIntegrity where a checksum is
// wrong, with fault.ErrCorrupt for other problems.
func (d *dump) check(ctx context.Context) error {
	var list jsonList
	if d.flags.JSON {
		list.w = d.out
	}
	n, integrity := 0, false
	var werr error
	report := func(p erofs.Problem) {
		n++
		integrity = integrity || p.Rule == erofs.RuleChecksum || p.Rule == ruleSeek
		var err error
		if d.flags.JSON {
			info := problemInfo{Rule: p.Rule, Path: p.Path, Bytes: notUTF8(p.Path), Detail: p.Detail}
			if p.Path != "" {
				info.Nid = p.Nid
			}
			err = list.add(info)
		} else {
			_, err = fmt.Fprintln(d.out, p)
		}
		if werr == nil {
			werr = err
		}
	}
	seen, err := d.fsys.Check(ctx, erofs.CheckOptions{Data: d.flags.Data}, report)
	if err != nil {
		return err
	}
	if s := d.seekSection(); s != nil && s.Error != "" {
		report(erofs.Problem{Rule: ruleSeek, Detail: s.Error})
	}
	switch {
	case werr != nil:
		return werr
	case d.flags.JSON:
		if err := list.end(); err != nil {
			return err
		}
	case n == 0:
		fmt.Fprintf(d.out, "sound: %d inodes, %d directories, %d entries", seen.Inodes, seen.Directories, seen.Entries)
		if d.flags.Data {
			fmt.Fprintf(d.out, ", %s of contents read", cli.Size(seen.Bytes))
		}
		fmt.Fprintln(d.out)
	}
	switch {
	case n == 0:
		return nil
	case integrity:
		return fmt.Errorf("problems found: %d: %w", n, fault.ErrIntegrity)
	}
	return fmt.Errorf("problems found: %d: %w", n, fault.ErrCorrupt)
}
