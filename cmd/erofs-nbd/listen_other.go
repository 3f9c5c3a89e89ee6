//go:build !unix

package main

import "net"

func bindPrivate(path string) (net.Listener, error) { return net.Listen("unix", path) }

// refused cannot tell a dead socket from one that is in use: it must be
// removed by hand.
func refused(error) bool { return false }
