package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
)

// readyVariable names, in a daemon's environment, the descriptor by which it
// tells that it is ready.
const readyVariable = "EROFS_NBD_READY_FD"

// readyWord is what it says there.
const readyWord = "ready"

// isDaemon reports whether this process is one that startDaemon started.
func isDaemon() bool { return os.Getenv(readyVariable) != "" }

// startDaemon runs this program once more, in the background, and waits until it
// is ready. Go's runtime cannot fork, so the daemon begins anew; until it is
// ready it has our standard streams.
func startDaemon(ctx context.Context, env *cli.Env, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	const firstExtra = 3
	cmd := exec.Command(self, args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = env.Stdin, env.Stdout, env.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyVariable+"="+strconv.Itoa(firstExtra))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })()
	line, _ := bufio.NewReader(r).ReadString('\n')
	if line == readyWord+"\n" {
		return cmd.Process.Release()
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return cli.ExitStatus(exitCode(e)) // it has said why
	}
	if err == nil {
		err = errors.New("the daemon ended before it was ready")
	}
	return err
}

// detachDaemon tells that we are ready, and lets go of all that the starter
// might wait for. What there is to say goes to the system's log from then on.
func detachDaemon(env *cli.Env) error {
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	if err != nil {
		return nil // no daemon
	}
	os.Unsetenv(readyVariable)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	var stderr io.Writer = io.Discard
	if w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, env.Name); err == nil {
		stderr = w
	}
	if s, ok := env.Stderr.(*switchedWriter); ok {
		s.set(stderr)
	}
	for std := range 3 {
		if err := unix.Dup3(int(null.Fd()), std, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	pipe := os.NewFile(uintptr(fd), "ready")
	defer pipe.Close()
	_, err = fmt.Fprintln(pipe, readyWord)
	return err
}

// notifySystemd tells a service manager that we are ready, as sd_notify(3)
// does.
func notifySystemd() error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	os.Unsetenv("NOTIFY_SOCKET") // once is enough
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling systemd: %w", err)
	}
	defer c.Close()
	_, err = c.Write([]byte("READY=1"))
	return err
}
