package build_test

import (
	"archive/tar"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

var (
	randomSeed   = flag.Uint64("random.seed", 1, "of the first image that TestRandomMerge makes")
	randomImages = flag.Int("random.images", 12, "how many images TestRandomMerge makes")
)

// A randomLayers writes layers of entries that get into each other's way: few
// names, of any type, at any depth, often below symbolic links.
type randomLayers struct {
	*rand.Rand
	// What stands where, as far as the paths' text tells: 'f' for files, 'd' for
	// directories, 'l' for symbolic links.
	kind  map[string]byte
	paths []string // of all that was written, in any layer
}

func (r *randomLayers) oneIn(n int) bool { return r.IntN(n) == 0 }

// known is a path that was written, of one of the kinds if there is one.
func (r *randomLayers) known(kinds string) string {
	for range 20 {
		if len(r.paths) == 0 {
			break
		}
		if p := r.paths[r.IntN(len(r.paths))]; strings.IndexByte(kinds, r.kind[p]) >= 0 {
			return p
		}
	}
	return ""
}

// path is a new one, or one that was there before, or one below that.
func (r *randomLayers) path() string {
	if r.oneIn(3) {
		if p := r.known("fdl"); p != "" {
			return p
		}
	}
	p := ""
	if !r.oneIn(4) {
		p = r.known("dl")
	}
	for range 1 + r.IntN(2) {
		p = filepath.Join(p, string("abcdef"[r.IntN(6)]))
	}
	for dir := filepath.Dir(p); dir != "."; dir = filepath.Dir(dir) {
		if r.kind[dir] == 'f' { // only seldom: umoci gives up there, and so do we
			return dir
		}
	}
	return p
}

// set notes what stands at a path now; 0: nothing.
func (r *randomLayers) set(p string, kind byte) {
	if old := r.kind[p]; old != kind {
		for q := range r.kind {
			if strings.HasPrefix(q, p+"/") {
				delete(r.kind, q)
			}
		}
	}
	r.kind[p] = kind
	r.paths = append(r.paths, p)
}

func (r *randomLayers) changes(xattrs bool) []testimage.Change {
	var c []testimage.Change
	if r.oneIn(3) {
		c = append(c, testimage.Owner(r.Uint32N(3), r.Uint32N(70000)))
	}
	if r.oneIn(3) {
		c = append(c, testimage.Mtime(time.Unix(int64(r.IntN(2e9)), int64(r.IntN(2))*1e8)))
	}
	if xattrs && r.oneIn(5) {
		c = append(c, testimage.Xattr("user."+string("xyz"[r.IntN(3)]), strings.Repeat("v", 1+r.IntN(200))))
	}
	return c
}

// odd writes a path as only few archives do.
func (r *randomLayers) odd(p string) string {
	switch r.IntN(12) {
	case 0:
		return "./" + p
	case 1:
		return "/" + p
	case 2:
		return "../" + p
	case 3:
		return "none/../" + p
	case 4:
		return strings.ReplaceAll(p, "/", "/.//")
	}
	return p
}

func (r *randomLayers) data() string {
	n := r.IntN(200)
	if r.oneIn(3) {
		n = r.IntN(20_000)
	}
	return strings.Repeat(string(rune('a'+r.IntN(26))), n)
}

func (r *randomLayers) write(b *testimage.Builder) {
	for range 1 + r.IntN(14) {
		p := r.path()
		name, mode := r.odd(p), int64(0o400|r.IntN(0o10000))
		switch k := r.IntN(20); {
		case k < 6:
			b.File(name, mode, r.data(), r.changes(true)...)
			r.set(p, 'f')
		case k < 11:
			// Not setgid: what is made below would inherit that in a directory
			// of a disk, but not here.
			b.Dir(name+"/", mode&^0o2000, r.changes(true)...)
			r.set(p, 'd')
		case k < 14:
			target := r.known("d")
			if target == "" || r.oneIn(8) {
				target = r.path()
			}
			if strings.HasPrefix(target+"/", p+"/") {
				continue // a loop
			}
			switch r.IntN(3) {
			case 0:
				target = "/" + target
			case 1:
				target = strings.Repeat("../", strings.Count(p, "/")) + target
			}
			b.Symlink(name, target, r.changes(false)...)
			r.set(p, 'l')
		case k < 16:
			if target := r.known("f"); target != "" {
				b.Link(name, r.odd(target))
				r.set(p, 'f')
			}
		case k < 17:
			b.Node(name, tar.TypeFifo, mode, 0, 0, r.changes(false)...)
			r.set(p, 'f')
		case k < 18:
			b.Node(name, tar.TypeChar, mode, 1, int64(1+r.IntN(300)))
			r.set(p, 'f')
		case k < 19:
			b.Opaque(p + "/")
		default:
			dir, base := filepath.Split(p)
			b.Whiteout(dir, base)
			r.set(p, 0)
		}
	}
}

// TestRandomMerge makes images at random, of entries that replace, hide, link
// and cross each other, and has umoci tell what is right. What umoci gives up
// at (links to what is gone, entries below files) says nothing.
func TestRandomMerge(t *testing.T) {
	interop.Root(t)
	umoci := interop.Tool(t, "umoci")
	compared := 0
	for k := range *randomImages {
		seed := *randomSeed + uint64(k)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			img := randomImage(t, seed)
			bundle := filepath.Join(t.TempDir(), "bundle")
			out, err := exec.Command(umoci, "unpack", "--image", img.Dir+":"+testimage.Tag, bundle).CombinedOutput()
			if err != nil {
				lines := strings.Split(strings.TrimSpace(string(out)), "\n")
				t.Skipf("umoci: %s", lines[len(lines)-1])
			}
			compareTrees(t, img, filepath.Join(bundle, "rootfs"))
			compared++
		})
	}
	if compared < *randomImages/4 {
		t.Errorf("umoci unpacked %d of %d images: too few to say anything", compared, *randomImages)
	}
}

func randomImage(t *testing.T, seed uint64) *testimage.Image {
	t.Helper()
	r := &randomLayers{Rand: rand.New(rand.NewPCG(seed, 0)), kind: make(map[string]byte)}
	var list []testimage.Layer
	for range 1 + r.IntN(4) {
		list = append(list, testimage.Layer{Write: r.write, Compression: testimage.Plain})
	}
	img, err := testimage.Build(t.TempDir(), list)
	if err != nil {
		t.Fatal(err)
	}
	return img
}
