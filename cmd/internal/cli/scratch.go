package cli

import (
	"errors"
	"io"
	"os"
)

// A ScratchFile is a temporary file without a name, where the system allows
// that: nothing of it is left whatever happens to the process.
type ScratchFile struct {
	*os.File
	remove bool
}

// Scratch makes a temporary file in dir ("": the system's directory for such).
func Scratch(dir string) (*ScratchFile, error) {
	f, err := os.CreateTemp(dir, ".layerpipe-*.tmp")
	if err != nil {
		return nil, err
	}
	// An open file cannot be removed on Windows: there it waits for Close.
	return &ScratchFile{f, os.Remove(f.Name()) != nil}, nil
}

// Close frees the file.
func (s *ScratchFile) Close() error {
	err := s.File.Close()
	if s.remove {
		err = errors.Join(err, os.Remove(s.Name()))
	}
	return err
}

// A SeekableOutput is an output that is written at offsets. Where the target
// cannot be (stdout, a pipe, a device), it is copied there at Commit.
type SeekableOutput struct {
	*os.File
	dir    string
	out    *Output      // a regular file
	spool  *ScratchFile // or else this
	target func() (io.Writer, func() error, error)
}

// CreateSeekable starts an output; "-" is stdout. tmpdir is where to spool
// what cannot be written in place ("": the system's directory).
func (e *Env) CreateSeekable(name, tmpdir string) (*SeekableOutput, error) {
	st, err := os.Stat(name)
	if name != "-" && (err != nil || st.Mode().IsRegular() || st.IsDir()) {
		out, err := Create(name)
		if err != nil {
			return nil, err
		}
		o := &SeekableOutput{File: out.File, out: out, dir: out.Dir()}
		if tmpdir != "" {
			o.dir = tmpdir
		}
		return o, nil
	}
	o := &SeekableOutput{dir: tmpdir}
	if name == "-" {
		w, err := e.BinaryStdout()
		if err != nil {
			return nil, err
		}
		o.target = func() (io.Writer, func() error, error) { return w, w.Flush, nil }
	} else {
		o.target = func() (io.Writer, func() error, error) {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				return nil, nil, err
			}
			return f, f.Close, nil
		}
	}
	if o.spool, err = Scratch(tmpdir); err != nil {
		return nil, err
	}
	o.File = o.spool.File
	return o, nil
}

// Dir is a directory for further temporary files.
func (o *SeekableOutput) Dir() string { return o.dir }

// Commit makes the output appear.
func (o *SeekableOutput) Commit() error {
	if o.out != nil {
		return o.out.Commit()
	}
	w, done, err := o.target()
	if err != nil {
		return err
	}
	if _, err := o.spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err = io.Copy(w, o.spool.File); err != nil {
		done()
		return err
	}
	return done()
}

// Close drops the output unless it was committed; it is meant for defer.
func (o *SeekableOutput) Close() error {
	if o.out != nil {
		return o.out.Close()
	}
	return o.spool.Close()
}
