package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/inflate"
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

// readEncoded fills p with the bytes at off, an offset in an encoded extent.
func (f *FS) readEncoded(ino *inode, e *FileExtent, p []byte, off int64) error {
	key := extentKey{ino.Nid, e.Offset}
	if b := f.cache.get(key); int64(len(b)) >= e.Length {
		copy(p, b[off:])
		return nil
	}
	if int64(len(p)) == e.Length {
		return f.decodeExtent(ino, e, p) // nobody comes back for the rest
	}
	b := make([]byte, e.Length)
	if err := f.decodeExtent(ino, e, b); err != nil {
		return err
	}
	f.cache.put(key, b)
	copy(p, b[off:])
	return nil
}

// decodeExtent fills out, which is as long as an encoded extent, with its bytes.
func (f *FS) decodeExtent(ino *inode, e *FileExtent, out []byte) error {
	buf := f.inputs.Get().(*[]byte)
	defer f.inputs.Put(buf)
	if int64(cap(*buf)) < e.AddrLen {
		*buf = make([]byte, e.AddrLen)
	}
	in := (*buf)[:e.AddrLen]
	var err error
	if e.Meta {
		err = ino.space.readAt(in, e.Addr)
	} else {
		err = f.readDevice(e.Device, in, e.Addr)
	}
	if err != nil {
		return ino.wrap(err)
	}
	if err := f.decode(e, in, out); err != nil {
		return ino.fail(e.Addr, fmt.Errorf("%v extent of %d bytes in %d: %w", e.Algorithm, e.Length, e.AddrLen, err))
	}
	return nil
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
		err = f.decodeLZMA(in, out, e.Partial)
	case AlgDeflate:
		err = f.decodeDeflate(in, out, e.Partial)
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

// decodeLZMA decodes a MicroLZMA stream.
func (f *FS) decodeLZMA(in, out []byte, partial bool) error {
	d := f.lzmas.Get().(*lzmaDecoder)
	defer f.lzmas.Put(d)
	err := d.decode(in, out, partial)
	d.in = nil // let go of in
	return err
}

// decodeDeflate decodes raw deflate, which ends where the extent does unless it
// is partial: so says the kernel.
func (f *FS) decodeDeflate(in, out []byte, partial bool) error {
	z := f.inflates.Get().(*inflate.Reader)
	defer f.inflates.Put(z)
	z.ResetRaw(bytes.NewReader(in))
	defer z.ResetRaw(nil)
	n, err := z.ReadFull(out)
	if n < len(out) && err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err != nil || partial {
		return err
	}
	switch _, err := z.ReadFull(make([]byte, 1)); err {
	case nil:
		return errLong
	case io.EOF:
		return nil
	default:
		return err
	}
}

// errLong is the error of data that goes on behind its extent.
var errLong = fmt.Errorf("it does not end there: %w", fault.ErrCorrupt)

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
