package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
)

func TestImports(t *testing.T) {
	broken, err := Imports(interop.RepoRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range broken {
		t.Error(b)
	}
}

func TestWords(t *testing.T) {
	found, err := Words(interop.RepoRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
}

// TestImportsCanFail feeds each rule a file that breaks it and one that does
// not.
func TestImportsCanFail(t *testing.T) {
	tests := []struct {
		file, imports string
		rule          string // that is broken; empty for none
	}{
		{"pkg/layer/a.go", "net/http", "only pkg/registry"},
		{"pkg/layer/a.go", "net/http/httptrace", "only pkg/registry"},
		{"cmd/oci-fetch/main.go", "net/http", "only pkg/registry"},
		{"pkg/layer/a_test.go", "net/http/httptest", ""},
		{"pkg/registry/a.go", "net/http", ""},
		{"pkg/registryx/a.go", "net/http", "only pkg/registry"},
		{"pkg/nbd/a.go", "github.com/alecthomas/kong", "pkg knows no flags"},
		{"pkg/layer/a.go", "golang.org/x/term", "pkg knows no flags"},
		{"pkg/layer/a.go", "github.com/schollz/progressbar/v3", "pkg knows no flags"},
		{"pkg/layer/a.go", "flag", "pkg knows no flags"},
		{"cmd/x/main.go", "github.com/schollz/progressbar/v3", ""},
		{"pkg/layer/a.go", module + "/cmd/internal/cli", "pkg does not depend"},
		{"pkg/layer/a.go", module + "/internal/testimage", "pkg does not depend"},
		{"pkg/erofs/ondisk/a.go", "golang.org/x/sys/unix", "the formats' rooms"},
		{"pkg/inflate/a.go", "github.com/klauspost/compress/flate", "the formats' rooms"},
		{"pkg/zinfo/a.go", module + "/pkg/layer", "the formats' rooms"},
		{"pkg/nbd/a.go", module + "/pkg/blockmap", "the formats' rooms"},
		{"pkg/zinfo/a.go", module + "/pkg/inflate", ""},
		{"pkg/nbd/a.go", module + "/pkg/fault", ""},
		{"pkg/inflate/a_test.go", "github.com/klauspost/compress/flate", ""},
		{"pkg/inflate/a.go", module + "/pkg/zinfo", "pkg/inflate imports no other"},
		{"pkg/layer/a.go", "compress/gzip", "pkg/inflate is what inflates"},
		{"cmd/gzindex/a.go", "github.com/klauspost/compress/flate", "pkg/inflate is what inflates"},
		{"pkg/layer/a_test.go", "compress/gzip", ""},
		{"pkg/layer/a.go", "github.com/klauspost/compress/zstd", ""},
		{"pkg/erofs/a.go", "C", "no cgo"},
		{"cmd/gzindex/a.go", "C", "no cgo"},
		{"bench/libdeflate/a.go", "C", ""}, // what we are measured against
		{"cmd/tar2erofs/a.go", module + "/cmd/gzindex", "commands are thin"},
		{"cmd/tar2erofs/a.go", module + "/cmd/internal/cli", ""},
	}
	for _, tt := range tests {
		root := t.TempDir()
		name := filepath.Join(root, filepath.FromSlash(tt.file))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("package p\n\nimport _ \""+tt.imports+"\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		broken, err := Imports(root)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(broken, "\n")
		if (tt.rule == "") != (got == "") || !strings.Contains(got, tt.rule) {
			t.Errorf("%s importing %s: got %q, want rule %q", tt.file, tt.imports, got, tt.rule)
		}
	}
	if _, err := Imports(t.TempDir()); err == nil {
		t.Error("a tree without Go files passed")
	}
}

func TestWordsCanFail(t *testing.T) {
	for _, bad := range []string{"/wor" + "k/main/x", "http://deb.debi" + "an.org/debian", "https://proxy.gola" + "ng.org", "/hom" + "e/jo/src"} {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "file"), []byte("one\n"+bad+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		found, err := Words(root)
		if err != nil || len(found) != 1 || !strings.HasPrefix(found[0], "file:2 ") {
			t.Errorf("%s: found %q, %v", bad, found, err)
		}
	}
}
