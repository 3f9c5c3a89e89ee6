package disk

import (
	"context"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/source"
)

// FromSource opens blobs by their digests, wherever the image's tag points to
// by now.
func FromSource(s source.Source) Opener {
	return func(ctx context.Context, _ int, d ocispec.Descriptor) (source.BlobReader, error) {
		return s.BlobAt(ctx, d)
	}
}

// FromFiles opens local files, one for each layer, from the lowest up.
func FromFiles(names []string) Opener {
	return func(_ context.Context, i int, d ocispec.Descriptor) (source.BlobReader, error) {
		if i >= len(names) {
			return nil, fault.Usagef("no file for %s", d.Digest)
		}
		f, err := OpenBlob(names[i])
		if err != nil {
			return nil, err
		}
		if d.Size > 0 && f.Size() != d.Size {
			f.Close()
			return nil, fmt.Errorf("%s has %d bytes, %s has %d: %w", names[i], f.Size(), d.Digest, d.Size, fault.ErrIntegrity)
		}
		return f, nil
	}
}

// OpenBlob opens a layer in a local file.
func OpenBlob(name string) (source.BlobReader, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	return blobFile{f, io.NewSectionReader(f, 0, f.size)}, nil
}

// blobFile is a file that does not grow while it is read.
type blobFile struct {
	*file
	section *io.SectionReader
}

func (b blobFile) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return b.section.ReadAt(p, off)
}
