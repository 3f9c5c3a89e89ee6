// Package policy holds the invariants of ARCHITECTURE.md against the sources
// themselves: which room may import what, and what no committed file says. It
// parses files in process; a test that ran the go command would stay cached
// after the sources it looked at had changed.
package policy

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/layerpipe/layerpipe"

// An imp is one import of one file.
type imp struct {
	file string // slash-separated, relative to the root
	path string
	test bool
}

func (i imp) String() string { return fmt.Sprintf("%s imports %s", i.file, i.path) }

// in reports whether the importing file lies in one of the directories, or
// below it.
func (i imp) in(dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(i.file, d+"/") })
}

// of reports whether the import is one of the packages, or below it.
func (i imp) of(paths ...string) bool {
	return slices.ContainsFunc(paths, func(p string) bool { return i.path == p || strings.HasPrefix(i.path, p+"/") })
}

// standard reports whether the import is of the standard library.
func (i imp) standard() bool {
	first, _, _ := strings.Cut(i.path, "/")
	return !strings.Contains(first, ".")
}

// rules are the invariants over imports; each reports whether an import breaks
// it.
var rules = []struct {
	name   string
	breaks func(imp) bool
}{
	{"only pkg/registry speaks HTTP", func(i imp) bool {
		return i.of("net/http") && !i.test && !i.in("pkg/registry", "internal/testregistry", "internal/demo")
	}},
	{"pkg knows no flags, terminals or progress bars", func(i imp) bool {
		return i.in("pkg") && i.of("flag", "github.com/alecthomas/kong", "golang.org/x/term", "github.com/schollz/progressbar") && !i.test
	}},
	{"pkg does not depend on the commands, and is not built on test helpers", func(i imp) bool {
		return i.in("pkg") && i.of(module+"/cmd", module+"/internal") && !i.test
	}},
	{"the formats' rooms import only the standard library and pkg/fault", func(i imp) bool {
		return i.in("pkg/erofs/ondisk", "pkg/inflate", "pkg/zinfo", "pkg/nbd") && !i.test && !i.standard() &&
			!i.of(module+"/pkg/fault", module+"/pkg/inflate", module+"/pkg/zinfo")
	}},
	{"pkg/inflate imports no other room of the project", func(i imp) bool {
		return i.in("pkg/inflate") && !i.test && i.of(module) && !i.of(module+"/pkg/fault")
	}},
	{"pkg/inflate is what inflates", func(i imp) bool {
		return i.in("cmd", "pkg") && !i.test && i.of("compress/flate", "compress/gzip", "compress/zlib",
			"github.com/klauspost/compress/flate", "github.com/klauspost/compress/gzip", "github.com/klauspost/compress/zlib")
	}},
	{"no cgo", func(i imp) bool {
		return i.in("cmd", "pkg", "internal") && i.of("C")
	}},
	{"commands are thin: they do not import each other", func(i imp) bool {
		return i.in("cmd") && i.of(module+"/cmd") && !i.of(module+"/cmd/internal") && !i.test
	}},
}

// Imports checks the Go files under root against the rules and says which
// break one.
func Imports(root string) ([]string, error) {
	var broken []string
	files := 0
	err := walk(root, func(name string) error {
		if path.Ext(name) != ".go" {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, filepath.FromSlash(name)), nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			i := imp{file: name, path: p, test: strings.HasSuffix(name, "_test.go")}
			for _, r := range rules {
				if r.breaks(i) {
					broken = append(broken, fmt.Sprintf("%s: %s", r.name, i))
				}
			}
		}
		return nil
	})
	if err == nil && files == 0 {
		err = fmt.Errorf("no Go files under %s", root)
	}
	return broken, err
}

// forbidden is what no committed file may say: paths of one machine, and the
// hosts of package mirrors and module proxies, which each user's own tools are
// set up with. The patterns are broken up so as not to find themselves.
var forbidden = []*regexp.Regexp{
	regexp.MustCompile(`/wor` + `k/(main|shared|\.library)`),
	regexp.MustCompile(`/tm` + `p/lp\b`),
	regexp.MustCompile(`/hom` + `e/[a-z]+/`),
	regexp.MustCompile(`(deb|security|snapshot|ftp|archive)[a-z.]*\.(debi` + `an|ubun` + `tu)\.(org|com)`),
	regexp.MustCompile(`(proxy|sum)\.gola` + `ng\.org`),
	regexp.MustCompile(`registry\.npm` + `js\.org`),
}

// Words checks every text file under root for what no committed file may say.
func Words(root string) ([]string, error) {
	var found []string
	err := walk(root, func(name string) error {
		data, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		for n, line := range strings.Split(string(data), "\n") {
			for _, re := range forbidden {
				if m := re.FindString(line); m != "" {
					found = append(found, fmt.Sprintf("%s:%d says %q", name, n+1, m))
				}
			}
		}
		return nil
	})
	return found, err
}

// walk calls f with each regular file that belongs to the project: not those
// that .gitignore leaves out.
func walk(root string, f func(name string) error) error {
	ignored := []string{".git", ".peers", ".cache", "bin"}
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		switch {
		case d.IsDir() && slices.Contains(ignored, name):
			return fs.SkipDir
		case !d.Type().IsRegular(), strings.HasSuffix(name, ".test"), strings.HasSuffix(name, ".prof"):
			return nil
		}
		return f(name)
	})
}
