package ociimage

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestVerifier(t *testing.T) {
	data := []byte("what was promised")
	good := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	change := func(f func(*ocispec.Descriptor)) ocispec.Descriptor { d := good; f(&d); return d }
	sha512 := change(func(d *ocispec.Descriptor) { d.Digest = digest.SHA512.FromBytes(data) })
	unknown := change(func(d *ocispec.Descriptor) { d.Size = -1 })
	for name, tt := range map[string]struct {
		d    ocispec.Descriptor
		data []byte
		err  error
	}{
		"right":                 {good, data, nil},
		"sha512":                {sha512, data, nil},
		"size not known":        {unknown, data, nil},
		"size not known, wrong": {unknown, data[1:], fault.ErrIntegrity},
		"flipped":               {good, append([]byte("X"), data[1:]...), fault.ErrIntegrity},
		"short":                 {good, data[1:], fault.ErrIntegrity},
		"short is an end":       {good, data[1:], io.ErrUnexpectedEOF},
		"long":                  {good, append(data[:len(data):len(data)], 'x'), fault.ErrIntegrity},
		"nothing":               {good, nil, fault.ErrIntegrity},
	} {
		for how, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "bytewise": iotest.OneByteReader,
			"halves": iotest.HalfReader, "data with EOF": iotest.DataErrReader,
		} {
			b, err := io.ReadAll(NewVerifier(wrap(bytes.NewReader(tt.data)), tt.d))
			if !errors.Is(err, tt.err) || tt.err == nil && !bytes.Equal(b, data) {
				t.Errorf("%s, %s: %q, %v", name, how, b, err)
			}
			if tt.d.Size < 0 {
				continue
			}
			b, err = ReadAll(wrap(bytes.NewReader(tt.data)), tt.d)
			if !errors.Is(err, tt.err) || tt.err == nil && !bytes.Equal(b, data) {
				t.Errorf("ReadAll, %s, %s: %q, %v", name, how, b, err)
			}
		}
	}
	// An error of the source passes, and stays.
	v := NewVerifier(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(data))), good)
	if _, err := io.ReadAll(v); !errors.Is(err, iotest.ErrTimeout) {
		t.Error(err)
	}
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, iotest.ErrTimeout) {
		t.Error(err)
	}
}
