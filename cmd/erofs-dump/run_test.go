package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

// command runs erofs-dump in process.
func command(args ...string) (stdout, stderr string, code int) {
	var out, err strings.Builder
	env := &cli.Env{Name: "erofs-dump", Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err}
	code = cli.Run(context.Background(), env, run)
	return out.String(), err.String(), code
}

// golden is an image made by mkfs.erofs; see pkg/erofs.
func golden(name string) string {
	return filepath.Join("..", "..", "pkg", "erofs", "testdata", "golden", name+".erofs")
}

// makeImage builds an image of an archive and returns its path.
func makeImage(t *testing.T, archive []byte, o build.Options) string {
	t.Helper()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	tails, err := os.Create(filepath.Join(dir, "tails"))
	if err != nil {
		t.Fatal(err)
	}
	defer tails.Close()
	if _, err := build.Image(context.Background(), out, tails, build.List(&build.Layer{Name: "layer", Blob: bytes.NewReader(archive)}), o); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

var epoch = time.Unix(1700000000, 0)

// sampleTar is an archive of one of everything that tar holds.
func sampleTar(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content string) {
		t.Helper()
		h.Size, h.Format = int64(len(content)), tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = epoch
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, "")
	add(tar.Header{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o1777, Uid: 7, Gid: 8}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o4755, ModTime: epoch.Add(123456789)}, "content\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "dir/large", Mode: 0o600, Uid: 2_000_000_000}, strings.Repeat("0123456789abcdef", 5000))
	add(tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "dir/file"}, "")
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "dir/file", Mode: 0o777}, "")
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "abs", Linkname: "/dir", Mode: 0o777}, "")
	add(tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, "")
	add(tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Mode: 0o660, Devmajor: 8, Devminor: 300}, "")
	add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "odd\nname\xff", Mode: 0o644}, "x")
	add(tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("n", 255), Mode: 0o644}, "y")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "xattrs", Mode: 0o670, PAXRecords: map[string]string{
		"SCHILY.xattr.user.text": "value", "SCHILY.xattr.trusted.binary": "\x00\x01\xff\n", "SCHILY.xattr.user.empty": "",
		"LIBARCHIVE.xattr.user.a%3Db": "ZXF1YWxz", "SCHILY.acl.access": "user::rw-,user:1000:r--,group::r--,group:7:r-x,mask::rwx,other::---",
	}}, "z")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestTarRoundTrip: what --tar writes makes the same tree again, from an image
// of ours and from each of mkfs.erofs's layouts.
func TestTarRoundTrip(t *testing.T) {
	images := []string{makeImage(t, sampleTar(t), build.Options{})}
	for _, name := range []string{"chunk", "lz4", "lz4-legacy", "lzma", "deflate", "zstd", "48bit", "metabox"} {
		images = append(images, golden(name))
	}
	for _, image := range images {
		out, stderr, code := command("--tar", image)
		if code != 0 || stderr != "" {
			t.Fatalf("--tar %s: %d, %s", image, code, stderr)
		}
		if again, _, _ := command("--tar", image); again != out {
			t.Errorf("--tar %s: not the same bytes twice", image)
		}
		copied := makeImage(t, []byte(out), build.Options{BlockSize: 512})
		if out, stderr, code := command("--diff", image, copied); code != 0 || out != "" {
			t.Errorf("%s and its copy: %d, %s%s", image, code, out, stderr)
		}
		if out, stderr, code := command("--check", "--data", copied); code != 0 || !strings.HasPrefix(out, "sound: ") {
			t.Errorf("--check: %d, %s%s", code, out, stderr)
		}
	}
}

// TestTarXattrNames: a record's key cannot have every name, nor do all readers
// take it as it stands.
func TestTarXattrNames(t *testing.T) {
	names := []string{"user.a=b", "user.a b=c", "user.a+b=\xff", "user.p%25q", "user.p%3Dq", "user.p%q", "user.p%2", "user.\n"}
	records := map[string]string{}
	for _, name := range names {
		key := "LIBARCHIVE.xattr."
		for _, c := range []byte(name) {
			key += fmt.Sprintf("%%%02x", c)
		}
		records[key] = "MQ"
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: records}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	image := makeImage(t, b.Bytes(), build.Options{})
	var e entry
	out, _, _ := command("--stat", "--json", image, "/f")
	if err := json.Unmarshal([]byte(out), &e); err != nil || len(e.Detail.Xattrs) != len(names) {
		t.Fatalf("%v: %s", err, out)
	}
	out, stderr, code := command("--tar", image)
	if code != 0 {
		t.Fatalf("--tar: %d, %s", code, stderr)
	}
	if out, stderr, code := command("--diff", image, makeImage(t, []byte(out), build.Options{})); code != 0 {
		t.Errorf("the image and its copy: %d, %s%s", code, out, stderr)
	}
}

