package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
)

// commandGrace is how long a command may take to end once it was told to.
const commandGrace = 10 * time.Second

// runCommand runs a shell command that finds the server in $uri and, where it
// is one, its socket in $unixsocket. The command gets our standard streams.
func runCommand(ctx context.Context, env *cli.Env, command, uri string) error {
	shell := []string{"sh", "-c", command}
	if runtime.GOOS == "windows" {
		shell = []string{"cmd", "/c", command}
	}
	cmd := exec.CommandContext(ctx, shell[0], shell[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = env.Stdin, env.Stdout, env.Stderr
	cmd.Env = append(os.Environ(), "uri="+uri)
	if u, err := url.Parse(uri); err == nil && u.Query().Has("socket") {
		cmd.Env = append(cmd.Env, "unixsocket="+u.Query().Get("socket"))
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = commandGrace
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return fmt.Errorf("--run: %w", err) // there is no shell
	}
	if ctx.Err() != nil {
		return ctx.Err() // we were told to end, and so was the command
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return cli.ExitStatus(exitCode(e))
	}
	return err
}

// exitCode is the code that a shell would give.
func exitCode(e *exec.ExitError) int {
	if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return e.ExitCode()
}
