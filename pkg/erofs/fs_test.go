package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/iotest"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestFS(t *testing.T) {
	// TestFS reads whatever it finds, which a link to itself and a device are
	// not for.
	entries := slices.DeleteFunc(sampleEntries(), func(e tarEntry) bool { return e.header.Name == "loop" || e.header.Name == "null" })
	fsys := openImage(t, buildImage(t, erofs.WriterOptions{}, erofs.Final{}, entries))
	if err := fstest.TestFS(fsys, "etc/small", "etc/large", "etc/hard", "etc/link", "usr/bin/tool", "up"); err != nil {
		t.Fatal(err)
	}
}

func TestPaths(t *testing.T) {
	fsys := openImage(t, sampleImage(t))
	for _, c := range []struct {
		name    string
		content string // of what it leads to
		err     error
	}{
		{"etc/small", "a small file\n", nil},
		{"etc/hard", "a small file\n", nil},
		{"etc/link", "a small file\n", nil},
		{"up", "a small file\n", nil}, // leads above the root, and stays in it
		{"etc/empty", "", nil},
		{"loop", "", fs.ErrInvalid},
		{"etc/none", "", fs.ErrNotExist},
		{"etc/none", "", fault.ErrNotFound},
		{"etc/small/x", "", fs.ErrInvalid},
		{"/etc/small", "", fs.ErrInvalid},
		{"etc/../etc/small", "", fs.ErrInvalid},
		{"etc", "", fs.ErrInvalid},
		{"null", "", fs.ErrInvalid},
	} {
		b, err := fsys.ReadFile(c.name)
		if !errors.Is(err, c.err) || string(b) != c.content {
			t.Errorf("ReadFile(%q) = %q, %v; want %q, %v", c.name, b, err, c.content, c.err)
		}
	}
	if st := statOf(t, fsys, "up"); !st.IsSymlink() {
		t.Error("Lstat follows a link")
	}
	if info, err := fsys.Stat("up"); err != nil || !info.Mode().IsRegular() {
		t.Errorf("Stat of a link: %v, %v", info, err)
	}
	if target, err := fsys.ReadLink("up"); target != "../../etc/link" || err != nil {
		t.Errorf("ReadLink = %q, %v", target, err)
	}
	if _, err := fsys.ReadLink("etc/small"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadLink of a file: %v", err)
	}
	if major, minor := statOf(t, fsys, "null").Device(); major != 1 || minor != 3 {
		t.Errorf("device %d:%d", major, minor)
	}
	if fsys.Label() != "sample" || fsys.BlockSize() != 1024 {
		t.Errorf("label %q, block size %d", fsys.Label(), fsys.BlockSize())
	}
}

func TestFile(t *testing.T) {
	fsys := openImage(t, sampleImage(t))
	f, err := fsys.Open("etc/large")
	if err != nil {
		t.Fatal(err)
	}
	want := text(10000, 1)
	if err := iotest.TestReader(f, want); err != nil {
		t.Error(err)
	}
	file := f.(*erofs.File)
	if _, err := file.Seek(5000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if n, err := file.WriteTo(&b); n != 5000 || err != nil || !bytes.Equal(b.Bytes(), want[5000:]) {
		t.Errorf("WriteTo = %d, %v", n, err)
	}
	if _, err := file.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset is no error")
	}
}

func TestXattrs(t *testing.T) {
	fsys := openImage(t, sampleImage(t))
	list, err := fsys.Xattrs(statOf(t, fsys, "etc/xattr").Nid)
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if list[0].Name != "trusted.two" || string(list[0].Value) != strings.Repeat("2", 100) || list[1].Name != "user.one" || string(list[1].Value) != "1" {
		t.Errorf("%q", list)
	}
	if list, err := fsys.Xattrs(fsys.RootNid()); err != nil || len(list) != 0 {
		t.Errorf("root: %v, %v", list, err)
	}
}

