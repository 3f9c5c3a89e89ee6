//go:build unix

package cli

import (
	"context"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
)

// TestMain lets the test binary be a command that makes an output and then
// waits for what never comes, with or without looking at its context.
func TestMain(m *testing.M) {
	switch os.Getenv("CLI_TEST") {
	case "stubborn":
		Main("stubborn", func(_ context.Context, env *Env) error {
			if _, err := Create(env.Args[0]); err != nil {
				return err
			}
			io.WriteString(env.Stdout, "!")
			_, err := io.Copy(io.Discard, env.Stdin)
			return err
		})
	case "server":
		Main("server", func(ctx context.Context, env *Env) error {
			env.Serving()
			io.WriteString(env.Stdout, "!")
			<-ctx.Done()
			io.Copy(io.Discard, env.Stdin) // what it takes to drain
			return nil
		})
	}
	os.Exit(m.Run())
}

// start runs this test as a command until it says that it is ready.
func start(t *testing.T, what string, args ...string) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "CLI_TEST="+what)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd, stdin
}

// TestSignalWhileWaiting: a command that waits for input that does not come is
// ended by a signal all the same, with its code, and leaves nothing.
func TestSignalWhileWaiting(t *testing.T) {
	// Under nohup the command would inherit that the signal is ignored; what is
	// handled here is not.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		dir := t.TempDir()
		cmd, stdin := start(t, "stubborn", filepath.Join(dir, "out"))
		defer stdin.Close()
		if list, _ := os.ReadDir(dir); len(list) != 1 {
			t.Fatalf("%v before the signal", list)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 128+int(sig) {
			t.Errorf("%v: exit code %d", sig, code)
		}
		if list, _ := os.ReadDir(dir); len(list) != 0 {
			t.Errorf("%v: %v is left", sig, list)
		}
	}
}

// TestSignalServer: a server may take its time, unless it is told twice.
func TestSignalServer(t *testing.T) {
	cmd, stdin := start(t, "server")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("told once: %v", err)
	}
	cmd, stdin = start(t, "server")
	defer stdin.Close()
	// The second one may come before the first was seen: then it takes a third.
	done := make(chan error)
	go func() { done <- cmd.Wait() }()
	for {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
			if code := cmd.ProcessState.ExitCode(); code != ExitTerminate {
				t.Errorf("told twice: exit code %d", code)
			}
			return
		default:
		}
	}
}
