//go:build linux || darwin

package ociarchive

import (
	"os"
	"syscall"
)

// lockDir waits until no other process changes a layout. Where the file system
// has no locks, there is none.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for syscall.Flock(int(f.Fd()), syscall.LOCK_EX) == syscall.EINTR {
	}
	return func() { f.Close() }, nil
}
