//go:build unix

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/layerpipe/layerpipe/internal/peakmem"
)

const (
	hugeFile  = 4<<30 + 64<<20 // bytes, past what 32 bits hold
	hugeChunk = 64 << 20
	peakLimit = 128e6 // bytes
)

// hugeLayer writes a gzip layer with one file of hugeFile bytes. The file is
// made of equal chunks, each compressed only once: after a sync flush the same
// bytes stand for the same chunk again, as long as the 32 KiB before are the
// same.
func hugeLayer(w io.Writer) error {
	chunk := bytes.Repeat(noise(16<<10), hugeChunk/(16<<10))
	var packed bytes.Buffer
	deflate, err := flate.NewWriter(&packed, flate.BestSpeed)
	if err != nil {
		return err
	}
	sum, size := uint32(0), uint32(0) // size is modulo 2^32 in gzip
	pack := func(p []byte) ([]byte, error) {
		packed.Reset()
		if _, err := deflate.Write(p); err != nil {
			return nil, err
		}
		err := deflate.Flush()
		return bytes.Clone(packed.Bytes()), err
	}
	write := func(plain, packed []byte) error {
		sum, size = crc32.Update(sum, crc32.IEEETable, plain), size+uint32(len(plain))
		_, err := w.Write(packed)
		return err
	}

	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "huge", Mode: 0o644, Size: hugeFile, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := w.Write([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff")); err != nil {
		return err
	}
	first, err := pack(head.Bytes())
	if err != nil {
		return err
	}
	if err := write(head.Bytes(), first); err != nil {
		return err
	}
	if first, err = pack(chunk); err != nil {
		return err
	}
	again, err := pack(chunk)
	if err != nil {
		return err
	}
	if err := write(chunk, first); err != nil {
		return err
	}
	for done := int64(hugeChunk); done < hugeFile; done += hugeChunk {
		if err := write(chunk, again); err != nil {
			return err
		}
	}
	packed.Reset()
	marker := make([]byte, 1024)
	if _, err := deflate.Write(marker); err != nil {
		return err
	}
	if err := deflate.Close(); err != nil {
		return err
	}
	if err := write(marker, packed.Bytes()); err != nil {
		return err
	}
	trailer := binary.LittleEndian.AppendUint32(nil, sum)
	_, err = w.Write(binary.LittleEndian.AppendUint32(trailer, size))
	return err
}

// TestMemory feeds one file of over 4 GiB, in a gzip layer, through a FIFO.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: -short leaves out 4 GiB of data")
	}
	for name, command := range map[string]func(fifo, out string) []string{
		"tar2erofs":    func(fifo, out string) []string { return whole(out, fifo) },
		"tar2erofs -i": func(fifo, out string) []string { return index(out, fifo) },
		"gzindex":      func(fifo, out string) []string { return []string{tool("gzindex"), fifo} },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fifo, out := filepath.Join(dir, "fifo"), filepath.Join(dir, "out")
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			args := command(fifo, out)
			cmd, err := peakmem.Command(args[0], args[1:]...)
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if name == "gzindex" {
				stdout, err := os.Create(out)
				if err != nil {
					t.Fatal(err)
				}
				defer stdout.Close()
				cmd.Stdout = stdout
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			fed := make(chan error, 1)
			// Opening to read as well does not wait for the command, which may
			// have failed already. Its end closes the writer's side too, which
			// must not hang then.
			pipe, err := os.OpenFile(fifo, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				err := hugeLayer(pipe)
				pipe.Close()
				fed <- err
			}()
			peak, err := cmd.Wait()
			pipe.Close()
			if werr := <-fed; err == nil && werr != nil {
				t.Fatal(werr)
			}
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			st, err := os.Stat(out)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("peak memory %.1f MB, output %.1f MB", float64(peak)/1e6, float64(st.Size())/1e6)
			if peak <= 0 || peak > peakLimit {
				t.Errorf("%d bytes of memory at the peak, more than %d", peak, int64(peakLimit))
			}
		})
	}
}
