package seek

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// seal gives a body a footer and a padding that fit it.
func seal(body []byte) []byte {
	padded := (len(body) + 511) / 512 * 512
	f := make([]byte, 512)
	copy(f, "LAYRSEEK")
	f[8] = 1
	binary.LittleEndian.PutUint64(f[16:], uint64(padded))
	binary.LittleEndian.PutUint64(f[24:], uint64(len(body)))
	sum := sha256.Sum256(body)
	copy(f[32:], sum[:])
	return append(append(bytes.Clone(body), make([]byte, padded-len(body))...), sign(f)...)
}

// sign makes a footer's checksum right.
func sign(f []byte) []byte {
	sum := sha256.Sum256(f[:480])
	copy(f[480:], sum[:])
	return f
}

func sampleBytes(t testing.TB) (section, body []byte) {
	b, err := sample().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b, b[:binary.LittleEndian.Uint64(b[len(b)-512+24:])]
}

// known reports whether an error is of the kinds that Read promises.
func known(err error) bool {
	return errors.Is(err, fault.ErrCorrupt) || errors.Is(err, fault.ErrIntegrity) || errors.Is(err, fault.ErrUnsupported) ||
		errors.Is(err, fault.ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF)
}

// Every flipped bit is found, wherever it is.
func TestFlipped(t *testing.T) {
	b, _ := sampleBytes(t)
	for i := range b {
		for _, bit := range []byte{1, 0x80} {
			b[i] ^= bit
			if _, err := Read(bytes.NewReader(b), int64(len(b))); !known(err) {
				t.Fatalf("byte %d: %v", i, err)
			}
			b[i] ^= bit
		}
	}
}

// A file that ends early, or a primary device of another size.
func TestCut(t *testing.T) {
	b, _ := sampleBytes(t)
	for n := 0; n < len(b); n += 13 {
		if _, err := Read(bytes.NewReader(b[:n]), int64(len(b))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
		if _, err := Read(bytes.NewReader(b), int64(n)); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("end at %d: %v", n, err)
		}
		if _, err := Read(bytes.NewReader(b[n+1:]), int64(len(b)-n-1)); !known(err) {
			t.Errorf("start at %d: %v", n+1, err)
		}
	}
}

// Each case spoils a footer whose checksum is right.
func TestFooter(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(f []byte)
		want  error
	}{
		"magic":          {func(f []byte) { f[0] = 'l' }, fault.ErrNotFound},
		"version":        {func(f []byte) { f[8] = 2 }, fault.ErrUnsupported},
		"flags":          {func(f []byte) { f[12] = 1 }, fault.ErrUnsupported},
		"padding":        {func(f []byte) { f[17] += 2 }, fault.ErrCorrupt},
		"not in blocks":  {func(f []byte) { f[16]++ }, fault.ErrCorrupt},
		"length":         {func(f []byte) { f[25] += 2 }, fault.ErrCorrupt},
		"huge":           {func(f []byte) { f[31] = 0x80 }, fault.ErrCorrupt},
		"huge, matching": {func(f []byte) { copy(f[16:], "\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00") }, fault.ErrCorrupt},
		"body checksum":  {func(f []byte) { f[32]++ }, fault.ErrIntegrity},
		"reserved":       {func(f []byte) { f[479]++ }, fault.ErrCorrupt},
	} {
		b, _ := sampleBytes(t)
		f := b[len(b)-512:]
		c.spoil(f)
		sign(f)
		if _, err := Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Each body byte in turn is another one, with checksums that are right: an
// error, or a section that can be written again.
func TestSpoiledBody(t *testing.T) {
	_, body := sampleBytes(t)
	for i := range body {
		for _, v := range []byte{1, 0xff} {
			old := body[i]
			body[i] = v
			checkRead(t, seal(body))
			body[i] = old
		}
	}
	for n := range body {
		checkRead(t, seal(body[:n]))
	}
	if _, err := Read(bytes.NewReader(seal(append(body, 0))), int64(len(seal(append(body, 0))))); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("a byte too many: %v", err)
	}
}

