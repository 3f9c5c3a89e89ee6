package seek

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/klauspost/compress/zstd"
)

var update = flag.Bool("update", false, "write testdata/v1.seek anew")

// golden is made by: go test ./pkg/seek -run TestGolden -update
const golden = "testdata/v1.seek"

// TestGolden keeps version 1 readable, whatever becomes of the code: the file
// is never written again unless the version changes.
func TestGolden(t *testing.T) {
	want := sample()
	if *update {
		b, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Error("not what was written")
	}
}

// TestGoldenByHand reads the golden file as docs/formats.md describes it, with
// nothing but its offsets.
func TestGoldenByHand(t *testing.T) {
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	u32 := func(off int) int { return int(binary.LittleEndian.Uint32(b[off:])) }
	u64 := func(off int) int { return int(binary.LittleEndian.Uint64(b[off:])) }
	must := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Fatal(what)
		}
	}
	foot := len(b) - 512
	must("magic", string(b[foot:foot+8]) == "LAYRSEEK")
	must("version", u32(foot+8) == 1)
	must("flags", u32(foot+12) == 0)
	body := foot - u64(foot+16)
	must("body starts the file", body == 0)
	length := u64(foot + 24)
	must("length", length <= foot && length > foot-512)
	must("body checksum", sha256.Sum256(b[body:body+length]) == [32]byte(b[foot+32:]))
	must("zeros", bytes.Equal(b[foot+64:foot+480], make([]byte, 416)))
	must("footer checksum", sha256.Sum256(b[foot:foot+480]) == [32]byte(b[foot+480:]))

	must("layers", u32(0) == 4)
	text := b[8 : 8+u32(4)]
	must("JSON", bytes.HasPrefix(text, []byte(`{"manifest":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:`)) &&
		bytes.Contains(text, []byte(`},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:`)))
	at := 8 + len(text)

	// Layer 0: plain, 5 MiB + 1, one span, six digests.
	must("layer 0", bytes.Equal(b[at:at+4], []byte{1, 0, 0, 0}) && u32(at+4) == 1 && u64(at+8) == 5<<20+1 && u32(at+16) == 6 && u32(at+20) == 0)
	must("its span", bytes.Equal(b[at+24:at+48], make([]byte, 24)))
	want := sample()
	must("its digests", [32]byte(b[at+48:]) == want.Layers[0].Spans[0].Digests[0] && [32]byte(b[at+48+5*32:]) == want.Layers[0].Spans[0].Digests[5])
	at += 24 + 24 + 6*32

	// Layer 1: gzip. Its spans' blob ranges are [10, 3M+5), [3M+4, 4M+7),
	// [4M+6, 8M) and [8M, 9M): 3, 2, 4 and 1 pieces.
	must("layer 1", bytes.Equal(b[at:at+4], []byte{2, 1, 0, 0}) && u32(at+4) == 4 && u64(at+8) == 30<<20 && u32(at+16) == 3+2+4+1)
	windows := u32(at + 20)
	must("span 1", u64(at+48) == 3<<20+5 && u64(at+56) == 10<<20 && bytes.Equal(b[at+64:at+72], []byte{3, 1, 0, 0, 0, 0, 0, 0}))
	must("span 2", u64(at+72) == 4<<20+7 && u64(at+80) == 14<<20 && bytes.Equal(b[at+88:at+96], []byte{7, 0, 0, 0, 0, 0, 0, 0}))
	at += 24 + 4*24
	must("digest of span 1", [32]byte(b[at+3*32:]) == want.Layers[1].Spans[1].Digests[0])
	at += 10 * 32
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	dense, err := dec.DecodeAll(b[at:at+windows], nil)
	if err != nil {
		t.Fatal(err)
	}
	w := make([]byte, 2*32768)
	want.Layers[1].Spans[1].Window.Unpack(w)
	want.Layers[1].Spans[3].Window.Unpack(w[32768:])
	must("windows", bytes.Equal(dense, w))
	at += windows

	// Layer 2: zstd, three spans of 1 MiB, 1 MiB + 1 and 1 MiB - 1.
	must("layer 2", bytes.Equal(b[at:at+4], []byte{3, 0, 0, 0}) && u32(at+4) == 3 && u64(at+8) == 12<<20 && u32(at+16) == 1+2+1 && u32(at+20) == 0)
	at += 24 + 3*24 + 4*32

	// Layer 3: an empty blob.
	must("layer 3", bytes.Equal(b[at:at+24], append([]byte{1}, make([]byte, 23)...)))
	must("end", at+24 == length)
}

// TestGoldenWriter holds the writer to the same bytes, windows aside: those
// are as the zstd encoder of the day packs them.
func TestGoldenWriter(t *testing.T) {
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sample().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.IndexByte(b[8:], '{') + 8 + int(binary.LittleEndian.Uint32(b[4:])) // layer 0
	at += 24 + 24 + 6*32                                                           // layer 1
	at += 20                                                                       // its window length
	if !bytes.Equal(got[:at], b[:at]) {
		t.Error("the bytes have changed")
	}
}
