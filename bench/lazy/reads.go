package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

// readSize is what is read at once, as the kernel does when it reads ahead.
const readSize = 256 << 10

// A server is erofs-nbd, and one who watches what is read of it.
type server struct {
	cmd   *exec.Cmd
	uri   string
	seen  *touched
	began time.Time
}

// serve starts a server with nothing in its caches but what is in a directory
// that args name.
func (b *bench) serve(ctx context.Context, args ...string) (*server, error) {
	b.reg.Reset()
	s := &server{began: time.Now(), seen: &touched{im: b.image, units: make(map[unit]bool)}}
	args = append([]string{"--plain-http", "--index", b.image.index, "--blob", b.ref, "--listen", "unix:" + filepath.Join(b.dir, "sock")}, append(args, strings.Fields(b.flags)...)...)
	s.cmd = exec.CommandContext(ctx, b.tool("erofs-nbd"), args...)
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("erofs-nbd: %w, %v", err, s.cmd.Wait())
	}
	s.uri = strings.TrimSpace(line)
	return s, nil
}

func (s *server) stop() error {
	s.cmd.Process.Signal(syscall.SIGTERM)
	return s.cmd.Wait()
}

// open connects one more reader.
func (s *server) open() (*erofs.FS, io.Closer, error) {
	c, err := nbdclient.Dial(s.uri)
	if err != nil {
		return nil, nil, err
	}
	t := &watcher{c, s.seen}
	f, err := erofs.Open(t)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return f, c, nil
}

// watcher is one connection, watched together with the others.
type watcher struct {
	c    *nbdclient.Client
	seen *touched
}

func (w *watcher) ReadAt(p []byte, off int64) (int, error) {
	t := touched{ReaderAt: w.c, im: w.seen.im, units: make(map[unit]bool)}
	n, err := t.ReadAt(p, off)
	w.seen.mu.Lock()
	defer w.seen.mu.Unlock()
	for u := range t.units {
		w.seen.units[u] = true
	}
	w.seen.bytes += t.bytes
	return n, err
}

// read reads files one after another.
func (s *server) read(files []file) error {
	f, c, err := s.open()
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, readSize)
	for _, x := range files {
		r, err := f.Open(x.path)
		if err != nil {
			return err
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
		r.Close()
		if err != nil {
			return err
		}
		if n != x.size {
			return fmt.Errorf("%s: %d bytes, not %d", x.path, n, x.size)
		}
	}
	return nil
}

// ready forgets what it took to start: the line of the first byte has that.
func (b *bench) ready(s *server) {
	b.reg.Reset()
	s.began = time.Now()
}

// result is what was read so far.
func (s *server) result(what string) result {
	return result{what: what, took: time.Since(s.began), read: s.seen.bytes, spans: len(s.seen.units), stored: s.seen.sum()}
}

// once is a line of the table: a server that is read from once.
func (b *bench) once(ctx context.Context, what string, read func(*server) error, note func(result, counts) string, args ...string) error {
	return b.line(ctx, what, false, read, note, args...)
}

