package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

// TestSizeAsMkfs: no image is larger than what mkfs.erofs makes of the same tar,
// and no index than its own.
func TestSizeAsMkfs(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	rng := rand.New(rand.NewPCG(7, 7))
	text := func(n int) string { return strings.Repeat("t", n) }
	for _, tt := range []struct {
		name  string
		write func(b *testimage.Builder)
	}{
		{"toolchain", func(b *testimage.Builder) { testimage.Toolchain(b, []string{"VERSION", "src/net", "src/archive"}) }},
		{"many small files", func(b *testimage.Builder) {
			for k := range 20_000 {
				b.File(fmt.Sprintf("d%d/%d", k/500, k), 0o644, text(rng.IntN(600)))
			}
		}},
		{"all sizes", func(b *testimage.Builder) {
			for k := range 5000 {
				b.File(fmt.Sprintf("f%d", k), 0o644, text(3*k))
			}
		}},
		{"all times differ", func(b *testimage.Builder) {
			for k := range 5000 {
				b.File(fmt.Sprint("f", k), 0o644, text(k), testimage.Mtime(time.Unix(int64(1e9+k), int64(k))))
			}
		}},
		{"xattrs in common", func(b *testimage.Builder) {
			for k := range 3000 {
				b.File(fmt.Sprint("f", k), 0o644, text(k%4100), testimage.Xattr("security.selinux", fmt.Sprintf("system_u:object_r:type_%d_t:s0\x00", k%7)))
			}
		}},
		{"xattrs of their own", func(b *testimage.Builder) {
			for k := range 3000 {
				b.File(fmt.Sprint("f", k), 0o644, text(k%5000), testimage.Xattr("user.checksum", fmt.Sprintf("%064d", k)))
			}
		}},
		{"large ids, links, symlinks", func(b *testimage.Builder) {
			for k := range 1000 {
				name := fmt.Sprint("f", k)
				b.File(name, 0o644, text(k*9), testimage.Owner(uint32(100_000+k), 100_000))
				b.Link("l"+name, name)
				b.Symlink("s"+name, text(k+1))
				b.Dir(fmt.Sprintf("d%d/", k), 0o755)
			}
		}},
		{"one file", func(b *testimage.Builder) { b.File("f", 0o644, "f") }},
		{"nothing", func(b *testimage.Builder) { b.Dir("./", 0o755) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var buf bytes.Buffer
			b := testimage.NewBuilder(&buf)
			tt.write(b)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			tarball := filepath.Join(dir, "a.tar")
			if err := os.WriteFile(tarball, buf.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			size := func(name string) int64 {
				st, err := os.Stat(name)
				if err != nil {
					t.Fatal(err)
				}
				return st.Size()
			}
			for _, mode := range []struct{ theirs, ours string }{{"--tar=f", "-v"}, {"--tar=f -Enoinline_data", "--no-inline"}, {"--tar=f -b512", "-b 512"}, {"--tar=i", "-i"}} {
				theirs, ours := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
				os.Remove(theirs)
				interop.Run(t, append(append(mkfs, "--quiet"), append(strings.Fields(mode.theirs), theirs, tarball)...)...)
				tar2erofs(t, nil, append(strings.Fields(mode.ours), ours, tarball)...)
				got, want := size(ours), size(theirs)
				t.Logf("%s: %d bytes, mkfs.erofs %s: %d; %.3f", mode.ours, got, mode.theirs, want, float64(got)/float64(want))
				if mode.ours == "-i" {
					// The seek section is not in its place but beside it: the
					// digests of the tar and a footer.
					want += 1024 + 512 + size(tarball)>>20*32
				}
				if got > want {
					t.Errorf("%s: %d bytes, mkfs.erofs %s: %d", mode.ours, got, mode.theirs, want)
				}
			}
		})
	}
}

// TestSmallSizeAsMkfs: of small trees each block counts, and what stands in the
// superblock's.
func TestSmallSizeAsMkfs(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	dir := t.TempDir()
	tarball, theirs, ours := filepath.Join(dir, "a.tar"), filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed+240, 3)) // 278 needs its root outside of the superblock's block
		any := func(n ...int) int { return n[rng.IntN(len(n))] }
		var buf bytes.Buffer
		b := testimage.NewBuilder(&buf)
		b.Dir("./", 0o755)
		dirs := []string{""}
		for k := range any(1, 3, 10, 40) {
			name := fmt.Sprint(dirs[rng.IntN(len(dirs))], strings.Repeat("n", any(3, 8, 60, 250)), k)
			owner, mtime := testimage.Owner(uint32(any(0, 0, 70_000)), 0), testimage.Mtime(time.Unix(int64(any(0, 0, 1e9+k)), 0))
			switch rng.IntN(5) {
			case 0:
				b.Dir(name+"/", 0o755, owner, mtime)
				dirs = append(dirs, name+"/")
			case 1:
				b.Symlink(name, strings.Repeat("t", any(1, 100, 500, 1000, 3000, 4000, 4095)), owner, mtime)
			default:
				b.File(name, 0o644, strings.Repeat("c", any(0, 1, 100, 400, 1000, 3000, 4000, 4096, 9000)), owner, mtime)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(tarball, buf.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		block := fmt.Sprint("-b", 512<<rng.IntN(4))
		os.Remove(theirs)
		interop.Run(t, append(append(mkfs, "--quiet", "--tar=f", block), theirs, tarball)...)
		tar2erofs(t, nil, block, ours, tarball)
		want, err := os.Stat(theirs)
		if err != nil {
			t.Fatal(err)
		}
		image, err := os.ReadFile(ours)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(image)) > want.Size() {
			t.Errorf("seed %d, %s: %d bytes, mkfs.erofs %d", seed, block, len(image), want.Size())
		}
		fsys, err := erofs.Open(bytes.NewReader(image))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fsys.Check(t.Context(), erofs.CheckOptions{}, func(p erofs.Problem) { t.Errorf("seed %d, %s: %v", seed, block, p) }); err != nil {
			t.Error(err)
		}
	}
}
