//go:build unix

package main

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
)

// BenchmarkLocal is a local image in the page cache, read by the same clients
// from erofs-nbd and from nbdkit's file plugin:
//
//	go test ./cmd/erofs-nbd -run - -bench Local -benchtime 5x
func BenchmarkLocal(b *testing.B) {
	nbdkit, nbdcopy, fio := interop.Tool(b, "nbdkit"), interop.Tool(b, "nbdcopy"), interop.Tool(b, "fio")
	const size = 256 << 20
	dir := b.TempDir()
	image := filepath.Join(dir, "image")
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(data)
	small, err := os.ReadFile(smallImage(b))
	if err != nil {
		b.Fatal(err)
	}
	copy(data, small) // an image may be longer than its superblock says
	if err := os.WriteFile(image, data, 0o600); err != nil {
		b.Fatal(err)
	}
	servers := []struct {
		name string
		cmd  func(socket string) *exec.Cmd
	}{
		{"erofs-nbd", func(socket string) *exec.Cmd { return command(b, image, "--listen", "unix:"+socket) }},
		{"nbdkit", func(socket string) *exec.Cmd { return exec.Command(nbdkit, "-f", "-r", "-U", socket, "file", image) }},
	}
	const random = 64 << 20
	for _, client := range []struct {
		name  string
		bytes int64
		run   func(uri string)
	}{
		{"copy", size, func(uri string) { interop.Run(b, nbdcopy, uri, "null:") }},
		{"copy depth 1", size, func(uri string) { interop.Run(b, nbdcopy, "--connections=1", "--requests=1", uri, "null:") }},
		{"random 4k depth 16", random, func(uri string) {
			interop.Run(b, fio, "--name=x", "--ioengine=nbd", "--uri="+uri, "--rw=randread", "--bs=4k", "--iodepth=16", "--size=256m", "--io_size=64m", "--output="+os.DevNull)
		}},
	} {
		for _, s := range servers {
			b.Run(client.name+"/"+s.name, func(b *testing.B) {
				socket := filepath.Join(b.TempDir(), "s")
				interop.Listening(b, s.cmd(socket), socket)
				b.SetBytes(client.bytes)
				for b.Loop() {
					client.run("nbd+unix:///?socket=" + socket)
				}
			})
		}
	}
}
