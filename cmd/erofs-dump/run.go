package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

const description = `Show what is in an EROFS image: without an option its superblock, devices, seek section and statistics.

An index image can be listed without its layers; --device gives them for reading files, one for each layer in order.

  erofs-dump --ls image.erofs /etc
  erofs-dump --cat image.erofs /etc/os-release
  erofs-dump --tar image.erofs | tar t`

type flags struct {
	Image string   `arg:"" help:"EROFS image, a file or a block device."`
	Path  []string `arg:"" optional:"" help:"Path in the image (default /); with --diff the other image."`

	Ls    bool `xor:"mode" help:"List a directory, as ls -l."`
	Cat   bool `xor:"mode" help:"Write a file's contents to stdout."`
	Stat  bool `xor:"mode" help:"Show an inode: attributes, layout, extents, xattrs."`
	Tar   bool `xor:"mode" help:"Write a directory's tree to stdout as a tar."`
	Check bool `xor:"mode" help:"Check structure, checksums and bounds; with --data all contents as well."`
	Diff  bool `xor:"mode" help:"Compare with another image."`
	Udev  bool `xor:"mode" name:"blkid-udev" help:"Print UUID and label for udev's rules."`

	Recursive bool     `short:"R" help:"With --ls: list what is below too."`
	Inode     bool     `short:"i" help:"With --ls: show the inodes' numbers."`
	JSON      bool     `name:"json" help:"Print JSON."`
	Data      bool     `help:"With --check: read all files."`
	Nid       *uint64  `placeholder:"N" help:"An inode's number instead of a path."`
	Offset    cli.Size `placeholder:"BYTES" help:"Where in its file the image begins."`
	Device    []string `placeholder:"FILE" type:"path" sep:"none" help:"Extra device, in the order of the device table; may be repeated."`
}

// dump is one run of the command.
type dump struct {
	env   *cli.Env
	flags flags
	out   *bufio.Writer
	fsys  *erofs.FS
	image io.ReaderAt
	size  int64  // of the image's file or device, bytes
	nid   uint64 // of the inode asked for
	path  string // the same as a path of io/fs; empty with --nid
}

func run(ctx context.Context, env *cli.Env) error {
	d := &dump{env: env}
	if err := cli.Parse(env, &d.flags, description); err != nil {
		return err
	}
	if err := d.usage(); err != nil {
		return err
	}
	var files files
	defer files.close()
	file, err := files.open(d.flags.Image)
	if err != nil {
		return err
	}
	if d.image, d.size, err = from(file, int64(d.flags.Offset)); err != nil {
		return fmt.Errorf("%s: %w", d.flags.Image, err)
	}
	if d.fsys, err = d.open(&files, d.image, d.flags.Device); err != nil {
		return fmt.Errorf("%s: %w", d.flags.Image, err)
	}
	if err := d.locate(); err != nil {
		return fmt.Errorf("%s: %w", d.flags.Image, notFound(err))
	}
	if d.flags.Cat || d.flags.Tar {
		if d.out, err = d.binary(); err != nil {
			return err
		}
	} else {
		d.out = bufio.NewWriter(env.Stdout)
	}
	mode := d.info
	switch {
	case d.flags.Ls:
		mode = d.ls
	case d.flags.Cat:
		mode = d.cat
	case d.flags.Stat:
		mode = d.stat
	case d.flags.Tar:
		mode = d.tar
	case d.flags.Check:
		mode = d.check
	case d.flags.Diff:
		mode = d.diff
	case d.flags.Udev:
		mode = d.udev
	}
	err = mode(ctx)
	if ferr := d.out.Flush(); err == nil {
		err = ferr
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.flags.Image, notFound(err))
	}
	return nil
}

// usage settles which argument is what.
func (d *dump) usage() error {
	f := &d.flags
	pathMode := f.Ls || f.Cat || f.Stat || f.Tar
	switch {
	case len(f.Path) > 1:
		return cli.Usagef("%d paths given: one at a time", len(f.Path))
	case f.Diff && len(f.Path) == 0:
		return cli.Usagef("--diff needs two images")
	case f.Diff:
	case len(f.Path) > 0 && !pathMode:
		return cli.Usagef("a path goes with --ls, --cat, --stat or --tar")
	case f.Nid != nil && (len(f.Path) > 0 || !pathMode):
		return cli.Usagef("--nid goes with --ls, --cat, --stat or --tar, and without a path")
	case f.Cat && len(f.Path) == 0 && f.Nid == nil:
		return cli.Usagef("--cat needs a path")
	case f.Recursive && !f.Ls:
		return cli.Usagef("-R goes with --ls")
	case f.Inode && !f.Ls:
		return cli.Usagef("-i goes with --ls")
	case f.Data && !f.Check:
		return cli.Usagef("--data goes with --check")
	case f.JSON && (f.Cat || f.Tar || f.Udev):
		return cli.Usagef("--json does not go with --cat, --tar and --blkid-udev, which have a form of their own")
	case f.Diff && f.Offset != 0:
		return cli.Usagef("--offset does not go with --diff: of which image?")
	}
	// "--ls /etc image.erofs" reads as well as "image.erofs --ls /etc", so the
	// image may come second.
	if pathMode && len(f.Path) == 1 && !isImage(f.Image, int64(f.Offset)) && isImage(f.Path[0], int64(f.Offset)) {
		f.Image, f.Path[0] = f.Path[0], f.Image
	}
	return nil
}

