package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
)

// inProcess runs gzindex and returns its exit code and what it printed.
func inProcess(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, failed bytes.Buffer
	env := &cli.Env{Name: "gzindex", Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &failed}
	code = cli.Run(t.Context(), env, run)
	return code, out.String(), failed.String()
}

// Whatever byte is wrong, --verify finds it, with one worker and with several:
// in the middle of each span, at both its edges, and in the trailers. A seek
// section knows the header, too.
func TestVerifyFlipped(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	data := sample(1_200_000)
	good := append(gzipped(data[:500_000]), gzipped(data[500_000:])...)
	middle := len(gzipped(data[:500_000]))
	if err := os.WriteFile(path("good"), good, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-o", path("zinfo")}, {"--seek", "-o", path("seek")}} {
		if code, _, failed := inProcess(t, append(args, "--span-size", "100KiB", path("good"))...); code != 0 {
			t.Fatal(failed)
		}
	}
	blob, err := os.Open(path("good"))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	c := command{env: &cli.Env{}}
	x, err := c.load(path("zinfo"), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	n := len(x.zinfo.Points)
	if n < 5 {
		t.Fatalf("%d spans", n)
	}
	offsets := []int64{int64(middle) - 8, int64(middle) - 1, int64(len(good)) - 8, int64(len(good)) - 1}
	for i := range n {
		from, to, _, _ := x.zinfo.Range(i)
		if to < 0 {
			to = int64(len(good)) - 9
		}
		offsets = append(offsets, from+1, (from+to)/2, to-2)
	}
	for _, off := range append(offsets, 4) {
		bad := bytes.Clone(good)
		bad[off] ^= 0x10
		if err := os.WriteFile(path("bad"), bad, 0o666); err != nil {
			t.Fatal(err)
		}
		for _, index := range []string{"zinfo", "seek"} {
			if off == 4 && index == "zinfo" {
				continue // the time in the header, which nothing depends on
			}
			for _, jobs := range []string{"1", "4"} {
				code, out, failed := inProcess(t, "--verify", path(index), "-j", jobs, path("bad"))
				if code != cli.ExitIntegrity && code != cli.ExitFailed || out != "" || strings.Count(failed, "\n") != 1 || !strings.Contains(failed, "gzindex: "+path("bad")+": ") {
					t.Errorf("byte %d, %s, %s jobs: exit code %d, %q", off, index, jobs, code, failed)
				}
				if index == "seek" && code != cli.ExitIntegrity {
					t.Errorf("byte %d: exit code %d, though there is a digest", off, code)
				}
			}
		}
	}
}

// A verified blob gives no byte of a piece that is not right, reads no piece
// twice in a row, and finds its way over spans that share a byte.
func TestVerifiedBlob(t *testing.T) {
	dir := t.TempDir()
	name, section := filepath.Join(dir, "data.gz"), filepath.Join(dir, "seek")
	data := sample(6_000_000)
	blob := gzipped(data)
	if err := os.WriteFile(name, blob, 0o666); err != nil {
		t.Fatal(err)
	}
	if code, _, failed := inProcess(t, "--seek", "-o", section, "--span-size", "3MiB", name); code != 0 {
		t.Fatal(failed)
	}
	c := command{env: &cli.Env{}}
	x, err := c.load(section, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	l := &x.seek.Layers[0]
	src := &countingBlob{b: bytes.Clone(blob)}
	v := &verifiedBlob{blob: src, l: l}
	start := l.Spans[0].Start()
	got := make([]byte, len(blob)-int(start))
	if n, err := v.ReadAt(got, start); n != len(got) || err != nil || !bytes.Equal(got, blob[start:]) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if most := len(blob) + len(l.Spans); src.n > most {
		t.Errorf("read %d bytes of %d", src.n, len(blob))
	}
	if n, err := v.ReadAt(got[:10], int64(len(blob))-4); n != 4 || err == nil {
		t.Errorf("over the end: %d, %v", n, err)
	}
	before := src.n
	for off := int64(len(blob)) - 100; off < int64(len(blob))-10; off += 10 {
		if _, err := v.ReadAt(got[:10], off); err != nil {
			t.Fatal(err)
		}
	}
	if src.n != before {
		t.Error("the piece at hand was read again")
	}
	src.b[len(blob)/2] ^= 1
	if n, err := v.ReadAt(got, start); err == nil || int64(n) > int64(len(blob))/2 || !bytes.Equal(got[:n], blob[start:start+int64(n)]) {
		t.Errorf("a flipped byte: %d bytes, %v", n, err)
	}
	for _, off := range []int64{0, start - 1} {
		if n, err := v.ReadAt(got[:1], off); n != 0 || err == nil {
			t.Errorf("in the header, at %d: %d, %v", off, n, err)
		}
	}
}

type countingBlob struct {
	b []byte
	n int
}

func (c *countingBlob) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, c.b[off:])
	c.n += n
	if n < len(p) {
		return n, fmt.Errorf("%d bytes at %d: beyond the end", len(p), off)
	}
	return n, nil
}

// An EROFS image may well end in a seek section; from a pipe that is not to be
// known.
func TestShowImage(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	image := append(make([]byte, 1024, 4096), "\xe2\xe1\xf5\xe0"...)[:4096]
	if err := os.WriteFile(name, image, 0o666); err != nil {
		t.Fatal(err)
	}
	if code, _, failed := inProcess(t, "--show", name); code != cli.ExitFailed || !strings.Contains(failed, "does not end in a seek section") {
		t.Errorf("file: exit code %d, %q", code, failed)
	}
	var failed bytes.Buffer
	env := &cli.Env{Name: "gzindex", Args: []string{"--show", "-"}, Stdin: bytes.NewReader(image), Stdout: io.Discard, Stderr: &failed}
	if code := cli.Run(t.Context(), env, run); code != cli.ExitFailed || !strings.Contains(failed.String(), "cannot be had from a pipe") {
		t.Errorf("pipe: exit code %d, %q", code, failed.Bytes())
	}
}

// An error that comes after the input's end names it, too.
func TestSeekXz(t *testing.T) {
	dir := t.TempDir()
	name, section := filepath.Join(dir, "data.xz"), filepath.Join(dir, "seek")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := xz.NewWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(sample(10_000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	code, _, failed := inProcess(t, "--seek", "-o", section, name)
	if code != cli.ExitFailed || !strings.HasPrefix(failed, "gzindex: "+name+": ") || !strings.Contains(failed, "xz layer cannot be read at an offset") {
		t.Errorf("exit code %d, %q", code, failed)
	}
	if _, err := os.Stat(section); !os.IsNotExist(err) {
		t.Errorf("a section was made: %v", err)
	}
}

// What cannot be said is not good.
func TestVerifyUnsaid(t *testing.T) {
	dir := t.TempDir()
	name, index := filepath.Join(dir, "data.gz"), filepath.Join(dir, "zinfo")
	if err := os.WriteFile(name, gzipped(sample(1000)), 0o666); err != nil {
		t.Fatal(err)
	}
	if code, _, failed := inProcess(t, "-o", index, name); code != 0 {
		t.Fatal(failed)
	}
	var failed bytes.Buffer
	env := &cli.Env{Name: "gzindex", Args: []string{"--verify", index, name}, Stdin: strings.NewReader(""), Stdout: fullWriter{}, Stderr: &failed}
	if code := cli.Run(t.Context(), env, run); code != cli.ExitFailed || !strings.Contains(failed.String(), "no space") {
		t.Errorf("exit code %d, %q", code, failed.Bytes())
	}
}

type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, errors.New("no space") }
