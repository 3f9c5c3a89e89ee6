//go:build unix

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
)

// bindPrivate makes a socket that only its owner may connect to.
func bindPrivate(path string) (net.Listener, error) {
	// On Linux the mode of the socket before it is bound is that of the file, so
	// it is not open to others for a moment, either. The umask would do that
	// everywhere, but is the whole process's and that of its children.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { syscall.Fchmod(int(fd), 0o600) })
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