// TestOpenErrors: what is no image, or not one for us.
func TestOpenErrors(t *testing.T) {
	change := func(f func(img []byte)) []byte {
		img := bytes.Clone(sampleImage(t))
		f(img)
		return img
	}
	for _, c := range []struct {
		name string
		img  []byte
		err  error
	}{
		{"empty", nil, fault.ErrCorrupt},
		{"short", make([]byte, 1100), fault.ErrCorrupt},
		{"zeros", make([]byte, 10000), fault.ErrCorrupt},
		{"checksum", change(func(b []byte) { b[1024+0x30]++ }), fault.ErrIntegrity},
		{"block size", change(func(b []byte) { b[1024+0x0c] = 60 }), fault.ErrUnsupported},
		{"feature", change(func(b []byte) { b[1024+0x53] = 0x80; resum(b) }), fault.ErrUnsupported},
		{"root nid", change(func(b []byte) { b[1024+0x0e], b[1024+0x0f] = 0xff, 0xff; resum(b) }), fault.ErrCorrupt},
		{"cut", sampleImage(t)[:2000], fault.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := erofs.Open(bytes.NewReader(c.img))
			wantErr(t, err, c.err)
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %v", err)
			}
		})
	}
}

// TestDirectoryLoop: a walk ends where an image has a directory within itself.
func TestDirectoryLoop(t *testing.T) {
	img := bytes.Clone(sampleImage(t))
	fsys := openImage(t, img)
	usr, bin := statOf(t, fsys, "usr"), statOf(t, fsys, "usr/bin")
	// usr/bin becomes usr itself.
	at := findDirent(t, img, "bin", bin.Nid)
	putUint(img[at:at+8], usr.Nid)
	resum(img) // the inodes may be in the superblock's block
	fsys = openImage(t, img)
	err := fsys.Walk(fsys.RootNid(), func(string, *erofs.Stat) error { return nil })
	wantErr(t, err, fault.ErrCorrupt)
	_, err = fsys.ReadDir("usr/bin")
	wantErr(t, err, fault.ErrCorrupt)
	wantErr(t, fs.WalkDir(fsys, ".", func(_ string, _ fs.DirEntry, err error) error { return err }), fault.ErrCorrupt)
}

func TestDiff(t *testing.T) {
	a := openImage(t, sampleImage(t))
	none := func(d erofs.Difference) error { t.Errorf("same image: %+v", d); return nil }
	b := openImage(t, buildImage(t, erofs.WriterOptions{BlockSize: 4096}, erofs.Final{}, sampleEntries()))
	if err := erofs.Diff(t.Context(), a, b, none); err != nil {
		t.Fatal(err)
	}
	entries := sampleEntries()
	entries[3].content = entries[3].content[:9999] + "X"     // etc/large
	entries[2].header.Mode, entries[2].header.Uid = 0o600, 7 // etc/small
	entries[5].header.PAXRecords = map[string]string{"SCHILY.xattr.user.one": "one", "SCHILY.xattr.user.new": ""}
	entries[7] = linkEntry("etc/link", "large")
	entries[12] = dirEntry("usr/bin/tool/")
	entries = append(entries, fileEntry("usr/bin/tool/new", ""))
	var got []string
	b = openImage(t, buildImage(t, erofs.WriterOptions{}, erofs.Final{}, entries[:len(entries):len(entries)]))
	err := erofs.Diff(t.Context(), a, b, func(d erofs.Difference) error {
		got = append(got, d.Change.String()+" "+d.Path+" "+strings.Join(d.Details, "; "))
		return nil
	})
	want := []string{
		"changed etc/hard mode 0644 -> 0600; uid 0 -> 7",
		"changed etc/large contents from byte 9999 on",
		"changed etc/link target \"small\" -> \"large\"",
		"changed etc/small mode 0644 -> 0600; uid 0 -> 7",
		"changed etc/xattr xattr \"trusted.two\" removed; xattr \"user.one\"; xattr \"user.new\" added",
		"changed usr/bin/tool type file -> directory",
		"added usr/bin/tool/new ",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s\n%v", strings.Join(got, "\n"), strings.Join(want, "\n"), err)
	}
}

