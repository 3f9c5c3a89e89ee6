package main

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
	"runtime"
	"strings"
	"time"

	"github.com/layerpipe/layerpipe/internal/peakmem"
)

// step announces what f does, runs it, and says how long it took.
func (d *demo) step(title string, f func() error) error {
	d.last++
	fmt.Printf("\n%d. %s\n", d.last, title)
	start := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("step %d: %w", d.last, err)
	}
	say("(%s)", round(time.Since(start)))
	return nil
}

func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

func round(t time.Duration) string {
	if t < time.Second {
		return t.Round(time.Millisecond).String()
	}
	return t.Round(10 * time.Millisecond).String()
}

func bytesOf(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d bytes", n)
	case n < 1_000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

func (d *demo) tool(name string) string {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(d.bin, name)
}

// typed is a command as a person would type it.
func (d *demo) typed(command []string) string {
	var b strings.Builder
	for i, arg := range command {
		if i > 0 {
			b.WriteByte(' ')
		}
		for _, dir := range []string{d.bin, d.dir} {
			arg = strings.ReplaceAll(arg, dir+string(filepath.Separator), "")
		}
		b.WriteString(arg)
	}
	return b.String()
}

// pipeline runs commands, each reading what the one before it writes, and says
// how much memory each held.
func (d *demo) pipeline(commands ...[]string) error {
	var typed, names []string
	for _, c := range commands {
		typed, names = append(typed, d.typed(c)), append(names, filepath.Base(c[0]))
	}
	say("$ %s", strings.Join(typed, " | "))

	var running []*peakmem.Cmd
	var started error
	var in *os.File
	for i, command := range commands {
		c, err := peakmem.Command(command[0], command[1:]...)
		if err != nil {
			started = err
			break
		}
		c.Stderr = os.Stderr
		var next, out *os.File
		if i < len(commands)-1 {
			if next, out, err = os.Pipe(); err != nil {
				started = err
				break
			}
			c.Stdout = out
		} else {
			c.Stdout = os.Stdout
		}
		if in != nil {
			c.Stdin = in
		}
		err = c.Start()
		// The children hold their own copies: a reader sees the end, and a
		// writer the reader's going, only when ours are closed.
		closeAll(in, out)
		in = next
		if err != nil {
			started = err
			break
		}
		running = append(running, c)
	}
	closeAll(in)
	failed := started
	var held []string
	for i, c := range running {
		peak, err := c.Wait()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", names[i], err))
		}
		if peak > 0 {
			held = append(held, fmt.Sprintf("%s %s", names[i], bytesOf(peak)))
		}
	}
	if failed == nil && len(held) > 0 {
		say("memory: %s", strings.Join(held, ", "))
	}
	return failed
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// show runs a command and prints the first lines of what it writes.
func (d *demo) show(lines int, command ...string) error {
	say("$ %s", d.typed(command))
	out, err := d.output(command...)
	if err != nil {
		return err
	}
	all := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	for i, line := range all {
		if i == lines {
			say("  ... and %d more", len(all)-lines)
			break
		}
		say("  %s", line)
	}
	return nil
}

func (d *demo) output(command ...string) ([]byte, error) {
	cmd := exec.Command(command[0], command[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", d.typed(command), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// server starts a command that prints one line when it is ready and then runs
// until it is stopped.
func (d *demo) server(ctx context.Context, name string, args ...string) (line string, stop func(), err error) {
	say("$ %s &", d.typed(append([]string{name}, args...)))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return interrupt(cmd.Process) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		interrupt(cmd.Process)
		cmd.Wait()
	}
	line, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		stop()
		if err == io.EOF {
			err = fmt.Errorf("%s ended before it was ready: %v", filepath.Base(name), cmd.ProcessState)
		}
		return "", nil, err
	}
	return strings.TrimSpace(line), stop, nil
}

// interrupt asks a process to end; where that cannot be asked, it ends it.
func interrupt(p *os.Process) error {
	if err := p.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return p.Kill()
	}
	return nil
}
