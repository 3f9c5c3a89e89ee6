package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// repeat gives head once, the same bytes times times over, and tail once.
type repeat struct {
	head, b, tail []byte
	off           int
	times         int
}

func (r *repeat) Read(p []byte) (n int, err error) {
	n = copy(p, r.head)
	r.head = r.head[n:]
	for n < len(p) && r.times > 0 {
		k := copy(p[n:], r.b[r.off:])
		n += k
		if r.off += k; r.off == len(r.b) {
			r.off = 0
			r.times--
		}
	}
	if r.times == 0 {
		k := copy(p[n:], r.tail)
		r.tail = r.tail[k:]
		n += k
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// indexOf runs gzindex as a process and returns what it wrote, its last line on
// stderr, and the most memory it took in KiB, or 0 where the system does not say.
func indexOf(t *testing.T, in io.Reader, args ...string) (out []byte, failure string, memory int) {
	t.Helper()
	cmd := exec.Command("gzindex", args...)
	cmd.Path, _ = os.Executable()
	status := filepath.Join(t.TempDir(), "status")
	cmd.Env = append(os.Environ(), "GZINDEX_TEST_MAIN=1", "GZINDEX_TEST_STATUS="+status)
	cmd.Stdin = in
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if (err != nil) != (stderr.Len() > 0) {
		t.Fatalf("%v, and on stderr %q", err, stderr.Bytes())
	}
	lines, _ := os.ReadFile(status)
	if _, hwm, ok := strings.Cut(string(lines), "VmHWM:"); ok {
		if _, err := fmt.Sscan(hwm, &memory); err != nil {
			t.Fatal(err)
		}
	}
	return out, stderr.String(), memory
}

func gzipped(data []byte) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	w.Write(data)
	w.Close()
	return buf.Bytes()
}

// Memory does not grow with the input, but for the windows: 32 KiB in 4 MiB.
func TestMemory(t *testing.T) {
	const members, limit = 200, 32 << 10 // of 2 MiB; KiB
	out, failure, kib := indexOf(t, &repeat{b: gzipped(sample(2 << 20)), times: members})
	if failure != "" {
		t.Fatal(failure)
	}
	if want := 2 * members / 6 * 32785; len(out) < want {
		t.Errorf("an index of %d bytes, want %d at least", len(out), want)
	}
	t.Logf("%d MiB of data: %d KiB of memory", 2*members, kib)
	if kib > limit {
		t.Errorf("took %d KiB of memory, more than %d", kib, limit)
	}
}

// Bombs, in every mode: memory stays what it is, and the index is as large as
// the data's size asks for, however it came about. How much work a byte of
// input can make is bounded in package inflate.
func TestBombs(t *testing.T) {
	const limit = 32 << 10 // KiB
	header := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	end := func(blocks int, data []byte) []byte {
		sum := crc32.ChecksumIEEE(bytes.Repeat(data, blocks))
		b := binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0xff, 0xff}, sum)
		return binary.LittleEndian.AppendUint32(b, uint32(blocks*len(data)))
	}
	const many = 1_000_000
	for _, c := range []struct {
		name string
		in   repeat
		out  int64 // bytes of data
		each bool  // too many members for --per-member
	}{
		{"1032 to 1", repeat{b: gzipped(make([]byte, 1<<20)), times: 100}, 100 << 20, false},
		{"empty blocks", repeat{head: header, b: []byte{0, 0, 0, 0xff, 0xff}, times: many, tail: end(many, nil)}, 0, false},
		{"blocks of a byte", repeat{head: header, b: []byte{0, 1, 0, 0xfe, 0xff, 'a'}, times: many, tail: end(many, []byte("a"))}, many, false},
		{"empty members", repeat{b: gzipped(nil), times: many}, 0, false},
		{"members of a byte", repeat{b: gzipped([]byte("a")), times: many}, many, true},
	} {
		for _, mode := range []string{"--sparse=false", "--sparse", "--per-member", "--seek"} {
			t.Run(c.name+"/"+mode, func(t *testing.T) {
				in := c.in
				out, failure, kib := indexOf(t, &in, mode)
				if kib > limit {
					t.Errorf("took %d KiB of memory, more than %d", kib, limit)
				}
				if mode == "--per-member" && c.each {
					if len(out) > 0 || !strings.Contains(failure, "leave out --per-member") {
						t.Errorf("%d bytes, %q", len(out), failure)
					}
					return
				}
				if failure != "" {
					t.Fatal(failure)
				}
				points := 1 + c.out/zinfo.DefaultSpanSize
				most := 12 + 32785*points
				switch mode {
				case "--per-member":
					most = 12 + 32785*int64(max(c.in.times, 1))
					if c.out == 0 || len(c.in.head) > 0 {
						most = 12 + 32785
					}
				case "--seek":
					most = 1024 + points*(24+32) + 512
				}
				if int64(len(out)) > most {
					t.Errorf("an index of %d bytes, more than %d", len(out), most)
				}
			})
		}
	}
}
