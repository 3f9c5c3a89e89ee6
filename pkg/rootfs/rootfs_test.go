package rootfs

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// parse reads an entry in the notation of these tests:
//
//	path          regular file        path/         directory
//	path -> to    symbolic link       path => to    hard link
//	path @0755 #5 mode, mtime
func parse(t *testing.T, text string) *tarstream.Entry {
	t.Helper()
	e := &tarstream.Entry{Type: tarstream.TypeRegular, Mode: 0o644}
	fields := strings.Fields(text)
	e.Name = fields[0]
	if strings.HasSuffix(e.Name, "/") {
		e.Type, e.Mode = tarstream.TypeDir, 0o755
	}
	for i := 1; i < len(fields); i++ {
		switch f := fields[i]; {
		case f == "->" || f == "=>":
			e.Type = tarstream.TypeSymlink
			if f == "=>" {
				e.Type = tarstream.TypeLink
			}
			i++
			e.Linkname = fields[i]
		case f[0] == '@':
			fmt.Sscanf(f[1:], "%o", &e.Mode)
		case f[0] == '#':
			fmt.Sscanf(f[1:], "%d", &e.Mtime)
		}
	}
	return e
}

// apply builds a tree of layers in that notation, an entry a line.
func apply(t *testing.T, o Options, layers ...string) (*Tree, error) {
	t.Helper()
	tree := New(o)
	for _, l := range layers {
		if err := tree.BeginLayer(); err != nil {
			return nil, err
		}
		for line := range strings.Lines(l) {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			if _, err := tree.Apply(parse(t, line)); err != nil {
				return nil, err
			}
		}
		if err := tree.EndLayer(); err != nil {
			return nil, err
		}
	}
	return tree, nil
}

