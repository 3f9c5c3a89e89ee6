package seek

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Read reads the section that ends at byte end of r, the size of the primary
// device. It checks everything that can be checked without the blobs.
//
// Errors are fault.ErrNotFound where there is no section, fault.ErrUnsupported
// for another version, fault.ErrIntegrity for a checksum that does not match
// and fault.ErrCorrupt for all else that breaks the format.
func Read(r io.ReaderAt, end int64) (*Section, error) {
	body, err := readBody(r, end)
	if err != nil {
		return nil, fmt.Errorf("seek section: %w", err)
	}
	s, err := parseBody(body)
	if err != nil {
		return nil, fmt.Errorf("seek section: %w", err)
	}
	return s, nil
}

func readBody(r io.ReaderAt, end int64) ([]byte, error) {
	if end < footEnd {
		return nil, fmt.Errorf("image of %d bytes: %w", end, fault.ErrNotFound)
	}
	at := end - footEnd
	f := make([]byte, footEnd)
	if err := readFull(r, f, at); err != nil {
		return nil, fmt.Errorf("footer at %d: %w", at, err)
	}
	if string(f[footMagic:footVersion]) != magic {
		return nil, fmt.Errorf("no footer at %d: %w", at, fault.ErrNotFound)
	}
	// The version comes first: another one may change all that follows.
	if v := binary.LittleEndian.Uint32(f[footVersion:]); v != version {
		return nil, fmt.Errorf("version %d: %w", v, fault.ErrUnsupported)
	}
	if sum := sha256.Sum256(f[:footSum]); !bytes.Equal(sum[:], f[footSum:]) {
		return nil, fmt.Errorf("footer at %d: checksum does not match: %w", at, fault.ErrIntegrity)
	}
	if v := binary.LittleEndian.Uint32(f[footFlags:]); v != 0 {
		return nil, fmt.Errorf("flags %#x: %w", v, fault.ErrUnsupported)
	}
	padded := binary.LittleEndian.Uint64(f[footPadded:])
	length := binary.LittleEndian.Uint64(f[footLength:])
	if length > maxBody || padded != (length+blockSize-1)/blockSize*blockSize || padded > uint64(at) {
		return nil, corrupt("footer at %d: body of %d bytes in %d", at, length, padded)
	}
	if !allZero(f[footZero:footSum]) {
		return nil, corrupt("footer at %d: reserved bytes are not zero", at)
	}
	body := make([]byte, padded)
	if err := readFull(r, body, at-int64(padded)); err != nil {
		return nil, fmt.Errorf("body at %d: %w", at-int64(padded), err)
	}
	if !allZero(body[length:]) {
		return nil, corrupt("padding is not zero")
	}
	body = body[:length]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], f[footBodySum:footBodySum+32]) {
		return nil, fmt.Errorf("body at %d: checksum does not match: %w", at-int64(padded), fault.ErrIntegrity)
	}
	return body, nil
}

