package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/cmd/internal/regflags"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/nbddev"
)

// A takeover is a dead server's device.
type takeover struct {
	file  *nbddev.StateFile
	state *nbddev.State
}

// saved is the flags that a state file has of its server.
func saved(s *nbddev.State) (*flags, error) {
	f := new(flags)
	if err := json.Unmarshal(s.Server, f); err != nil {
		return nil, fmt.Errorf("the state of %s: %w: %w", nbddev.Path(s.Index), err, fault.ErrCorrupt)
	}
	f.Mount, f.DeadTimeout = s.Mount, s.DeadTimeout
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("the state of %s: %w", nbddev.Path(s.Index), err)
	}
	return f, nil
}

// take gets hold of the device that --reattach names, and puts the flags of the
// server that it had into f.
func (f *flags) take() (*takeover, error) {
	index, err := f.targetIndex(f.Reattach)
	if err != nil {
		return nil, err
	}
	file, state, err := nbddev.StateDir(f.StateDir).Take(index)
	if err != nil {
		return nil, err
	}
	old, err := f.inherit(state)
	if err == nil {
		err = stale(state)
		if err != nil {
			// It will never be of use again.
			err = errors.Join(fmt.Errorf("%w; what was known of it is forgotten now", err), file.Remove())
		}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	*f = *old
	return &takeover{file, state}, nil
}

// inherit is the dead server's flags with what the command line says anew.
func (f *flags) inherit(state *nbddev.State) (*flags, error) {
	old, err := saved(state)
	if err != nil {
		return nil, err
	}
	old.Daemon, old.StateDir, old.Stats = f.Daemon, f.StateDir, f.Stats
	old.Verbose = f.Verbose
	// A password is the one thing that was not kept, wherever it came from.
	old.PasswordStdin = f.PasswordStdin
	if f.Username != "" {
		old.Username = f.Username
	}
	if f.AuthFile != "" || isDescriptor(old.AuthFile) {
		old.AuthFile = f.AuthFile
	}
	return old, nil
}

// stale says why a device is not what its state says.
func stale(s *nbddev.State) error {
	i, err := nbddev.Stat(s.Index)
	switch {
	case err != nil:
		return err
	case !s.Netlink:
		return fmt.Errorf("%s was attached without netlink: nobody can take it over: %w", nbddev.Path(s.Index), fault.ErrUnsupported)
	case !i.Attached:
		return fmt.Errorf("%s is not attached any more: %w", nbddev.Path(s.Index), fault.ErrNotFound)
	case i.Backend != s.Backend:
		return fmt.Errorf("%s is attached to something else by now: %w", nbddev.Path(s.Index), fault.ErrIntegrity)
	}
	return nil
}

// reattachAll starts a server for each device whose server has died.
func (f *flags) reattachAll(ctx context.Context, env *cli.Env) error {
	all, err := nbddev.StateDir(f.StateDir).List()
	if err != nil {
		return err
	}
	if f.PasswordStdin {
		// There is one stdin for all of them.
		password, err := regflags.ReadPassword(env.Stdin)
		if err != nil {
			return err
		}
		if err := os.Setenv(regflags.PasswordVariable, password); err != nil {
			return err
		}
	}
	// One that waits for its registry must not keep the others waiting.
	const atOnce = 8
	var (
		jobs   sync.WaitGroup
		slots  = make(chan struct{}, atOnce)
		mu     sync.Mutex
		failed error
	)
	for _, e := range all {
		if e.Live {
			continue
		}
		args := []string{"--daemon", "--state-dir", f.StateDir, "--reattach", fmt.Sprintf("nbd%d", e.Index)}
		// The arguments that do not choose a device hold for every one.
		if f.Username != "" {
			args = append(args, "--username", f.Username)
		}
		if f.AuthFile != "" {
			args = append(args, "--authfile", f.AuthFile)
		}
		if f.Verbose {
			args = append(args, "--verbose")
		}
		if f.Stats {
			args = append(args, "--stats")
		}
		slots <- struct{}{}
		jobs.Go(func() {
			defer func() { <-slots }()
			if err := startDaemon(ctx, env, args); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = err
			}
		})
	}
	jobs.Wait()
	return failed
}

