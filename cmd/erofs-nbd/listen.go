package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
)

// A listener knows its NBD URI, and leaves nothing behind.
type listener struct {
	net.Listener
	dir string // to remove with the socket, or ""
}

func (l *listener) Close() error {
	err := l.Listener.Close() // removes the socket
	if l.dir != "" {
		os.Remove(l.dir)
	}
	return err
}

// uri is how clients find the listener.
func (l *listener) uri(tls bool) string {
	scheme := "nbd"
	if tls {
		scheme = "nbds"
	}
	switch a := l.Addr().(type) {
	case *net.UnixAddr:
		q := url.Values{"socket": {a.Name}}.Encode()
		return scheme + "+unix:///?" + strings.NewReplacer("%2F", "/", "+", "%20").Replace(q)
	case *net.TCPAddr:
		host := a.IP.String()
		if a.IP.IsUnspecified() {
			host = "localhost"
		}
		return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(a.Port)) + "/"
	}
	return l.Addr().String()
}

// listen opens what --listen says.
func listen(s string) (*listener, error) {
	passed, err := activated()
	switch {
	case err != nil:
		return nil, err
	case passed != nil && s != "":
		passed.Close()
		return nil, cli.Usagef("--listen, but systemd has passed a socket already")
	case passed != nil:
		return &listener{Listener: passed}, nil
	case s == "":
		return listenAnywhere()
	}
	switch kind, addr, _ := strings.Cut(s, ":"); {
	case kind == "unix" && addr != "":
		path, err := filepath.Abs(addr)
		if err != nil {
			return nil, err
		}
		return listenUnix(path)
	case kind == "tcp" && strings.Contains(addr, ":"):
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		return &listener{Listener: l}, nil
	}
	return nil, cli.Usagef("--listen %q: give unix:PATH or tcp:HOST:PORT", s)
}

// listenAnywhere makes a socket in a directory of its own, which nobody else
// can enter.
func listenAnywhere() (*listener, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	if base == "" && os.Geteuid() == 0 {
		base = "/run"
	}
	if st, err := os.Stat(base); err == nil && st.IsDir() {
		sweepSockets(base)
	} else {
		base = os.TempDir() // which the system sweeps
	}
	dir, err := os.MkdirTemp(base, socketDir) // mode 0700
	if err != nil {
		return nil, err
	}
	l, err := listenUnix(filepath.Join(dir, socketName))
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	l.dir = dir
	return l, nil
}

const (
	// socketDir begins the names of the directories that listenAnywhere makes.
	socketDir  = "erofs-nbd-"
	socketName = "socket"
	// socketAge is how old one is before it is asked whether it is in use: its
	// server may not have come to listen yet.
	socketAge = time.Minute
)

// sweepSockets removes the sockets of servers that were killed. Whatever stands
// in the way of that leaves them where they are. Nothing outside of base is
// removed, whoever makes directories there links to other places meanwhile.
func sweepSockets(base string) {
	root, err := os.OpenRoot(base)
	if err != nil {
		return
	}
	defer root.Close()
	list, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return
	}
	for _, e := range list {
		dir := e.Name()
		if !strings.HasPrefix(dir, socketDir) {
			continue
		}
		st, err := root.Lstat(dir)
		if err != nil || !st.IsDir() || time.Since(st.ModTime()) < socketAge {
			continue
		}
		name := filepath.Join(dir, socketName)
		if st, err := root.Lstat(name); err == nil && st.Mode()&fs.ModeSocket != 0 && !listened(filepath.Join(base, name)) {
			root.Remove(name)
		}
		root.Remove(dir) // unless there is something in it
	}
}

// listened reports whether a server listens at a socket, or may do so.
func listened(path string) bool {
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close()
	}
	return !refused(err)
}

// maxSocketPath is the longest path that fits into a socket address; the
// system's own error for it explains nothing.
const maxSocketPath = 103

// listenUnix makes a socket that only we may connect to. One that is left over
// from a server that is gone gives way.
func listenUnix(path string) (*listener, error) {
	if len(path) > maxSocketPath {
		return nil, cli.Usagef("socket %s: the path is longer than %d bytes", path, maxSocketPath)
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("socket %s: there is something that is no socket", path)
	default:
		nc, err := net.Dial("unix", path)
		if err == nil {
			nc.Close()
			return nil, fmt.Errorf("socket %s: another server listens there", path)
		}
		if !refused(err) {
			return nil, fmt.Errorf("socket %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := bindPrivate(path)
	if err != nil {
		return nil, err
	}
	return &listener{Listener: l}, nil
}

// activated is the socket that systemd passed (sd_listen_fds(3)), or nil.
func activated() (net.Listener, error) {
	pid, n := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if n == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	// Not for those whom we start.
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	if n != "1" {
		return nil, cli.Usagef("systemd has passed %s sockets, one is wanted", n)
	}
	const firstPassed = 3
	f := os.NewFile(firstPassed, "passed socket")
	defer f.Close() // FileListener has its own
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("the socket that systemd passed: %w", err)
	}
	return l, nil
}
