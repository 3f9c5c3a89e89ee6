package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestZstdDialects indexes a layer by its frames in the forms that there are of
// zstd files made for random access, reads in it with gzindex, and serves it. A
// layer that is one frame is read as well, but gzindex says what that costs.
func TestZstdDialects(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	im := oneLayer(t, testimage.Plain)
	want := unpacked(t, im)
	data, err := os.ReadFile(im.Blob(0))
	if err != nil {
		t.Fatal(err)
	}
	idx := filepath.Join(t.TempDir(), "index")
	interop.Run(t, append(mkfs, "--quiet", "--tar=i", idx, im.Blob(0))...)
	for name, compress := range map[string]func(*testing.T, []byte) []byte{
		"chunked":  zstdChunked,
		"seekable": zstdSeekable,
		"pzstd":    pzstd,
		"single":   func(t *testing.T, b []byte) []byte { return zstdFrame(t, nil, b) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			blob, section := filepath.Join(dir, "layer.zst"), filepath.Join(dir, "seek")
			if err := os.WriteFile(blob, compress(t, data), 0o666); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(tool("gzindex"), "--seek", "--span-size", "64KiB", "-o", section, blob)
			said, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, said)
			}
			single := name == "single"
			if got := strings.Contains(string(said), "a single zstd frame of "); got != single {
				t.Errorf("gzindex says %q", said)
			}
			var shown struct{ Layers []struct{ Spans []any } }
			if err := json.Unmarshal(must(t, []string{tool("gzindex"), "--show", section, "--json"}), &shown); err != nil {
				t.Fatal(err)
			}
			if n := len(shown.Layers[0].Spans); (n == 1) != single {
				t.Errorf("%d spans", n)
			}
			must(t, []string{tool("gzindex"), "-q", "--verify", section, blob})
			for _, off := range []int{0, 511, len(data) / 2, len(data) - 1000} {
				got := must(t, []string{tool("gzindex"), "--read", fmt.Sprintf("%d:1000", off), "--zinfo", section, blob})
				if !bytes.Equal(got, data[off:off+1000]) {
					t.Errorf("1000 bytes at %d: got %d, or they differ", off, len(got))
				}
			}
			s := serve(t, "--index", idx, "--seek", section, "--require-verified", "--blob", blob)
			equalMounted(t, interop.NbdFuse(t, s.uri), want)
		})
	}
}

var zstdEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))

func zstdFrame(t *testing.T, out, b []byte) []byte {
	t.Helper()
	return zstdEncoder.EncodeAll(b, out)
}

// skippable appends a skippable frame, RFC 8878 section 3.1.2.
func skippable(out []byte, kind uint32, b []byte) []byte {
	out = binary.LittleEndian.AppendUint32(out, 0x184D2A50|kind)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(b)))
	return append(out, b...)
}

// zstdChunked makes what containers/storage calls zstd:chunked: a frame for
// what lies between files, one for each file, and a list and a footer in
// skippable frames.
func zstdChunked(t *testing.T, data []byte) (out []byte) {
	t.Helper()
	r := bytes.NewReader(data)
	tr := tar.NewReader(r)
	at := 0
	cut := func(to int) {
		if to > at {
			out = zstdFrame(t, out, data[at:to])
			at = to
		}
	}
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			start := len(data) - r.Len()
			cut(start)
			cut(start + int(h.Size))
		}
	}
	cut(len(data))
	list := zstdFrame(t, nil, []byte(`{"version":1,"entries":[]}`))
	footer := make([]byte, 64)
	binary.LittleEndian.PutUint64(footer, uint64(len(out)+8))
	binary.LittleEndian.PutUint64(footer[8:], uint64(len(list)))
	copy(footer[56:], "GNUlInUx")
	return skippable(skippable(out, 0, list), 0, footer)
}

// zstdSeekable makes zstd's own seekable format, as t2sz does: frames of one
// size and a table of them in a skippable frame.
func zstdSeekable(t *testing.T, data []byte) (out []byte) {
	t.Helper()
	var table []byte
	for at := 0; at < len(data); at += 100_000 {
		part := data[at:min(at+100_000, len(data))]
		n := len(out)
		out = zstdFrame(t, out, part)
		table = binary.LittleEndian.AppendUint32(table, uint32(len(out)-n))
		table = binary.LittleEndian.AppendUint32(table, uint32(len(part)))
	}
	table = binary.LittleEndian.AppendUint32(table, uint32(len(table)/8))
	table = append(table, 0)
	return skippable(out, 14, binary.LittleEndian.AppendUint32(table, 0x8F92EAB1))
}

// pzstd runs pzstd, which puts a skippable frame before each of its frames.
func pzstd(t *testing.T, data []byte) []byte {
	t.Helper()
	cmd := exec.Command(interop.Tool(t, "pzstd"), "-q", "-p", "4", "-1", "-c")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
