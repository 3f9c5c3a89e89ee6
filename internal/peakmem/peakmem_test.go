package peakmem

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"
)

func TestMain(m *testing.M) {
	Init()
	if os.Getenv("PEAKMEM_EAT") != "" {
		eat(100 << 20)
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// eat touches n bytes.
//
//go:noinline
func eat(n int) []byte { return bytes.Repeat([]byte{1}, n) }

// TestPeak wants a child's own peak, whatever this process held before.
func TestPeak(t *testing.T) {
	if !supported {
		t.Skip("skipped: no ru_maxrss on this system")
	}
	held := eat(200 << 20)
	run := func(env string) (int64, error) {
		c, err := Command(os.Args[0], "-test.run=^$")
		if err != nil {
			t.Fatal(err)
		}
		c.Env = append(c.Env, env)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c.Wait()
	}
	small, err := run("NOTHING=1")
	if err != nil || small <= 0 || small > 80<<20 {
		t.Errorf("a process that does nothing held %d bytes, %v", small, err)
	}
	big, err := run("PEAKMEM_EAT=1")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || big < 100<<20 {
		t.Errorf("a process that eats 100 MiB and exits with 3: %d bytes, %v", big, err)
	}
	if held[len(held)-1] != 1 {
		t.Error("unreachable")
	}
}
