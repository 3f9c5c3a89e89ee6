//go:build !linux

package interop

import (
	"os"
	"testing"
)

// Permissions skips the test where the modes of files bind nobody: for root, and
// on Windows, where nobody has a number.
func Permissions(t testing.TB) {
	t.Helper()
	if os.Geteuid() <= 0 {
		t.Skip("skipped: whoever runs this may read everything")
	}
}
