// Package peakmem runs a command and says how much memory it held at most.
//
// The number is the kernel's ru_maxrss, which on Linux has a trap: a child
// begins with its parent's peak, because exec counts the memory it leaves
// behind. So a command is started by a small process in between: this program
// again, which does nothing else.
package peakmem

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

const variable = "LAYERPIPE_PEAKMEM"

// Init must come first in main, or in TestMain: in the process in between it
// runs the command and exits as the command did.
func Init() {
	if os.Getenv(variable) == "" {
		return
	}
	os.Unsetenv(variable)
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	dieWithParent(cmd)
	err := cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(127)
	}
	fmt.Fprintln(os.NewFile(3, "peak"), maxRSS(cmd.ProcessState))
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		os.Exit(code)
	}
	fmt.Fprintln(os.Stderr, err) // "signal: killed" and the like
	os.Exit(126)
}

// A Cmd is an exec.Cmd that measures.
type Cmd struct {
	*exec.Cmd
	r, w *os.File
}

// Command prepares a command.
func Command(name string, args ...string) (*Cmd, error) {
	if !supported {
		return &Cmd{Cmd: exec.Command(name, args...)}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &Cmd{Cmd: exec.Command(self, append([]string{name}, args...)...), r: r, w: w}
	c.Env = append(os.Environ(), variable+"=1")
	c.ExtraFiles = []*os.File{w}
	return c, nil
}

// Wait waits as exec.Cmd does, and returns the most memory that the command
// held resident, in bytes; 0 where that is not known.
func (c *Cmd) Wait() (peak int64, err error) {
	err = c.Cmd.Wait()
	if c.r == nil {
		return 0, err
	}
	c.w.Close()
	defer c.r.Close()
	b, readErr := io.ReadAll(c.r)
	if readErr != nil {
		return 0, errors.Join(err, readErr)
	}
	if peak, readErr = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); readErr != nil && err == nil {
		err = readErr
	}
	return peak, err
}
