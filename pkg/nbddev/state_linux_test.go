package nbddev

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// noDevice is a device that no kernel has: the driver's minors end before it.
const noDevice = 1<<20 - 1

func aState() *State {
	return &State{Index: noDevice, Backend: "layerpipe-1", Identity: "x", Size: 1 << 20, BlockSize: 4096,
		DeadTimeout: time.Hour, Netlink: true, PID: os.Getpid(), Mount: "/mnt", Server: json.RawMessage(`{"image":"/i"}`)}
}

func TestState(t *testing.T) {
	dir := StateDir(filepath.Join(t.TempDir(), "layerpipe"))
	if all, err := dir.List(); err != nil || len(all) != 0 {
		t.Fatalf("no directory: %v, %v", all, err)
	}
	if _, _, err := dir.Take(noDevice); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
	want := aState()
	f, err := dir.Write(want)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{string(dir): os.ModeDir | 0o700, dir.path(noDevice): 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	// While the server lives, nobody else gets the device.
	if _, _, err := dir.Take(noDevice); !errors.Is(err, ErrLive) || !strings.Contains(err.Error(), "process") {
		t.Errorf("taken from the living: %v", err)
	}
	all, err := dir.List()
	if err != nil || len(all) != 1 || !all[0].Live || !all[0].Stale || all[0].Mount != "/mnt" {
		t.Errorf("%+v, %v", all, err)
	}
	f.Close()
	f, got, err := dir.Take(noDevice)
	if err != nil {
		t.Fatal(err)
	}
	got.Server = append(json.RawMessage(nil), compact(got.Server)...)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	// The next server's file takes the place of this one, whose end then does
	// no harm.
	next, err := dir.Write(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
	if e, err := dir.Look(noDevice); err != nil || !e.Live {
		t.Errorf("%+v, %v", e, err)
	}
	if err := next.Remove(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(string(dir)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func compact(m json.RawMessage) json.RawMessage {
	var v any
	json.Unmarshal(m, &v)
	b, _ := json.Marshal(v)
	return b
}

// TestStateOfTheDead: the lock goes with its process, however that ends.
func TestStateOfTheDead(t *testing.T) {
	if dir := os.Getenv("NBDDEV_TEST_STATE"); dir != "" {
		if _, err := StateDir(dir).Write(aState()); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("written\n")
		time.Sleep(time.Hour)
	}
	dir := StateDir(t.TempDir())
	cmd := exec.Command(os.Args[0], "-test.run=^TestStateOfTheDead$")
	cmd.Env = append(os.Environ(), "NBDDEV_TEST_STATE="+string(dir))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dir.Take(noDevice); !errors.Is(err, ErrLive) {
		t.Errorf("while it lives: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	f, _, err := dir.Take(noDevice)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// TestClaim: of those who are about to attach a device one gets it; what is left
// of a server that has died keeps nobody from it.
func TestClaim(t *testing.T) {
	dir := StateDir(t.TempDir())
	f, err := dir.claim(aState())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.claim(aState()); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("of the living: %v", err)
	}
	if e, err := dir.Look(noDevice); err != nil || !e.Live {
		t.Errorf("%+v, %v", e, err)
	}
	f.Close()
	if f, err = dir.claim(aState()); err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(string(dir)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestLookers: those who look at a dead server's state do not keep others from
// taking it.
func TestLookers(t *testing.T) {
	dir := StateDir(t.TempDir())
	f, err := dir.Write(aState())
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Discard(noDevice); !errors.Is(err, ErrLive) {
		t.Errorf("discarded in its life: %v", err)
	}
	f.Close()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if all, err := dir.List(); err != nil || len(all) != 1 {
					t.Errorf("%+v, %v", all, err)
					return
				}
			}
		})
	}
	for range 50 {
		f, _, err := dir.Take(noDevice)
		if err != nil {
			t.Error(err)
			break
		}
		f.Close()
	}
	close(done)
	wg.Wait()
}

func TestBadState(t *testing.T) {
	good, err := json.Marshal(aState())
	if err != nil {
		t.Fatal(err)
	}
	with := func(old, new string) string {
		s := strings.Replace(strings.Replace(string(good), `"version":0`, `"version":1`, 1), old, new, 1)
		if old != "" && strings.Contains(s, old) {
			t.Fatalf("%s is still there", old)
		}
		return s
	}
	for name, tt := range map[string]struct {
		text string
		kind error
	}{
		"empty":         {"", fault.ErrCorrupt},
		"cut":           {with("", "")[:100], fault.ErrCorrupt},
		"another's":     {with(`"device":1048575`, `"device":3`), fault.ErrCorrupt},
		"newer":         {with(`"version":1`, `"version":2`), fault.ErrUnsupported},
		"none":          {`{"device":1}`, fault.ErrUnsupported},
		"unknown field": {with(`"pid"`, `"pidd"`), fault.ErrCorrupt},
		"bad size":      {with(`"size":1048576`, `"size":-4096`), fault.ErrCorrupt},
		"odd size":      {with(`"size":1048576`, `"size":1048577`), fault.ErrCorrupt},
		"bad block":     {with(`"block_size":4096`, `"block_size":0`), fault.ErrCorrupt},
		"no backend":    {with(`"backend":"layerpipe-1"`, `"backend":""`), fault.ErrCorrupt},
		"long":          {strings.Repeat(" ", maxState+1), fault.ErrCorrupt},
	} {
		dir := StateDir(t.TempDir())
		if err := os.WriteFile(dir.path(noDevice), []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := dir.Take(noDevice); !errors.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %v", name, err, tt.kind)
		}
		if all, err := dir.List(); err != nil || len(all) != 1 || !errors.Is(all[0].Err, tt.kind) {
			t.Errorf("%s: listed as %+v, %v", name, all, err)
		}
		if err := dir.Discard(noDevice); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(string(dir)); len(left) != 0 {
			t.Errorf("%s: left: %v", name, left)
		}
	}
	dir := StateDir(t.TempDir())
	if err := os.WriteFile(dir.path(noDevice), []byte(with("", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dir.Take(noDevice); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestParseName(t *testing.T) {
	for name, want := range map[string]int{"nbd0": 0, "/dev/nbd12": 12, "nbd": -1, "nbd01": -1, "nbd-1": -1, "nbd+1": -1,
		"nbd1p1": -1, "sda": -1, "": -1, "nbd1048576": -1, "nbd99999999999999999999": -1, "/dev/": -1} {
		got, ok := ParseName(name)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{Size: 512, BlockSize: 0}, {Size: 512, BlockSize: 256}, {Size: 8192, BlockSize: 8192},
		{Size: 0, BlockSize: 512}, {Size: 513, BlockSize: 512}, {Size: 4096 + 512, BlockSize: 4096}, {Size: -512, BlockSize: 512}} {
		s := &State{Size: c.Size, BlockSize: c.BlockSize}
		if _, _, err := StateDir(t.TempDir()).Attach(s, nil); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestNoDriver: where the kernel lacks the driver, that is what one is told.
func TestNoDriver(t *testing.T) {
	if _, err := os.Stat(sysfs(0, "")); err == nil {
		t.Skip("skipped: this kernel has the driver")
	}
	if err := Probe(); err != nil && !errors.Is(err, ErrNoDriver) {
		t.Error(err)
	}
	s := &State{Index: -1, Size: 512, BlockSize: 512}
	if _, _, err := StateDir(t.TempDir()).Attach(s, nil); !errors.Is(err, fault.ErrUnsupported) && !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
}