// list writes a tree's inodes, a line each. Directories that were not listed
// have mode 0755, files a link count where it is not 1.
func list(tree *Tree) string {
	var b strings.Builder
	for path, i := range tree.All() {
		if path == "" {
			continue
		}
		switch {
		case i.IsDir():
			fmt.Fprintf(&b, "%s/ %o", path, i.Mode&0o7777)
		case i.IsSymlink():
			fmt.Fprintf(&b, "%s -> %s", path, i.Target())
		case i.Mode&ModeType == ModeChar && i.Rdev == 0:
			fmt.Fprintf(&b, "%s whiteout", path)
		default:
			fmt.Fprintf(&b, "%s %o", path, i.Mode&0o7777)
		}
		if !i.IsDir() && i.Nlink != 1 {
			fmt.Fprintf(&b, " nlink %d", i.Nlink)
		}
		if i.Xattrs != nil {
			for _, x := range i.Xattrs.List {
				fmt.Fprintf(&b, " %s=%s", x.Name, x.Value)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestLayers(t *testing.T) {
	overlay := Options{Whiteouts: OverlayWhiteouts}
	tests := []struct {
		name   string
		opts   Options
		layers []string
		want   []string
	}{
		{"implied directories", Options{}, []string{"a/b/c"}, []string{"a/ 755", "a/b/ 755", "a/b/c 644"}},
		{"upper omits a parent", Options{}, []string{"a/ @1777", "a/b"}, []string{"a/ 1777", "a/b 644"}},
		{"paths climb no higher than the root", Options{}, []string{"../../a\n/b\nc/../../d\n./e//f"}, []string{"a 644", "b 644", "d 644", "e/ 755", "e/f 644"}},
		{"whiteout", Options{}, []string{"a/x\na/y", "a/.wh.x"}, []string{"a/ 755", "a/y 644"}},
		{"whiteout of what is not there", Options{}, []string{"a", ".wh.b\nno/dir/.wh.c\na/.wh.d"}, []string{"a 644"}},
		{"whiteout does not touch its own layer", Options{}, []string{"a @600", "a\n.wh.a"}, []string{"a 644"}},
		{"whiteout keeps the layer's own part of a directory", Options{}, []string{"d/old\nd/s/old", "d/s/new\n.wh.d"}, []string{"d/ 755", "d/s/ 755", "d/s/new 644"}},
		{"opaque", Options{}, []string{"d/old\nd/s/old", "d/s/new\nd/.wh..wh..opq\nd/new"}, []string{"d/ 755", "d/new 644", "d/s/ 755", "d/s/new 644"}},
		{"opaque root", Options{}, []string{"a/b\nc", ".wh..wh..opq\nd"}, []string{"d 644"}},
		{"aufs's own names", Options{}, []string{".wh..wh.aufs\n.wh..wh.plnk/\n.wh..wh.plnk/1.2\n.wh..wh.orph/\na"}, []string{"a 644"}},
		{"whiteouts kept", Options{Whiteouts: KeepWhiteouts}, []string{".wh.a\nd/.wh..wh..opq"}, []string{".wh.a 644", "d/ 755", "d/.wh..wh..opq 644"}},
		{"overlay: whiteout", overlay, []string{".wh.a\nd/.wh.b"}, []string{"a whiteout", "d/ 755", "d/b whiteout"}},
		{"overlay: opaque, and the directory listed behind it", overlay, []string{"d/.wh..wh..opq\nd/ @700"}, []string{"d/ 700 trusted.overlay.opaque=y"}},
		{"overlay: whiteout, then a directory", overlay, []string{".wh.d\nd/\nd/x"}, []string{"d/ 755 trusted.overlay.opaque=y", "d/x 644"}},
		{"overlay: whiteout, then a directory not listed", overlay, []string{".wh.d\nd/x"}, []string{"d/ 755 trusted.overlay.opaque=y", "d/x 644"}},
		{"overlay: a directory, then its whiteout", overlay, []string{"d/x\n.wh.d"}, []string{"d/ 755 trusted.overlay.opaque=y", "d/x 644"}},
		{"overlay: whiteouts in opaque directories", overlay, []string{"d/.wh.a\nd/s/.wh.b\nd/.wh..wh..opq\nd/s/c\nd/.wh.d\ne/.wh.f\n.wh.g\ng/.wh.h", "d/s/.wh.i"},
			[]string{"d/ 755 trusted.overlay.opaque=y", "d/s/ 755", "d/s/c 644", "e/ 755", "e/f whiteout", "g/ 755 trusted.overlay.opaque=y"}},
		{"overlay: whiteout, then a file", overlay, []string{".wh.f\nf", ".wh.g"}, []string{"f 644", "g whiteout"}},
		{"overlay: several layers as one, whiteout", overlay, []string{"a\nd/x\nd/y", ".wh.a\nd/.wh.x"}, []string{"a whiteout", "d/ 755", "d/x whiteout", "d/y 644"}},
		{"overlay: several layers as one, opaque", overlay, []string{"d/x\nd/s/y", "d/.wh..wh..opq\nd/s/z"}, []string{"d/ 755 trusted.overlay.opaque=y", "d/s/ 755", "d/s/z 644"}},
		{"overlay: several layers as one, again a directory", overlay, []string{"d/x", ".wh.d\nd/y"}, []string{"d/ 755 trusted.overlay.opaque=y", "d/y 644"}},
		{"hard link before its target, twice", Options{}, []string{"b => a\nb => c\na @600\nc"}, []string{"a 600", "b 644 nlink 2"}},
		{"hard link before its target, over an earlier file", Options{}, []string{"b @600\nb => a\na"}, []string{"a 644 nlink 2"}},
		{"hard link before its target, below a link", Options{}, []string{"s -> d\nx => s/b\nd/b => y\ny"}, []string{"d/ 755", "d/b 644 nlink 3", "s -> d"}},
		{"hard links", Options{}, []string{"a\nb => a\nc => b", "d => a\n.wh.b"}, []string{"a 644 nlink 3"}},
		{"hard link before its target", Options{}, []string{"b => a\nc => b\na"}, []string{"a 644 nlink 3"}},
		{"hard link before its target, then replaced", Options{}, []string{"b => a\nb @600\na"}, []string{"a 644", "b 600"}},
		{"hard link to itself", Options{}, []string{"a\na => a"}, []string{"a 644"}},
		{"hard link over a directory that holds its target", Options{}, []string{"d/a\nd => d/a"}, []string{"d 644"}},
		{"one of two names replaced", Options{}, []string{"a\nb => a", "a @600"}, []string{"a 600", "b 644"}},
		{"below symbolic links", Options{}, []string{"usr/bin/\nbin -> usr/bin\nabs -> /usr\nup -> ../../usr", "bin/a\nabs/b\nup/bin/c"},
			[]string{"abs -> /usr", "bin -> usr/bin", "up -> ../../usr", "usr/ 755", "usr/b 644", "usr/bin/ 755", "usr/bin/a 644", "usr/bin/c 644"}},
		{"a link that climbs from where it is", Options{}, []string{"a/b/\nx/y/\na/b/l -> ../../x", "a/b/l/y/f"}, []string{"a/ 755", "a/b/ 755", "a/b/l -> ../../x", "x/ 755", "x/y/ 755", "x/y/f 644"}},
		{"a dangling link", Options{}, []string{"l -> var/none", "l/f"}, []string{"l -> var/none", "var/ 755", "var/none/ 755", "var/none/f 644"}},
		{"whiteout of a directory on the way to elsewhere", Options{}, []string{"d/\nd/l -> /e\nd/s/x\ne/", "d/l/f\n.wh.d"}, []string{"e/ 755", "e/f 644"}},
		{"directory over a link", Options{}, []string{"d/\nl -> d", "l/\nl/f"}, []string{"d/ 755", "l/ 755", "l/f 644"}},
		{"types replaced", Options{}, []string{"a/b\nc", "a\nc/"}, []string{"a 644", "c/ 755"}},
		{"directory twice", Options{}, []string{"d/ @700\nd/x\nd/ @711"}, []string{"d/ 711", "d/x 644"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree, err := apply(t, tt.opts, tt.layers...)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := list(tree), strings.Join(tt.want, "\n")+"\n"; got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	deep := strings.Repeat("d/", maxDepth+1) + "f"
	tests := []struct {
		name, layer string
		want        error
		text        string
	}{
		{"below a file", "a\na/b", fault.ErrUnsupported, `"a/b": "a" is not a directory`},
		{"hard link to nothing", "b => a", fault.ErrCorrupt, `"b": hard link to "a": no such file`},
		{"hard links in a circle", "b => a\na => b", fault.ErrCorrupt, "no such file"},
		{"hard link to a whiteout", "overlay .wh.a\nb => a", fault.ErrCorrupt, "no such file"},
		{"hard link to a directory", "d/\nb => d", fault.ErrCorrupt, "directory"},
		{"root as a file", ".", fault.ErrUnsupported, "root"},
		{"root as a hard link", "a\n. => a", fault.ErrUnsupported, "root"},
		{"long name", strings.Repeat("n", 256), fault.ErrUnsupported, "256 bytes"},
		{"long directory", strings.Repeat("n", 256) + "/f", fault.ErrUnsupported, "256 bytes"},
		{"long link", "a\n" + strings.Repeat("n", 256) + " => a", fault.ErrUnsupported, "256 bytes"},
		{"long target", "a -> " + strings.Repeat("n", 4096), fault.ErrUnsupported, "4096 bytes"},
		{"too deep", deep, fault.ErrUnsupported, "components"},
		{"links in a circle", "a -> b\nb -> a\na/f", fault.ErrUnsupported, "symbolic links"},
		{"whiteout of nothing", ".wh.", fault.ErrCorrupt, "whiteout"},
		{"whiteout of dot", "d/.wh..", fault.ErrCorrupt, "whiteout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var o Options
			layer, overlay := strings.CutPrefix(tt.layer, "overlay ")
			if overlay {
				o.Whiteouts = OverlayWhiteouts
			}
			_, err := apply(t, o, layer)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

// TestDirectoryTimes: a directory has its newest entry's time; one that no
// layer lists that of the newest file put into it.
func TestDirectoryTimes(t *testing.T) {
	tree, err := apply(t, Options{}, "listed/ #5\nlisted/a #9\nimplied/a #3\nimplied/b #7\nimplied/c #4\nlater/x #8\nlater/ #2", "listed/b #11\nimplied/d #1")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"listed": 5, "implied": 7, "later": 2} {
		if got := tree.Root().Lookup(name).Mtime; got != want {
			t.Errorf("%s: mtime %d, want %d", name, got, want)
		}
	}
}

// TestLinkCounts: directories count their subdirectories, also after some went.
func TestLinkCounts(t *testing.T) {
	tree, err := apply(t, Options{}, "a/b/\na/c/\na/d/e/\nf", "a/.wh.b\na/.wh.d\na/c")
	if err != nil {
		t.Fatal(err)
	}
	if n := tree.Root().Nlink; n != 3 {
		t.Errorf("root has %d links", n)
	}
	if n := tree.Root().Lookup("a").Nlink; n != 2 {
		t.Errorf("a has %d links", n)
	}
}

func FuzzApply(f *testing.F) {
	f.Add("a/b\nl -> a\nl/c\nb => a/b\n--\na/.wh.b\na/.wh..wh..opq")
	f.Add("../x\n.wh.x\n--\nx/\nx => x/..\n./")
	f.Fuzz(func(t *testing.T, text string) {
		tree := New(Options{Whiteouts: Whiteouts(len(text) % 3)})
		for l := range strings.SplitSeq(text, "--") {
			if tree.BeginLayer() != nil {
				return
			}
			for line := range strings.Lines(l) {
				fields := strings.Fields(line)
				if len(fields) == 0 || len(fields) == 2 || len(fields) == 3 && fields[1] != "->" && fields[1] != "=>" || len(fields) > 3 {
					continue
				}
				tree.Apply(parse(t, line))
			}
			tree.EndLayer()
		}
		// Whatever came, the tree is sound: link counts are what can be
		// counted, and nothing is above itself.
		names := map[*Inode]uint32{}
		var count func(i *Inode, depth int)
		count = func(i *Inode, depth int) {
			if depth > maxDepth+1 {
				t.Fatal("deeper than can be")
			}
			i.Sort()
			for k := range i.Len() {
				_, below := i.Entry(k)
				names[below]++
				if below.IsDir() {
					names[i]++
					count(below, depth+1)
				}
			}
		}
		count(tree.Root(), 0)
		for i, n := range names {
			if i.IsDir() {
				n += 1
				if i == tree.Root() {
					n++
				}
			}
			if i.Nlink != n {
				t.Fatalf("link count %d, counted %d:\n%s", i.Nlink, n, list(tree))
			}
		}
	})
}
