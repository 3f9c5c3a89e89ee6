// Command oci-fetch writes a container image, or a part of it, to stdout.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/cmd/internal/regflags"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociarchive"
	"github.com/layerpipe/layerpipe/pkg/source"
)

const description = `Write a container image to stdout, as an OCI archive whose layers come in order.

REF is a registry's reference as docker has it (golang:1.26, localhost:5000/app@sha256:...),
oci:DIR[:TAG], or oci-archive:FILE[:TAG]. Every byte is verified; after an error the archive
lacks its end, so that nothing behind the pipe takes it for whole. Downloads that break go on
where they broke. Credentials, certificates, mirrors and proxies are taken from where docker,
podman and containerd have them.

  oci-fetch --list golang:1.26                          what there is to fetch
  oci-fetch -o golang.tar golang:1.26                   for skopeo, podman load, ctr
  oci-fetch --docker golang:1.26 | docker load
  oci-fetch -o oci:images golang:1.26                   added to a layout, what it lacks
  oci-fetch --platform linux/arm64 --digest golang:1.26
  oci-fetch --layer 1 golang:1.26 | gzindex > l1.zinfo
  oci-fetch golang:1.26 | tar2erofs golang.erofs`

type flags struct {
	Ref string `arg:"" help:"The image."`

	Layer    *int   `xor:"what" placeholder:"N" help:"Write only layer N as it is stored; 0 is the lowest."`
	Blob     string `xor:"what" placeholder:"DIGEST" help:"Write only the blob with this digest."`
	Manifest bool   `xor:"what" help:"Write only the manifest."`
	Config   bool   `xor:"what" help:"Write only the configuration."`
	List     bool   `xor:"what" help:"List the layers."`
	Digest   bool   `xor:"what" help:"Print the manifest's digest."`
	JSON     bool   `name:"json" help:"With --list or --referrers: print JSON."`

	AllPlatforms bool   `help:"Take the images for all platforms, in one archive."`
	Docker       bool   `help:"Make the archive one for docker load as well, with a manifest.json."`
	Referrers    bool   `xor:"what" help:"List what is attached to the image: indexes, signatures."`
	ArtifactType string `placeholder:"TYPE" help:"With --referrers: list only those of this type."`

	Output  string `short:"o" default:"-" placeholder:"FILE" help:"Write to FILE, which appears when all is well, or add to the layout oci:DIR[:TAG], which is made if need be."`
	Jobs    int    `short:"j" aliases:"concurrency" default:"3" placeholder:"N" help:"Connections to download with (default ${default})."`
	Retries int    `default:"6" placeholder:"N" help:"Failures in a row, without a byte between them, after which to give up (default ${default})."`

	IdleTimeout time.Duration `default:"1m" placeholder:"TIME" help:"How long a connection may give nothing: a registry that fetches the image itself first may need more (default ${default})."`

	Quiet   bool `short:"q" help:"Print nothing but errors."`
	Verbose bool `short:"v" help:"Say what is done."`

	NoProgress bool `help:"Draw no bars on a terminal."`

	regflags.Flags `group:"Images and registries:"`
}

func main() { cli.Main("oci-fetch", run) }

func run(ctx context.Context, env *cli.Env) error {
	var f flags
	if err := cli.Parse(env, &f, description); err != nil {
		return err
	}
	switch {
	case f.JSON && !f.List && !f.Referrers:
		return cli.Usagef("--json goes with --list or --referrers")
	case f.ArtifactType != "" && !f.Referrers:
		return cli.Usagef("--artifact-type goes with --referrers")
	case f.Docker && (f.AllPlatforms || f.Layer != nil || f.Blob != "" || f.Manifest || f.Config || f.List || f.Digest || f.Referrers || strings.HasPrefix(f.Output, "oci:")):
		return cli.Usagef("--docker goes with one image, as an archive")
	case f.AllPlatforms && (f.Platform != "" || f.Layer != nil || f.Blob != "" || f.Config || f.Referrers):
		return cli.Usagef("--all-platforms: what else is asked for is one platform's")
	}
	if f.Jobs < 1 || f.Jobs > 64 {
		return cli.Usagef("--jobs %d: 1 to 64", f.Jobs)
	}
	if f.Retries < 1 {
		return cli.Usagef("--retries %d: at least 1", f.Retries)
	}
	if f.IdleTimeout <= 0 {
		return cli.Usagef("--idle-timeout %s: must be above 0", f.IdleTimeout)
	}
	o, err := f.Options(env)
	if err != nil {
		return err
	}
	c := &command{env: env, flags: &f, progress: env.NewProgress(f.Quiet || f.NoProgress)}
	defer c.progress.End()
	if !f.Quiet {
		o.Notify = func(line string) { c.progress.Line(env.Name + ": " + line) }
	}
	if f.Verbose && !f.Quiet {
		o.Verbose = o.Notify
	}
	o.Concurrency, o.Retries, o.IdleTimeout = f.Jobs, f.Retries, f.IdleTimeout
	if c.platform, err = f.Target(); err != nil {
		return err
	}
	if c.src, err = f.Open(f.Ref, o); err != nil {
		return err
	}
	defer c.src.Close()
	c.progress.Wait("asking for " + f.Ref)
	return c.run(ctx)
}

