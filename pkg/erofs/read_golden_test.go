package erofs_test

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// The golden images are tiny ones of the tree below, made by
//
//	scripts/peers && go test ./pkg/erofs -run TestGolden -update
//
// which runs mkfs.erofs 1.9.4 with these options. They let every machine test
// the layouts that our own writer does not make, and they are the seeds of the
// fuzz target.
var golden = []struct{ name, args string }{
	{"chunk", "--chunksize=512"},
	{"lz4-legacy", "-zlz4 -Elegacy-compress"},
	{"lz4", "-zlz4 -C2048 -Eztailpacking"},
	{"lzma", "-zlzma -C2048 -Efragments"},
	{"deflate", "-zdeflate -C1024 -Ededupe"},
	{"zstd", "-zzstd -C2048 -Eall-fragments"},
	{"48bit", "-E48bit -zdeflate -C2048 -Ededupe,fragments"},
	{"metabox", "-E48bit,dot-omitted -zlz4 -C2048 -m512:zstd --xattr-prefix=user.long."},
}

var update = flag.Bool("update", false, "make the golden images anew")

// goldenFiles are the regular files of the golden images.
func goldenFiles() map[string][]byte {
	long := text(9000, 3)
	return map[string][]byte{
		"long":        long,
		"dir/again":   append([]byte("before "), long[:5000]...),
		"dir/noise":   noise(900, 1),
		"dir/short":   text(300, 4),
		"dir/sub/one": []byte("1"),
		"empty":       {},
		"zeros":       make([]byte, 3000),
	}
}

func goldenFile(name string) string { return filepath.Join("testdata", "golden", name+".erofs") }

func updateGolden(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	dir := t.TempDir()
	for name, data := range goldenFiles() {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("dir/short", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(goldenFile("x")), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, g := range golden {
		args := append(strings.Fields(g.args), "-b512", "--quiet", "-T1700000000", "--all-time", "--all-root",
			"-U00000000-0000-0000-0000-000000000000", goldenFile(g.name), dir)
		os.Remove(goldenFile(g.name))
		interop.Run(t, append(mkfs, args...)...)
	}
}

// TestGolden reads every layout without root and without foreign tools.
func TestGolden(t *testing.T) {
	if *update {
		updateGolden(t)
	}
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			img, err := os.ReadFile(goldenFile(g.name))
			if err != nil {
				t.Fatal(err)
			}
			fsys := openImage(t, img)
			want := goldenFiles()
			err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				b, err := fsys.ReadFile(p)
				if !bytes.Equal(b, want[p]) {
					t.Errorf("%s: %d bytes, want %d: %v", p, len(b), len(want[p]), err)
				}
				delete(want, p)
				return nil
			})
			if err != nil || len(want) > 0 {
				t.Errorf("%d files are missing: %v", len(want), err)
			}
			if b, err := fsys.ReadFile("link"); err != nil || !bytes.Equal(b, goldenFiles()["dir/short"]) {
				t.Errorf("link: %q, %v", b, err)
			}
			fsys.Check(t.Context(), erofs.CheckOptions{Data: true}, func(p erofs.Problem) { t.Errorf("check: %v", p) })
		})
	}
}

// mapHeader is the offset of a compressed file's map header.
func mapHeader(st *erofs.Stat) int64 {
	size := int64(ondisk.InodeCompactSize)
	if st.Extended {
		size = ondisk.InodeExtendedSize
	}
	return (st.Offset + size + int64(st.XattrSize) + 7) &^ 7
}

// TestHead2 turns the heads of a file's clusters into heads of the second
// kind, which have an algorithm of their own: mkfs.erofs 1.9.4 makes none.
func TestHead2(t *testing.T) {
	img, err := os.ReadFile(goldenFile("lz4-legacy"))
	if err != nil {
		t.Fatal(err)
	}
	fsys := openImage(t, img)
	st := statOf(t, fsys, "long")
	header := mapHeader(st)
	img[header+6] = ondisk.AlgLZ4<<4 | ondisk.AlgZstd // which the image does not have
	heads := 0
	for i := int64(0); i < (st.Size+511)/512; i++ {
		at := header + ondisk.MapHeaderSize + 8 + i*ondisk.LClusterIndexSize
		if img[at]&ondisk.LClusterTypeMask == ondisk.LClusterHead1 {
			img[at] |= ondisk.LClusterHead2
			heads++
		}
	}
	if heads == 0 {
		t.Fatal("the file has no heads to change")
	}
	b, err := openImage(t, img).ReadFile("long")
	if err != nil || !bytes.Equal(b, goldenFiles()["long"]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
