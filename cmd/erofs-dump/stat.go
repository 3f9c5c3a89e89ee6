package main

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// inodeInfo is what --stat says beyond what every listing says.
type inodeInfo struct {
	Ino      uint32       `json:"ino"`
	Offset   int64        `json:"offset"`
	Size     int          `json:"size"` // 32 or 64
	Layout   string       `json:"layout"`
	Stored   int64        `json:"storedBytes"` // of the extents; those in the packed inode do not count
	Xattrs   []xattrInfo  `json:"xattrs,omitempty"`
	Extents  []extentInfo `json:"extents,omitempty"`
	Withheld int          `json:"extentsWithheld,omitempty"` // beyond maxExtents
}

type xattrInfo struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"` // text
	Hex   string `json:"hex,omitempty"`   // what is none
	Size  int    `json:"size"`
}

type extentInfo struct {
	Offset    int64  `json:"offset"`
	Length    int64  `json:"length"`
	Kind      string `json:"kind"`
	Algorithm string `json:"algorithm,omitempty"`
	Device    int    `json:"device,omitempty"`
	Addr      int64  `json:"addr"`
	AddrLen   int64  `json:"addrLength"`
}

// maxExtents bounds the list of a file's extents.
const maxExtents = 100_000

// stat shows one inode.
func (d *dump) stat(ctx context.Context) error {
	st, err := d.fsys.StatNid(d.nid)
	if err != nil {
		return err
	}
	e, err := d.entry(d.name(), st)
	if err != nil {
		return err
	}
	if e.Detail, err = d.detail(ctx, st); err != nil {
		return err
	}
	if d.flags.JSON {
		return cli.PrintJSON(d.out, e)
	}
	d.printStat(e)
	return nil
}

// name is the inode asked for, as the user may have called it.
func (d *dump) name() string {
	switch d.path {
	case "":
		return ""
	case ".":
		return "/"
	}
	return "/" + d.path
}

func (d *dump) detail(ctx context.Context, st *erofs.Stat) (*inodeInfo, error) {
	i := &inodeInfo{Ino: st.Ino, Offset: st.Offset, Size: 32, Layout: layoutNames[st.Layout]}
	if st.Extended {
		i.Size = 64
	}
	xattrs, err := d.fsys.Xattrs(st.Nid)
	if err != nil {
		return nil, err
	}
	for _, x := range xattrs {
		info := xattrInfo{Name: x.Name, Size: len(x.Value)}
		if utf8.Valid(x.Value) && isText(x.Value) {
			info.Value = string(x.Value)
		} else {
			info.Hex = fmt.Sprintf("%x", x.Value)
		}
		i.Xattrs = append(i.Xattrs, info)
	}
	err = d.fsys.Extents(st.Nid, func(e erofs.FileExtent) error {
		if e.Kind != erofs.ExtentHole && e.Kind != erofs.ExtentFragment {
			i.Stored += e.AddrLen
		}
		if len(i.Extents) == maxExtents {
			i.Withheld++
			return ctx.Err()
		}
		info := extentInfo{Offset: e.Offset, Length: e.Length, Kind: e.Kind.String(), Device: e.Device, Addr: e.Addr, AddrLen: e.AddrLen}
		if e.Kind == erofs.ExtentEncoded {
			info.Algorithm = e.Algorithm.String()
			if e.Meta {
				info.Kind = "encoded-inline"
			}
		}
		i.Extents = append(i.Extents, info)
		return nil
	})
	return i, err
}

func (d *dump) printStat(e *entry) {
	row := func(name, format string, args ...any) {
		fmt.Fprintf(d.out, "%-8s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	if e.Path != "" {
		row("path", "%s", quoteName(e.Path))
	}
	i := e.Detail
	row("nid", "%s (ino %d), an inode of %d bytes at %d", erofs.FormatNid(e.Nid), i.Ino, i.Size, i.Offset)
	row("type", "%s", e.Type)
	if e.Target != "" {
		row("target", "%s", quoteName(e.Target))
	}
	if e.Device != "" {
		row("device", "%s", e.Device)
	}
	row("mode", "%s (%s)", e.Mode, modeString(e))
	row("owner", "%d:%d", e.UID, e.GID)
	row("links", "%d", e.Nlink)
	row("size", "%d (%s)", e.Size, cli.Size(e.Size))
	row("mtime", "%s", e.Mtime)
	row("layout", "%s", i.Layout)
	if len(i.Extents) > 0 {
		row("stored", "%d (%s), %s of the size", i.Stored, cli.Size(i.Stored), percent(i.Stored, e.Size))
	}
	for _, x := range i.Xattrs {
		value := fmt.Sprintf("%q", x.Value)
		if x.Hex != "" {
			value = "0x" + x.Hex
		}
		row("xattr", "%s = %s (%d bytes)", quoteName(x.Name), value, x.Size)
	}
	for _, x := range i.Extents {
		where := fmt.Sprintf("%d bytes at %d", x.AddrLen, x.Addr)
		inMetabox := e.Nid&ondisk.NidMetabox != 0 && (x.Kind == "inline" || x.Kind == "encoded-inline")
		switch {
		case x.Device > 0:
			where += fmt.Sprintf(" of device %d", x.Device)
		case x.Kind == "fragment":
			where += " of the packed inode"
		case inMetabox:
			where += " of the metabox"
		}
		switch x.Kind {
		case "hole":
			where = ""
		case "encoded", "encoded-inline":
			where = x.Algorithm + ", " + where
		}
		row("extent", "%s", strings.TrimRight(fmt.Sprintf("%10d %10d  %-8s %s", x.Offset, x.Length, x.Kind, where), " "))
	}
	if i.Withheld > 0 {
		row("extents", "%d more", i.Withheld)
	}
}
