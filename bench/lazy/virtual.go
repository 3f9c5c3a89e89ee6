package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/layerpipe/layerpipe/internal/vm"
)

// An otherIndex is what mount.erofs needs: an index of one layer, and its
// checkpoints.
type otherIndex struct {
	layer        int
	index, zinfo string
}

// makeOther makes the index of the layer that has most.
func (b *bench) makeOther(ctx context.Context) error {
	for i := range b.image.layers {
		if b.image.layers[i].Size > b.image.layers[b.other.layer].Size {
			b.other.layer = i
		}
	}
	blob := filepath.Join(b.layout, "blobs", "sha256", b.image.layers[b.other.layer].Descriptor.Digest.Encoded())
	b.other.index, b.other.zinfo = filepath.Join(b.dir, "other.erofs"), filepath.Join(b.dir, "other.zinfo")
	cmd := exec.CommandContext(ctx, b.tool("tar2erofs"), "-i", "--zinfo", b.other.zinfo, b.other.index, blob)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// virtual runs this program in a virtual machine whose kernel has an NBD
// driver, for the lines of what is mounted.
func (b *bench) virtual(ctx context.Context) error {
	if b.mountErofs == "" && !b.boot {
		return nil
	}
	repository, err := os.Getwd()
	if err != nil {
		return err
	}
	g, err := vm.New(repository)
	if err != nil {
		return err
	}
	self := filepath.Join(b.dir, "lazy")
	build := exec.CommandContext(ctx, "go", "build", "-o", self, "./bench/lazy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	for _, name := range []string{"oci-fetch", "tar2erofs", "erofs-nbd"} {
		g.Put("/bin/"+name, b.tool(name))
	}
	g.Put("/bin/lazy", self)
	g.Put("/image", b.layout)
	g.Memory = 2048
	args := []string{"lazy", "-bin", "/bin", "-image", "/image", "-only", "mounted", "-delay", b.link.Delay.String(), "-mbit", fmt.Sprint(b.link.Bandwidth * 8 / 1e6)}
	if b.flags != "" {
		args = append(args, "-flags", "'"+b.flags+"'")
	}
	if b.mountErofs != "" {
		if err := put(g, "/sbin/mount.erofs", b.mountErofs); err != nil {
			return err
		}
		args = append([]string{"MOUNT_EROFS=/sbin/mount.erofs"}, args...)
	}
	// The commands' progress bars are for terminals other than that.
	g.Script = "echo; echo in a virtual machine, by $VM_ACCEL:\n" + strings.Join(args, " ") + ` 2>/tmp/log
code=$?
[ $code = 0 ] || cat /tmp/log
exit $code`
	g.Output = os.Stdout
	exit, err := g.Run(ctx)
	if err == nil && exit != 0 {
		err = fmt.Errorf("virtual machine: exit code %d", exit)
	}
	return err
}

// put puts a program with its libraries into the guest, or a script without.
func put(g *vm.Guest, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 2)
	if n, _ := f.Read(head); n == 2 && string(head) == "#!" {
		g.Put(name, from)
		return nil
	}
	return g.PutProgram(name, from)
}
