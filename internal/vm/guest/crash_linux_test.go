package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/pkg/nbddev"
)

// readers read a device at random, past the cache, and compare.
type readers struct {
	reads, inflight atomic.Int64
	stop            atomic.Bool
	wg              sync.WaitGroup
	mu              sync.Mutex
	err             error
	started         []atomic.Int64 // the round in which each one's read began
	round           atomic.Int64
}

func read(n int, dev string, want []byte) *readers {
	r := &readers{started: make([]atomic.Int64, n)}
	for i := range n {
		r.wg.Go(func() {
			for !r.stop.Load() {
				r.started[i].Store(r.round.Load())
				r.inflight.Add(1)
				err := readSome(dev, want)
				r.inflight.Add(-1)
				r.reads.Add(1)
				if err != nil {
					r.mu.Lock()
					r.err = err
					r.mu.Unlock()
					return
				}
			}
		})
	}
	return r
}

func readSome(dev string, want []byte) error {
	const unit = 4096
	off := rand.Int64N(int64(len(want)/unit)) * unit
	n := min(1+rand.IntN(64), (len(want)-int(off))/unit) * unit
	got, err := readDirect(dev, off, n)
	if err == nil && !bytes.Equal(got, want[off:int(off)+n]) {
		err = errWrong
	}
	if err != nil {
		return fmt.Errorf("%d bytes at %d: %w", n, off, err)
	}
	return nil
}

func (r *readers) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// caughtUp reports whether no read is left from before this round.
func (r *readers) caughtUp() bool {
	for i := range r.started {
		if r.started[i].Load() < r.round.Load() {
			return false
		}
	}
	return true
}

