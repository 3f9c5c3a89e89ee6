package spancache

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Disk keeps bytes under 32-byte names in a directory, which any number of
// processes may share. What they write appears whole or not at all, and what
// was not used for longest goes once there is more than the bound.
//
// It does not vouch for what it gives: files can be torn by a crash, or
// tampered with. Whoever reads them has to verify them, and to Drop what is
// wrong. Nor does it fail: a directory that cannot be written to, or has no
// room, keeps nothing.
type Disk struct {
	dir  string // the part of the directory that is ours
	max  int64  // bytes
	warn func(error)

	writers chan struct{}  // a token for each write in the background
	jobs    sync.WaitGroup // those
	closed  atomic.Bool
	warned  atomic.Bool
	rest    atomic.Int64 // no writes before this time, in Unix nanoseconds

	mu      sync.Mutex          // guards pending, and jobs against Close
	pending map[[32]byte][]byte // what is being written: it is there already

	look  sync.Mutex  // one look at the directory at a time
	due   atomic.Bool // a look that sees what is there now
	used  atomic.Int64
	since atomic.Int64 // bytes written since the last look

	hits, misses, bytesIn, bytesOut, failed, evicted, dropped atomic.Int64
}

const (
	// diskDir has the version of the layout in its name: another release does
	// not touch what it does not understand.
	diskDir = "layerpipe-spans-1"
	// tempPrefix is how files begin that are not complete. A file of a process
	// that was killed goes when it is older than tempAge.
	tempPrefix = ".tmp-"
	tempAge    = time.Hour
	// touchAge is how old a file's time may be before a use renews it.
	touchAge = time.Minute
	// diskRest is how long a Disk that failed to write does not try again.
	diskRest = 30 * time.Second
	// diskBlock is what a file's size is rounded up to in the count.
	diskBlock   = 4096
	diskWriters = 4
)

// OpenDisk uses at most max bytes of a directory, and makes it if it is not
// there. warn hears once if nothing can be kept.
func OpenDisk(dir string, max int64, warn func(error)) *Disk {
	d := &Disk{dir: filepath.Join(dir, diskDir), max: max, warn: warn,
		writers: make(chan struct{}, diskWriters), pending: make(map[[32]byte][]byte)}
	if err := d.open(); err != nil {
		d.fail(err)
	}
	return d
}

func (d *Disk) open() error {
	// 0700: what a container's image holds is not for everybody.
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	// Programs that back up leave out what is marked like this.
	const tag = "Signature: 8a477f597d28d172789f06886806bc55\n"
	if err := os.WriteFile(filepath.Join(d.dir, "CACHEDIR.TAG"), []byte(tag), 0o600); err != nil {
		return err
	}
	d.jobs.Go(d.evict)
	return nil
}

// Close waits for writes in the background. Later calls find and keep nothing.
func (d *Disk) Close() error {
	d.mu.Lock()
	d.closed.Store(true)
	d.mu.Unlock()
	d.jobs.Wait()
	return nil
}

// DiskStats counts what happened so far.
type DiskStats struct {
	Hits    int64 // found
	Misses  int64
	Read    int64 // bytes
	Written int64 // bytes
	Failed  int64 // writes that failed
	Evicted int64 // files, by this process
	Dropped int64 // files that were wrong
	Used    int64 // bytes in the directory, as far as known
}

// Stats returns the counters.
func (d *Disk) Stats() DiskStats {
	return DiskStats{d.hits.Load(), d.misses.Load(), d.bytesOut.Load(), d.bytesIn.Load(), d.failed.Load(), d.evicted.Load(), d.dropped.Load(), d.used.Load()}
}

// path spreads files over 256 directories.
func (d *Disk) path(name [32]byte) string {
	s := hex.EncodeToString(name[:])
	return filepath.Join(d.dir, s[:2], s[2:])
}

// Has reports whether there is a file of size bytes.
func (d *Disk) Has(name [32]byte, size int64) bool {
	if p := d.isPending(name); p != nil {
		return int64(len(p)) == size
	}
	return d.hasFile(name, size)
}

func (d *Disk) isPending(name [32]byte) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pending[name]
}

func (d *Disk) hasFile(name [32]byte, size int64) bool {
	st, err := os.Stat(d.path(name))
	return err == nil && st.Size() == size && st.Mode().IsRegular()
}

// Load fills p from the file of that name, and reports whether there is one and
// has as many bytes.
func (d *Disk) Load(name [32]byte, p []byte) bool {
	if !d.load(name, p) {
		d.misses.Add(1)
		return false
	}
	d.hits.Add(1)
	d.bytesOut.Add(int64(len(p)))
	return true
}

func (d *Disk) load(name [32]byte, p []byte) bool {
	if d.closed.Load() {
		return false
	}
	if q := d.isPending(name); q != nil {
		return copy(p, q) == len(p) && len(p) == len(q)
	}
	f, err := os.Open(d.path(name))
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() != int64(len(p)) || !st.Mode().IsRegular() {
		return false
	}
	if n, err := f.ReadAt(p, 0); n < len(p) || err != nil {
		return false
	}
	if now := time.Now(); now.Sub(st.ModTime()) > touchAge {
		os.Chtimes(f.Name(), now, now)
	}
	return true
}

