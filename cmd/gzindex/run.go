package main

import (
	"context"
	"errors"
	"os"
	"runtime"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

const description = `Index a gzip file (any number of members) for random access, in the zinfo format of SOCI and erofs-utils.

The index goes to stdout; FILE may be - for stdin, which is read once, in constant memory. Every checksum in
FILE is verified on the way. The same program shows an index, verifies it against its file, and reads with it.
With --seek the index is layerpipe's own seek section: smaller, with digests of the compressed data, and for zstd and plain files, too.

  oci-fetch --layer 1 golang:1.26 | gzindex > l1.zinfo
  gzindex --show l1.zinfo
  gzindex --verify l1.zinfo l1.tar.gz
  gzindex --read 512:1MiB --zinfo l1.zinfo l1.tar.gz | head -c 100
  oci-fetch --layer 1 golang:1.26 | gzindex --seek > l1.seek`

type flags struct {
	File string `arg:"" optional:"" help:"Gzip file, or with --seek any, or - for stdin (the default)."`

	Show   given `xor:"mode" placeholder:"INDEX" help:"Show an index, of either format; or an index image's seek section."`
	Verify given `xor:"mode" placeholder:"INDEX" help:"Check each span, window, checksum and digest of FILE against an index."`
	Read   given `xor:"mode" placeholder:"OFFSET:LENGTH" help:"Write a part of FILE, decompressed, to stdout; without LENGTH up to its end."`
	Zinfo  given `placeholder:"INDEX" help:"The index to --read with, of either format; with a seek section what is read is verified."`

	Output    given    `short:"o" placeholder:"FILE" help:"Write the index to FILE, which appears when all is well."`
	SpanSize  cli.Size `default:"4MiB" placeholder:"BYTES" help:"Decompressed bytes between two checkpoints, at least (default ${default})."`
	Seek      bool     `help:"Make a seek section, of a gzip, zstd or plain file."`
	Sparse    bool     `help:"Zero what is not needed of the windows: the index then compresses several times better, but is no longer the same as SOCI's."`
	PerMember bool     `help:"A checkpoint at every member's start, too: erofs-utils cannot read beyond a member."`
	Tee       given    `placeholder:"FILE" help:"Write the decompressed data to FILE (- is stdout, with -o) while indexing."`

	JSON  bool `name:"json" help:"With --show: print JSON."`
	Jobs  int  `short:"j" placeholder:"N" help:"With --verify: spans to verify at once (default: one for each processor)."`
	Quiet bool `short:"q" help:"Print nothing but errors."`
}

// given is a flag's value that is not empty: --verify "$INDEX" must not make an
// index, and succeed, where the variable is not set.
type given string

// UnmarshalText reads the flag.
func (g *given) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return errors.New("an empty value")
	}
	*g = given(text)
	return nil
}

func run(ctx context.Context, env *cli.Env) error {
	var f flags
	if err := cli.Parse(env, &f, description); err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	c := &command{env: env, flags: &f, progress: env.NewProgress(f.Quiet)}
	defer c.progress.End()
	switch {
	case f.Show != "":
		return c.show()
	case f.Verify != "":
		return c.verify(ctx)
	case f.Read != "":
		return c.read(ctx)
	}
	return c.index(ctx)
}

// check refuses flags that do not go together, before anything is done.
func (f *flags) check() error {
	making := f.Output != "" || f.Tee != "" || f.Seek || f.Sparse || f.PerMember || f.SpanSize != zinfo.DefaultSpanSize
	mode := "--show"
	switch {
	case f.Show != "":
	case f.Verify != "":
		mode = "--verify"
	case f.Read != "":
		mode = "--read"
	default:
		mode = ""
	}
	switch {
	case mode != "" && making:
		return cli.Usagef("--output, --seek, --span-size, --sparse, --per-member and --tee do not go with %s", mode)
	case mode == "--show" && f.File != "":
		return cli.Usagef("--show takes an index and no other file")
	case (mode == "--verify" || mode == "--read") && (f.File == "" || f.File == "-"):
		return cli.Usagef("%s takes a FILE that can be read at any offset, not stdin", mode)
	case (mode == "--read") != (f.Zinfo != ""):
		return cli.Usagef("--read and --zinfo go together")
	case f.JSON && mode != "--show":
		return cli.Usagef("--json goes with --show")
	case f.Jobs != 0 && mode != "--verify":
		return cli.Usagef("--jobs goes with --verify")
	case f.Jobs < 0 || f.Jobs > 1024:
		return cli.Usagef("--jobs %d: 1 to 1024", f.Jobs)
	case f.SpanSize < 1:
		return cli.Usagef("--span-size must be at least 1")
	case f.Seek && (f.Sparse || f.PerMember):
		return cli.Usagef("--sparse and --per-member are for zinfo: seek sections are sparse, and go on through members")
	case (f.Sparse || f.Seek) && f.SpanSize < zinfo.WindowSize:
		return cli.Usagef("--sparse and --seek take a --span-size of at least 32KiB")
	case f.Tee == "-" && (f.Output == "" || f.Output == "-"):
		return cli.Usagef("--tee - takes stdout: give the index a file with --output")
	}
	if f.Output == "-" {
		f.Output = ""
	}
	if f.Jobs == 0 {
		f.Jobs = runtime.GOMAXPROCS(0)
	}
	return nil
}

// command is one run.
type command struct {
	env      *cli.Env
	flags    *flags
	progress *cli.Progress
}

// name is the input's name in messages.
func (c *command) name() string {
	return cli.Label(c.flags.File)
}

// openBlob opens FILE, to be read at any offset.
func (c *command) openBlob() (*os.File, int64, error) {
	f, err := os.Open(c.flags.File)
	if err != nil {
		return nil, 0, err
	}
	_, size, ok := cli.Regular(f)
	if !ok {
		f.Close()
		return nil, 0, cli.Usagef("%s is not a regular file", c.flags.File)
	}
	return f, size, nil
}