// TestDiffLinks: the same contents under the same names, which are names of
// other files.
func TestDiffLinks(t *testing.T) {
	link := func(name, target string) tarEntry {
		e := linkEntry(name, target)
		e.header.Typeflag = '1'
		return e
	}
	image := func(b, c, d tarEntry) *erofs.FS {
		return openImage(t, buildImage(t, erofs.WriterOptions{}, erofs.Final{}, []tarEntry{fileEntry("a", "x"), b, c, d}))
	}
	x := image(link("b", "a"), fileEntry("c", "x"), link("d", "c"))
	y := image(fileEntry("b", "x"), link("c", "a"), link("d", "b"))
	var got []string
	if err := erofs.Diff(t.Context(), x, y, func(d erofs.Difference) error {
		got = append(got, d.Path+": "+strings.Join(d.Details, "; "))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"b: links with other names", "c: links with other names", "d: links with other names"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestDiffIndex: what two indexes have in one place of one layer is the same,
// and needs no layer.
func TestDiffIndex(t *testing.T) {
	index, layer := indexOf(t)
	var got []string
	diff := func(a, b []byte) error {
		got = nil
		return erofs.Diff(t.Context(), openImage(t, a), openImage(t, b), func(d erofs.Difference) error {
			got = append(got, d.Path)
			return nil
		})
	}
	if err := diff(index, index); err != nil || len(got) > 0 {
		t.Errorf("an index and itself: %q, %v", got, err)
	}
	// The same files in a layer of another digest: only their bytes tell.
	other := writeImage(t, erofs.WriterOptions{BlockSize: 512, Devices: 1},
		erofs.Final{Devices: []erofs.DeviceSpec{{Tag: strings.Repeat("f", 64), Size: int64(len(layer))}}}, layer, true)
	if err := diff(index, other); !errors.Is(err, erofs.ErrNoDevice) {
		t.Errorf("without layers: %q, %v", got, err)
	}
	if err := diff(slices.Concat(index, layer), slices.Concat(other, layer)); err != nil || len(got) > 0 {
		t.Errorf("with layers: %q, %v", got, err)
	}
}

// TestConcurrent reads images from many goroutines at once, whose caches they
// share.
func TestConcurrent(t *testing.T) {
	for _, g := range golden {
		img, err := os.ReadFile(goldenFile(g.name))
		if err != nil {
			t.Fatal(err)
		}
		fsys := openImage(t, img)
		shared, err := fsys.Open("long")
		if err != nil {
			t.Fatal(err)
		}
		want := goldenFiles()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for name, data := range want {
					b, err := fsys.ReadFile(name)
					if err != nil || !bytes.Equal(b, data) {
						t.Errorf("%s: %s: %d bytes, %v", g.name, name, len(b), err)
					}
				}
				for off := int64(8000); off >= 0; off -= 1000 {
					p := make([]byte, 500)
					if _, err := shared.(io.ReaderAt).ReadAt(p, off); err != nil || !bytes.Equal(p, want["long"][off:off+500]) {
						t.Errorf("%s: ReadAt %d: %v", g.name, off, err)
					}
				}
			})
		}
		wg.Wait()
	}
}

func ExampleOpen() {
	img, err := os.Open("testdata/golden/zstd.erofs")
	if err != nil {
		log.Fatal(err)
	}
	defer img.Close()
	fsys, err := erofs.Open(img)
	if err != nil {
		log.Fatal(err)
	}
	info, err := fsys.Lstat("dir/short")
	if err != nil {
		log.Fatal(err)
	}
	st := info.Sys().(*erofs.Stat)
	fmt.Println(info.Mode(), st.UID, st.GID, info.Size())
	// Output: -rw-r--r-- 0 0 300
}

// An image is an io/fs file system; an inode's own attributes, which io/fs has
// no words for, go by its number.
func Example() {
	img, err := os.Open("testdata/golden/metabox.erofs")
	if err != nil {
		log.Fatal(err)
	}
	defer img.Close()
	fsys, err := erofs.Open(img)
	if err != nil {
		log.Fatal(err)
	}
	err = fs.WalkDir(fsys, "dir", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*erofs.Stat)
		xattrs, err := fsys.Xattrs(st.Nid)
		if err != nil {
			return err
		}
		fmt.Println(info.Mode(), st.UID, name, len(xattrs))
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	b, err := fsys.ReadFile("dir/sub/one")
	fmt.Println(string(b), err)
	// Output:
	// drwxr-xr-x 0 dir 0
	// -rw-r--r-- 0 dir/again 0
	// -rw-r--r-- 0 dir/noise 0
	// -rw-r--r-- 0 dir/short 0
	// drwxr-xr-x 0 dir/sub 0
	// -rw-r--r-- 0 dir/sub/one 0
	// 1 <nil>
}
