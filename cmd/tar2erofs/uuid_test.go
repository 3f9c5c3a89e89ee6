package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

// TestUUID: whatever makes another image makes another UUID.
func TestUUID(t *testing.T) {
	dir := t.TempDir()
	tarball := filepath.Join(dir, "a.tar")
	f, err := os.Create(tarball)
	if err != nil {
		t.Fatal(err)
	}
	b := testimage.NewBuilder(f)
	b.File("f", 0o644, "f", testimage.Xattr("user.a", "b"))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	seen := map[[16]byte]string{}
	for _, options := range []string{
		"", "-i", "-b 512", "-b 8192", "-L x", "--whiteouts overlay", "--whiteouts keep", "-T 1", "-T 2", "-T 1 --mkfs-time", "env 1", "env 2",
		"--all-root", "--force-uid 1", "--force-gid 1", "--uid-offset 1", "--gid-offset 1", "--uid-offset 11",
		"--exclude f", "--exclude f --exclude g", "--exclude /f", "--xattr-prefix user.a", "--xattr-prefix user.b", "--no-inline",
	} {
		os.Unsetenv("SOURCE_DATE_EPOCH")
		args := strings.Fields(options)
		if len(args) > 0 && args[0] == "env" {
			t.Setenv("SOURCE_DATE_EPOCH", args[1])
			args = nil
		}
		out := filepath.Join(dir, "out")
		env := &cli.Env{Name: "tar2erofs", Args: append(args, out, tarball), Stdout: io.Discard, Stderr: os.Stderr}
		if code := cli.Run(t.Context(), env, run); code != 0 {
			t.Fatalf("%s: exit code %d", options, code)
		}
		image, err := os.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		fsys, err := erofs.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		u := fsys.SuperBlock().UUID
		if err := image.Close(); err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[u]; ok {
			t.Errorf("%q has the UUID of %q", options, other)
		}
		if u[6]>>4 != 8 || u[8]>>6 != 2 {
			t.Errorf("%q: %x is no UUID of version 8", options, u)
		}
		seen[u] = options
	}
}

func TestParseUUID(t *testing.T) {
	for text, want := range map[string]string{
		"00112233-4455-6677-8899-aabbccddeeff": "00112233445566778899aabbccddeeff",
		"00112233-4455-6677-8899-AABBCCDDEEFF": "00112233445566778899aabbccddeeff",
		"clear":                                strings.Repeat("0", 32),
	} {
		if u, err := parseUUID(text); err != nil || fmt.Sprintf("%x", u) != want {
			t.Errorf("%s: %x, %v", text, u, err)
		}
	}
	for _, bad := range []string{"", "0", "00112233445566778899aabbccddeeff", "+0112233-4455-6677-8899-aabbccddeeff",
		"0x112233-4455-6677-8899-aabbccddeeff", "00112233-4455-6677-8899-aabbccddeef", "00112233-4455-6677-8899-aabbccddeeff0"} {
		if u, err := parseUUID(bad); err == nil {
			t.Errorf("%q: %x", bad, u)
		}
	}
	a, err1 := parseUUID("random")
	b, err2 := parseUUID("random")
	if a == b || err1 != nil || err2 != nil {
		t.Errorf("random: %x, %v; %x, %v", a, err1, b, err2)
	}
}