func TestTarOfDirectory(t *testing.T) {
	image := makeImage(t, sampleTar(t), build.Options{})
	out, _, code := command("--tar", image, "/abs") // a link to /dir
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	var names []string
	r := tar.NewReader(strings.NewReader(out))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if want := []string{"./", "file", "large"}; !slices.Equal(names, want) {
		t.Errorf("entries %q, want %q", names, want)
	}
}

func TestLs(t *testing.T) {
	image := makeImage(t, sampleTar(t), build.Options{})
	out, _, code := command("--ls", image)
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, line := range []string{
		"drwxrwxrwt   2     7     8",
		"-rwsr-xr-x   2     0     0           8 2023-",
		"lrwxrwxrwx   1     0     0           8 ",
		" link -> dir/file\n",
		"crw-rw-rw-   1     0     0        1, 3 ",
		"brw-rw----   1     0     0      8, 300 ",
		"prw-------   1     0     0           0 ",
		` "odd\nname\xff"` + "\n",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
	// The order of the arguments is the user's.
	if swapped, stderr, code := command("--ls", "/", image); code != 0 || swapped != out {
		t.Errorf("path first: %d, %s", code, stderr)
	}
	if out, _, code := command(image, "--ls", "-R"); code != 0 || !strings.Contains(out, " dir/large\n") {
		t.Errorf("-R: %d\n%s", code, out)
	}
	if out, _, _ := command(image, "--ls", "/link"); !strings.Contains(out, " link -> dir/file\n") || strings.Count(out, "\n") != 1 {
		t.Errorf("--ls of a link:\n%s", out)
	}
	out, _, _ = command("--ls", "--json", "-R", image)
	var list []entry
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	i := slices.IndexFunc(list, func(e entry) bool { return e.Path == "dir/large" })
	if i < 0 || list[i].Size != 80000 || list[i].UID != 2_000_000_000 || list[i].Mode != "0600" {
		t.Errorf("dir/large in JSON: %+v", list)
	}
	if out, _, _ := command("--ls", "--json", golden("lz4"), "/empty"); !json.Valid([]byte(out)) {
		t.Errorf("not JSON: %s", out)
	}
}

func TestStatAndCat(t *testing.T) {
	image := makeImage(t, sampleTar(t), build.Options{})
	out, _, code := command("--stat", image, "dir/large")
	if code != 0 || !strings.Contains(out, "path:    /dir/large\n") || !strings.Contains(out, "raw") || !strings.Contains(out, "size:    80000") {
		t.Errorf("--stat: %d\n%s", code, out)
	}
	out, _, _ = command("--stat", "--json", image, "/xattrs")
	var e entry
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatal(err)
	}
	acl := "02000000" + "01000600ffffffff" + "02000400e8030000" + "04000400ffffffff" + "0800050007000000" + "10000700ffffffff" + "20000000ffffffff"
	want := []xattrInfo{{"system.posix_acl_access", "", acl, 52}, {"trusted.binary", "", "0001ff0a", 4}, {"user.a=b", "equals", "", 6}, {"user.empty", "", "", 0}, {"user.text", "value", "", 5}}
	if !slices.Equal(e.Detail.Xattrs, want) {
		t.Errorf("xattrs %+v, want %+v", e.Detail.Xattrs, want)
	}
	for _, args := range [][]string{{"--cat", image, "/dir/file"}, {"--cat", image, "abs/../link"}, {image, "--cat", "hard"}} {
		if out, stderr, code := command(args...); code != 0 || out != "content\n" {
			t.Errorf("%q: %d, %q, %s", args, code, out, stderr)
		}
	}
	out, _, _ = command("--stat", "--json", image, "/hard")
	var byNid struct{ Nid json.Number }
	if err := json.Unmarshal([]byte(out), &byNid); err != nil {
		t.Fatal(err)
	}
	nid := byNid.Nid
	if out, stderr, code := command("--cat", image, "--nid", nid.String()); code != 0 || out != "content\n" {
		t.Errorf("--nid %s: %d, %q, %s", nid, code, out, stderr)
	}
}

// TestIndex: an index shows its seek section and its tree without the layer,
// and says what a file's data would need.
func TestIndex(t *testing.T) {
	layer := sampleTar(t)
	image := makeImage(t, layer, build.Options{Index: true})
	out, _, code := command(image)
	if code != 0 || !strings.Contains(out, "seek section:   1 layer\n") || !strings.Contains(out, "not at hand") {
		t.Errorf("%d\n%s", code, out)
	}
	if out, _, code := command("--ls", "-R", image); code != 0 || !strings.Contains(out, "dir/large") {
		t.Errorf("--ls: %d\n%s", code, out)
	}
	if _, stderr, code := command("--cat", image, "dir/large"); code != cli.ExitNotFound || !strings.Contains(stderr, "device 1 of 1") {
		t.Errorf("--cat: %d, %s", code, stderr)
	}
	if _, stderr, code := command("--check", "--data", image); code != 0 {
		t.Errorf("--check: %d, %s", code, stderr)
	}
	file := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(file, layer, 0o666); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := command("--cat", image, "dir/large", "--device", file); code != 0 || len(out) != 80000 {
		t.Errorf("--device: %d, %s", code, stderr)
	}
	// A damaged section is reported as what it is.
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-100] ^= 1
	if err := os.WriteFile(image, b, 0o666); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := command("--check", image); code != cli.ExitIntegrity || !strings.HasPrefix(out, "seek-section: ") {
		t.Errorf("--check: %d, %s%s", code, out, stderr)
	}
}

