package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// mustRefuse runs the command, which must say one line and leave nothing.
func mustRefuse(t *testing.T, name string, code int, want string, args ...string) {
	t.Helper()
	runtime := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	got, stdout, stderr := invoke(t, args...)
	if got != code || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
		t.Errorf("%s: exit code %d, want %d; stdout %q; stderr %q, want %q in it", name, got, code, stdout, stderr, want)
	}
	if left, err := os.ReadDir(runtime); err != nil || len(left) > 0 {
		t.Errorf("%s: left behind: %v, %v", name, left, err)
	}
}

func TestBadFlags(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string
	}{
		{"", "nothing to serve"},
		{"--no-such-flag", "unknown flag"},
		{"a b", "unexpected argument"},
		{"image --index x", "either"},
		{"image --blob x", "either"},
		{"image --layer 1", "--layer needs --blob"},
		{"image --zinfo x", "--zinfo needs --index"},
		{"image --seek x", "--seek needs --index"},
		{"--index INDEX --blob x --seek y --zinfo z", "either --seek or --zinfo"},
		{"--index x", "--index needs --blob"},
		{"--blob x", "--blob needs --index"},
		{"--blob x --blob y --layer 1", "one --blob"},
		{"image --tls-cert x", "belong together"},
		{"image --tls-ca x", "--tls-ca needs"},
		{"image --cache-size many", "size"},
		{"--index INDEX --blob oci:nowhere --blob y", "several --blob"},
		{"--index INDEX --blob x/y --plain-http --insecure", "--plain-http"},
		{"--index INDEX --blob x/y -u me", "--username needs"},
		{"--index INDEX --blob INDEX --layer 0", "seek section"},
		{"--blob INDEX --layer 0", "is a file"},
		{"INDEX", "it is an index"},
		{"--index WHOLE --blob x", "no index"},
		{"WHOLE --listen nowhere", "--listen"},
		{"WHOLE --listen unix:", "--listen"},
		{"WHOLE --listen tcp:1234", "--listen"},
		{"WHOLE --listen unix:/" + strings.Repeat("x", 200), "longer than"},
		{"DIR", "is a directory"},
	} {
		args := strings.Fields(tt.args)
		for i, a := range args {
			switch a {
			case "INDEX":
				args[i] = smallIndex(t)
			case "WHOLE":
				im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
				args[i] = makeImage(t, im, build.Options{})
			case "DIR":
				args[i] = t.TempDir()
			}
		}
		mustRefuse(t, tt.args, cli.ExitUsage, tt.want, args...)
	}
}

func smallIndex(t *testing.T) string {
	t.Helper()
	return makeImage(t, testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...), build.Options{Index: true})
}

func TestMissing(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("no image\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	index := smallIndex(t)
	_, ref := serveLayout(t, testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...).Dir)
	host, _, _ := strings.Cut(ref, "/")
	for _, tt := range []struct {
		name string
		code int
		want string
		args []string
	}{
		{"no image", cli.ExitNotFound, "gone", []string{filepath.Join(dir, "gone")}},
		{"no EROFS", cli.ExitFailed, "not an EROFS image", []string{text}},
		{"empty", cli.ExitFailed, "too short", []string{os.DevNull}},
		{"no index", cli.ExitNotFound, "gone", []string{"--index", filepath.Join(dir, "gone"), "--blob", "x"}},
		{"no layer file", cli.ExitNotFound, "gone", []string{"--index", index, "--blob", filepath.Join(dir, "gone"), "--blob", text, "--blob", text}},
		{"other layer file", cli.ExitIntegrity, "bytes", []string{"--index", index, "--blob", text, "--blob", text, "--blob", text}},
		{"no layout", cli.ExitNotFound, "gone", []string{"--index", index, "--blob", "oci:" + filepath.Join(dir, "gone")}},
		{"no repository", cli.ExitNotFound, "no-such", []string{"--blob", host + "/no-such:v1", "--plain-http", "--layer", "0"}},
		{"no certificate", cli.ExitNotFound, "gone", []string{text, "--tls-cert", filepath.Join(dir, "gone"), "--tls-key", text}},
	} {
		mustRefuse(t, tt.name, tt.code, tt.want, tt.args...)
	}
}