// list prints what is known of all devices.
func (f *flags) list(env *cli.Env) error {
	all, err := nbddev.StateDir(f.StateDir).List()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tSIZE\tSERVER\tMOUNT\tIMAGE")
	for _, e := range all {
		if e.Err != nil {
			env.Errorf("%v", e.Err)
			continue
		}
		server := "dead"
		switch {
		case e.Live:
			server = fmt.Sprint(e.PID)
		case e.Stale:
			server = "gone"
		}
		what := "?"
		if old, err := saved(e.State); err == nil {
			what = strings.Join(append([]string{old.Image + old.Index}, old.Blob...), " ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", nbddev.Path(e.Index), cli.Size(e.Size), server, dash(e.Mount), strings.TrimSpace(what))
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// detach unmounts and detaches a device, and sees its server end.
func (f *flags) detach() error {
	index, err := f.targetIndex(f.Detach)
	if err != nil {
		return err
	}
	dir := nbddev.StateDir(f.StateDir)
	e, err := dir.Look(index)
	if err != nil {
		return err
	}
	if e.Err != nil {
		if f.Force {
			return dir.Discard(index)
		}
		return fmt.Errorf("%w (--force forgets it; the device stays as it is)", e.Err)
	}
	if e.Stale {
		err = f.unmountDead(e.State)
	} else {
		err = f.release(e.State)
	}
	if err != nil {
		return err
	}
	return f.forget(dir, index)
}

// unmountDead unmounts what is left of a device that has no server and will get
// none. If it is attached to something else, what is mounted is not ours.
func (f *flags) unmountDead(s *nbddev.State) error {
	i, err := nbddev.Stat(s.Index)
	if err != nil || s.Mount == "" {
		return err
	}
	if i.Attached {
		// Without netlink the driver calls a device attached as long as it is
		// mounted, by a thread that is gone with its server.
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", i.PID)); s.Netlink || err == nil {
			return nil
		}
	}
	_, err = unmount(s.Mount, s.Index, f.Force)
	return err
}

// release ends a device's use.
func (f *flags) release(s *nbddev.State) error {
	path := nbddev.Path(s.Index)
	if !s.Netlink && s.Mount == "" {
		return fmt.Errorf("%s was attached without netlink: end its server, process %d: %w", path, s.PID, fault.ErrUnsupported)
	}
	if f.Force && s.Netlink {
		// Before all else: those who wait for a dead server hold the mount.
		if err := nbddev.Disconnect(s.Index, s.Backend); err != nil {
			return err
		}
	}
	if s.Mount != "" {
		if _, err := unmount(s.Mount, s.Index, f.Force); err != nil {
			return fmt.Errorf("%w (--force takes it away nevertheless)", err)
		}
	}
	if !s.Netlink || f.Force {
		return nil // its server sees the mount go
	}
	if i, err := nbddev.Stat(s.Index); err != nil || !i.Attached || i.Backend != s.Backend {
		return err // with the mount
	}
	if nbddev.InUse(s.Index) {
		return fmt.Errorf("%s is in use (--force takes it away nevertheless)", path)
	}
	return nbddev.Disconnect(s.Index, s.Backend)
}

// forget waits for a device's server to end, or clears up after a dead one.
func (f *flags) forget(dir nbddev.StateDir, index int) error {
	const most = 15 * time.Second
	for end := time.Now().Add(most); ; time.Sleep(10 * time.Millisecond) {
		file, _, err := dir.Take(index)
		switch {
		case err == nil:
			return file.Remove()
		case errors.Is(err, fault.ErrNotFound):
			return nil
		case !errors.Is(err, nbddev.ErrLive) || time.Now().After(end):
			return err
		}
	}
}
