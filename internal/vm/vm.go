// Package vm runs a shell script in a virtual machine of its own: Debian's
// kernel with a busybox around it, booted by qemu in a few seconds. It is for
// what this machine's kernel may not have, or what nobody wants to do to it: the
// kernel's NBD driver, and servers killed under mounted filesystems.
//
//	g, err := vm.New(repository)                          // what scripts/vm-kernel has fetched
//	g.Put("/data/image", "golang.erofs")                  // a file, or a directory and all in it
//	err = g.PutProgram("/usr/bin/tool", "/usr/bin/tool")  // with its shared libraries
//	g.Script = "mount -t erofs -o loop /data/image /mnt && tool /mnt"
//	g.Output = os.Stdout
//	exit, err := g.Run(ctx)
//
// The guest has a loopback interface and no other, a root filesystem in memory,
// and the modules nbd, erofs and loop. Its processor is KVM's where that works,
// and emulated where it does not, some ten times slower: the script finds "kvm"
// or "tcg" in $VM_ACCEL.
package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Accelerator is the environment's variable that says what runs guests: "kvm",
// "tcg" (emulation), or nothing, for KVM where it works.
const Accelerator = "LAYERPIPE_VM_ACCEL"

// A Guest is what to boot.
type Guest struct {
	Kernel  string   // vmlinuz
	Modules []string // .ko files, in the order in which they are loaded
	// Script is what the guest's shell (busybox) runs; what it prints, on
	// stdout and stderr, is the guest's output; its exit code is the guest's.
	Script string
	// Output gets what the script prints, line by line. May be nil.
	Output io.Writer
	// Memory in MiB, of which all that is put into the guest takes a part; 0:
	// 1024.
	Memory int

	files map[string]string // the host's, by the guest's names
}

// Errors of a machine that lacks what a guest needs.
var (
	ErrNoKernel = errors.New("no kernel in .peers/vm (run scripts/vm-kernel)")
	ErrNoTool   = errors.New("not installed")
)

// modules are what guests load, in the order of their dependencies.
var modules = []string{"libcrc32c", "netfs", "erofs", "loop", "nbd"}

// New makes a guest with the kernel that scripts/vm-kernel has put into the
// repository's .peers/vm.
func New(repository string) (*Guest, error) {
	if _, err := exec.LookPath(qemu); err != nil {
		return nil, fmt.Errorf("%s: %w (Debian: qemu-system-x86)", qemu, ErrNoTool)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox: %w (Debian: busybox-static)", ErrNoTool)
	}
	dir := filepath.Join(repository, ".peers", "vm")
	g := &Guest{Kernel: filepath.Join(dir, "vmlinuz"), files: make(map[string]string)}
	for _, m := range modules {
		g.Modules = append(g.Modules, filepath.Join(dir, m+".ko"))
	}
	for _, name := range append([]string{g.Kernel}, g.Modules...) {
		if _, err := os.Stat(name); err != nil {
			return nil, ErrNoKernel
		}
	}
	return g, g.PutProgram("/bin/busybox", busybox)
}

// Put puts a file of the host's, or a directory with all that is in it, into the
// guest, under this absolute name.
func (g *Guest) Put(name, from string) {
	g.files[strings.TrimPrefix(name, "/")] = from
}

// setup is the beginning of the guest's /init. The script has a serial line of
// its own, so that no message of the kernel's lands in the middle of a result.
const setup = `#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /run /tmp /mnt
/bin/busybox --install -s
export PATH=/usr/local/bin:/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
ifconfig lo 127.0.0.1 up
stty -F /dev/ttyS0 raw
`

// writeInitrd writes the guest's root filesystem.
func (g *Guest) writeInitrd(name string) error {
	files := make(map[string]string)
	for name, from := range g.files {
		files[name] = from
	}
	var init strings.Builder
	init.WriteString(setup)
	for _, m := range g.Modules {
		base := filepath.Base(m)
		files["modules/"+base] = m
		fmt.Fprintf(&init, "insmod /modules/%s\n", base)
	}
	script := name + ".script"
	if err := os.WriteFile(script, []byte(g.Script), 0o700); err != nil {
		return err
	}
	files["script"] = script
	fmt.Fprintf(&init, "echo %s >/dev/ttyS0\n", bootMark)
	fmt.Fprintf(&init, "sh /script </dev/null >/dev/ttyS0 2>&1\n")
	fmt.Fprintf(&init, "printf '\\n%s%%d\\n' $? >/dev/ttyS0\nsync\npoweroff -f\n", exitMark)

	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = writeCpio(w, files, init.String())
	return errors.Join(err, w.Flush(), f.Close())
}

// Run boots the guest and waits for its script. A guest that ends without
// telling an exit code is an error, which shows the end of its console.
func (g *Guest) Run(ctx context.Context) (exit int, err error) {
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	m := machine{kernel: g.Kernel, initrd: filepath.Join(dir, "initrd"), console: filepath.Join(dir, "console"), memory: g.Memory, output: g.Output}
	if m.memory == 0 {
		m.memory = 1024
	}
	if m.output == nil {
		m.output = io.Discard
	}
	if err := g.writeInitrd(m.initrd); err != nil {
		return 0, err
	}
	return m.run(ctx, os.Getenv(Accelerator))
}