// isImage says whether a file has EROFS's magic number, seen from an offset.
func isImage(name string, offset int64) bool {
	st, err := os.Stat(name)
	if err != nil || st.IsDir() || st.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0 {
		return false
	}
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	var b [4]byte
	_, err = f.ReadAt(b[:], offset+ondisk.SuperOffset)
	return err == nil && binary.LittleEndian.Uint32(b[:]) == ondisk.Magic
}

// files are the open files of a run.
type files []*os.File

func (l *files) open(name string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, notFound(err)
	}
	*l = append(*l, f)
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = cli.Usagef("%s: is a directory", name)
	}
	return f, err
}

func (l files) close() {
	for _, f := range l {
		f.Close()
	}
}

// from is a file from an offset on, and the size of that.
func from(f *os.File, offset int64) (io.ReaderAt, int64, error) {
	size, err := f.Seek(0, io.SeekEnd) // a block device tells its size only so
	switch {
	case err != nil:
		return nil, 0, err
	case offset == 0:
		return f, size, nil
	case offset >= size:
		return nil, 0, cli.Usagef("--offset %d is behind its end, %d", offset, size)
	}
	return io.NewSectionReader(f, offset, size-offset), size - offset, nil
}

// open opens an image. Only --check goes on where the checksum is wrong.
func (d *dump) open(l *files, image io.ReaderAt, devices []string) (*erofs.FS, error) {
	var opts []erofs.Option
	if d.flags.Check {
		opts = append(opts, erofs.WithoutChecksum())
	}
	var readers []io.ReaderAt
	for _, name := range devices {
		f, err := l.open(name)
		if err != nil {
			return nil, err
		}
		readers = append(readers, f)
	}
	if len(readers) > 0 {
		opts = append(opts, erofs.WithDevices(readers...))
	}
	return erofs.Open(image, opts...)
}

// locate finds the inode asked for.
func (d *dump) locate() error {
	switch {
	case d.flags.Nid != nil:
		d.nid = *d.flags.Nid
		_, err := d.fsys.StatNid(d.nid)
		return err
	case d.flags.Diff || len(d.flags.Path) == 0:
		d.path, d.nid = ".", d.fsys.RootNid()
		return nil
	}
	if d.path = path.Clean("/" + d.flags.Path[0])[1:]; d.path == "" {
		d.path = "."
	}
	// ls and stat show a link itself, the others what it leads to.
	nid, err := d.fsys.Resolve(d.path, d.flags.Cat || d.flags.Tar)
	d.nid = nid
	return err
}

// binary is stdout for bytes. A file's text may go to a terminal, so --cat
// looks at its beginning.
func (d *dump) binary() (*bufio.Writer, error) {
	if d.flags.Cat && cli.IsTerminal(d.env.Stdout) {
		f, err := d.openFile()
		if err != nil {
			return nil, err
		}
		head := make([]byte, 8<<10)
		n, err := f.ReadAt(head, 0)
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("%s: %w", d.flags.Image, err)
		}
		if isText(head[:n]) {
			return bufio.NewWriter(d.env.Stdout), nil
		}
	}
	return d.env.BinaryStdout()
}

// isText says whether bytes may be shown: no controls but those of plain text.
func isText(b []byte) bool {
	for len(b) > 0 {
		c, n := utf8.DecodeRune(b)
		if c == utf8.RuneError && n == 1 {
			c = rune(b[0]) // Latin-1, perhaps, which has control characters too
		}
		if unicode.IsControl(c) && !strings.ContainsRune("\n\t\r\f", c) {
			return false
		}
		b = b[n:]
	}
	return true
}

// notFound gives a missing file or path its kind of error.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fault.ErrNotFound) {
		return missing{err}
	}
	return err
}

type missing struct{ error }

func (m missing) Unwrap() error        { return m.error }
func (m missing) Is(target error) bool { return target == fault.ErrNotFound }

// cat writes a file's contents.
func (d *dump) cat(ctx context.Context) error {
	f, err := d.openFile()
	if err != nil {
		return err
	}
	return copyFile(ctx, d.out, f)
}

// openFile opens the file asked for, under the name it was asked for by.
func (d *dump) openFile() (*erofs.File, error) {
	if d.path == "" {
		return d.fsys.OpenNid(d.nid)
	}
	f, err := d.fsys.Open(d.path)
	if err != nil {
		return nil, err
	}
	return f.(*erofs.File), nil
}

// copyFile copies until the context ends.
func copyFile(ctx context.Context, w io.Writer, f *erofs.File) error {
	_, err := f.WriteTo(ctxWriter{ctx, w})
	return err
}

type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w ctxWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}