// TestHostileIndex changes one thing in a good index at a time.
func TestHostileIndex(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	good, err := os.ReadFile(makeImage(t, im, build.Options{Index: true}))
	if err != nil {
		t.Fatal(err)
	}
	slot := func(b []byte, i int) []byte {
		return b[ondisk.SuperOffset+ondisk.SuperBlockSize+i*ondisk.DeviceSlotSize:][:ondisk.DeviceSlotSize]
	}
	const slotBlocks, slotUniaddr = 0x40, 0x44
	add := func(b []byte, n int32) {
		binary.LittleEndian.PutUint32(b, uint32(int32(binary.LittleEndian.Uint32(b))+n))
	}
	sealed := func(change func(b []byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			change(b)
			n := ondisk.ChecksumLen(9)
			clear(b[ondisk.SuperOffset+4:][:4])
			binary.LittleEndian.PutUint32(b[ondisk.SuperOffset+4:], ondisk.Checksum(b[ondisk.SuperOffset:][:n]))
			return b
		}
	}
	dir := t.TempDir()
	for i, tt := range []struct {
		name   string
		code   int
		want   string
		change func(b []byte) []byte
	}{
		{"a block more", cli.ExitFailed, "superblock says", func(b []byte) []byte { return append(b, make([]byte, 512)...) }},
		{"a byte more", cli.ExitFailed, "superblock says", func(b []byte) []byte { return append(b, 0) }},
		{"a block less", cli.ExitFailed, "superblock says", func(b []byte) []byte { return b[:len(b)-512] }},
		{"nothing but the superblock", cli.ExitFailed, "", func(b []byte) []byte { return b[:1536] }},
		{"half a superblock", cli.ExitFailed, "too short", func(b []byte) []byte { return b[:1100] }},
		{"another magic number", cli.ExitFailed, "not an EROFS image", func(b []byte) []byte { b[ondisk.SuperOffset] ^= 1; return b }},
		{"a bit in the superblock", cli.ExitIntegrity, "checksum", func(b []byte) []byte { b[ondisk.SuperOffset+0x34] ^= 1; return b }},
		{"a bit in the device table", cli.ExitIntegrity, "checksum", func(b []byte) []byte { slot(b, 0)[5] ^= 1; return b }},
		{"a bit in the seek section's footer", cli.ExitIntegrity, "seek section", func(b []byte) []byte { b[len(b)-100] ^= 1; return b }},
		{"a bit in the seek section", cli.ExitIntegrity, "seek section", func(b []byte) []byte { b[bytes.LastIndex(b, []byte("sha256:"))+20] ^= 1; return b }},
		{"no seek section", cli.ExitFailed, "without a seek section", func(b []byte) []byte { clear(b[len(b)-512:]); return b }},
		{"a device too few", cli.ExitFailed, "2 devices, but 3 layers", sealed(func(b []byte) { b[ondisk.SuperOffset+0x56] = 2 })},
		{"another layer's tag", cli.ExitFailed, "device 1 is for", sealed(func(b []byte) { copy(slot(b, 0)[:64], slot(b, 1)[:64]) })},
		{"two layers exchanged", cli.ExitFailed, "device 1 is for", sealed(func(b []byte) {
			one := append([]byte(nil), slot(b, 0)...)
			copy(slot(b, 0), slot(b, 1))
			copy(slot(b, 1), one)
		})},
		{"a layer shifted", cli.ExitFailed, "device 1 has blocks", sealed(func(b []byte) { add(slot(b, 0)[slotUniaddr:], 1) })},
		{"a layer over its neighbour", cli.ExitFailed, "device 2 has blocks", sealed(func(b []byte) { add(slot(b, 1)[slotUniaddr:], -1) })},
		{"a layer too long", cli.ExitFailed, "device 3 has blocks", sealed(func(b []byte) { add(slot(b, 2)[slotBlocks:], 1) })},
	} {
		name := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(name, tt.change(append([]byte(nil), good...)), 0o600); err != nil {
			t.Fatal(err)
		}
		mustRefuse(t, tt.name, tt.code, tt.want, "--index", name, "--blob", im.Ref())
	}
}
