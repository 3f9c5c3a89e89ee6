package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// TestMain lets the test binary be the command, for what needs a process.
func TestMain(m *testing.M) {
	if os.Getenv("EROFS_NBD_MAIN") == "1" {
		main()
	}
	os.Exit(m.Run())
}

// command is erofs-nbd as a process.
func command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "EROFS_NBD_MAIN=1", "XDG_RUNTIME_DIR="+t.TempDir())
	return cmd
}

// invoke runs the command in process until it ends.
func invoke(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs interop.Output
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	env := &cli.Env{Name: "erofs-nbd", Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs}
	code = cli.Run(ctx, env, run)
	return code, out.String(), errs.String()
}

// A server is the command serving in process.
type server struct {
	t      *testing.T
	uri    string
	stderr *interop.Output
	cancel context.CancelFunc
	code   chan int
}

// start runs the command until the URI is printed; it ends with the test.
func start(t *testing.T, args ...string) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	s := &server{t: t, stderr: &interop.Output{}, cancel: cancel, code: make(chan int, 1)}
	env := &cli.Env{Name: "erofs-nbd", Args: args, Stdin: strings.NewReader(""), Stdout: w, Stderr: s.stderr}
	go func() {
		s.code <- cli.Run(ctx, env, run)
		w.Close()
	}()
	t.Cleanup(func() { s.stop() })
	line, err := io.ReadAll(io.LimitReader(&untilNewline{r: r}, 4096))
	if err != nil || len(line) == 0 {
		t.Fatalf("no URI: %v, stderr:\n%s", err, s.stderr)
	}
	s.uri = strings.TrimSpace(string(line))
	return s
}

// logged waits until the server has written what to stderr, for which no client
// waits.
func (s *server) logged(what string) {
	s.t.Helper()
	eventually(s.t, func() bool { return strings.Contains(s.stderr.String(), what) }, s.stderr.String)
}

// stop ends the server, the way a signal does, and returns its exit code.
func (s *server) stop() int {
	s.cancel()
	select {
	case code := <-s.code:
		s.code <- code
		return code
	case <-time.After(time.Minute):
		s.t.Fatal("the server does not end")
		return -1
	}
}

// untilNewline reads one line.
type untilNewline struct {
	r    io.Reader
	done bool
}

func (u *untilNewline) Read(p []byte) (int, error) {
	if u.done {
		return 0, io.EOF
	}
	n, err := u.r.Read(p[:1])
	u.done = n == 1 && p[0] == '\n'
	return n, err
}

func dial(t *testing.T, uri string) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.Dial(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// readAll reads a whole disk.
func readAll(t *testing.T, uri string) []byte {
	t.Helper()
	c := dial(t, uri)
	b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// blobLayers gives files to build.Image.
type blobLayers struct {
	names []string
	next  int
	open  *os.File
}

func (l *blobLayers) Len() int { return len(l.names) }

func (l *blobLayers) Next() (*build.Layer, error) {
	if l.open != nil {
		l.open.Close()
	}
	if l.next == len(l.names) {
		return nil, io.EOF
	}
	f, err := os.Open(l.names[l.next])
	if err != nil {
		return nil, err
	}
	l.open = f
	l.next++
	return &build.Layer{Name: f.Name(), Blob: f, Whole: true}, nil
}

// makeImage builds an image of an OCI layout's layers into a file.
func makeImage(t testing.TB, im *testimage.Image, o build.Options) string {
	t.Helper()
	layers := &blobLayers{}
	for i := range im.Layers {
		layers.names = append(layers.names, im.Blob(i))
	}
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	tails, err := os.Create(filepath.Join(dir, "tails"))
	if err != nil {
		t.Fatal(err)
	}
	defer tails.Close()
	if _, err := build.Image(t.Context(), out, tails, layers, o); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

// spanSize makes several spans of small layers.
const spanSize = 256 << 10

func fileName(i int) string { return fmt.Sprint("file", i) }

// fileData is 3 MB that compress to about two thirds.
func fileData(i int) string {
	rng := rand.New(rand.NewPCG(uint64(i), 0))
	b := make([]byte, 3e6)
	for i := range b {
		b[i] = byte(32 + rng.IntN(48))
	}
	return string(b)
}

// A fixture is an image of three layers, one of each kind, and its index.
type fixture struct {
	im    *testimage.Image
	index string
	disk  []byte // what is to be served

	layers []seek.Layer
	starts []int64 // of the layers in disk
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	var layers []testimage.Layer
	for i, c := range []testimage.Compression{testimage.Plain, testimage.Gzip, testimage.ZstdFrames} {
		layers = append(layers, testimage.Layer{Compression: c, Write: func(b *testimage.Builder) {
			b.File(fileName(i), 0o644, fileData(i))
		}})
	}
	im := testimage.NewLayers(t, layers...)
	f := &fixture{im: im, index: makeImage(t, im, build.Options{Index: true, SpanSize: spanSize})}
	var err error
	if f.disk, err = os.ReadFile(f.index); err != nil {
		t.Fatal(err)
	}
	section, err := seek.Read(bytes.NewReader(f.disk), int64(len(f.disk)))
	if err != nil {
		t.Fatal(err)
	}
	f.layers = section.Layers
	for i := range im.Layers {
		name := filepath.Join(t.TempDir(), "tar")
		if err := im.Tar(i, name); err != nil {
			t.Fatal(err)
		}
		tar, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(tar)%512 != 0 {
			t.Fatalf("layer %d has %d bytes", i, len(tar))
		}
		f.starts = append(f.starts, int64(len(f.disk)))
		f.disk = append(f.disk, tar...)
	}
	return f
}

func (f *fixture) same(t *testing.T, got []byte) {
	t.Helper()
	if sha256.Sum256(got) != sha256.Sum256(f.disk) {
		t.Errorf("a disk of %d bytes, want the %d of cat index tar...", len(got), len(f.disk))
	}
}

// serveLayout serves a layout from a registry and returns the reference.
func serveLayout(t *testing.T, dir string) (*testregistry.Registry, string) {
	t.Helper()
	reg := testregistry.New()
	if err := reg.AddLayout("team/golang", dir); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	return reg, strings.TrimPrefix(srv.URL, "http://") + "/team/golang:latest"
}