// Begins reports whether head, the first bytes of a file, begins as a section's
// body does, for those who tell formats apart. It says nothing of the rest.
func Begins(head []byte) bool {
	return len(head) >= bodyJSON+2 && string(head[bodyJSON:bodyJSON+2]) == `{"`
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// cursor takes structures off a body. Its error is sticky.
type cursor struct {
	b       []byte
	off     int // of b in the body
	err     error
	windows WindowBudget
}

// take returns the next n bytes, or nil after an error.
func (c *cursor) take(n int64, what string) []byte {
	if c.err != nil {
		return nil
	}
	if n < 0 || n > int64(len(c.b)) {
		c.err = corrupt("byte %d: %d bytes of %s, %d are left", c.off, n, what, len(c.b))
		return nil
	}
	p := c.b[:n:n]
	c.b, c.off = c.b[n:], c.off+int(n)
	return p
}

func parseBody(body []byte) (*Section, error) {
	c := &cursor{b: body}
	h := c.take(bodyJSON, "header")
	if c.err != nil {
		return nil, c.err
	}
	count := binary.LittleEndian.Uint32(h[bodyLayers:])
	size := binary.LittleEndian.Uint32(h[bodyJSONLen:])
	if count > maxLayers || size > maxJSON {
		return nil, corrupt("%d layers, %d bytes of descriptors", count, size)
	}
	text := c.take(int64(size), "descriptors")
	if c.err != nil {
		return nil, c.err
	}
	var n names
	if err := json.Unmarshal(text, &n); err != nil {
		return nil, corrupt("descriptors: %v", err)
	}
	if len(n.Layers) != int(count) {
		return nil, corrupt("%d descriptors for %d layers", len(n.Layers), count)
	}
	s := &Section{Layers: make([]Layer, count), Manifest: n.Manifest}
	for i := range s.Layers {
		l := &s.Layers[i]
		l.Descriptor = n.Layers[i]
		err := l.parse(c)
		if err == nil {
			err = l.Validate()
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if len(c.b) != 0 {
		return nil, corrupt("byte %d: %d bytes too many", c.off, len(c.b))
	}
	return s, nil
}

// parse reads one layer's record. What it allocates is bounded by the bytes
// that the record takes up in the body, windows aside, of which each is packed
// as it comes.
func (l *Layer) parse(c *cursor) error {
	h := c.take(layerHeader, "layer header")
	if c.err != nil {
		return c.err
	}
	method := h[layerMethod]
	if !allZero(h[layerZero:layerSpans]) {
		return corrupt("reserved bytes are not zero")
	}
	l.Kind = Kind(h[layerKind])
	size := binary.LittleEndian.Uint64(h[layerSize:])
	if size > 1<<62 {
		return corrupt("size %d", size)
	}
	l.Size = int64(size)
	spans := int64(binary.LittleEndian.Uint32(h[layerSpans:]))
	digests := int64(binary.LittleEndian.Uint32(h[layerDigests:]))
	entries := c.take(spans*spanEntry, "spans")
	sums := c.take(digests*digestSize, "digests")
	windows := c.take(int64(binary.LittleEndian.Uint32(h[layerWinLen:])), "windows")
	if c.err != nil {
		return c.err
	}
	if spans > 0 {
		l.Spans = make([]Span, spans)
	}
	withWindow, err := l.parseSpans(entries)
	if err != nil {
		return err
	}
	if err := l.parseDigests(sums); err != nil {
		return err
	}
	return l.unpackWindows(method, windows, withWindow, &c.windows)
}

// parseSpans returns the indexes of the spans that have a window.
func (l *Layer) parseSpans(entries []byte) (withWindow []int, err error) {
	for i := range l.Spans {
		e := entries[i*spanEntry:][:spanEntry]
		in, out := binary.LittleEndian.Uint64(e[spanIn:]), binary.LittleEndian.Uint64(e[spanOut:])
		if in > 1<<62 || out > 1<<62 || e[spanFlags]&^spanHasWindow != 0 || !allZero(e[spanZero:]) {
			return nil, corrupt("span %d is malformed", i)
		}
		l.Spans[i] = Span{In: int64(in), Out: int64(out), Bits: e[spanBits]}
		if e[spanFlags]&spanHasWindow != 0 {
			withWindow = append(withWindow, i)
		}
	}
	return withWindow, nil
}

// parseDigests shares the digests out among the spans. How many each one has
// follows from its range, which has not been validated yet.
func (l *Layer) parseDigests(sums []byte) error {
	all := make([][digestSize]byte, len(sums)/digestSize)
	for i := range all {
		copy(all[i][:], sums[i*digestSize:])
	}
	for i := range l.Spans {
		in, inEnd, _, _ := l.Range(i)
		n := Pieces(inEnd - in)
		if n < 0 || n > int64(len(all)) {
			return corrupt("span %d: %d bytes at %d need more digests than there are", i, inEnd-in, in)
		}
		l.Spans[i].Digests, all = all[:n:n], all[n:]
	}
	if len(all) != 0 {
		return corrupt("%d digests too many", len(all))
	}
	return nil
}

func (l *Layer) unpackWindows(method byte, packed []byte, spans []int, budget *WindowBudget) error {
	switch {
	case method == methodNone && len(packed) == 0 && len(spans) == 0:
		return nil
	case method == methodZstd && len(spans) > 0:
	case method > methodZstd:
		return fmt.Errorf("windows stored by method %d: %w", method, fault.ErrUnsupported)
	default:
		return corrupt("%d windows in %d bytes", len(spans), len(packed))
	}
	dec, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return err
	}
	defer dec.Close()
	var win [WindowSize]byte
	for _, i := range spans {
		if _, err := io.ReadFull(dec, win[:]); err != nil {
			return corrupt("window of span %d: %v", i, err)
		}
		w := PackWindow(win[:])
		if w.IsZero() {
			// One way to say it, and no work for nothing.
			return corrupt("window of span %d is stored, and is all zeros", i)
		}
		if err := budget.Spend(w); err != nil {
			return err
		}
		l.Spans[i].Window = w
	}
	if n, err := dec.Read(win[:1]); n != 0 || err != io.EOF {
		return corrupt("more windows than spans with one")
	}
	return nil
}

// maxWindow bounds the memory of the decoder of the windows: what the level
// used for writing asks for, with room for better ones.
const maxWindow = 32 << 20

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
