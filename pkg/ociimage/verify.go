package ociimage

import (
	"fmt"
	"hash"
	"io"
	"math"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// VerifyBytes checks b against its descriptor's size and digest.
func VerifyBytes(b []byte, d ocispec.Descriptor) error {
	if int64(len(b)) != d.Size {
		return fmt.Errorf("%s: %d bytes, want %d: %w", d.Digest, len(b), d.Size, fault.ErrIntegrity)
	}
	if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest {
		return fmt.Errorf("%s: content has the digest %s: %w", d.Digest, got, fault.ErrIntegrity)
	}
	return nil
}

// ReadAll reads a whole small blob, a manifest or a config, and verifies it.
// The descriptor's size must have been bounded by the caller.
func ReadAll(r io.Reader, d ocispec.Descriptor) ([]byte, error) {
	b := make([]byte, d.Size)
	v := NewVerifier(r, d)
	if _, err := io.ReadFull(v, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	// The verdict comes with the end of the stream.
	if _, err := v.Read(make([]byte, 1)); err != io.EOF {
		return nil, err
	}
	return b, nil
}

// A Verifier passes a blob through. It gives io.EOF only once size and digest
// have proved right; a stream that goes on after its size fails at size + 1.
type Verifier struct {
	r    io.Reader
	d    ocispec.Descriptor
	h    hash.Hash
	left int64
	err  error
}

// NewVerifier needs a descriptor whose digest CheckDigest accepts. A size below
// 0 is not known: the digest alone decides.
func NewVerifier(r io.Reader, d ocispec.Descriptor) *Verifier {
	v := &Verifier{r: r, d: d, h: d.Digest.Algorithm().Hash(), left: d.Size}
	if d.Size < 0 {
		v.left = math.MaxInt64
	}
	return v
}

func (v *Verifier) Read(p []byte) (int, error) {
	if v.err != nil || len(p) == 0 {
		return 0, v.err
	}
	if v.left == 0 {
		v.err = v.end()
		return 0, v.err
	}
	if int64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err := v.r.Read(p)
	v.h.Write(p[:n])
	v.left -= int64(n)
	switch {
	case err == io.EOF && v.d.Size < 0:
		v.left = 0 // the next Read gives the verdict
	case err == io.EOF && v.left > 0:
		v.err = fmt.Errorf("%s: ends after %d of %d bytes: %w: %w",
			v.d.Digest, v.d.Size-v.left, v.d.Size, fault.ErrIntegrity, io.ErrUnexpectedEOF)
	case err == io.EOF: // the next Read gives the verdict
	case err != nil:
		v.err = err
	}
	if n > 0 {
		return n, nil
	}
	if v.left == 0 && v.err == nil {
		v.err = v.end()
	}
	return 0, v.err
}

// end makes sure that nothing follows and gives the verdict.
func (v *Verifier) end() error {
	var one [1]byte
	for range 100 {
		n, err := v.r.Read(one[:])
		if n > 0 {
			return fmt.Errorf("%s: goes on after %d bytes: %w", v.d.Digest, v.d.Size, fault.ErrIntegrity)
		}
		if err == io.EOF {
			if got := digest.NewDigest(v.d.Digest.Algorithm(), v.h); got != v.d.Digest {
				return fmt.Errorf("%s: content has the digest %s: %w", v.d.Digest, got, fault.ErrIntegrity)
			}
			return io.EOF
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}
