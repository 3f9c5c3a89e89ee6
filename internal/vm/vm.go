// Package vm runs a program in a virtual machine of its own: Debian's kernel
// with a busybox around it, booted by qemu. It is for what this machine's kernel
// may not have, or what nobody wants to do to it: the kernel's NBD driver, and
// servers killed under mounted filesystems.
package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

// A Guest is what to boot.
type Guest struct {
	Kernel  string   // vmlinuz
	Modules []string // .ko files, in the order in which they are loaded
	Busybox string   // static
	// Files are the host's files and directories by the guest's names.
	Files map[string]string
	// Script is what the guest's shell runs; what it prints is the guest's
	// output, its exit code is the guest's.
	Script string
	// Output gets what the script prints, as it comes. May be nil.
	Output io.Writer
	// Memory in MiB; 0: 1024.
	Memory int
}

// exitMark begins the line by which the guest tells the script's exit code.
const exitMark = "@@guest-exit "

// setup is the beginning of the guest's /init. The results have a serial line
// of their own, so that no message of the kernel's lands in the middle of one.
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
`

// Run boots the guest and waits for its script. A guest that ends without
// telling an exit code is an error, which shows the end of its console.
func (g *Guest) Run(ctx context.Context) (exit int, err error) {
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	initrd, console := filepath.Join(dir, "initrd"), filepath.Join(dir, "console")
	if err := g.writeInitrd(initrd); err != nil {
		return 0, err
	}
	memory := g.Memory
	if memory == 0 {
		memory = 1024
	}
	args := []string{"-nodefaults", "-display", "none", "-no-reboot", "-smp", "2", "-m", strconv.Itoa(memory),
		"-kernel", g.Kernel, "-initrd", initrd,
		"-append", "console=ttyS1 panic=-1 loglevel=6 mitigations=off",
		"-serial", "stdio", "-serial", "file:" + console, "-device", "virtio-rng-pci"}
	if !kvmBroken.Load() && kvm() {
		exit, err := run(ctx, g.Output, console, append(args, "-accel", "kvm", "-cpu", "host"))
		if !errors.Is(err, errAccel) {
			return exit, err
		}
		kvmBroken.Store(true)
	}
	// With other models half the boots panic.
	return run(ctx, g.Output, console, append(args, "-accel", "tcg", "-cpu", "qemu64,-cx16"))
}

// kvmBroken says that a guest could not be run with KVM, as happens where this
// machine is a guest itself.
var kvmBroken atomic.Bool

// errAccel is for a guest that ended for want of a working KVM.
var errAccel = errors.New("KVM does not work")

// An accelWatch is qemu's stderr; it ends qemu, which would wait for a debugger,
// when KVM gives up.
type accelWatch struct {
	buf    bytes.Buffer // not embedded: its ReadFrom would pass Write by
	cancel func()
	failed bool
}

func (w *accelWatch) Write(p []byte) (int, error) {
	w.buf.Write(p)
	if b := w.buf.Bytes(); bytes.Contains(b, []byte("KVM")) || bytes.Contains(b, []byte("kvm")) || bytes.Contains(b, []byte("MSR")) {
		w.failed = true
		w.cancel()
	}
	return len(p), nil
}

// run runs qemu to its end. Nothing was printed if the error is errAccel.
func run(ctx context.Context, output io.Writer, console string, args []string) (exit int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	stderr := &accelWatch{cancel: cancel}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	exit, told := copyOutput(output, stdout)
	err = cmd.Wait()
	switch {
	case stderr.failed:
		return 0, errAccel
	case ctx.Err() != nil:
		err = ctx.Err()
	case err == nil && told:
		return exit, nil
	case err == nil:
		err = errors.New("the guest ended early")
	}
	return 0, fmt.Errorf("%w: %s\n%s", err, stderr.buf.Bytes(), tail(console))
}

// copyOutput passes lines on until the end, all but the one with the exit code.
func copyOutput(w io.Writer, r io.Reader) (exit int, told bool) {
	if w == nil {
		w = io.Discard
	}
	for lines := bufio.NewReader(r); ; {
		line, err := lines.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		if code, ok := strings.CutPrefix(line, exitMark); ok {
			if n, err := strconv.Atoi(code); err == nil {
				exit, told = n, true
				continue
			}
		}
		if line != "" || err == nil {
			fmt.Fprintln(w, line)
		}
		if err != nil {
			return exit, told
		}
	}
}

// tail is the end of a file.
func tail(name string) []byte {
	const most = 4 << 10
	b, _ := os.ReadFile(name)
	return b[max(0, len(b)-most):]
}

func (g *Guest) writeInitrd(name string) error {
	files := map[string]string{"bin/busybox": g.Busybox, "script": ""}
	for name, from := range g.Files {
		files[strings.TrimPrefix(name, "/")] = from
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
	fmt.Fprintf(&init, "stty -F /dev/ttyS0 raw\nsh /script </dev/null >/dev/ttyS0 2>&1\n")
	fmt.Fprintf(&init, "printf '\\n%s%%d\\n' $? >/dev/ttyS0\nsync\npoweroff -f\n", exitMark)

	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = writeCpio(w, files, init.String())
	return errors.Join(err, w.Flush(), f.Close())
}

// kvm reports whether there is something to accelerate guests with.
func kvm() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