// TestCrash kills the server with reads in flight and takes the device over,
// again and again. No read fails, none has a wrong byte.
func TestCrash(t *testing.T) {
	// An emulated processor on a busy machine takes a second to start a server:
	// after patience, few will do.
	rounds, few, patience := 100, 20, 10*time.Second
	if n, err := strconv.Atoi(os.Getenv("CRASHES")); err == nil {
		rounds, few = n, n
	}
	want, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	dir := mountpoint(t)
	var r *readers
	t.Cleanup(func() { r.wg.Wait() }) // last: readers of a dead device end when it is detached
	s := start(t, whole, "--mount", dir, "--mount-options", "nosuid")
	t.Cleanup(func() { r.stop.Store(true) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var dead atomic.Int64
	go nbddev.Watch(ctx, func(n int) {
		if n == s.n {
			dead.Add(1)
		}
	})
	r = read(4, s.dev, want)
	interrupted := 0
	var waits []time.Duration
	began, i := time.Now(), 0
	for ; i < rounds && (i < few || time.Since(began) < patience); i++ {
		// What was in flight at the last crash still waits, most likely; a new
		// read goes on at once.
		if err := readSome(s.dev, want); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		time.Sleep(rand.N(10 * time.Millisecond))
		s.kill()
		if r.inflight.Load() > 0 {
			interrupted++
		}
		s = launch(t, "erofs-nbd", "--reattach", s.dev)
		if i < 20 && i%4 == 0 { // those that were in flight, too
			began := time.Now()
			r.round.Add(1)
			await(t, "every read ends", func() bool { return r.caughtUp() || r.failure() != nil })
			waits = append(waits, time.Since(began).Round(time.Millisecond))
		}
		if err := r.failure(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	t.Logf("%d crashes, %d with reads in flight, %d reads; LINK_DEAD %d times; after a reattach all reads went on within %v",
		i, interrupted, r.reads.Load(), dead.Load(), waits)
	if interrupted < i/2 {
		t.Errorf("only %d of %d crashes had reads in flight", interrupted, i)
	}
	if dead.Load() == 0 {
		t.Error("the driver told of no dead connection")
	}
	// The kernel's own patience is 30 seconds. What is over two may be a host
	// with more urgent work, but not every time.
	if slices.Sort(waits); waits[len(waits)/2] > 2*time.Second {
		t.Errorf("after a reattach reads waited %v", waits)
	}
	compare(t, dir)
	r.stop.Store(true)
	r.wg.Wait()
	ok(t, "umount", dir)
	s.ends(0)
	s.gone()
}

// TestCrashLazy: the same with layers in a registry, and files instead of a
// device.
func TestCrashLazy(t *testing.T) {
	reg := newRegistry(t)
	dir := mountpoint(t)
	s := start(t, reg.lazy("--mount", dir)...)
	name, want := someFile(t, dir)
	for range 3 {
		dropCaches(t)
		read := make(chan error)
		go func() {
			got, err := os.ReadFile(name)
			if err == nil && !bytes.Equal(got, want) {
				err = errWrong
			}
			read <- err
		}()
		time.Sleep(rand.N(50 * time.Millisecond))
		s.kill()
		command(t, 0, "", "--reattach", "all")
		if err := <-read; err != nil {
			t.Fatal(err)
		}
		list := command(t, 0, "", "--list")
		var pid int
		for _, line := range strings.Split(list, "\n") {
			if f := strings.Fields(line); len(f) > 3 && f[0] == s.dev {
				pid, _ = strconv.Atoi(f[3]) // the size is two words
			}
		}
		if pid == 0 {
			t.Fatalf("no process in\n%s", list)
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		s.cmd.Process, s.done = p, closed
	}
	compare(t, dir)
	command(t, 0, "", "--detach", dir)
	s.gone()
}

// closed is done already.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// TestCrashAtAttach kills servers while they attach their device, as early as
// that shows. It is known then, and can be taken over, and mounted.
func TestCrashAtAttach(t *testing.T) {
	const n = 9
	attached := func() bool { i, err := nbddev.Stat(n); return err == nil && i.Attached }
	dir := mountpoint(t)
	for range 3 {
		cmd := exec.Command("erofs-nbd", whole, "--attach=nbd9", "--mount", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(hangs); !attached() && time.Now().Before(end); {
		}
		cmd.Process.Kill()
		cmd.Wait()
		if !attached() {
			t.Fatal("it was not attached, or did not stay so")
		}
		command(t, 0, "", "--reattach", "nbd9", "--daemon")
		someFile(t, dir)
		command(t, 0, "", "--detach", dir)
	}
	(&server{t: t, n: n, dev: "/dev/nbd9"}).gone()
}

// TestSeveral: two mounts at a time, listed, taken over together, and detached
// one by one.
func TestSeveral(t *testing.T) {
	reg := newRegistry(t)
	dirs := []string{mountpoint(t), mountpoint(t)}
	servers := []*server{start(t, whole, "--mount", dirs[0]), start(t, reg.lazy("--mount", dirs[1])...)}
	want := [][]string{{dirs[0], whole}, {dirs[1], index, reg.ref(repository)}}
	list := func(state string, left ...int) {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(command(t, 0, "", "--list")), "\n")[1:]
		if len(lines) != len(left) {
			t.Fatalf("listed:\n%s", strings.Join(lines, "\n"))
		}
		for i, n := range left {
			for _, word := range append([]string{servers[n].dev, state}, want[n]...) {
				if !strings.Contains(lines[i], word) {
					t.Errorf("no %q in %q", word, lines[i])
				}
			}
		}
	}
	list("", 0, 1)
	for _, s := range servers {
		s.kill()
	}
	list(" dead ", 0, 1)
	command(t, 0, "", "--reattach", "all")
	for _, dir := range dirs {
		someFile(t, dir)
	}
	command(t, 0, "", "--detach", servers[0].dev)
	list("", 1)
	someFile(t, dirs[1])
	command(t, 0, "", "--detach", dirs[1])
	for _, s := range servers {
		s.gone()
	}
}

// TestReattachRefused: what cannot be right is refused, saying why.
func TestReattachRefused(t *testing.T) {
	copied := filepath.Join(t.TempDir(), "image")
	data, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, 4, "nothing is known", "--reattach", "nbd9")
	command(t, 4, "no device is known", "--reattach", "/tmp")
	s := start(t, copied, "--attach")
	command(t, 1, "alive", "--reattach", s.dev)
	command(t, 0, "", "--reattach", "all") // there is nothing to do
	if b, err := readDirect(s.dev, 0, 4096); err != nil || !bytes.Equal(b, data[:4096]) {
		t.Errorf("the living is disturbed: %v", err)
	}
	state := nbddev.StateDir(nbddev.DefaultStateDir)
	name := filepath.Join(string(state), filepath.Base(s.dev)+".json")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s.kill()

	// Another image in its place.
	changed := bytes.Clone(data)
	changed[1024+50]++ // in the superblock's UUID
	for what, b := range map[string][]byte{"changed": changed, "longer": append(bytes.Clone(data), make([]byte, 4096)...)} {
		if err := os.WriteFile(copied, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if command(t, 5, "", "--reattach", s.dev); t.Failed() {
			t.Fatal(what)
		}
	}
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		t.Fatal(err)
	}
	// One that fails as late as that leaves the device as it was.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd := exec.Command("erofs-nbd", "--reattach", s.dev)
	cmd.Stdout = full
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("without a place for its output: %v", err)
	}
	s = launch(t, "erofs-nbd", "--reattach", s.dev) // the right one still can
	if b, err := readDirect(s.dev, 0, 4096); err != nil || !bytes.Equal(b, data[:4096]) {
		t.Errorf("after the right one came: %v", err)
	}

	// A second state file for a device that is alive.
	var st nbddev.State
	if err := json.Unmarshal(good, &st); err != nil {
		t.Fatal(err)
	}
	elsewhere := nbddev.StateDir(t.TempDir())
	f, err := elsewhere.Write(&st)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	command(t, 1, "alive", "--state-dir", string(elsewhere), "--reattach", s.dev)

	// The device detached behind its server's back, and attached anew.
	dev := s.dev
	s.kill()
	command(t, 0, "", "--detach", s.dev)
	s.gone()
	s = start(t, whole, "--attach="+dev)
	f, err = elsewhere.Write(&st)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	command(t, 5, "something else", "--state-dir", string(elsewhere), "--reattach", dev)
	if left, _ := os.ReadDir(string(elsewhere)); len(left) > 0 {
		t.Errorf("a stale state is left: %v", left)
	}
	s.signal(15)
	s.ends(0)
	if f, err = state.Write(&st); err != nil {
		t.Fatal(err)
	}
	f.Close()
	command(t, 4, "not attached any more", "--reattach", dev)
	s.gone()
}

// TestNoSecrets: what is kept for a reattach holds no password.
func TestNoSecrets(t *testing.T) {
	r := newRegistry(t)
	r.Basic("someone", "hunter2-secret")
	t.Setenv("LAYERPIPE_PASSWORD", "hunter2-secret")
	dir := mountpoint(t)
	s := start(t, r.lazy("--username", "someone", "--mount", dir)...)
	someFile(t, dir)
	b, err := os.ReadFile(filepath.Join(nbddev.DefaultStateDir, filepath.Base(s.dev)+".json"))
	if err != nil || !bytes.Contains(b, []byte("someone")) || bytes.Contains(b, []byte("hunter2")) {
		t.Errorf("%s, %v", b, err)
	}
	s.kill()
	os.Unsetenv("LAYERPIPE_PASSWORD")
	command(t, 2, "LAYERPIPE_PASSWORD", "--reattach", dir)
	all := exec.Command("erofs-nbd", "--reattach", "all", "--password-stdin")
	all.Stdin = strings.NewReader("hunter2-secret\n")
	if out, err := all.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dropCaches(t)
	someFile(t, dir)
	command(t, 0, "", "--detach", dir)
	s.gone()
}
