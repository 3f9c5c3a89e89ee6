//go:build unix

package main

import (
	"errors"
	"net"
	"syscall"
)

// bindPrivate makes a socket that is never open to others, not even for a
// moment.
func bindPrivate(path string) (net.Listener, error) {
	// The umask is the whole process's; nothing else makes files now.
	defer syscall.Umask(syscall.Umask(0o177))
	return net.Listen("unix", path)
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
