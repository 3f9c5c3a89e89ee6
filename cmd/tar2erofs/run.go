package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

const description = `Make an EROFS filesystem of an image or of layers, merged.

IN is an image as oci-fetch writes it (an OCI archive; docker save's will do as well), or one layer (a tar, plain or compressed with gzip, zstd or xz). Several INs are layers, the lowest first. Without IN, or as "-", it is stdin.

OUT appears only when all went well. With -i it holds no file data: that stays in the layers, see erofs-nbd.

  oci-fetch golang:1.26 | tar2erofs golang.erofs && mount -o loop golang.erofs /mnt`

type flags struct {
	Index     bool   `short:"i" help:"Make an index: metadata here, file data stays in the layers."`
	Format    string `enum:"auto,image,layer" default:"auto" help:"What IN is: auto, image or layer."`
	Digest    string `placeholder:"DIGEST" help:"What a single layer must be (sha256:...)."`
	NoEnd     bool   `name:"no-end-marker" help:"Take a layer without tar's end marker from a pipe, too: whoever writes it sees to it that it is whole."`
	Platform  string `placeholder:"OS/ARCH" help:"Which image of an archive that has several."`
	Whiteouts string `enum:"merge,overlay,keep" default:"merge" help:"merge: apply them; overlay: turn them into overlayfs's form; keep: leave the files."`
	Zinfo     string `placeholder:"FILE" help:"Index of one gzip layer: write its checkpoints in SOCI's format, too."`
	Tmpdir    string `placeholder:"DIR" help:"For temporary files (default: OUT's directory)."`
	Verbose   bool   `short:"v" help:"Say on stderr what was done."`

	layoutFlags    `group:"Layout:"`
	attributeFlags `group:"Files, their times and owners:"`

	Out string   `arg:"" help:"Image to write; - is stdout."`
	In  []string `arg:"" optional:"" help:"Image or layers to read."`
}

// layoutFlags are for what the image is like, whatever is in it.
type layoutFlags struct {
	BlockSize   cli.Size `short:"b" placeholder:"BYTES" help:"Block size, 512 to 64KiB (default 4KiB; an index has 512)."`
	SpanSize    cli.Size `placeholder:"BYTES" help:"Index: uncompressed bytes from one checkpoint to the next (default 4MiB)."`
	UUID        string   `short:"U" name:"uuid" placeholder:"UUID" help:"Volume's UUID (default: derived from the input)."`
	Label       string   `short:"L" placeholder:"NAME" help:"Volume's name, up to 16 bytes."`
	XattrPrefix []string `sep:"none" placeholder:"PREFIX" help:"Store this beginning of xattr names (user.mime.) once; needs Linux 6.4. May be repeated."`
	NoInline    bool     `name:"no-inline" help:"Put no data beside inodes: every file's begins a block (-Enoinline_data)."`
}

// attributeFlags change what is in the image.
type attributeFlags struct {
	Time        *int64   `short:"T" placeholder:"SECONDS" help:"Time of the build, and of all files, since 1970 ($SOURCE_DATE_EPOCH goes before it)."`
	AllTime     bool     `xor:"times" help:"-T is the time of all files, too (the default)."`
	MkfsTime    bool     `xor:"times" help:"-T is the time of the build alone."`
	IgnoreMtime bool     `help:"All files get the time of the build: -T, or $SOURCE_DATE_EPOCH."`
	AllRoot     bool     `help:"All files belong to root."`
	ForceUID    *uint32  `name:"force-uid" placeholder:"UID" help:"All files belong to UID."`
	ForceGID    *uint32  `name:"force-gid" placeholder:"GID" help:"All files belong to the group GID."`
	UIDOffset   int64    `name:"uid-offset" placeholder:"N" help:"Add N to all files' uids."`
	GIDOffset   int64    `name:"gid-offset" placeholder:"N" help:"Add N to all files' gids."`
	Exclude     []string `sep:"none" placeholder:"GLOB" help:"Leave out what matches, and all below: a name, or with a slash a path from the root; * and ? match no slash, ** does. May be repeated."`
}

func run(ctx context.Context, env *cli.Env) error {
	var f flags
	if err := cli.Parse(env, &f, description); err != nil {
		return err
	}
	o, err := f.options(env)
	if err != nil {
		return err
	}
	out, err := env.CreateSeekable(f.Out, f.Tmpdir)
	if err != nil {
		return err
	}
	defer out.Close()
	tails, err := cli.Scratch(out.Dir())
	if err != nil {
		return err
	}
	defer tails.Close()

	in, err := f.open(ctx, env, out.Dir())
	if err != nil {
		return err
	}
	defer in.Close()
	if f.Zinfo != "" && in.Len() != 1 {
		return cli.Usagef("--zinfo is for one layer, not %d", in.Len())
	}
	o.Manifest = in.manifest
	res, err := build.Image(ctx, out, tails, in, o)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var zinfo *cli.Output
	if f.Zinfo != "" {
		if zinfo, err = f.writeZinfo(res); err != nil {
			return err
		}
		defer zinfo.Close()
	}
	if err := out.Commit(); err != nil {
		return err
	}
	if zinfo != nil {
		if err := zinfo.Commit(); err != nil {
			return err
		}
	}
	if f.Verbose {
		env.Errorf("%s: %s, %d files from %d entries in %s, metadata %s, seek section %s", f.Out,
			cli.Size(res.Size), res.Inodes, res.Entries, cli.Count(len(res.Layers), "layer"), cli.Size(res.Metadata), cli.Size(res.SeekSection))
	}
	return nil
}

