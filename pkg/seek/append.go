package seek

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// names is the section's JSON.
type names struct {
	Manifest *ocispec.Descriptor  `json:"manifest,omitempty"`
	Layers   []ocispec.Descriptor `json:"layers"`
}

// Append appends the section's bytes to b: a multiple of 512 that is to be the
// tail of the primary device. The same section gives the same bytes, wherever
// it is put. A section that breaks the format's rules is refused.
func (s *Section) Append(b []byte) ([]byte, error) {
	start := len(b)
	b, err := s.appendBody(b)
	if err != nil {
		return nil, fmt.Errorf("seek section: %w", err)
	}
	body := b[start:]
	if len(body) > maxBody {
		return nil, fmt.Errorf("seek section: %d bytes, more than the %d that readers accept (larger spans make a smaller one): %w", len(body), maxBody, fault.ErrUnsupported)
	}
	sum := sha256.Sum256(body)
	padded := (len(body) + blockSize - 1) / blockSize * blockSize

	var f [footEnd]byte
	copy(f[footMagic:], magic)
	binary.LittleEndian.PutUint32(f[footVersion:], version)
	binary.LittleEndian.PutUint64(f[footPadded:], uint64(padded))
	binary.LittleEndian.PutUint64(f[footLength:], uint64(len(body)))
	copy(f[footBodySum:], sum[:])
	sum = sha256.Sum256(f[:footSum])
	copy(f[footSum:], sum[:])

	b = append(b, make([]byte, padded-len(body))...)
	return append(b, f[:]...), nil
}

// MarshalBinary is Append(nil).
func (s *Section) MarshalBinary() ([]byte, error) { return s.Append(nil) }

func (s *Section) appendBody(b []byte) ([]byte, error) {
	if len(s.Layers) > maxLayers {
		return nil, fmt.Errorf("%d layers: %w", len(s.Layers), fault.ErrUnsupported)
	}
	n := names{Manifest: s.Manifest, Layers: make([]ocispec.Descriptor, len(s.Layers))}
	for i := range s.Layers {
		n.Layers[i] = s.Layers[i].Descriptor
	}
	text, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	if len(text) > maxJSON {
		return nil, fmt.Errorf("%d bytes of descriptors: %w", len(text), fault.ErrUnsupported)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Layers)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	var budget WindowBudget
	for i := range s.Layers {
		l := &s.Layers[i]
		if err = l.Validate(); err == nil {
			b, err = l.append(b, &budget)
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return b, nil
}

// append adds the record of a layer that has been validated.
func (l *Layer) append(b []byte, budget *WindowBudget) ([]byte, error) {
	method, windows, err := l.packWindows(budget)
	if err != nil {
		return nil, err
	}
	digests := 0
	for i := range l.Spans {
		digests += len(l.Spans[i].Digests)
	}
	if int64(len(l.Spans)) > math.MaxUint32 || int64(digests) > math.MaxUint32 || int64(len(windows)) > math.MaxUint32 {
		return nil, fmt.Errorf("%d spans, %d digests: %w", len(l.Spans), digests, fault.ErrUnsupported)
	}
	b = append(b, byte(l.Kind), method, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(l.Spans)))
	b = binary.LittleEndian.AppendUint64(b, uint64(l.Size))
	b = binary.LittleEndian.AppendUint32(b, uint32(digests))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(windows)))
	for i := range l.Spans {
		s := &l.Spans[i]
		var flags byte
		if !s.Window.IsZero() {
			flags |= spanHasWindow
		}
		b = binary.LittleEndian.AppendUint64(b, uint64(s.In))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Out))
		b = append(b, s.Bits, flags, 0, 0, 0, 0, 0, 0)
	}
	for i := range l.Spans {
		for _, d := range l.Spans[i].Digests {
			b = append(b, d[:]...)
		}
	}
	return append(b, windows...), nil
}

// packWindows compresses all windows in one go: neighbours resemble each
// other. The windows pass through one at a time, so that a large layer's never
// lie in memory at full size.
func (l *Layer) packWindows(budget *WindowBudget) (method byte, packed []byte, err error) {
	var (
		enc *zstd.Encoder
		out bytes.Buffer
		win [WindowSize]byte
	)
	for i := range l.Spans {
		w := l.Spans[i].Window
		if w.IsZero() {
			continue
		}
		if err := budget.Spend(w); err != nil {
			return 0, nil, err
		}
		if enc == nil {
			// One goroutine: the bytes must not depend on the machine.
			enc, err = zstd.NewWriter(&out, zstd.WithEncoderLevel(windowLevel), zstd.WithWindowSize(windowReach), zstd.WithEncoderConcurrency(1))
			if err != nil {
				return 0, nil, err
			}
		}
		w.Unpack(win[:])
		if _, err := enc.Write(win[:]); err != nil {
			return 0, nil, err
		}
	}
	if enc == nil {
		return methodNone, nil, nil
	}
	if err := enc.Close(); err != nil {
		return 0, nil, err
	}
	return methodZstd, out.Bytes(), nil
}

const (
	windowLevel = zstd.SpeedBetterCompression
	// windowReach is how far back windows refer to others, in bytes. A reader
	// has to have that much memory, which for short sections costs him more
	// than all else; the level's own 16 MiB save 1 %.
	windowReach = 256 << 10
)
