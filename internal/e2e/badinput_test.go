package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// TestBadInput gives each command what it cannot use: one line on stderr that
// begins with the command's name, the right exit code, no output.
func TestBadInput(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	reg, locked := testregistry.New(), testregistry.New()
	for _, r := range []*testregistry.Registry{reg, locked} {
		if err := r.AddLayout("app", im.Dir); err != nil {
			t.Fatal(err)
		}
	}
	locked.Basic("user", "secret-word")
	open, shut := serveRegistry(t, reg), serveRegistry(t, locked)

	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, noise(100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "good.erofs")
	must(t, []string{tool("oci-fetch"), im.Ref()}, whole(good))
	idx := filepath.Join(dir, "good.index.erofs")
	must(t, []string{tool("oci-fetch"), im.Ref()}, index(idx))
	shortIndex := filepath.Join(dir, "short.index.erofs")
	data, err := os.ReadFile(idx)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shortIndex, data[:len(data)-512], 0o644); err != nil {
		t.Fatal(err)
	}
	other := testimage.NewLayers(t, testimage.Repeated(testimage.Plain)...)
	wrong := "sha256:" + strings.Repeat("0", 64)
	missing := filepath.Join(dir, "missing")
	socket := "unix:" + filepath.Join(dir, "s")

	const failed, usage, unauthorized, notFound, integrity = 1, 2, 3, 4, 5
	tests := []struct {
		name string
		code int
		args []string // OUT stands for a file in an empty directory
	}{
		{"no arguments", usage, []string{"tar2erofs"}},
		{"unknown flag", usage, []string{"tar2erofs", "--no-such-flag", "OUT"}},
		{"no such input", notFound, []string{"tar2erofs", "OUT", missing}},
		{"garbage", failed, []string{"tar2erofs", "OUT", garbage}},
		{"garbage, index", failed, []string{"tar2erofs", "-i", "OUT", garbage}},
		{"empty", failed, []string{"tar2erofs", "OUT", empty}},
		{"wrong digest", integrity, []string{"tar2erofs", "--digest", wrong, "OUT", im.Blob(0)}},
		{"malformed digest", usage, []string{"tar2erofs", "--digest", "sha256:xyz", "OUT", im.Blob(0)}},
		{"odd block size", usage, []string{"tar2erofs", "-b", "1000", "OUT", im.Blob(0)}},
		{"a directory as OUT", failed, []string{"tar2erofs", dir, im.Blob(0)}},

		{"no arguments", usage, []string{"oci-fetch"}},
		{"malformed reference", usage, []string{"oci-fetch", "Golang"}},
		{"no such layout", notFound, []string{"oci-fetch", "oci:" + missing, "-o", "OUT"}},
		{"not a layout", failed, []string{"oci-fetch", "oci-archive:" + garbage, "-o", "OUT"}},
		{"no such tag", notFound, []string{"oci-fetch", "--plain-http", open + "/app:none", "-o", "OUT"}},
		{"no such repository", notFound, []string{"oci-fetch", "--plain-http", open + "/none", "-o", "OUT"}},
		{"no such layer", notFound, []string{"oci-fetch", "--layer", "7", im.Ref(), "-o", "OUT"}},
		{"no such blob", notFound, []string{"oci-fetch", "--blob", wrong, im.Ref(), "-o", "OUT"}},
		{"malformed platform", usage, []string{"oci-fetch", "--platform", "//", im.Ref(), "-o", "OUT"}},
		{"no credentials", unauthorized, []string{"oci-fetch", "--plain-http", shut + "/app", "-o", "OUT"}},

		{"garbage", failed, []string{"gzindex", garbage}},
		{"empty", failed, []string{"gzindex", empty}},
		{"no such input", notFound, []string{"gzindex", missing}},
		{"unknown flag", usage, []string{"gzindex", "--no-such-flag"}},

		{"no arguments", usage, []string{"erofs-nbd"}},
		{"garbage", failed, []string{"erofs-nbd", "--listen", socket, garbage}},
		{"no such image", notFound, []string{"erofs-nbd", "--listen", socket, missing}},
		{"index without blobs", usage, []string{"erofs-nbd", "--listen", socket, "--index", idx}},
		{"index without its last block", failed, []string{"erofs-nbd", "--listen", socket, "--index", shortIndex, "--blob", im.Ref()}},
		{"another image's blobs", notFound, []string{"erofs-nbd", "--listen", socket, "--index", idx, "--blob", other.Ref()}},
		{"malformed address", usage, []string{"erofs-nbd", "--listen", "carrier-pigeon:coop", good}},

		{"no arguments", usage, []string{"erofs-dump"}},
		{"garbage", failed, []string{"erofs-dump", garbage}},
		{"no such image", notFound, []string{"erofs-dump", missing}},
		{"no such path", notFound, []string{"erofs-dump", "--cat", good, "/no/such/path"}},
		{"cat of a directory", usage, []string{"erofs-dump", "--cat", good, "/dir"}},
	}
	for _, tt := range tests {
		t.Run(tt.args[0]+", "+tt.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			args := []string{tool(tt.args[0])}
			for _, a := range tt.args[1:] {
				args = append(args, strings.ReplaceAll(a, "OUT", out))
			}
			stdout, ends := pipe(t, nil, args)
			code, stderr := ends[0].code, ends[0].stderr
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.HasPrefix(stderr, tt.args[0]+": ") || strings.Contains(stderr, "\n") {
				t.Errorf("not one line that begins with the command's name: %q", stderr)
			}
			if strings.Contains(stderr, "secret-word") {
				t.Errorf("a credential in %q", stderr)
			}
			if len(stdout) > 0 {
				t.Errorf("%d bytes on stdout: %.60q", len(stdout), stdout)
			}
			absent(t, out)
		})
	}
}