func (b *bench) line(ctx context.Context, what string, fromStart bool, read func(*server) error, note func(result, counts) string, args ...string) error {
	s, err := b.serve(ctx, args...)
	if err != nil {
		return err
	}
	if !fromStart {
		b.ready(s)
	}
	err = read(s)
	r, c := s.result(what), b.count()
	if err2 := s.stop(); err == nil {
		err = err2
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !fromStart { // there, what came up to the first byte is what counts
		c = b.countAll()
	}
	if note != nil {
		r.note = note(r, c)
	}
	b.row(r, c)
	return nil
}

func (b *bench) firstByte(ctx context.Context) error {
	return b.line(ctx, "first byte of a file, from the start", true, func(s *server) error {
		f, c, err := s.open()
		if err != nil {
			return err
		}
		defer c.Close()
		r, err := f.Open(b.image.files[len(b.image.files)/2].path)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.ReadFull(r, make([]byte, 1))
		return err
	}, func(_ result, c counts) string { return b.bound("requests", float64(c.gets), 3) })
}

func (b *bench) packageSources(ctx context.Context) error {
	dir := b.image.sources()
	return b.once(ctx, "package "+path.Base(dir), func(s *server) error { return s.read(b.image.in(dir)) }, func(r result, c counts) string {
		return b.bound("GETs", float64(c.gets)/float64(r.spans), 1.2) + ", " + b.bound("bytes", float64(c.bytes)/float64(r.stored), 1.15)
	})
}

func (b *bench) bigFile(ctx context.Context) error {
	f := b.image.sized(15 << 20)
	return b.once(ctx, fmt.Sprintf("file %s, %.1f MB", path.Base(f.path), float64(f.size)/1e6), func(s *server) error { return s.read([]file{f}) }, nil)
}

func (b *bench) fourReaders(ctx context.Context) error {
	const readers = 4
	return b.once(ctx, "tree, by four readers", func(s *server) error {
		var wg sync.WaitGroup
		errs := make([]error, readers)
		for i := range readers {
			n := len(b.image.files)
			part := b.image.files[i*n/readers : (i+1)*n/readers]
			wg.Go(func() { errs[i] = s.read(part) })
		}
		wg.Wait()
		i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
		if i >= 0 {
			return errs[i]
		}
		return nil
	}, b.treeNote, "--cache-size", "1GiB")
}

func (b *bench) treeNote(r result, _ counts) string {
	return b.bound("seconds", r.took.Seconds()/b.plain.Seconds(), 1.1)
}

func (b *bench) tree(ctx context.Context) error {
	return b.once(ctx, "tree", func(s *server) error { return s.read(b.image.files) }, b.treeNote, "--cache-size", "1GiB")
}

// treeFromDisk reads the tree twice, by two servers with one cache directory.
func (b *bench) treeFromDisk(ctx context.Context) error {
	read := func(s *server) error { return s.read(b.image.files) }
	dir := filepath.Join(b.dir, "cache")
	if err := b.once(ctx, "tree, filling --cache-dir", read, b.treeNote, "--cache-size", "64MiB", "--cache-dir", dir); err != nil {
		return err
	}
	return b.once(ctx, "tree, from --cache-dir", read, func(_ result, c counts) string { return b.bound("GETs", float64(c.gets), 0) }, "--cache-size", "64MiB", "--cache-dir", dir)
}

// recorded reads a package's sources, and again once the record of that has
// been prefetched.
func (b *bench) recorded(ctx context.Context) error {
	files := b.image.in(b.image.sources())
	record := filepath.Join(b.dir, "record")
	if err := b.once(ctx, "package, --record", func(s *server) error { return s.read(files) }, nil, "--record", record); err != nil {
		return err
	}
	return b.once(ctx, "package, --prefetch=recorded", func(s *server) error {
		if err := b.settle(ctx); err != nil {
			return err
		}
		b.ready(s)
		return s.read(files)
	}, func(_ result, c counts) string { return b.bound("GETs", float64(c.gets), 0) }, "--prefetch", "recorded", "--recorded", record)
}

// settle waits until nothing is fetched any more.
func (b *bench) settle(ctx context.Context) error {
	const still = 500 * time.Millisecond
	for last, since := b.count(), time.Now(); time.Since(since) < still || last.gets == 0 || last.open > 0; {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		if now := b.count(); now != last {
			last, since = now, time.Now()
		}
	}
	return nil
}

// gentle compares what reads take that have to be fetched, with nothing else
// going on and with --prefetch=all.
func (b *bench) gentle(ctx context.Context) error {
	const pause = 250 * time.Millisecond // in which prefetching begins anew
	latency := func(what string, bound func(time.Duration) string, args ...string) (mean time.Duration, err error) {
		var took []time.Duration
		err = b.once(ctx, what, func(s *server) error {
			f, c, err := s.open()
			if err != nil {
				return err
			}
			defer c.Close()
			_ = f
			for _, off := range b.image.farthest(12) {
				time.Sleep(pause)
				began := time.Now()
				if _, err := (&watcher{c.(*nbdclient.Client), s.seen}).ReadAt(make([]byte, 4096), off); err != nil {
					return err
				}
				took = append(took, time.Since(began))
			}
			return nil
		}, func(result, counts) string {
			for _, t := range took {
				mean += t / time.Duration(len(took))
			}
			return bound(mean)
		}, args...)
		return mean, err
	}
	alone, err := latency("reads now and then", func(m time.Duration) string { return fmt.Sprintf("mean %.0f ms", m.Seconds()*1e3) })
	if err != nil {
		return err
	}
	_, err = latency("reads now and then, --prefetch=all", func(m time.Duration) string {
		return fmt.Sprintf("mean %.0f ms, ", m.Seconds()*1e3) + b.bound("of the other", m.Seconds()/alone.Seconds(), 1.1)
	}, "--prefetch", "all", "--cache-dir", filepath.Join(b.dir, "gentle"))
	return err
}

// farthest are offsets on the disk in spans that prefetching reaches last.
func (im *image) farthest(n int) (offs []int64) {
	last := 0 // the layer with the most spans
	for i := range im.layers {
		if len(im.layers[i].Spans) > len(im.layers[last].Spans) {
			last = i
		}
	}
	l := &im.layers[last]
	for k := len(l.Spans) - 1; k >= 0 && len(offs) < n; k-- {
		offs = append(offs, im.starts[last]+l.Spans[k].Out)
	}
	return offs
}
