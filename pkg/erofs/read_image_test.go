package erofs_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// text makes n compressible bytes; the same seed makes the same text.
func text(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	words := strings.Fields("the quick brown fox jumps over a lazy dog while seven wizards hex four bad gnomes with jinxed quartz vocabulary")
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%s %d ", words[rng.IntN(len(words))], rng.IntN(100000))
	}
	return b.Bytes()[:n]
}

// noise makes n incompressible bytes.
func noise(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 8))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// memory is an erofs.Storage.
type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, end-int64(len(m.b)))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Truncate(size int64) error {
	if size <= int64(len(m.b)) {
		m.b = m.b[:size]
		return nil
	}
	m.b = append(m.b, make([]byte, size-int64(len(m.b)))...)
	return nil
}

// tarOf makes an archive.
func tarOf(t testing.TB, entries []tarEntry) []byte {
	t.Helper()
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	for _, e := range entries {
		h := e.header
		h.Size, h.Format = int64(len(e.content)), tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// buildImage makes an image of tar entries with our own writer.
func buildImage(t testing.TB, o erofs.WriterOptions, fin erofs.Final, entries []tarEntry) []byte {
	t.Helper()
	return writeImage(t, o, fin, tarOf(t, entries), false)
}

// writeImage makes an image of an archive; with index, one whose files' data
// stay in the archive, which is device 1.
func writeImage(t testing.TB, o erofs.WriterOptions, fin erofs.Final, archive []byte, index bool) []byte {
	t.Helper()
	var out, tails memory
	w, err := erofs.NewWriter(&out, &tails, o)
	if err != nil {
		t.Fatal(err)
	}
	tree := rootfs.New(rootfs.Options{})
	if err := tree.BeginLayer(); err != nil {
		t.Fatal(err)
	}
	r := tarstream.NewReader(tarstream.NewSource(bytes.NewReader(archive)))
	for {
		e, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		ino, err := tree.Apply(e)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case ino == nil:
		case index && ino.Size > 0:
			ino.Device, ino.Offset = 1, e.DataOffset
		default:
			if err := w.Add(ino, r.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tree.EndLayer(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(tree, fin); err != nil {
		t.Fatal(err)
	}
	return out.b
}

// indexOf makes an index of the sample tree, and the layer that it points to.
func indexOf(t testing.TB) (index, layer []byte) {
	t.Helper()
	layer = tarOf(t, sampleEntries())
	device := erofs.DeviceSpec{Tag: strings.Repeat("0123456789abcdef", 4), Size: int64(len(layer))}
	index = writeImage(t, erofs.WriterOptions{BlockSize: 512, Devices: 1}, erofs.Final{Devices: []erofs.DeviceSpec{device}}, layer, true)
	return index, layer
}

type tarEntry struct {
	header  tar.Header
	content string
}

func dirEntry(name string) tarEntry {
	return tarEntry{header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func fileEntry(name, content string) tarEntry {
	return tarEntry{header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content: content}
}

func linkEntry(name, target string) tarEntry {
	return tarEntry{header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// sampleEntries is a small tree with one of most things.
func sampleEntries() []tarEntry {
	xattr := fileEntry("etc/xattr", "with attributes")
	xattr.header.PAXRecords = map[string]string{"SCHILY.xattr.user.one": "1", "SCHILY.xattr.trusted.two": strings.Repeat("2", 100)}
	hard := tarEntry{header: tar.Header{Typeflag: tar.TypeLink, Name: "etc/hard", Linkname: "etc/small"}}
	null := tarEntry{header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}}
	return []tarEntry{
		dirEntry("./"),
		dirEntry("etc/"),
		fileEntry("etc/small", "a small file\n"),
		fileEntry("etc/large", string(text(10000, 1))),
		fileEntry("etc/empty", ""),
		xattr,
		hard,
		linkEntry("etc/link", "small"),
		linkEntry("up", "../../etc/link"),
		linkEntry("loop", "loop"),
		dirEntry("usr/"),
		dirEntry("usr/bin/"),
		fileEntry("usr/bin/tool", "#!/bin/sh\n"),
		null,
	}
}

func sampleImage(t testing.TB) []byte {
	return buildImage(t, erofs.WriterOptions{BlockSize: 1024}, erofs.Final{Label: "sample"}, sampleEntries())
}

// resum writes the superblock's checksum anew.
func resum(img []byte) {
	sb := superOf(img)
	b := img[ondisk.SuperOffset:]
	sum := ondisk.Checksum(b[:ondisk.ChecksumLen(sb.BlkSzBits)])
	putUint(b[4:8], uint64(sum))
}

func superOf(img []byte) *ondisk.SuperBlock {
	sb := new(ondisk.SuperBlock)
	sb.Decode(img[ondisk.SuperOffset:])
	return sb
}

// putUint writes v little-endian over the whole of b.
func putUint(b []byte, v uint64) {
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
}

func openImage(t testing.TB, img []byte, o ...erofs.Option) *erofs.FS {
	t.Helper()
	fsys, err := erofs.Open(bytes.NewReader(img), o...)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func statOf(t testing.TB, fsys *erofs.FS, name string) *erofs.Stat {
	t.Helper()
	info, err := fsys.Lstat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*erofs.Stat)
}

// wantErr fails the test unless err is of a kind.
func wantErr(t testing.TB, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want %v", err, kind)
	}
}