func checkRead(t *testing.T, b []byte) {
	t.Helper()
	s, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		if !known(err) {
			t.Fatalf("error of no known kind: %v", err)
		}
		return
	}
	for i := range s.Layers {
		if err := s.Layers[i].Validate(); err != nil {
			t.Fatalf("Read accepts what Validate does not: %v", err)
		}
		for j := range s.Layers[i].Spans {
			if !s.Layers[i].Spans[j].Window.IsZero() {
				return // an encoder for each of them takes too long
			}
		}
	}
	again, err := s.MarshalBinary()
	if err != nil {
		t.Fatalf("accepted, and cannot be written: %v", err)
	}
	if _, err := Read(bytes.NewReader(again), int64(len(again))); err != nil {
		t.Fatalf("written again, and not accepted: %v", err)
	}
}

// record is a body of one gzip layer with its windows stored as they are given.
func record(t *testing.T, spans int, flags byte, windows []byte) []byte {
	l := Layer{Descriptor: descriptor("x", int64(100+10*spans)), Kind: Gzip, Size: int64(spans * 1000)}
	for i := range spans {
		l.Spans = append(l.Spans, Span{In: int64(10 + 10*i), Out: int64(1000 * i)})
	}
	for i := range l.Spans {
		l.Spans[i].Digests = sums("x", 1)
	}
	b, err := (&Section{Layers: []Layer{l}}).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	at := 8 + int(binary.LittleEndian.Uint32(b[4:]))
	b[at+1] = 1
	binary.LittleEndian.PutUint32(b[at+20:], uint32(len(windows)))
	for i := range spans {
		b[at+24+24*i+17] = flags
	}
	return append(b[:at+24+spans*(24+32):at+24+spans*(24+32)], windows...)
}

func compress(t *testing.T, b []byte) []byte {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(b, nil)
}

// Windows that are too few, too many, no zstd, zeros, or a bomb.
func TestWindows(t *testing.T) {
	ones := bytes.Repeat([]byte{1}, WindowSize)
	good := compress(t, bytes.Repeat(ones, 3))
	for name, c := range map[string]struct {
		body []byte
		want error
	}{
		"good":     {record(t, 3, 1, good), nil},
		"too few":  {record(t, 4, 1, good), fault.ErrCorrupt},
		"too many": {record(t, 2, 1, good), fault.ErrCorrupt},
		"unasked":  {record(t, 3, 0, good), fault.ErrCorrupt},
		"none":     {record(t, 3, 1, nil), fault.ErrCorrupt},
		"cut":      {record(t, 3, 1, good[:len(good)-5]), fault.ErrCorrupt},
		"no zstd":  {record(t, 3, 1, ones), fault.ErrCorrupt},
		"zeros":    {record(t, 1, 1, compress(t, make([]byte, WindowSize))), fault.ErrCorrupt},
		"flags":    {record(t, 3, 3, good), fault.ErrCorrupt},
		"bomb":     {record(t, 10_000, 1, compress(t, bytes.Repeat(ones, 10_000))), fault.ErrUnsupported},
	} {
		b := seal(c.body)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Read(bytes.NewReader(b), int64(len(b)))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 3*maxWindowBytes {
			t.Errorf("%s: allocated %d bytes", name, got)
		}
	}
}

// A section that claims more than the file has allocates nothing for it.
func TestClaims(t *testing.T) {
	_, body := sampleBytes(t)
	at := 8 + int(binary.LittleEndian.Uint32(body[4:]))
	for _, field := range []int{0, 4, at + 4, at + 16, at + 20} {
		b := bytes.Clone(body)
		binary.LittleEndian.PutUint32(b[field:], 0xffffffff)
		b = seal(b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Read(bytes.NewReader(b), int64(len(b)))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("byte %d: %v", field, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
			t.Errorf("byte %d: allocated %d bytes", field, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	b, body := sampleBytes(f)
	f.Add(b, false)
	f.Add(body, true)
	if g, err := os.ReadFile(golden); err == nil {
		f.Add(g, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			b = seal(b)
		}
		checkRead(t, b)
	})
}
