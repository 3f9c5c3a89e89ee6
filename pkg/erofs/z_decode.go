package erofs

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// placeEncoded sets where an encoded extent's n bytes at addr are, and checks
// the extent.
func (f *FS) placeEncoded(ino *inode, e *FileExtent, addr, n int64) error {
	dev, off, avail, err := f.mapAddr(0, addr, n)
	if err != nil {
		return ino.fail(ino.Offset, err)
	}
	e.Device, e.Addr, e.AddrLen = dev, off, n
	if avail < n {
		return ino.corrupt(ino.Offset, "an encoded extent at %#x reaches past its device", addr)
	}
	return f.checkEncoded(ino, e)
}

// checkEncoded holds an encoded extent against the format's bounds, which also
// bound the memory for decoding it.
func (f *FS) checkEncoded(ino *inode, e *FileExtent) error {
	switch {
	case e.Length > ondisk.PclusterMaxDSize, e.AddrLen > ondisk.PclusterMaxSize:
		return ino.corrupt(ino.Offset, "an extent of %d bytes in %d", e.Length, e.AddrLen)
	case e.Algorithm < ondisk.AlgMax:
		// Images without configuration records know LZ4 alone.
		algs := uint16(1 << ondisk.AlgLZ4)
		if f.has(ondisk.IncompatComprCfgs) {
			algs = f.sb.ComprAlgs
		}
		if algs&(1<<e.Algorithm) == 0 {
			return ino.corrupt(ino.Offset, "%v, which the superblock does not announce", e.Algorithm)
		}
	case e.Algorithm == AlgPlain || e.Algorithm == AlgInterlaced:
		if e.Length > e.AddrLen {
			return ino.corrupt(ino.Offset, "a plain extent of %d bytes in %d", e.Length, e.AddrLen)
		}
	default:
		return ino.fail(ino.Offset, fmt.Errorf("compression algorithm %d: %w", e.Algorithm, fault.ErrUnsupported))
	}
	return nil
}

// decoded gives an encoded extent's bytes, which must not be changed.
func (f *FS) decoded(ino *inode, e *FileExtent) ([]byte, error) {
	key := extentKey{ino.Nid, e.Offset}
	if b := f.cache.get(key); b != nil && int64(len(b)) >= e.Length {
		return b, nil
	}
	in := make([]byte, e.AddrLen)
	var err error
	if e.Meta {
		err = ino.space.readAt(in, e.Addr)
	} else {
		err = f.readDevice(e.Device, in, e.Addr)
	}
	if err != nil {
		return nil, ino.wrap(err)
	}
	out := make([]byte, e.Length)
	if err := f.decode(e, in, out); err != nil {
		return nil, ino.fail(e.Addr, fmt.Errorf("%v extent of %d bytes in %d: %w", e.Algorithm, e.Length, e.AddrLen, err))
	}
	f.cache.put(key, out)
	return out, nil
}

// decode fills out from an extent's encoded bytes.
func (f *FS) decode(e *FileExtent, in, out []byte) error {
	switch e.Algorithm {
	case AlgPlain:
		copy(out, in)
		return nil
	case AlgInterlaced:
		// Bytes keep their offset within a block, so what comes first stands
		// at the end.
		first := int(f.BlockSize() - e.Offset&f.blockMask())
		if first > len(in) {
			return fmt.Errorf("less than a block: %w", fault.ErrCorrupt)
		}
		n := copy(out, in[len(in)-first:])
		copy(out[n:], in)
		return nil
	}
	if e.Algorithm != AlgLZ4 || f.has(ondisk.IncompatLZ4ZeroPadding) {
		// The encoder's output ends where its blocks end.
		pad := 0
		for pad < len(in) && in[pad] == 0 {
			pad++
		}
		in = in[pad:]
	}
	if len(in) == 0 {
		return fmt.Errorf("all zeros: %w", fault.ErrCorrupt)
	}
	var err error
	switch e.Algorithm {
	case AlgLZ4:
		err = decodeLZ4(in, out, e.Partial || !f.has(ondisk.IncompatLZ4ZeroPadding))
	case AlgLZMA:
		err = decodeMicroLZMA(in, out, e.Partial)
	case AlgDeflate:
		err = f.decodeDeflate(in, out)
	case AlgZstd:
		err = f.decodeZstd(in, out, e.Partial)
	}
	if err != nil && !errors.Is(err, fault.ErrCorrupt) {
		err = fmt.Errorf("%v: %w", err, fault.ErrCorrupt)
	}
	return err
}

// decodeLZ4 decodes a block. With partial, what in holds beyond out is no
// error.
func decodeLZ4(in, out []byte, partial bool) error {
	if partial {
		return partialLZ4(in, out)
	}
	n, err := lz4.UncompressBlock(in, out)
	if err == nil && n < len(out) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// decodeMicroLZMA decodes a MicroLZMA stream: LZMA without a header, whose
// first byte, which would be zero, is the properties' byte inverted.
func decodeMicroLZMA(in, out []byte, partial bool) error {
	header := make([]byte, lzma.HeaderLen, lzma.HeaderLen+1)
	header[0] = ^in[0]
	// No match can reach back farther than the extent's beginning.
	putLE(header[1:5], uint64(max(len(out), lzma.MinDictCap)))
	size := uint64(len(out))
	if partial {
		size = 1<<64 - 1 // unknown
	}
	putLE(header[5:13], size)
	r, err := lzma.NewReader(io.MultiReader(bytes.NewReader(append(header, 0)), bytes.NewReader(in[1:])))
	if err != nil {
		return err
	}
	if !partial {
		_, err = io.ReadFull(r, out)
		return err
	}
	// The decoder works ahead, and fails in what is not ours when it gets
	// there. What it decoded before that comes with the next call.
	failed := false
	for n := 0; n < len(out); {
		k, err := r.Read(out[n:])
		if n += k; err != nil && k == 0 {
			if failed {
				return err
			}
			failed = true
		}
	}
	return nil
}

func putLE(b []byte, v uint64) {
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
}

// decodeDeflate decodes raw deflate.
func (f *FS) decodeDeflate(in, out []byte) error {
	r, ok := f.flates.Get().(io.ReadCloser)
	if !ok {
		r = flate.NewReader(bytes.NewReader(in))
	} else if err := r.(flate.Resetter).Reset(bytes.NewReader(in), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(r, out)
	f.flates.Put(r)
	return err
}

// decodeZstd decodes a frame.
func (f *FS) decodeZstd(in, out []byte, partial bool) error {
	d := f.zstds.Get().(*zstd.Decoder)
	defer f.zstds.Put(d)
	if !partial {
		b, err := d.DecodeAll(in, out[:0:len(out)])
		if err == nil && len(b) < len(out) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := d.Reset(bytes.NewReader(in)); err != nil {
		return err
	}
	_, err := io.ReadFull(d, out)
	d.Reset(nil) // let go of in
	return err
}
