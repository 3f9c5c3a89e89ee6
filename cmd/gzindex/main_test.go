package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

func TestMain(m *testing.M) {
	if os.Getenv("GZINDEX_TEST_MAIN") == "1" {
		code := cli.Start("gzindex", run)
		if name := os.Getenv("GZINDEX_TEST_STATUS"); name != "" {
			// Not the peak that wait4 gives: that may be the parent's.
			status, _ := os.ReadFile("/proc/self/status")
			os.WriteFile(name, status, 0o666)
		}
		os.Exit(code)
	}
	testscript.Main(m, map[string]func(){"gzindex": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"append": scriptAppend,
			"code":   scriptCode,
			"cut":    scriptCut,
			"flip":   scriptFlip,
			"gz":     scriptGz,
			"part":   scriptPart,
			"points": scriptPoints,
			"zst":    scriptZst,
		},
	})
}

// sample is text of sorts, n bytes of it.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, 0, n+20)
	for len(b) < n {
		b = strconv.AppendInt(b, int64(r.ExpFloat64()*5000), 10)
		b = append(b, " \n"[r.IntN(2)])
	}
	return b[:n]
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

// gz NAME SIZE [MEMBER]: writes NAME, and NAME.gz in members of so many bytes.
func scriptGz(ts *testscript.TestScript, neg bool, args []string) {
	data := sample(number(ts, args[1]))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o666))
	member := len(data)
	if len(args) > 2 {
		member = number(ts, args[2])
	}
	var buf bytes.Buffer
	for first := true; first || len(data) > 0; first = false {
		w := gzip.NewWriter(&buf)
		n, err := w.Write(data[:min(member, len(data))])
		ts.Check(err)
		ts.Check(w.Close())
		data = data[n:]
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0])+".gz", buf.Bytes(), 0o666))
}

func edit(ts *testscript.TestScript, name string, f func([]byte) []byte) {
	b, err := os.ReadFile(ts.MkAbs(name))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(name), f(b), 0o666))
}

// at is an offset from the start, or if negative from the end.
func at(ts *testscript.TestScript, s string, size int) int {
	n := number(ts, s)
	if n < 0 {
		n += size
	}
	return n
}

// flip FILE OFFSET: flips a bit.
func scriptFlip(ts *testscript.TestScript, neg bool, args []string) {
	edit(ts, args[0], func(b []byte) []byte {
		b[at(ts, args[1], len(b))] ^= 4
		return b
	})
}

// cut FILE OFFSET: ends it there.
func scriptCut(ts *testscript.TestScript, neg bool, args []string) {
	edit(ts, args[0], func(b []byte) []byte { return b[:at(ts, args[1], len(b))] })
}

// part FILE OFFSET LENGTH OUT: copies a part of it.
func scriptPart(ts *testscript.TestScript, neg bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	off := number(ts, args[1])
	ts.Check(os.WriteFile(ts.MkAbs(args[3]), b[off:off+number(ts, args[2])], 0o666))
}

// code N ARG...: gzindex with these arguments exits with N.
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Path, _ = os.Executable()
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "GZINDEX_TEST_MAIN=1")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Run()
	ts.Logf("%s%s", stdout.Bytes(), stderr.Bytes())
	if got := cmd.ProcessState.ExitCode(); got != number(ts, args[0]) {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
	if n := bytes.Count(stderr.Bytes(), []byte("\n")); n != 1 || stdout.Len() > 0 {
		ts.Fatalf("%d lines on stderr, %d bytes on stdout; want one line and nothing", n, stdout.Len())
	}
}

// append FILE TEXT: adds to its end.
func scriptAppend(ts *testscript.TestScript, neg bool, args []string) {
	edit(ts, args[0], func(b []byte) []byte { return append(b, args[1]...) })
}

// zst FILE OUT [FRAME]: compresses it, in frames of so many bytes.
func scriptZst(ts *testscript.TestScript, neg bool, args []string) {
	data, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	frame := len(data)
	if len(args) > 2 {
		frame = number(ts, args[2])
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	ts.Check(err)
	defer enc.Close()
	var out []byte
	for part := range slices.Chunk(data, frame) {
		out = enc.EncodeAll(part, out)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), out, 0o666))
}

// points FILE OUT: takes the positions out of what --show printed.
func scriptPoints(ts *testscript.TestScript, neg bool, args []string) {
	var out []byte
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var n, in, bits, off int64
		if k, _ := fmt.Sscan(line, &n, &in, &bits, &off); k == 4 {
			out = fmt.Appendln(out, n, in, bits, off)
		}
	}
	if len(out) == 0 {
		ts.Fatalf("no points in %s", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), out, 0o666))
}

// A seek section is at most a tenth of a zinfo, of a layer as there are many.
func TestSize(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Layer{Write: func(b *testimage.Builder) {
		testimage.Toolchain(b, []string{"src/cmd", "bin/gofmt"})
	}})
	run := func(args ...string) float64 {
		var stdout, stderr bytes.Buffer
		env := &cli.Env{Name: "gzindex", Args: append(args, im.Blob(0)), Stdout: &stdout, Stderr: &stderr}
		if code := cli.Run(t.Context(), env, run); code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, stderr.Bytes())
		}
		return float64(stdout.Len())
	}
	zinfo, seek := run(), run("--seek")
	gb := float64(im.Layers[0].Size) / 1e9
	t.Logf("zinfo %.2f MB for each GB of gzip, seek %.2f, %.3f of it", zinfo/1e6/gb, seek/1e6/gb, seek/zinfo)
	if seek > zinfo/10 {
		t.Errorf("a seek section of %.0f bytes, a zinfo of %.0f", seek, zinfo)
	}
}

// A reader that goes away ends it quietly.
func TestClosedPipe(t *testing.T) {
	var in bytes.Buffer
	w := gzip.NewWriter(&in)
	w.Write(sample(1 << 20))
	w.Close()
	r, pw := io.Pipe()
	r.Close()
	var stderr bytes.Buffer
	env := &cli.Env{Name: "gzindex", Stdin: &in, Stdout: pw, Stderr: &stderr}
	if code := cli.Run(t.Context(), env, run); code != cli.ExitPipe || stderr.Len() > 0 {
		t.Fatalf("exit code %d, %q", code, stderr.Bytes())
	}
}
