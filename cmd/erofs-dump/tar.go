package main

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// tar writes the tree below the inode asked for as a PAX archive: entries in
// bytewise order, a hard link for each further name of an inode. The same
// image always gives the same bytes.
func (d *dump) tar(ctx context.Context) error {
	st, err := d.fsys.StatNid(d.nid)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("--tar wants a directory, this is a %s", st.Type())
	}
	w := tar.NewWriter(ctxWriter{ctx, d.out})
	first := make(map[uint64]string) // of inodes with several names
	err = d.fsys.Walk(d.nid, func(name string, st *erofs.Stat) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return d.tarEntry(ctx, w, first, name, st)
	})
	if err != nil {
		return err // without the end marker: no reader takes it for complete
	}
	return w.Close()
}

func (d *dump) tarEntry(ctx context.Context, w *tar.Writer, first map[uint64]string, name string, st *erofs.Stat) error {
	h := &tar.Header{
		Name:       name,
		Mode:       int64(st.Mode & 0o7777),
		Uid:        int(st.UID),
		Gid:        int(st.GID),
		ModTime:    st.Mtime,
		Format:     tar.FormatPAX,
		PAXRecords: map[string]string{},
	}
	var err error
	switch st.Mode & ondisk.ModeTypeMask {
	case ondisk.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case ondisk.ModeRegular:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case ondisk.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = d.fsys.ReadLinkNid(st.Nid); err != nil {
			return err
		}
	case ondisk.ModeFIFO:
		h.Typeflag = tar.TypeFifo
	case ondisk.ModeChar, ondisk.ModeBlock:
		h.Typeflag = tar.TypeChar
		if st.Mode&ondisk.ModeTypeMask == ondisk.ModeBlock {
			h.Typeflag = tar.TypeBlock
		}
		major, minor := st.Device()
		h.Devmajor, h.Devminor = int64(major), int64(minor)
	default:
		d.env.Errorf("warning: %q is a %s, which tar cannot hold: left out", name, st.Type())
		return nil
	}
	if st.Nlink > 1 && !st.IsDir() {
		if target, ok := first[st.Nid]; ok {
			h.Typeflag, h.Linkname, h.Size, h.Devmajor, h.Devminor = tar.TypeLink, target, 0, 0, 0
			h.PAXRecords = map[string]string{}
			return writeHeader(w, h)
		}
		first[st.Nid] = name
	}
	xattrs, err := d.fsys.Xattrs(st.Nid)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	for _, x := range xattrs {
		if key, ok := aclRecords[x.Name]; ok {
			if text, ok := aclText(x.Value); ok {
				h.PAXRecords[key] = text
				continue
			}
		}
		if !plainKey(x.Name) {
			// Percent-encoded, blanks too, which QueryEscape makes a "+".
			name := strings.ReplaceAll(url.QueryEscape(x.Name), "+", "%20")
			h.PAXRecords["LIBARCHIVE.xattr."+name] = base64.RawStdEncoding.EncodeToString(x.Value)
			continue
		}
		h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
	}
	if err := writeHeader(w, h); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := d.fsys.OpenNid(st.Nid)
	if err != nil {
		return err
	}
	if err := copyFile(ctx, w, f); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	return nil
}

// plainKey tells whether an attribute's name can stand in a record's key as it
// is: "=" ends a key, and GNU tar takes two sequences for what it writes in
// place of others. Else there is libarchive's form.
func plainKey(name string) bool {
	return !strings.Contains(name, "=") && !strings.Contains(name, "%3D") && !strings.Contains(name, "%25")
}

// writeHeader writes a header. PAX has names in UTF-8, unless it says otherwise.
func writeHeader(w *tar.Writer, h *tar.Header) error {
	if !utf8.ValidString(h.Name) || !utf8.ValidString(h.Linkname) {
		h.PAXRecords["hdrcharset"] = "BINARY"
	}
	return w.WriteHeader(h)
}
