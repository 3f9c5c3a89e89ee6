package e2e

import (
	"path/filepath"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestSeekFile serves the index that mkfs.erofs makes of a tar, in which there
// is nothing about how to read the layer, by what gzindex --seek makes of the
// layer as it is stored. Unlike with a zinfo, what is read is verified, and a
// layer can be compressed with zstd, or not at all.
func TestSeekFile(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	want := unpacked(t, oneLayer(t, testimage.Plain)) // umoci does not take zstd
	for name, c := range map[string]testimage.Compression{
		"gzip":        testimage.Gzip,
		"zstd frames": testimage.ZstdFrames,
		"plain":       testimage.Plain,
	} {
		t.Run(name, func(t *testing.T) {
			im := oneLayer(t, c)
			dir := t.TempDir()
			idx, seek, tar := filepath.Join(dir, "index"), filepath.Join(dir, "seek"), filepath.Join(dir, "tar")
			if err := im.Tar(0, tar); err != nil {
				t.Fatal(err)
			}
			interop.Run(t, append(mkfs, "--quiet", "--tar=i", idx, tar)...)
			must(t, []string{tool("gzindex"), "--seek", "-o", seek, im.Blob(0)})
			for _, blob := range [][]string{
				{"--blob", im.Blob(0)},
				{"--blob", im.Ref(), "--layer", "0"},
			} {
				args := append([]string{"--index", idx, "--seek", seek, "--require-verified"}, blob...)
				equalMounted(t, interop.NbdFuse(t, serve(t, args...).uri), want)
			}
		})
	}
}