// command is one run of oci-fetch.
type command struct {
	env      *cli.Env
	flags    *flags
	src      source.Source
	platform *ocispec.Platform
	progress *cli.Progress
}

func (c *command) run(ctx context.Context) error {
	f := c.flags
	if f.Blob != "" {
		d := ocispec.Descriptor{Digest: digest.Digest(f.Blob), Size: -1}
		if err := d.Digest.Validate(); err != nil {
			return cli.Usagef("--blob %q: not a digest", f.Blob)
		}
		return c.output(true, func(w io.Writer) error { return c.blob(ctx, w, d, "blob") })
	}
	if f.Referrers {
		subject, found, err := source.Referrers(ctx, c.src, c.platform, f.ArtifactType)
		if err != nil {
			return err
		}
		return c.output(false, func(w io.Writer) error { return listReferrers(w, f.Ref, subject, found, f.JSON) })
	}
	if f.AllPlatforms {
		return c.runAll(ctx)
	}
	resolve := source.ResolveManifest
	if f.Config {
		resolve = func(ctx context.Context, s source.Source, p *ocispec.Platform) (*source.Image, error) {
			return s.Resolve(ctx, p)
		}
	}
	img, err := resolve(ctx, c.src, c.platform)
	if err != nil {
		return err
	}
	c.verbosef("%s", describe(img))
	switch {
	case f.Layer != nil:
		n := *f.Layer
		if n < 0 || n >= len(img.Layers) {
			return fmt.Errorf("%s: no layer %d, it has %d: %w", f.Ref, n, len(img.Layers), fault.ErrNotFound)
		}
		return c.output(true, func(w io.Writer) error { return c.blob(ctx, w, img.Layers[n], label("layer", n, len(img.Layers))) })
	case f.Manifest:
		return c.output(false, bytesTo(img.ManifestBytes))
	case f.Config:
		return c.output(false, bytesTo(img.ConfigBytes))
	case f.Digest:
		return c.output(false, bytesTo([]byte(img.Manifest.Digest.String()+"\n")))
	case f.List:
		return c.output(false, func(w io.Writer) error { return list(w, img, f.JSON) })
	}
	blobs := img.Layers
	if img.ConfigBytes == nil {
		blobs = append([]ocispec.Descriptor{img.Config}, blobs...)
	}
	progress := c.blobProgress(img.Layers, "layer")
	if name, ok := strings.CutPrefix(f.Output, "oci:"); ok {
		return c.layout(ctx, name, blobs, func(l *ociarchive.Layout, tag string, blob ociarchive.BlobFunc) error {
			img.Tag = cmp.Or(tag, img.Tag)
			return l.WriteImage(ctx, img, blob, progress)
		})
	}
	write := ociarchive.WriteImage
	if f.Docker {
		write = ociarchive.WriteDocker
	}
	open := source.Ahead(ctx, c.src, blobs, f.Jobs)
	defer open.Close()
	return c.output(true, func(w io.Writer) error { return write(ctx, w, img, open.Blob, progress) })
}

// runAll is run for the images of all platforms.
func (c *command) runAll(ctx context.Context) error {
	f := c.flags
	set, err := c.src.ResolveAll(ctx)
	if err != nil {
		return err
	}
	c.verbosef("%s is %s, %d images of %s", set.Name, set.Root.Digest, len(set.Images), cli.Size(blobBytes(set.Blobs)))
	switch {
	case f.Manifest:
		return c.output(false, bytesTo(set.Manifests[0].Bytes))
	case f.Digest:
		return c.output(false, bytesTo([]byte(set.Root.Digest.String()+"\n")))
	case f.List:
		return c.output(false, func(w io.Writer) error { return listAll(w, set, f.JSON) })
	}
	progress := c.blobProgress(set.Blobs, "blob")
	if name, ok := strings.CutPrefix(f.Output, "oci:"); ok {
		return c.layout(ctx, name, set.Blobs, func(l *ociarchive.Layout, tag string, blob ociarchive.BlobFunc) error {
			set.Tag = cmp.Or(tag, set.Tag)
			return l.WriteSet(ctx, set, blob, progress)
		})
	}
	open := source.Ahead(ctx, c.src, set.Blobs, f.Jobs)
	defer open.Close()
	return c.output(true, func(w io.Writer) error {
		return ociarchive.WriteSet(ctx, w, set, open.Blob, progress)
	})
}

