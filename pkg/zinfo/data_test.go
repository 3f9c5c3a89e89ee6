package zinfo

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// sample is data with matches of all lengths and distances, and some noise.
func sample(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+10000)
	for len(b) < n {
		k := 1 + r.IntN(300)
		switch r.IntN(4) {
		case 0:
			for range k {
				b = append(b, byte(r.IntN(256)))
			}
		case 1:
			b = append(b, make([]byte, k*8)...)
		default:
			if d := 1 + r.IntN(32768); d < len(b) {
				for range k * 3 {
					b = append(b, b[len(b)-d])
				}
			} else {
				for range k {
					b = append(b, "etaoin shrdlu\n"[r.IntN(14)])
				}
			}
		}
	}
	return b[:n]
}

// member makes a gzip member; flush makes a sync flush (an empty stored block)
// after so many bytes.
func member(t testing.TB, data []byte, name string, flush int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Name = name
	if flush > 0 {
		w.Flush() // before anything else
	}
	for len(data) > 0 {
		n := len(data)
		if flush > 0 {
			n = min(n, flush)
		}
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		if data = data[n:]; flush > 0 {
			w.Flush()
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// allFields is a member whose header has every field there is, checksum
// included, RFC 1952 section 2.3.1.
func allFields(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Name, w.Comment, w.Extra = "layer.tar", "all fields", bytes.Repeat([]byte("x"), 300)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	n := 10 + 2 + len(w.Extra) + len(w.Name) + 1 + len(w.Comment) + 1
	b[3] |= 2 // FHCRC
	head := binary.LittleEndian.AppendUint16(bytes.Clone(b[:n]), uint16(crc32.ChecksumIEEE(b[:n])))
	return append(head, b[n:]...)
}

// split makes many members of n bytes each.
func split(t testing.TB, data []byte, n int) (in []byte) {
	for len(data) > 0 {
		k := min(n, len(data))
		in = append(in, member(t, data[:k], "", 0)...)
		data = data[k:]
	}
	return in
}

// files are gzip files in all the ways that they are made.
func files(t testing.TB, data []byte) map[string][]byte {
	empty := member(t, nil, "", 0)
	return map[string][]byte{
		"plain":       member(t, data, "", 0),
		"name":        member(t, data, "layer.tar", 0),
		"flushes":     member(t, data, "", 30_000), // as pigz does
		"members":     split(t, data, 60_000),      // as bgzf and eStargz do
		"few members": split(t, data, 700_000),
		"empty ones":  bytes.Join([][]byte{empty, empty, member(t, data, "", 0), empty}, nil),
		"zeros":       append(member(t, data, "", 0), make([]byte, 1000)...),
	}
}

func build(t testing.TB, in []byte, o Options) *Index {
	t.Helper()
	r := NewReader(bytes.NewReader(in), o)
	if _, err := r.WriteTo(new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	x, err := r.Index()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func encode(t testing.TB, x *Index) []byte {
	t.Helper()
	var buf bytes.Buffer
	n, err := x.WriteTo(&buf)
	if err != nil || n != int64(buf.Len()) || n != x.EncodedSize() {
		t.Fatalf("WriteTo: %d, %v; wrote %d of %d", n, err, buf.Len(), x.EncodedSize())
	}
	return buf.Bytes()
}
