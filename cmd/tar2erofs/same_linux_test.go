package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestSameBytesEverywhere: neither the processor nor the number of its cores
// has a say in an image. The other processor is QEMU's.
func TestSameBytesEverywhere(t *testing.T) {
	image := testimage.NewLayers(t, testimage.Layer{Write: func(b *testimage.Builder) { testimage.Base(b, false) }},
		testimage.Layer{Compression: testimage.ZstdFrames, Write: func(b *testimage.Builder) { testimage.Toolchain(b, []string{"VERSION", "src/net/http"}) }},
		testimage.Layer{Compression: testimage.Plain, Write: testimage.Upper})
	archive := filepath.Join(t.TempDir(), "image.tar")
	interop.Run(t, interop.Tool(t, "tar"), "-C", image.Dir, "-cf", archive, ".")

	other, emulators := "arm64", []string{"qemu-aarch64", "qemu-aarch64-static"}
	if runtime.GOARCH == "arm64" {
		other, emulators = "amd64", []string{"qemu-x86_64", "qemu-x86_64-static"}
	}
	native := buildCommand(t)
	runs := []struct {
		name    string
		env     string
		command []string
	}{
		{"one core", "GOMAXPROCS=1", []string{native}},
		{"many cores", "GOMAXPROCS=16", []string{native}},
		{other, "A=B", nil},
	}
	for _, options := range [][]string{nil, {"-i"}, {"-i", "--span-size", "128KiB"}} {
		dir := t.TempDir()
		want := filepath.Join(dir, "want")
		interop.Run(t, append(append([]string{native}, options...), want, archive)...)
		for _, r := range runs {
			t.Run(r.name, func(t *testing.T) {
				if r.command == nil {
					r.command = []string{interop.Tool(t, emulators...), buildCommand(t, "GOARCH="+other, "CGO_ENABLED=0")}
				}
				got := filepath.Join(dir, "got")
				args := append(append(r.command[1:len(r.command):len(r.command)], options...), got, archive)
				cmd := exec.Command(r.command[0], args...)
				cmd.Env = append(os.Environ(), r.env)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %v: %s", cmd, err, out)
				}
				if !bytes.Equal(readFile(t, got), readFile(t, want)) {
					t.Errorf("%q: another image", options)
				}
			})
		}
	}
}