// Drop removes a file with the bytes p, as they are not what they should be. A
// file with other bytes stays: two may have found the same damage, and the one
// have mended it before the other says so. Nil p removes any.
func (d *Disk) Drop(name [32]byte, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p != nil && !d.holds(name, p) {
		return
	}
	d.dropped.Add(1)
	delete(d.pending, name)
	os.Remove(d.path(name))
}

// holds reports whether a name has the bytes p.
func (d *Disk) holds(name [32]byte, p []byte) bool {
	if q := d.pending[name]; q != nil {
		return bytes.Equal(p, q)
	}
	if !d.hasFile(name, int64(len(p))) {
		return false
	}
	q, err := os.ReadFile(d.path(name))
	return err == nil && bytes.Equal(p, q)
}

// Save keeps p, which must not change any more, in the background. If too much
// is waiting to be written already, it takes the time to write it.
func (d *Disk) Save(name [32]byte, p []byte) {
	if size := diskCost(int64(len(p))); size > d.max || len(p) == 0 || d.rest.Load() > time.Now().UnixNano() {
		return
	}
	d.mu.Lock()
	if d.closed.Load() {
		d.mu.Unlock()
		return
	}
	if d.pending[name] != nil {
		d.mu.Unlock()
		return
	}
	d.pending[name] = p
	d.jobs.Add(1)
	d.mu.Unlock()
	save := func() {
		defer d.jobs.Done()
		d.save(name, p)
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.pending[name] == nil { // it was dropped meanwhile
			os.Remove(d.path(name))
		}
		delete(d.pending, name)
	}
	select {
	case d.writers <- struct{}{}:
		go func() {
			defer func() { <-d.writers }()
			save()
		}()
	default:
		save()
	}
}

func (d *Disk) save(name [32]byte, p []byte) {
	if d.hasFile(name, int64(len(p))) { // another process was faster
		return
	}
	if err := d.write(d.path(name), p); err != nil {
		d.failed.Add(1)
		d.fail(err)
		return
	}
	d.bytesIn.Add(int64(len(p)))
	cost := diskCost(int64(len(p)))
	// Others write, too, and it shows in a look at the directory only.
	if used, since := d.used.Add(cost), d.since.Add(cost); used > d.max || since > d.max/8 {
		d.evict()
	}
}

// write makes a file that is whole when it gets its name. There is no sync: a
// file that a crash tears does not match its digest.
func (d *Disk) write(path string, p []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		f, err = os.CreateTemp(dir, tempPrefix)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(p)
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// fail stops writing for a while.
func (d *Disk) fail(err error) {
	d.rest.Store(time.Now().Add(diskRest).UnixNano())
	if d.warn != nil && d.warned.CompareAndSwap(false, true) {
		d.warn(err)
	}
}

func diskCost(n int64) int64 { return (n + diskBlock - 1) / diskBlock * diskBlock }

// A diskFile is one that evict found.
type diskFile struct {
	path  string
	cost  int64
	mtime time.Time
}

// evict sees to it that the bound is kept. Who comes while somebody looks leaves
// it to that one, who may have missed what came meanwhile, and looks again.
func (d *Disk) evict() {
	d.due.Store(true)
	for d.due.Load() && d.look.TryLock() {
		d.due.Store(false)
		d.evictOnce()
		d.look.Unlock()
	}
}

// evictOnce counts what is there, and removes what was not used for longest
// until it is an eighth below the bound. Two processes that do this at the same
// time choose the same files.
func (d *Disk) evictOnce() {
	d.since.Store(0)
	files, sum := d.scan()
	if sum > d.max {
		slices.SortFunc(files, func(a, b diskFile) int { return a.mtime.Compare(b.mtime) })
		for _, f := range files {
			if sum <= d.max-d.max/8 {
				break
			}
			if err := os.Remove(f.path); err == nil {
				d.evicted.Add(1)
			} else if !errors.Is(err, fs.ErrNotExist) {
				continue
			}
			sum -= f.cost
		}
	}
	d.used.Store(sum)
}

// scan lists the files, and removes what processes left that were killed.
func (d *Disk) scan() (files []diskFile, sum int64) {
	dirs, _ := os.ReadDir(d.dir)
	for _, dir := range dirs {
		if len(dir.Name()) != 2 || !dir.IsDir() {
			continue
		}
		list, _ := os.ReadDir(filepath.Join(d.dir, dir.Name()))
		for _, e := range list {
			st, err := e.Info()
			if err != nil || !st.Mode().IsRegular() {
				continue
			}
			f := diskFile{filepath.Join(d.dir, dir.Name(), e.Name()), diskCost(st.Size()), st.ModTime()}
			if strings.HasPrefix(e.Name(), tempPrefix) && time.Since(f.mtime) > tempAge {
				os.Remove(f.path)
				continue
			}
			sum += f.cost
			if len(e.Name()) == 62 {
				files = append(files, f)
			}
		}
	}
	return files, sum
}
