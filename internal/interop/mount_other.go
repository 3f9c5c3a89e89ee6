//go:build !linux

package interop

import "testing"

// MountErofs needs Linux.
func MountErofs(t testing.TB, file, dir string, options ...string) {
	t.Helper()
	Missing(t, "mounting EROFS needs Linux")
}

// TryMountErofs needs Linux.
func TryMountErofs(t testing.TB, file, dir string, options ...string) error {
	t.Helper()
	Missing(t, "mounting EROFS needs Linux")
	return nil
}

// NbdFuse needs Linux.
func NbdFuse(t testing.TB, uri string) string {
	t.Helper()
	Missing(t, "nbdfuse needs Linux")
	return ""
}
