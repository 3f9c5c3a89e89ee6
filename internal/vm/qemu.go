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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const qemu = "qemu-system-x86_64"

const (
	// bootMark is the line by which the guest tells that it has booted.
	bootMark = "@@guest-booted"
	// exitMark begins the line by which it tells the script's exit code.
	exitMark = "@@guest-exit "
)

// An accelerator is one way to run a guest.
type accelerator struct {
	name  string
	flags []string
	boots time.Duration // what a boot may take, on a machine with other work to do
	tries int
}

var (
	withKVM = accelerator{"kvm", []string{"-accel", "kvm", "-cpu", "host"}, time.Minute, 1}
	// This kernel panics now and then when it boots on an emulated processor;
	// with models newer than this one, and with 16-byte exchanges, every other
	// time.
	emulated = accelerator{"tcg", []string{"-accel", "tcg", "-cpu", "qemu64,-cx16"}, 3 * time.Minute, 3}
)

// A machine is a qemu to be.
type machine struct {
	kernel, initrd string
	console        string // the file that gets the kernel's messages
	memory         int    // MiB
	output         io.Writer
}

// kvmBroken remembers that no guest boots with KVM, which shows only when one
// tries: where this machine is a guest itself, /dev/kvm may be there and fail.
var kvmBroken atomic.Bool

// errBoot is for a guest that has not booted; its script was not begun.
var errBoot = errors.New("the guest does not boot")

// run runs the machine with the accelerator of this name, "" for the best one.
func (m *machine) run(ctx context.Context, name string) (exit int, err error) {
	switch {
	case name == "kvm":
		return m.boot(ctx, withKVM)
	case name == "" && !kvmBroken.Load() && kvmOpens():
		exit, err := m.boot(ctx, withKVM)
		if !errors.Is(err, errBoot) {
			return exit, err
		}
		kvmBroken.Store(true)
		fallthrough
	case name == "" || name == "tcg":
		return m.boot(ctx, emulated)
	}
	return 0, fmt.Errorf("%s=%s: neither kvm nor tcg", Accelerator, name)
}

func (m *machine) boot(ctx context.Context, a accelerator) (exit int, err error) {
	for range a.tries {
		if exit, err = m.once(ctx, a); !errors.Is(err, errBoot) {
			break
		}
	}
	return exit, err
}

// kvmOpens reports whether there is a KVM at all.
func kvmOpens() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// once runs qemu to its end.
func (m *machine) once(ctx context.Context, a accelerator) (exit int, err error) {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, append([]string{
		"-nodefaults", "-display", "none", "-no-reboot", "-smp", "2", "-m", strconv.Itoa(m.memory),
		"-kernel", m.kernel, "-initrd", m.initrd,
		// A panic is a reboot, which ends qemu. What the kernel does not know
		// becomes the script's environment.
		"-append", "console=ttyS1 panic=-1 loglevel=6 mitigations=off VM_ACCEL=" + a.name,
		"-serial", "stdio", "-serial", "file:" + m.console, "-device", "virtio-rng-pci"}, a.flags...)...)
	stderr := &stderrWatch{cancel: cancel}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	late := time.AfterFunc(a.boots, cancel)
	g := &talk{w: m.output, booted: func() { late.Stop() }}
	g.read(stdout)
	late.Stop()
	err = cmd.Wait()
	switch {
	case err == nil && g.ended:
		return g.exit, nil
	case outer.Err() != nil:
		err = outer.Err()
	case !g.up:
		err = fmt.Errorf("%w (%s): %v", errBoot, a.name, err)
	case err == nil:
		err = errors.New("the guest ended before its script")
	}
	return 0, fmt.Errorf("%w: %s\n%s", err, stderr.String(), tail(m.console))
}

// A stderrWatch keeps what qemu complains of, and ends a qemu that has given KVM
// up and waits for a debugger.
type stderrWatch struct {
	cancel func()
	mu     sync.Mutex
	buf    bytes.Buffer // not embedded: its ReadFrom would pass Write by
}

func (w *stderrWatch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if bytes.Contains(w.buf.Bytes(), []byte("KVM internal error")) {
		w.cancel()
	}
	return len(p), nil
}

func (w *stderrWatch) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// A talk is what comes over the guest's first serial line.
type talk struct {
	w      io.Writer // gets the script's output
	booted func()
	up     bool // it has booted
	ended  bool // the script has
	exit   int
}

// read passes lines on until the end, all but our own.
func (t *talk) read(r io.Reader) {
	for lines := bufio.NewReader(r); ; {
		line, err := lines.ReadString('\n')
		text := strings.TrimRight(line, "\r\n")
		code, isExit := strings.CutPrefix(text, exitMark)
		switch {
		case text == bootMark && !t.up:
			t.up = true
			t.booted()
		case isExit:
			n, err := strconv.Atoi(code)
			t.exit, t.ended = n, err == nil
		case t.up && line != "":
			fmt.Fprintln(t.w, text)
		}
		if err != nil {
			return
		}
	}
}

// tail is the end of a file.
func tail(name string) []byte {
	const most = 4 << 10
	b, _ := os.ReadFile(name)
	return b[max(0, len(b)-most):]
}
