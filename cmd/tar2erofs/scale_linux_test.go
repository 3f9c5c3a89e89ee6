package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/peakmem"
)

// filesTar writes a tar of n files of 100 bytes, so many to a directory; mtime
// tells a file's.
func filesTar(w io.Writer, n, perDir int, mtime func(k int) time.Time) error {
	bw := bufio.NewWriterSize(w, 1<<20)
	tw := tar.NewWriter(bw)
	data := bytes.Repeat([]byte("x"), 100)
	for k := range n {
		h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("dir%04d/file%07d.txt", k/perDir, k), Mode: 0o644, Size: 100, ModTime: mtime(k)}
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return bw.Flush()
}

func sameTime(int) time.Time { return time.Unix(1_700_000_000, 0) }

// TestMemory measures what a file more costs. A million of them are to fit into
// 250 MB, which is 200 bytes a file and 45 MiB for the rest; this is a fifth
// of that.
func TestMemory(t *testing.T) {
	const files, base, perFile = 200_000, 45 << 20, 200
	program := buildCommand(t)
	for _, tt := range []struct {
		name  string
		mtime func(int) time.Time
		args  []string
	}{
		{"whole image", sameTime, nil},
		{"index", sameTime, []string{"-i"}},
		{"all times differ", func(k int) time.Time { return time.Unix(int64(k), 0) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			cmd, err := peakmem.Command(program, append(tt.args, filepath.Join(dir, "out"))...)
			if err != nil {
				t.Fatal(err)
			}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			err = filesTar(stdin, files, 1000, tt.mtime)
			stdin.Close()
			peak, waitErr := cmd.Wait()
			if err != nil || waitErr != nil {
				t.Fatal(err, waitErr)
			}
			t.Logf("%d bytes, %.0f a file above %d MiB", peak, float64(peak-base)/files, base>>20)
			if peak > base+files*perFile {
				t.Errorf("%d bytes of memory for %d files, at most %d wanted", peak, files, base+files*perFile)
			}
		})
	}
}

// TestLinearDirectory counts what is executed, statement by statement, for a
// directory of 20000 files and for one of 200000. Counting is what the
// compiler's coverage does; time would tell the same less surely.
func TestLinearDirectory(t *testing.T) {
	program := filepath.Join(t.TempDir(), "tar2erofs")
	interop.Run(t, interop.Tool(t, "go"), "build", "-cover", "-covermode=count",
		"-coverpkg=github.com/layerpipe/layerpipe/...,slices,bytes,strings", "-o", program, ".")
	statements := func(files int, args ...string) int64 {
		dir := t.TempDir()
		counters := filepath.Join(dir, "counters")
		if err := os.Mkdir(counters, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, append(args, filepath.Join(dir, "out"))...)
		cmd.Env = append(os.Environ(), "GOCOVERDIR="+counters)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		writeErr := filesTar(stdin, files, files, sameTime)
		stdin.Close()
		if err := cmd.Wait(); err != nil || writeErr != nil {
			t.Fatalf("%v, %v: %s", err, writeErr, stderr.String())
		}
		profile := filepath.Join(dir, "profile")
		interop.Run(t, "go", "tool", "covdata", "textfmt", "-i="+counters, "-o="+profile)
		// Each line: file:from,to statements count
		sum := int64(0)
		for line := range strings.Lines(string(readFile(t, profile))) {
			f := strings.Fields(line)
			if len(f) != 3 {
				continue // the mode
			}
			n, err1 := strconv.ParseInt(f[1], 10, 64)
			count, err2 := strconv.ParseInt(f[2], 10, 64)
			if err1 != nil || err2 != nil {
				t.Fatalf("%s: %q", profile, line)
			}
			sum += n * count
		}
		return sum
	}
	for _, args := range [][]string{nil, {"-i"}} {
		few, many := statements(20_000, args...), statements(200_000, args...)
		ratio := float64(many) / float64(few)
		t.Logf("%q: %d statements for 20000 files, %d for 200000: %.1f times", args, few, many, ratio)
		if few < 20_000*20 || ratio > 12 {
			t.Errorf("%q: %d statements for 20000 files, %d for 200000: %.1f times, at most 12 wanted", args, few, many, ratio)
		}
	}
}
