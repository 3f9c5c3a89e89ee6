package main

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
	"github.com/layerpipe/layerpipe/pkg/ociarchive"
)

// TestSoak has random faults at every request. The archive that is fetched is
// right, or the command fails, says so, and leaves no archive that could be
// taken for whole. SOAK=1m makes it run that long.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(cmp.Or(os.Getenv("SOAK"), "1s"))
	if err != nil {
		t.Fatalf("$SOAK: %v", err)
	}
	im := testimage.NewLayers(t, append(testimage.Repeated(testimage.Gzip), testimage.Layer{Write: func(b *testimage.Builder) {
		b.File("large", 0o644, strings.Repeat("some text that is of no use to anybody\n", 100_000))
	}, Compression: testimage.Plain})...)
	reg := testregistry.New()
	if err := reg.AddLayout("team/app", im.Dir); err != nil {
		t.Fatal(err)
	}
	reg.Bearer(&testregistry.Tokens{})
	srv := httptest.NewServer(reg)
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/team/app"
	want := fetch(t, "--plain-http", ref)
	f := reg.Inject(&testregistry.Fault{Serve: testregistry.Mischief(8)})
	dir := t.TempDir()
	ways := [][]string{nil, {"-j1"}, {"-j8"}, {"-o", filepath.Join(dir, "out")}, {"--cache-dir", filepath.Join(dir, "cache")}}
	var (
		wg            sync.WaitGroup
		mu            sync.Mutex
		right, failed int
	)
	end := time.Now().Add(length)
	// On a slow machine it goes on until it has seen both outcomes.
	goOn := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Before(end) || right == 0 || failed == 0
	}
	for i := range 10 {
		args := append([]string{"--plain-http", "--retries", "3", ref}, ways[i%len(ways)]...)
		out := ""
		if i%len(ways) == 3 {
			out = filepath.Join(dir, "out-"+string(rune('a'+i)))
			args[len(args)-1] = out
		}
		wg.Go(func() {
			for goOn() {
				var stdout, stderr bytes.Buffer
				env := &cli.Env{Name: "oci-fetch", Args: args, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr}
				code := cli.Run(context.Background(), env, run)
				got := stdout.Bytes()
				if out != "" {
					got, _ = os.ReadFile(out)
					os.Remove(out)
				}
				mu.Lock()
				switch {
				case code == 0 && bytes.Equal(got, want):
					right++
				case code == 0 || bytes.Equal(got, want):
					t.Errorf("%q: exit code %d with %d bytes, %d are right: %s", args, code, len(got), len(want), stderr.String())
				case out != "" && len(got) > 0 || whole(got):
					t.Errorf("%q: exit code %d, and %d bytes that pass for an archive", args, code, len(got))
				case !strings.Contains(stderr.String(), "oci-fetch: "):
					t.Errorf("%q: exit code %d without a word", args, code)
				default:
					failed++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if list, err := os.ReadDir(filepath.Join(dir, "cache", "tmp")); err != nil || len(list) > 0 {
		t.Errorf("the cache has %v, %v", list, err)
	}
	t.Logf("%d archives right, %d failed, %d requests", right, failed, f.Delivered())
}

// whole reports whether a reader takes this for an archive.
func whole(archive []byte) bool {
	a, err := ociarchive.NewReader(struct{ io.Reader }{bytes.NewReader(archive)}, ociarchive.ReaderOptions{})
	if err != nil {
		return false
	}
	defer a.Close()
	for err == nil {
		var r io.Reader
		if _, r, err = a.NextLayer(); err == nil {
			_, err = io.Copy(io.Discard, r)
		}
	}
	return err == io.EOF
}
