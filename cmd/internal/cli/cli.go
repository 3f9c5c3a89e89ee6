// Package cli is what the commands share: standard streams as values, flag
// parsing, files named "-", atomic output, progress, and the one switch from
// an error to an exit code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"github.com/alecthomas/kong"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Exit codes, the same in every command.
const (
	ExitOK           = 0
	ExitFailed       = 1
	ExitUsage        = 2
	ExitUnauthorized = 3
	ExitNotFound     = 4
	ExitIntegrity    = 5
	ExitInterrupt    = 130 // 128 + SIGINT
	ExitPipe         = 141 // 128 + SIGPIPE: the reader of our output has gone
	ExitTerminate    = 143 // 128 + SIGTERM
)

// Env is what a command touches of its process, as values, so that a test can
// run a command without starting one.
type Env struct {
	Name   string
	Args   []string // without the command's own name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	serving    atomic.Bool
	progress   atomic.Pointer[Progress]
	ownSignals atomic.Bool
}

// Serving says that from now on the command answers to the end of its context
// by itself, however long that takes: a server drains. All others are ended a
// second after a signal, since what they wait for (a pipe that stays silent, a
// FIFO that nobody opens) may never come.
func (e *Env) Serving() { e.serving.Store(true) }

// OwnSignals says that from now on the command takes care of every signal but
// the first itself.
func (e *Env) OwnSignals() { e.ownSignals.Store(true) }

// signalError is the cause of a context that a signal cancelled.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string { return e.sig.String() }

// errDone unwinds a command that has already said all it had to: --help.
var errDone = errors.New("done")

// ExitStatus is the error of a command that ends with the code of a program it
// ran: that program has said what there was to say.
type ExitStatus int

func (e ExitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// errPipe marks an output error whose reader has gone.
var errPipe = errors.New("broken pipe")

// Main runs a command with the process's own streams and exits with its code.
// The context that run gets is cancelled by SIGINT, SIGTERM and SIGHUP. A
// second signal ends the process at once; temporary files are removed.
func Main(name string, run func(context.Context, *Env) error) {
	os.Exit(Start(name, run))
}

// Start is Main without the exit: testscript wants the code.
func Start(name string, run func(context.Context, *Env) error) int {
	// A closed stdout must become an error that we can turn into a quiet exit
	// after cleaning up; the default would kill us and leave temporary files.
	signal.Ignore(syscall.SIGPIPE)
	// Libraries have nothing to say beside our errors: net/http would print what
	// a server sends unasked.
	log.SetOutput(io.Discard)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	env := &Env{Name: name, Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	sigs := make(chan os.Signal, 2)
	signal.Notify(sigs, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signal.Notify(sigs, syscall.SIGHUP)
	}
	defer signal.Stop(sigs)
	go env.watch(sigs, cancel)
	return Run(ctx, env, run)
}

// grace is how long a command that does not serve has after a signal.
const grace = time.Second

// watch turns signals into the end of the context, and of the process where
// that does not help.
func (e *Env) watch(sigs <-chan os.Signal, cancel context.CancelCauseFunc) {
	for s := range sigs {
		sig, ok := s.(syscall.Signal)
		if !ok {
			continue
		}
		cancel(signalError{sig})
		if e.ownSignals.Load() {
			continue
		}
		if e.serving.Load() {
			s = <-sigs
			if e.ownSignals.Load() { // since then
				continue
			}
		} else {
			select {
			case s = <-sigs:
			case <-time.After(grace):
			}
		}
		if second, ok := s.(syscall.Signal); ok {
			sig = second
		}
		removeTemporaries()
		if p := e.progress.Load(); p != nil {
			p.abandon()
		}
		os.Exit(128 + int(sig))
	}
}

// Run runs a command in env, prints its error as one line, and returns the
// exit code.
func Run(ctx context.Context, env *Env, run func(context.Context, *Env) error) int {
	err := run(ctx, env)
	if err == nil || errors.Is(err, errDone) {
		return ExitOK
	}
	// After a signal every error is a consequence of it.
	if sig, ok := errors.AsType[signalError](context.Cause(ctx)); ok {
		return 128 + int(sig.sig)
	}
	code := Code(err)
	if _, silent := errors.AsType[ExitStatus](err); !silent && code != ExitPipe {
		env.Errorf("%v", err)
	}
	return code
}

// Code is the exit code for an error.
func Code(err error) int {
	if status, ok := errors.AsType[ExitStatus](err); ok {
		return int(status)
	}
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, errPipe), errors.Is(err, syscall.EPIPE):
		return ExitPipe
	case errors.Is(err, fault.ErrUsage):
		return ExitUsage
	case errors.Is(err, fault.ErrUnauthorized):
		return ExitUnauthorized
	case errors.Is(err, fault.ErrIntegrity):
		return ExitIntegrity
	case errors.Is(err, fault.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return ExitNotFound
	}
	return ExitFailed
}

// Errorf prints one line on stderr, after the command's name.
func (e *Env) Errorf(format string, args ...any) {
	fmt.Fprintf(e.Stderr, "%s: %s\n", e.Name, oneLine(fmt.Sprintf(format, args...)))
}

// oneLine keeps hostile names in an error from starting new lines or driving
// the terminal.
func oneLine(s string) string {
	return Printable(strings.NewReplacer("\n", " ", "\t", " ").Replace(strings.TrimSpace(s)))
}

// Printable is foreign text for people: what could drive a terminal is a "?",
// the control characters beyond ASCII and those that turn the direction of
// writing included.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return '?'
		}
		return r
	}, s)
}

// Usagef makes an error of the caller's own: exit code 2.
func Usagef(format string, args ...any) error {
	return fault.Usagef(format, args...)
}

// globals are the flags that every command has.
type globals struct {
	Version kong.VersionFlag `help:"Print the version and exit."`
}

// Parse fills flags, a pointer to a struct with kong tags, from env.Args.
// description is shown by --help; it should end in command lines that work.
// --help and --version end the command with exit code 0.
func Parse(env *Env, flags any, description string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if r != errDone {
				panic(r)
			}
			err = errDone
		}
	}()
	parser, err := kong.New(flags,
		kong.Name(env.Name),
		kong.Description(description),
		kong.Writers(env.Stdout, env.Stderr),
		kong.Exit(func(int) { panic(errDone) }),
		kong.Vars{"version": Version()},
		kong.Embed(&globals{}),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
	if err != nil {
		return err
	}
	parser.Model.HelpFlag.Help = "Print this help and exit."
	if _, err = parser.Parse(env.Args); errors.Is(err, syscall.EPIPE) {
		return err // --help | head
	} else if err != nil {
		return Usagef("%v (see %s --help)", err, env.Name)
	}
	return nil
}

// Version is the module's version as the build recorded it.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "layerpipe (devel)"
	}
	return "layerpipe " + info.Main.Version
}
