// Package contest measures commands against each other. They take turns on the
// same input in one run, since what shares the machine with them makes
// absolute times drift; each counts with its best turn.
package contest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/layerpipe/layerpipe/internal/peakmem"
)

// An Entrant is one command, run by the shell.
type Entrant struct {
	Name    string
	Command string
	// Before, if not nil, is run ahead of each turn, untimed.
	Before func() error
	// Size, if not nil, tells the size of what came out, in bytes; see SizeOf.
	Size func() (int64, error)
}

// A Result is an entrant's best turn.
type Result struct {
	Name string
	Wall time.Duration
	CPU  time.Duration // user and system, of the best turn
	Peak int64         // memory of the largest process, bytes, at most in any turn
	Size int64         // bytes that came out
}

// Run lets the entrants take turns, so many rounds.
func Run(rounds int, entrants ...Entrant) ([]Result, error) {
	out := make([]Result, len(entrants))
	for round := range rounds {
		for i, e := range entrants {
			if e.Before != nil {
				if err := e.Before(); err != nil {
					return nil, err
				}
			}
			cmd, err := peakmem.Command("bash", "-o", "pipefail", "-c", e.Command)
			if err != nil {
				return nil, err
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			start := time.Now()
			if err := cmd.Start(); err != nil {
				return nil, err
			}
			peak, err := cmd.Wait()
			wall := time.Since(start)
			if err != nil {
				return nil, fmt.Errorf("%s: %w: %s", e.Name, err, bytes.TrimSpace(stderr.Bytes()))
			}
			r := &out[i]
			r.Name = e.Name
			r.Peak = max(r.Peak, peak)
			if round == 0 || wall < r.Wall {
				r.Wall = wall
				r.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			}
			if e.Size != nil {
				if r.Size, err = e.Size(); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, nil
}

// Print writes a table; the ratios are to the last result, the peer.
func Print(w io.Writer, title string, results []Result) {
	fmt.Fprintf(w, "\n%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\twall\tratio\tCPU\tratio\tpeak MB\tratio\tsize MB\tratio\t")
	peer := results[len(results)-1]
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%.3fs\t%.2f\t%.3fs\t%.2f\t%.1f\t%.2f\t%.2f\t%.2f\t\n", r.Name,
			r.Wall.Seconds(), ratio(r.Wall, peer.Wall), r.CPU.Seconds(), ratio(r.CPU, peer.CPU),
			float64(r.Peak)/1e6, ratio(r.Peak, peer.Peak), float64(r.Size)/1e6, ratio(r.Size, peer.Size))
	}
	t.Flush()
}

func ratio[T int64 | time.Duration](a, b T) float64 {
	if b == 0 {
		return 1
	}
	return float64(a) / float64(b)
}

// Available reports whether a command can be run.
func Available(command string) bool {
	_, err := exec.LookPath(command)
	return err == nil
}

// Program is the absolute path of a program in a directory: bin or .peers/bin.
func Program(dir, name string) (string, error) {
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err == nil && !Available(path) {
		err = fmt.Errorf("%s: not there (make; scripts/peers)", path)
	}
	return path, err
}

// Shell runs a command that only prepares a turn; its stdout is dropped.
func Shell(format string, args ...any) error {
	cmd := exec.Command("bash", "-c", fmt.Sprintf(format, args...))
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// SizeOf is an Entrant's Size where it writes these files.
func SizeOf(files ...string) func() (int64, error) {
	return func() (sum int64, err error) {
		for _, name := range files {
			st, err := os.Stat(name)
			if err != nil {
				return 0, err
			}
			sum += st.Size()
		}
		return sum, nil
	}
}
