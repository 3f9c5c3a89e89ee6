package seek

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Find returns the layer for a blob of size bytes: that of the digest d, or if
// d is "" the only one of that size. Errors are fault.ErrNotFound, or
// fault.ErrUsage where several could be meant.
func (s *Section) Find(d digest.Digest, size int64) (*Layer, error) {
	var found *Layer
	for i := range s.Layers {
		switch l := &s.Layers[i]; {
		case l.Descriptor.Size != size:
		case d != "" && l.Descriptor.Digest == d:
			return l, nil
		case d != "":
		case found == nil:
			found = l
		case found.Descriptor.Digest != l.Descriptor.Digest:
			return nil, fault.Usagef("layers %s and %s both have %d bytes: which is it?", found.Descriptor.Digest, l.Descriptor.Digest, size)
		}
	}
	if found == nil {
		if d != "" {
			return nil, fmt.Errorf("no seek data for %s of %d bytes: %w", d, size, fault.ErrNotFound)
		}
		return nil, fmt.Errorf("no seek data for a blob of %d bytes: %w", size, fault.ErrNotFound)
	}
	return found, nil
}