func TestCheckAndDiff(t *testing.T) {
	image := makeImage(t, sampleTar(t), build.Options{})
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	b[1024+0x30] ^= 1
	bad := filepath.Join(t.TempDir(), "bad.erofs")
	if err := os.WriteFile(bad, b, 0o666); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := command("--check", bad); code != cli.ExitIntegrity || !strings.HasPrefix(out, "superblock-checksum: ") {
		t.Errorf("--check: %d, %s%s", code, out, stderr)
	}
	out, _, _ := command("--check", "--json", bad)
	var list []problemInfo
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].Rule != erofs.RuleChecksum {
		t.Errorf("--check --json: %v\n%s", err, out)
	}
	if _, stderr, code := command("--ls", bad); code != cli.ExitIntegrity || strings.Count(stderr, "\n") != 1 {
		t.Errorf("--ls of a bad image: %d, %s", code, stderr)
	}
	out, stderr, code := command("--diff", image, golden("lz4"))
	if code != cli.ExitFailed || !strings.Contains(out, "+ long\n") || !strings.Contains(out, "- fifo\n") || !strings.Contains(out, "~ link: ") {
		t.Errorf("--diff: %d, %s%s", code, out, stderr)
	}
	out, _, _ = command("--diff", "--json", image, golden("lz4"))
	var diffs []differenceInfo
	if err := json.Unmarshal([]byte(out), &diffs); err != nil || len(diffs) == 0 {
		t.Errorf("--diff --json: %v\n%s", err, out)
	}
}

func TestErrors(t *testing.T) {
	image := golden("lz4")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("not an image"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, cli.ExitUsage, "image"},
		{[]string{"nowhere.erofs"}, cli.ExitNotFound, "nowhere.erofs"},
		{[]string{text}, cli.ExitFailed, text},
		{[]string{t.TempDir()}, cli.ExitUsage, "directory"},
		{[]string{"--ls", image, "/none"}, cli.ExitNotFound, "none"},
		{[]string{"--cat", image, "/none/x"}, cli.ExitNotFound, "none"},
		{[]string{"--cat", image, "/dir"}, cli.ExitUsage, "dir: is a directory"},
		{[]string{"--cat", image}, cli.ExitUsage, "path"},
		{[]string{"--stat", image, "--nid", "123456789"}, cli.ExitFailed, "123456789"},
		{[]string{"--stat", image, "/dir", "--nid", "1"}, cli.ExitUsage, "--nid"},
		{[]string{"--ls", "--tar", image}, cli.ExitUsage, "--"},
		{[]string{image, "/dir"}, cli.ExitUsage, "--ls"},
		{[]string{"--tar", image, "/long"}, cli.ExitFailed, "directory"},
		{[]string{"--ls", image, "--device", image}, cli.ExitUsage, "devices"},
		{[]string{"--diff", image}, cli.ExitUsage, "two images"},
		{[]string{"--diff", image, text}, cli.ExitFailed, text},
		{[]string{"--cat", "--json", image, "/long"}, cli.ExitUsage, "--json"},
	} {
		_, stderr, code := command(c.args...)
		if code != c.code || !strings.Contains(stderr, c.says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, want %d; %q should say %q in one line", c.args, code, c.code, stderr, c.says)
		}
	}
}

func TestIsText(t *testing.T) {
	for s, want := range map[string]bool{"plain\ttext\r\n": true, "caf\xc3\xa9": true, "nul\x00": false, "esc\x1b[0m": false} {
		if isText([]byte(s)) != want {
			t.Errorf("isText(%q) = %v", s, !want)
		}
	}
}

func TestModeString(t *testing.T) {
	for _, c := range []struct{ typ, mode, want string }{
		{"file", "0644", "-rw-r--r--"}, {"directory", "1777", "drwxrwxrwt"}, {"file", "6711", "-rws--s--x"},
		{"file", "7000", "---S--S--T"}, {"socket", "0755", "srwxr-xr-x"},
	} {
		if got := modeString(&entry{Type: c.typ, Mode: c.mode}); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.typ, c.mode, got, c.want)
		}
	}
}
