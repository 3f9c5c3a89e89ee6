package ociarchive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// A Layout is an OCI image layout directory that images are added to. All that
// is written waits in a directory of its own until Commit puts it into place,
// blobs first and index.json last: until then there is no layout, or the one
// that there was is as it was. Any number of processes may add to a layout at
// once where the system has locks for directories (Linux, macOS); elsewhere one
// of two that commit in the same moment may lose its entry in index.json.
type Layout struct {
	// Replace lets an image take a tag from one of another repository.
	Replace bool

	dir   string
	stage string                 // what is not in place yet; "": nothing is left of it
	fresh bool                   // there was no such directory
	have  map[digest.Digest]bool // what need not be written
	added []ocispec.Descriptor   // for index.json
}

// CreateLayout prepares to add to the layout in dir. It is made if it does not
// exist; a directory that is neither empty nor a layout is left alone.
func CreateLayout(dir string) (*Layout, error) {
	l := &Layout{dir: filepath.Clean(dir), have: make(map[digest.Digest]bool)}
	var err error
	if _, err = os.Lstat(l.dir); errors.Is(err, fs.ErrNotExist) {
		l.fresh = true
		l.stage, err = os.MkdirTemp(filepath.Dir(l.dir), "."+filepath.Base(l.dir)+".*.tmp")
		return l, err
	}
	if err == nil {
		err = checkLayoutDir(l.dir)
	}
	if err == nil {
		l.stage, err = os.MkdirTemp(l.dir, ".layerpipe-*.tmp")
	}
	return l, err
}

// checkLayoutDir refuses a directory that holds something else.
func checkLayoutDir(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil || len(list) == 0 {
		return err
	}
	b, err := ReadSmall(filepath.Join(dir, ocispec.ImageLayoutFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Usagef("%s exists and is no image layout", dir)
	}
	if err == nil {
		err = ociimage.CheckLayout(b)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// OpenRegular opens a regular file. A layout may come from anywhere, and to open
// a FIFO may take for ever.
func OpenRegular(name string) (*os.File, error) {
	st, err := os.Stat(name)
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file: %w", name, fault.ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	return os.Open(name)
}

// ReadSmall reads a file that describes an image or a layout, which is bounded
// as manifests are.
func ReadSmall(name string) ([]byte, error) {
	f, err := OpenRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, ociimage.MaxManifestSize+1))
	if err == nil && len(b) > ociimage.MaxManifestSize {
		err = fmt.Errorf("%s: over %d bytes: %w", name, ociimage.MaxManifestSize, fault.ErrCorrupt)
	}
	return b, err
}

// Stage is the directory to remove if the process ends before Close.
func (l *Layout) Stage() string { return l.stage }

// Close drops what has not been committed; it is meant for defer.
func (l *Layout) Close() error {
	if l.stage == "" {
		return nil
	}
	stage := l.stage
	l.stage = ""
	return os.RemoveAll(stage)
}

// Missing are those of the blobs that the layout does not have, and would
// have to be fetched. The others are verified, and not asked for again.
func (l *Layout) Missing(ctx context.Context, list []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	var missing []ocispec.Descriptor
	for _, d := range list {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !l.have[d.Digest] && !l.holds(d) {
			missing = append(missing, d)
			continue
		}
		l.have[d.Digest] = true
	}
	return missing, nil
}

// holds reports whether there is a good file for a blob.
func (l *Layout) holds(d ocispec.Descriptor) bool {
	if ociimage.CheckDescriptor(d) != nil {
		return false
	}
	f, err := OpenRegular(l.path(l.dir, d))
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != d.Size {
		return false
	}
	_, err = io.Copy(io.Discard, ociimage.NewVerifier(f, d))
	return err == nil
}

// path is a blob's place within a layout.
func (l *Layout) path(dir string, d ocispec.Descriptor) string {
	return filepath.Join(dir, filepath.FromSlash(ociimage.BlobPath(d.Digest)))
}

// WriteImage adds an image, under its tag; an image that had the tag before
// loses it. progress is as for the function of this name.
func (l *Layout) WriteImage(ctx context.Context, img *ociimage.Image, blob BlobFunc, progress func(layer int, n int64)) error {
	return l.write(ctx, imageContents(img), blob, progress)
}

// WriteSet is WriteImage for all platforms, with WriteSet's progress.
func (l *Layout) WriteSet(ctx context.Context, set *ociimage.Set, blob BlobFunc, progress func(blob int, n int64)) error {
	return l.write(ctx, setContents(set), blob, progress)
}

func (l *Layout) write(ctx context.Context, c *contents, blob BlobFunc, progress func(int, int64)) error {
	// What Commit would refuse need not be fetched first.
	if _, err := l.index(append(l.added, c.entry)); err != nil {
		return err
	}
	for _, m := range c.small {
		err := l.stageBlob(m.d, func(w io.Writer) error { _, err := w.Write(m.data); return err })
		if err != nil {
			return err
		}
	}
	err := c.each(progress, func(d ocispec.Descriptor, report func(int64)) error {
		if l.have[d.Digest] {
			return nil
		}
		report(0)
		r, err := blob(ctx, d)
		if err != nil {
			return err
		}
		defer r.Close()
		return l.stageBlob(d, func(w io.Writer) error { return copyBlob(w, r, report) })
	})
	if err != nil {
		return err
	}
	l.added = append(l.added, c.entry)
	return nil
}

// stageBlob writes a blob that Commit will put into place.
func (l *Layout) stageBlob(d ocispec.Descriptor, write func(io.Writer) error) error {
	if l.have[d.Digest] {
		return nil
	}
	path := l.path(l.stage, d)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return err
	}
	l.have[d.Digest] = true
	return nil
}

