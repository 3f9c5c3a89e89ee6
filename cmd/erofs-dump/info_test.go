package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/build"
)

func TestInfo(t *testing.T) {
	for name, want := range map[string]string{
		"lz4":     "algorithms:     lz4\n",
		"48bit":   "48bit",
		"metabox": "metabox inode:",
		"zstd":    "fragments:",
	} {
		out, stderr, code := command(golden(name))
		if code != 0 || !strings.Contains(out, want) || !strings.Contains(out, "built:          2023-11-14T22:13:20Z\n") {
			t.Errorf("%s: %d %s\n%s", name, code, stderr, out)
		}
		out, _, _ = command("--json", golden(name))
		var i imageInfo
		if err := json.Unmarshal([]byte(out), &i); err != nil || i.Superblock.BlockSize != 512 || i.Statistics.Types["file"] != 7 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestStatistics: sizes as they are and as they are stored, suffixes, what
// dump.erofs counts too.
func TestStatistics(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		size int
	}{{"a.go", 0}, {"b.go", 1023}, {"c.txt", 1024}, {"d.go", 5000}, {"none", 70000}, {"e\x1b.x\x1b", 1}} {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(f.size), ModTime: epoch})
		w.Write(bytes.Repeat([]byte{'x'}, f.size))
	}
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: "f.go", Linkname: "d.go"}) // is no further file
	w.Close()
	image := makeImage(t, b.Bytes(), build.Options{})
	out, _, _ := command(image)
	for _, line := range []string{
		"sizes:          3 below 1 KiB, 1 below 2 KiB, 1 below 8 KiB, 1 below 128 KiB\n",
		"stored sizes:   3 below 1 KiB, 1 below 2 KiB, 1 below 8 KiB, 1 below 128 KiB\n",
		`suffixes:       3 .go, 1 .txt, 1 ".x\x1b"` + "\n",
		"files:          75.2 KiB, stored in 75.2 KiB (100.0%)\n",
		"linux:          5.4 or later\n",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
	// Half of these files is compressed: the sum is what --stat says of each.
	var i imageInfo
	out, _, _ = command("--json", golden("deflate"))
	if err := json.Unmarshal([]byte(out), &i); err != nil {
		t.Fatal(err)
	}
	stored := int64(0)
	for _, name := range []string{"long", "dir/again", "dir/noise", "dir/short", "dir/sub/one", "zeros"} {
		var e entry
		out, _, _ := command("--stat", "--json", golden("deflate"), name)
		if err := json.Unmarshal([]byte(out), &e); err != nil {
			t.Fatal(err)
		}
		stored += e.Detail.Stored
	}
	if i.Statistics.Stored != stored || stored == 0 || stored >= i.Statistics.FileBytes {
		t.Errorf("%d of %d bytes are stored, the files say %d", i.Statistics.Stored, i.Statistics.FileBytes, stored)
	}
}

func TestLinuxFor(t *testing.T) {
	for name, want := range map[string]string{
		"chunk": "6.4", "lz4-legacy": "6.8", "lz4": "6.8", "lzma": "6.8", "deflate": "6.8", "zstd": "6.10", "48bit": "6.15", "metabox": "6.17",
	} {
		var i imageInfo
		out, _, _ := command("--json", golden(name))
		if err := json.Unmarshal([]byte(out), &i); err != nil || i.Superblock.Linux != want {
			t.Errorf("%s: Linux %s, want %s: %v", name, i.Superblock.Linux, want, err)
		}
	}
}

// TestOddNames: what would drive a terminal is quoted, what JSON cannot hold is
// told in bytes too, and a time after the year 9999 is one.
func TestOddNames(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header) {
		if h.Format = tar.FormatPAX; h.ModTime.IsZero() {
			h.ModTime = epoch
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "latin\xe9", Mode: 0o644})
	add(tar.Header{Typeflag: tar.TypeReg, Name: "esc\x1b[31m", Mode: 0o644})
	add(tar.Header{Typeflag: tar.TypeReg, Name: "csi\u009b31m", Mode: 0o644})
	add(tar.Header{Typeflag: tar.TypeReg, Name: "space two", Mode: 0o644, ModTime: time.Unix(1<<40, 0)})
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "to\xff\n", Mode: 0o777})
	w.Close()
	image := makeImage(t, b.Bytes(), build.Options{})
	out, _, code := command("--ls", image)
	for _, s := range []string{` "latin\xe9"` + "\n", ` "esc\x1b[31m"` + "\n", ` "csi\u009b31m"` + "\n", " space two\n", ` link -> "to\xff\n"` + "\n"} {
		if !strings.Contains(out, s) || code != 0 {
			t.Errorf("no %q in\n%s", s, out)
		}
	}
	out, _, code = command("--ls", "--json", image)
	var list []entry
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 {
		t.Fatalf("%d, %v in\n%s", code, err, out)
	}
	find := func(name string) *entry {
		for i := range list {
			if list[i].Path == name {
				return &list[i]
			}
		}
		t.Fatalf("no %q in\n%s", name, out)
		return nil
	}
	if e := find("latin\ufffd"); string(e.Bytes) != "latin\xe9" {
		t.Errorf("bytes %q", e.Bytes)
	}
	if e := find("link"); string(e.To) != "to\xff\n" || e.Bytes != nil {
		t.Errorf("bytes %q and %q", e.To, e.Bytes)
	}
	if e := find("space two"); e.Mtime != "36812-02-20T00:36:16Z" {
		t.Errorf("mtime %q", e.Mtime)
	}
}

// TestOffset: an image that begins somewhere in its file.
func TestOffset(t *testing.T) {
	image := makeImage(t, sampleTar(t), build.Options{Index: true})
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, append(make([]byte, 1<<20), b...), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"--json"}, {"--check"}, {"--ls", "-R"}, {"--stat", "/dir"}, {"--blkid-udev"}} {
		want, _, _ := command(append(args, image)...)
		got, stderr, code := command(append(args, disk, "--offset=1MiB")...)
		if code != 0 || got != want || got == "" {
			t.Errorf("%q: %d, %s\n%s, want\n%s", args, code, stderr, got, want)
		}
	}
	for offset, want := range map[string]int{"0": cli.ExitFailed, "1000": cli.ExitFailed, "100MiB": cli.ExitUsage} {
		if _, stderr, code := command(disk, "--offset="+offset); code != want || strings.Count(stderr, "\n") != 1 {
			t.Errorf("--offset=%s: %d, %s", offset, code, stderr)
		}
	}
}

// TestUdev: what blkid -o udev says, escapes included.
func TestUdev(t *testing.T) {
	for _, label := range []string{"", "plain", "a b\n$(c)", "\xff\u00e4'\"\\"} {
		image := makeImage(t, sampleTar(t), build.Options{Label: label})
		got, stderr, code := command("--blkid-udev", image)
		if code != 0 || !strings.Contains(got, "ID_FS_TYPE=erofs\n") {
			t.Fatalf("%d, %s%s", code, got, stderr)
		}
		theirs := string(interop.Run(t, interop.Tool(t, "blkid"), "-p", "-o", "udev", image))
		for line := range strings.Lines(got) {
			if !strings.Contains(theirs, line) {
				t.Errorf("label %q: %q; blkid says\n%s", label, line, theirs)
			}
		}
	}
}