// TestClosedPipe ends quietly when the reader of the output goes, as head does.
func TestClosedPipe(t *testing.T) {
	head := interop.Tool(t, "head")
	im := testimage.New(t, testimage.Small)
	out := filepath.Join(t.TempDir(), "image")
	must(t, []string{tool("oci-fetch"), im.Ref()}, whole(out))
	for name, command := range map[string][]string{
		"oci-fetch":  {tool("oci-fetch"), im.Ref()},
		"erofs-dump": {tool("erofs-dump"), "--tar", out},
		"tar2erofs":  whole("-", im.Blob(1)),
	} {
		stdout, ends := pipe(t, nil, command, []string{head, "-c", "1000"})
		if ends[0].code != 141 || ends[0].stderr != "" || len(stdout) != 1000 {
			t.Errorf("%s | head -c 1000: exit code %d, want 141; %d bytes; stderr %q", name, ends[0].code, len(stdout), ends[0].stderr)
		}
	}
}

// TestSameBytes wants the same image of the same input, whichever way it came.
func TestSameBytes(t *testing.T) {
	tee := interop.Tool(t, "tee")
	im := testimage.New(t, testimage.Small)
	reg := testregistry.New()
	if err := reg.AddLayout("app", im.Dir); err != nil {
		t.Fatal(err)
	}
	ref := serveRegistry(t, reg) + "/app"
	archive := filepath.Join(t.TempDir(), "archive")
	must(t, []string{tool("oci-fetch"), im.Ref(), "-o", archive})
	for name, build := range map[string]func(string, ...string) []string{"whole": whole, "index": index} {
		var first []byte
		for way, commands := range map[string]func(out string) [][]string{
			"registry":     func(out string) [][]string { return [][]string{fetch(ref), build(out)} },
			"layout":       func(out string) [][]string { return [][]string{{tool("oci-fetch"), im.Ref()}, build(out)} },
			"archive file": func(out string) [][]string { return [][]string{build(out, archive)} },
			"stdout":       func(out string) [][]string { return [][]string{build("-", archive), {tee, out}} },
		} {
			out := filepath.Join(t.TempDir(), "out")
			must(t, commands(out)...)
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = data
			}
			if !bytes.Equal(first, data) {
				t.Errorf("%s image by way of %s differs from the others", name, way)
			}
		}
	}
}