// Commit makes what was written a part of the layout.
func (l *Layout) Commit() error {
	if l.fresh {
		err := l.describe(l.stage)
		if err == nil {
			err = os.Chmod(l.stage, 0o755) // MkdirTemp's is for its owner alone
		}
		if err == nil {
			err = os.Rename(l.stage, l.dir)
		}
		if err == nil {
			l.stage = ""
			return nil
		}
		if _, notThere := os.Stat(l.dir); notThere != nil {
			return err
		}
		// Another process made it meanwhile: add to that.
		if err := checkLayoutDir(l.dir); err != nil {
			return err
		}
	}
	unlock, err := lockDir(l.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.moveBlobs(); err != nil {
		return err
	}
	if err := l.describe(l.dir); err != nil {
		return err
	}
	return l.Close()
}

// moveBlobs puts the blobs into place.
func (l *Layout) moveBlobs() error {
	return filepath.WalkDir(filepath.Join(l.stage, ocispec.ImageBlobsDir), func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(l.stage, name)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(l.dir, inside), 0o755)
		}
		return os.Rename(name, filepath.Join(l.dir, inside))
	})
}

// describe writes the two files that make a directory an image layout.
func (l *Layout) describe(dir string) error {
	index, err := l.index(l.added)
	if err != nil {
		return err
	}
	replace := func(name string, b []byte) error {
		tmp := filepath.Join(l.stage, name+".tmp")
		if err := os.WriteFile(tmp, b, 0o644); err != nil {
			return err
		}
		return os.Rename(tmp, filepath.Join(dir, name))
	}
	if _, err := os.Stat(filepath.Join(dir, ocispec.ImageLayoutFile)); err != nil {
		if err := replace(ocispec.ImageLayoutFile, layoutJSON); err != nil {
			return err
		}
	}
	return replace(ocispec.ImageIndexFile, index)
}

// index is the layout's index.json with more entries.
func (l *Layout) index(added []ocispec.Descriptor) ([]byte, error) {
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	b, err := ReadSmall(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if err == nil {
		if err = json.Unmarshal(b, &x); err != nil {
			err = ociimage.JSONError(l.dir+": index.json", err)
		}
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, d := range added {
		if err == nil {
			x.Manifests, err = l.addEntry(x.Manifests, d)
		}
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(x)
}

// addEntry adds an image to those of an index.json. Its tag means one image
// only.
func (l *Layout) addEntry(list []ocispec.Descriptor, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	tag, full := d.Annotations[ocispec.AnnotationRefName], d.Annotations[ociimage.AnnotationContainerdName]
	same := func(old ocispec.Descriptor) bool {
		name := old.Annotations[ocispec.AnnotationRefName]
		return name == tag && (tag != "" || old.Digest == d.Digest)
	}
	for _, old := range list {
		// "latest" is what many are called: none loses it without a word.
		other := old.Annotations[ociimage.AnnotationContainerdName]
		if !l.Replace && same(old) && old.Digest != d.Digest && full != "" && other != "" && other != full {
			return nil, fault.Usagef("%s has another image as %q, %s: give this one a name of its own, oci:%s:NAME", l.dir, tag, other, l.dir)
		}
	}
	return append(slices.DeleteFunc(slices.Clone(list), same), d), nil
}
