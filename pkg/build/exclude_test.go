package build_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestExclude(t *testing.T) {
	tarball := builderTar(t, func(b *testimage.Builder) {
		for _, name := range []string{"a.o", "a.c", "src/a.o", "src/b/a.o", "src/b/c", "tmp/x", "var/tmp/y", "a-b", "[x]", "ü", "caf\xe9", "caf\xe9s", "café", "back\\slash", "*"} {
			b.File(name, 0o644, strings.Repeat(name, 2000))
		}
		b.Link("kept", "src/b/c")
		b.Symlink("lib", "src/b")
		b.File("lib/through", 0o644, "a link")
	})
	all := []string{"*", "[x]", "a-b", "a.c", "a.o", "back\\slash", "café", "caf\xe9", "caf\xe9s", "kept", "lib", "src", "src/a.o", "src/b", "src/b/a.o", "src/b/c", "src/b/through", "tmp", "tmp/x", "var", "var/tmp", "var/tmp/y", "ü"}
	tests := []struct {
		globs string // separated by blanks
		gone  []string
	}{
		{"none", nil},
		{"*.o", []string{"a.o", "src/a.o", "src/b/a.o"}},
		{"/*.o", []string{"a.o"}},
		{"./a.o", nil}, // "." is no name
		{"src/**.o", []string{"src/a.o", "src/b/a.o"}},
		{"**/a.o", []string{"a.o", "src/a.o", "src/b/a.o"}},
		{"src/**/a.o", []string{"src/a.o", "src/b/a.o"}},
		{"src/*/a.o", []string{"src/b/a.o"}},
		{"tmp", []string{"tmp", "tmp/x", "var/tmp", "var/tmp/y"}},
		{"/tmp", []string{"tmp", "tmp/x"}},
		{"var/tmp/", []string{"var/tmp", "var/tmp/y"}},
		{"tmp/*", []string{"tmp/x"}},
		{"src/b/c", []string{"src/b/c"}},
		{"lib/through", nil}, // it lies in src/b
		{"through", []string{"src/b/through"}},
		{"a?o a-b", []string{"a-b", "a.o", "src/a.o", "src/b/a.o"}},
		{"a.[co]", []string{"a.c", "a.o", "src/a.o", "src/b/a.o"}},
		{"/a.[!a-c]", []string{"a.o"}},
		{"[[]x]", []string{"[x]"}},
		{"[]x[]x[]]", []string{"[x]"}},
		{"\\[x\\]", []string{"[x]"}},
		{"\\*", []string{"*"}},
		{"back\\\\slash", []string{"back\\slash"}},
		{"?", []string{"*", "src/b/c", "tmp/x", "var/tmp/y", "src/b", "src/b/a.o", "src/b/through", "ü"}},
		{"[ä-ü]", []string{"ü"}},
		{"caf?", []string{"caf\xe9", "café"}},
		{"caf??", []string{"caf\xe9s"}},
		{"caf[!a-é]", []string{"caf\xe9"}},
		{"caf\xe9*", []string{"caf\xe9", "caf\xe9s"}},
		{"caf[\x80-\xff]", []string{"caf\xe9"}},
		{"caf\\é", []string{"café"}},
		{"*[^[:alnum:]]*", []string{"*", "[x]", "a-b", "a.c", "a.o", "back\\slash", "caf\xe9", "caf\xe9s", "café", "src/a.o", "src/b/a.o", "ü"}},
		{"[[:digit:]x]", []string{"tmp/x"}},
		{"*", all},
	}
	for _, tt := range tests {
		t.Run(tt.globs, func(t *testing.T) {
			out, _ := buildTars(t, build.Options{Exclude: strings.Fields(tt.globs)}, tarball)
			got := pathsOf(t, out)
			want := slices.DeleteFunc(slices.Clone(all), func(p string) bool { return slices.Contains(tt.gone, p) })
			if !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
	for _, bad := range []string{"", "/", "[a", "a\\", "[z-a]", "[", "[!", "[[:letter:]]", "[[:alpha:]"} {
		_, err := build.Image(t.Context(), nil, nil, tarLayers(), build.Options{Exclude: []string{bad}})
		if !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func pathsOf(t *testing.T, f *os.File) (paths []string) {
	t.Helper()
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if p != "." {
			paths = append(paths, filepath.ToSlash(p))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	return paths
}

// TestExcludeIsNotStored: what is left out takes no room.
func TestExcludeIsNotStored(t *testing.T) {
	big := strings.Repeat("big", 1<<20)
	with := builderTar(t, func(b *testimage.Builder) { b.File("big", 0o644, big); b.File("small", 0o644, "small") })
	without := builderTar(t, func(b *testimage.Builder) { b.File("small", 0o644, "small") })
	_, got := buildTars(t, build.Options{Exclude: []string{"big"}}, with)
	_, want := buildTars(t, build.Options{}, without)
	if got.Size != want.Size {
		t.Errorf("%d bytes, want %d", got.Size, want.Size)
	}
}