// options checks the flags against each other before anything is touched.
func (f *flags) options(env *cli.Env) (build.Options, error) {
	o := build.Options{Index: f.Index, BlockSize: int(f.BlockSize), SpanSize: int64(f.SpanSize), Label: f.Label}
	o.Exclude, o.XattrPrefixes, o.NoInline = f.Exclude, f.XattrPrefix, f.NoInline
	o.Warn = func(msg string) { env.Errorf("warning: %s", msg) }
	o.Whiteouts = map[string]rootfs.Whiteouts{"merge": rootfs.MergeWhiteouts, "overlay": rootfs.OverlayWhiteouts, "keep": rootfs.KeepWhiteouts}[f.Whiteouts]
	switch {
	case f.Index && f.BlockSize != 0 && f.BlockSize != 512:
		return o, cli.Usagef("--block-size: an index has blocks of 512 bytes, like tar")
	case f.BlockSize != 0 && (f.BlockSize < 512 || f.BlockSize > 65536 || f.BlockSize&(f.BlockSize-1) != 0):
		return o, cli.Usagef("--block-size %d: a power of two from 512 to 65536 is needed", f.BlockSize)
	case len(f.Label) > 16:
		return o, cli.Usagef("--label: more than 16 bytes")
	case f.Zinfo != "" && filepath.Clean(f.Zinfo) == filepath.Clean(f.Out):
		return o, cli.Usagef("--zinfo and OUT are the same file")
	case f.Zinfo != "" && !f.Index:
		return o, cli.Usagef("--zinfo is for an index: add -i")
	case f.SpanSize != 0 && !f.Index:
		return o, cli.Usagef("--span-size is for an index: add -i")
	case f.SpanSize != 0 && f.SpanSize < 64<<10:
		return o, cli.Usagef("--span-size: at least 64KiB")
	case len(f.In) > 1 && f.Format == "image":
		return o, cli.Usagef("--format=image takes one input, not %d", len(f.In))
	case len(f.In) > 1 && f.Digest != "":
		return o, cli.Usagef("--digest is for one layer, not %d", len(f.In))
	}
	if f.Digest != "" {
		if err := digest.Digest(f.Digest).Validate(); err != nil {
			return o, cli.Usagef("--digest %q: %v", f.Digest, err)
		}
	}
	if err := f.owners(&o.Owners); err != nil {
		return o, err
	}
	if err := f.times(&o.Times); err != nil {
		return o, err
	}
	if f.UUID != "" {
		u, err := parseUUID(f.UUID)
		if err != nil {
			return o, err
		}
		o.UUID = &u
	}
	return o, nil
}

func (f *flags) owners(o *build.Owners) error {
	root := uint32(0)
	switch {
	case f.AllRoot && (f.ForceUID != nil || f.ForceGID != nil):
		return cli.Usagef("--all-root and --force-uid or --force-gid: one of them")
	case f.AllRoot:
		o.UID, o.GID = &root, &root
	default:
		o.UID, o.GID = f.ForceUID, f.ForceGID
	}
	o.UIDOffset, o.GIDOffset = f.UIDOffset, f.GIDOffset
	return nil
}

// times does as mkfs.erofs: -T sets all files' times, SOURCE_DATE_EPOCH goes
// before -T and only takes later ones back.
func (f *flags) times(t *build.Times) error {
	t.Build = f.Time
	if !f.MkfsTime {
		t.All = f.Time
	}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return cli.Usagef("SOURCE_DATE_EPOCH=%q: seconds since 1970 are needed", s)
		}
		*t = build.Times{Build: &n, Clamp: &n}
	}
	// mkfs.erofs would take the clock's; then no two runs were the same.
	if f.IgnoreMtime && t.Build == nil {
		return cli.Usagef("--ignore-mtime: what is the time of the build? Add -T, or set SOURCE_DATE_EPOCH")
	}
	if f.MkfsTime && t.Build == nil {
		return cli.Usagef("--mkfs-time goes with -T")
	}
	if f.IgnoreMtime {
		t.All = t.Build
	}
	return nil
}

// parseUUID reads RFC 9562's text form, and mkfs.erofs's words.
func parseUUID(s string) (u [16]byte, err error) {
	switch s {
	case "clear":
		return u, nil
	case "random":
		rand.Read(u[:]) // which never fails
		u[6] = u[6]&0x0f | 0x40
		u[8] = u[8]&0x3f | 0x80
		return u, nil
	}
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		digits := s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
		if _, err := hex.Decode(u[:], []byte(digits)); err == nil {
			return u, nil
		}
	}
	return u, cli.Usagef("--uuid %q: 8-4-4-4-12 hex digits are needed, or clear, or random", s)
}

// writeZinfo writes the checkpoints of the only layer as a zinfo file, which
// appears when the caller commits it.
func (f *flags) writeZinfo(res *build.Result) (*cli.Output, error) {
	x, err := layer.Zinfo(&res.Layers[0], int64(f.SpanSize))
	if err != nil {
		return nil, fmt.Errorf("--zinfo: %w", err)
	}
	o, err := cli.Create(f.Zinfo)
	if err != nil {
		return nil, err
	}
	if _, err := x.WriteTo(o.File); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}