// layoutTag is what an image in a layout may be called (OCI image-spec,
// annotations, org.opencontainers.image.ref.name): others find no other name.
var layoutTag = regexp.MustCompile(`^[A-Za-z0-9]+((--|[-._@+])[A-Za-z0-9]+)*$`)

// layout runs write with the layout that -o oci:DIR[:TAG] names, and fetches
// those of the blobs that it does not have.
func (c *command) layout(ctx context.Context, name string, blobs []ocispec.Descriptor,
	write func(l *ociarchive.Layout, tag string, blob ociarchive.BlobFunc) error) error {
	dir, tag, err := source.SplitTag(name)
	if err != nil || strings.Contains(tag, ":") {
		return cli.Usagef("--output oci:%s: want oci:DIR or oci:DIR:TAG", name)
	}
	if tag != "" && !layoutTag.MatchString(tag) {
		return cli.Usagef("--output oci:%s: %q is no tag: letters and digits, with -, ., _, @ or + between them", name, tag)
	}
	l, err := ociarchive.CreateLayout(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	defer cli.Temporary(l.Stage())()
	l.Replace = tag != ""
	missing, err := l.Missing(ctx, blobs)
	if err != nil {
		return err
	}
	if n := len(blobs) - len(missing); n > 0 {
		c.verbosef("%s has %d of %d blobs already", dir, n, len(blobs))
	}
	open := source.Ahead(ctx, c.src, missing, c.flags.Jobs)
	defer open.Close()
	if err := write(l, tag, open.Blob); err != nil {
		return err
	}
	return l.Commit()
}

// output runs write with where the output goes. A file appears only if all
// went well.
func (c *command) output(binary bool, write func(io.Writer) error) error {
	switch name := c.flags.Output; {
	case strings.HasPrefix(name, "oci:"):
		return cli.Usagef("--output %s: a layout holds a whole image", name)
	case name != "-" && name != "":
		f, err := cli.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := write(f); err != nil {
			return err
		}
		return f.Commit()
	case !binary:
		c.progress.End() // stdout may be the same terminal
		return write(c.env.Stdout)
	}
	w, err := c.env.BinaryStdout()
	if err != nil {
		return err
	}
	if err := write(w); err != nil {
		w.Flush() // what is right so far; the error says that it is not all
		return err
	}
	return w.Flush()
}

func bytesTo(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// blob copies one blob as it is stored.
func (c *command) blob(ctx context.Context, w io.Writer, d ocispec.Descriptor, label string) error {
	if d.Size < 0 && c.flags.Jobs > 1 {
		// Several ranges at once need the size. Where it cannot be had, one
		// stream will do, or say what is wrong.
		if at, err := c.src.BlobAt(ctx, d); err == nil {
			d.Size = at.Size()
			at.Close()
		}
	}
	open := source.Ahead(ctx, c.src, []ocispec.Descriptor{d}, c.flags.Jobs)
	defer open.Close()
	c.progress.Start(label, d.Size)
	r, err := open.Blob(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	var n int64
	held := &holdback{w: w}
	buf := make([]byte, 1<<18)
	for {
		m, err := r.Read(buf)
		if m > 0 {
			if _, err := held.Write(buf[:m]); err != nil {
				return err
			}
			n += int64(m)
			c.progress.Set(n)
		}
		if err == io.EOF {
			c.passed(label, n)
			return held.release()
		}
		if err != nil {
			return err
		}
	}
}

// blobProgress shows the blobs of an archive as they pass.
func (c *command) blobProgress(list []ocispec.Descriptor, what string) func(int, int64) {
	return func(i int, n int64) {
		size := list[i].Size
		if n == 0 {
			c.progress.Start(label(what, i, len(list)), size)
		}
		c.progress.Set(n)
		if n == size {
			c.passed(label(what, i, len(list)), n)
		}
	}
}

// passed ends a blob's bar or, where there are no bars, says so at -v.
func (c *command) passed(label string, n int64) {
	c.progress.End()
	if !c.progress.Shown() {
		c.verbosef("%s, %s", label, cli.Size(n))
	}
}

func label(what string, i, of int) string { return fmt.Sprintf("%s %d of %d", what, i, of) }

func (c *command) verbosef(format string, args ...any) {
	if c.flags.Verbose && !c.flags.Quiet {
		c.progress.Line(c.env.Name + ": " + fmt.Sprintf(format, args...))
	}
}
