package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// entry is what --ls and --stat say of a file, in JSON.
type entry struct {
	Path   string     `json:"path,omitempty"`
	Bytes  []byte     `json:"pathBytes,omitempty"` // the path, where JSON cannot hold it
	Nid    uint64     `json:"nid"`
	Type   string     `json:"type"`
	Mode   string     `json:"mode"` // octal permissions
	UID    uint32     `json:"uid"`
	GID    uint32     `json:"gid"`
	Nlink  uint32     `json:"nlink"`
	Size   int64      `json:"size"` // bytes
	Mtime  string     `json:"mtime"`
	Device string     `json:"device,omitempty"` // major:minor
	Target string     `json:"target,omitempty"`
	To     []byte     `json:"targetBytes,omitempty"`
	Detail *inodeInfo `json:"inode,omitempty"` // --stat alone

	mtime time.Time
}

// entry describes an inode.
func (d *dump) entry(name string, st *erofs.Stat) (*entry, error) {
	e := &entry{
		Path:  name,
		Bytes: notUTF8(name),
		Nid:   st.Nid,
		Type:  st.Type(),
		Mode:  fmt.Sprintf("%04o", st.Mode&0o7777),
		UID:   st.UID,
		GID:   st.GID,
		Nlink: st.Nlink,
		Size:  st.Size,
		Mtime: timeString(st.Mtime),
		mtime: st.Mtime.UTC(),
	}
	if t := st.Mode & ondisk.ModeTypeMask; t == ondisk.ModeChar || t == ondisk.ModeBlock {
		major, minor := st.Device()
		e.Device = fmt.Sprintf("%d:%d", major, minor)
	}
	if st.IsSymlink() {
		target, err := d.fsys.ReadLinkNid(st.Nid)
		if err != nil {
			return nil, err
		}
		e.Target, e.To = target, notUTF8(target)
	}
	return e, nil
}

// notUTF8 is a string that JSON cannot hold as it is; nil for one that it can.
func notUTF8(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

// timeString is a time in JSON. That of time.Time itself knows no year after
// 9999, and an image may.
func timeString(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// ls lists a directory, or shows one file.
func (d *dump) ls(ctx context.Context) error {
	print := d.printRow
	if d.flags.JSON {
		list := jsonList{w: d.out}
		print = func(e *entry) error { return list.add(e) }
		defer list.end()
	}
	return d.fsys.Walk(d.nid, func(name string, st *erofs.Stat) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if name == "." && st.IsDir() && !d.flags.Recursive {
			return nil
		}
		if name == "." && !st.IsDir() {
			name = path.Base("/" + d.path)
		}
		e, err := d.entry(name, st)
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		if err := print(e); err != nil {
			return err
		}
		if st.IsDir() && !d.flags.Recursive {
			return fs.SkipDir
		}
		return nil
	})
}

// jsonList prints an array, an element a line, as it comes: a listing of a
// million files need not be in memory.
type jsonList struct {
	w io.Writer
	n int
}

func (l *jsonList) add(v any) error {
	b, err := marshal(v)
	if err != nil {
		return err
	}
	sep := ",\n"
	if l.n == 0 {
		sep = "[\n"
	}
	l.n++
	_, err = fmt.Fprintf(l.w, "%s  %s", sep, b)
	return err
}

func (l *jsonList) end() error {
	end := "\n]\n"
	if l.n == 0 {
		end = "[]\n"
	}
	_, err := io.WriteString(l.w, end)
	return err
}

// printRow prints a line as ls -l does.
func (d *dump) printRow(e *entry) error {
	size := fmt.Sprint(e.Size)
	if e.Device != "" {
		size = strings.Replace(e.Device, ":", ", ", 1)
	}
	name := quoteName(e.Path)
	if e.Target != "" {
		name += " -> " + quoteName(e.Target)
	}
	if d.flags.Inode {
		fmt.Fprintf(d.out, "%8d ", e.Nid) // as --nid takes it
	}
	_, err := fmt.Fprintf(d.out, "%s %3d %5d %5d %11s %s %s\n", modeString(e), e.Nlink, e.UID, e.GID, size, e.mtime.Format("2006-01-02 15:04:05"), name)
	return err
}

// modeString is the ten characters of ls.
func modeString(e *entry) string {
	var mode uint32
	fmt.Sscanf(e.Mode, "%o", &mode)
	b := []byte("-rwxrwxrwx")
	b[0] = map[string]byte{"directory": 'd', "symlink": 'l', "fifo": 'p', "socket": 's', "character device": 'c', "block device": 'b'}[e.Type]
	if b[0] == 0 {
		b[0] = '-'
	}
	for i := range 9 {
		if mode>>(8-i)&1 == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit  uint32
		at   int
		x, X byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if mode&s.bit != 0 {
			if b[s.at] == 'x' {
				b[s.at] = s.x
			} else {
				b[s.at] = s.X
			}
		}
	}
	return string(b)
}

// quoteName shows a name as it is unless that could mislead a terminal or a
// reader: names in an image may hold anything but a slash and a NUL.
func quoteName(s string) string {
	q := fmt.Sprintf("%q", s)
	if q[1:len(q)-1] == s {
		return s
	}
	return q
}

// marshal is json.Marshal without HTML's escapes.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}
