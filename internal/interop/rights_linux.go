package interop

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Permissions makes the modes of files hold for the test's own goroutine, which
// they do for root only without the capabilities to pass over them. Subtests and
// other goroutines are not bound.
func Permissions(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	runtime.LockOSThread() // capabilities are a thread's
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &had[0]); err != nil {
		t.Fatal(err)
	}
	without := had
	without[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&header, &without[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Capset(&header, &had[0]); err != nil {
			t.Error(err) // the thread ends with the goroutine
			return
		}
		runtime.UnlockOSThread()
	})
}
