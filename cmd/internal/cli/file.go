package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/term"
)

// Open opens a file to read; "-" and "" are stdin. The result is an *os.File
// wherever the source is one, so that callers can tell a regular file (which
// may be seeked) from a pipe.
func (e *Env) Open(name string) (io.ReadCloser, error) {
	if name != "" && name != "-" {
		return os.Open(name)
	}
	if f, ok := e.Stdin.(*os.File); ok {
		if term.IsTerminal(int(f.Fd())) {
			return nil, Usagef("stdin is a terminal: give a file, or pipe something in")
		}
		return nopFile{f}, nil
	}
	return io.NopCloser(e.Stdin), nil
}

// Label is what messages call a file to read: as it was given, or stdin.
func Label(name string) string {
	if name == "" || name == "-" {
		return "stdin"
	}
	return name
}

// nopFile is stdin with a Close that leaves it open.
type nopFile struct{ *os.File }

func (nopFile) Close() error { return nil }

// Regular reports whether r is a regular file, and returns it and its size.
func Regular(r io.Reader) (*os.File, int64, bool) {
	var f *os.File
	switch v := r.(type) {
	case *os.File:
		f = v
	case nopFile:
		f = v.File
	default:
		return nil, 0, false
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, 0, false
	}
	return f, st.Size(), true
}

// IsTerminal reports whether a stream is one.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// BinaryStdout is stdout for bytes that no terminal should get; the caller
// flushes it at the end. An error of the flush is an error of the command.
func (e *Env) BinaryStdout() (*bufio.Writer, error) {
	if IsTerminal(e.Stdout) {
		return nil, Usagef("refusing to write binary data to a terminal: redirect stdout, or name a file")
	}
	return bufio.NewWriterSize(pipeWriter{e.Stdout}, 1<<18), nil
}

// pipeWriter marks write errors of a closed pipe.
type pipeWriter struct{ io.Writer }

func (w pipeWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if errors.Is(err, io.ErrClosedPipe) {
		err = errPipe
	}
	return n, err
}

// An Output is a file that comes into being only when Commit is called: until
// then it is a temporary neighbour, so that no reader ever sees half of it and
// a failed run leaves nothing. A device or FIFO is written in place.
type Output struct {
	*os.File
	name    string
	tmp     string
	done    bool
	inPlace bool
}

// Create starts an output file. An existing regular file is replaced at
// Commit and keeps its permission bits. Where name is a symbolic link, the file
// that it points to is replaced or made, not the link.
func Create(name string) (*Output, error) {
	mode := fs.FileMode(0o666)
	follow := followLinks
	if st, err := os.Stat(name); err == nil {
		if st.IsDir() {
			return nil, &fs.PathError{Op: "create", Path: name, Err: errors.New("is a directory")}
		}
		if !st.Mode().IsRegular() {
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				return nil, err
			}
			return &Output{File: f, name: name, inPlace: true}, nil
		}
		mode = st.Mode().Perm()
		// What is there has to have the name: /dev/fd/3 may be a file that was
		// removed, and says "NAME (deleted)" when it is read as a link.
		follow = filepath.EvalSymlinks
	}
	name, err := follow(name)
	if err != nil {
		return nil, err
	}
	for range 100 {
		tmp := filepath.Join(filepath.Dir(name), fmt.Sprintf(".%s.%08x.tmp", filepath.Base(name), rand.Uint32()))
		keepTemporary(tmp)
		f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			forgetTemporary(tmp)
		}
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			// Name what was asked for, not a name nobody has heard of.
			if pe, ok := errors.AsType[*fs.PathError](err); ok {
				err = &fs.PathError{Op: "create", Path: name, Err: pe.Err}
			}
			return nil, err
		}
		return &Output{File: f, name: name, tmp: tmp}, nil
	}
	return nil, fmt.Errorf("create %s: no free temporary name", name)
}

// followLinks is the name of the file that a name stands for, where there is none
// yet.
func followLinks(name string) (string, error) {
	const most = 40 // as Linux follows
	at := name
	for range most {
		target, err := os.Readlink(at)
		if err != nil {
			return at, nil // no link
		}
		if dir, _ := filepath.Split(at); !filepath.IsAbs(target) {
			target = dir + target
		}
		// What comes before the last name has no links from here on, so that it
		// may be cleaned.
		dir, base := filepath.Split(target)
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return "", err
		}
		at = filepath.Join(dir, base)
	}
	return "", &fs.PathError{Op: "create", Path: name, Err: syscall.ELOOP}
}

// Commit makes the file appear under its name.
func (o *Output) Commit() error {
	o.done = true
	if err := o.File.Close(); err != nil {
		o.remove()
		return err
	}
	if o.inPlace {
		return nil
	}
	if err := os.Rename(o.tmp, o.name); err != nil {
		o.remove()
		return err
	}
	forgetTemporary(o.tmp)
	return nil
}

// Dir is the directory that the file is in.
func (o *Output) Dir() string { return filepath.Dir(o.name) }

// Close drops the file unless it was committed; it is meant for defer.
func (o *Output) Close() error {
	if o.done {
		return nil
	}
	o.done = true
	err := o.File.Close()
	o.remove()
	return err
}

func (o *Output) remove() {
	if !o.inPlace {
		os.Remove(o.tmp)
		forgetTemporary(o.tmp)
	}
}
