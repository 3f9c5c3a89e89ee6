package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/disk"
	"github.com/layerpipe/layerpipe/pkg/source"
	"github.com/layerpipe/layerpipe/pkg/spancache"
)

// cacheFlags are for what is fetched before somebody waits for it, and for what
// is kept. --cache-dir is among the flags for registries.
type cacheFlags struct {
	Record    string   `placeholder:"FILE" help:"Write to FILE which parts of the layers were read, in order."`
	Prefetch  string   `enum:"off,recorded,all" default:"off" help:"Fetch what nobody has asked for yet: recorded, what --recorded lists; all, everything, in idle time. Reads go first (off, recorded or all; default ${default})."`
	Recorded  string   `placeholder:"FILE" help:"A list that --record wrote (default: the file of --record, once it is there)."`
	Bandwidth cli.Size `placeholder:"BYTES" help:"Most that --prefetch=all fetches each second."`
	Metrics   string   `placeholder:"HOST:PORT" help:"Give counters to Prometheus at http://HOST:PORT/metrics."`
}

// checkCache looks for flags that do not go together.
func (f *flags) checkCache() error {
	lazy := f.Image == ""
	switch {
	case f.Record != "" && !lazy, f.Prefetch != "off" && !lazy:
		return cli.Usagef("a local image has no layers to fetch: --record and --prefetch are for --blob")
	case f.Recorded != "" && f.Prefetch != "recorded":
		return cli.Usagef("--recorded is for --prefetch=recorded")
	case f.Prefetch == "recorded" && f.Recorded == "" && f.Record == "":
		return cli.Usagef("--prefetch=recorded needs --recorded: the list")
	case f.Bandwidth > 0 && f.Prefetch != "all":
		return cli.Usagef("--bandwidth is for --prefetch=all")
	}
	return nil
}

// caching is what stands between the layers and the network, besides memory.
type caching struct {
	log     *log
	gets    atomic.Int64 // requests to the registry
	serving atomic.Bool  // whatever the registry does, we do not end
	memory  int64        // bytes for prefetching
	gentle  bool         // --prefetch=all
	verbose bool
	store   *spancache.Disk
	list    []disk.Range // to warm
	record  *disk.Recorder
	out     *cli.Output // of record
	started bool
	jobs    sync.WaitGroup
	endJobs context.CancelFunc
}

// openCaching prepares what the flags ask for.
func (f *flags) openCaching(env *cli.Env, log *log) (*caching, error) {
	c := &caching{log: log, memory: int64(f.CacheSize) / 4 * 3, gentle: f.Prefetch == "all", verbose: f.Verbose, endJobs: func() {}}
	if f.Prefetch == "recorded" {
		var err error
		if c.list, err = f.readList(env); err != nil {
			return nil, err
		}
	}
	if f.Record != "" {
		out, err := cli.Create(f.Record)
		if err != nil {
			return nil, err
		}
		c.out, c.record = out, disk.NewRecorder(out)
	}
	return c, nil
}

// readList reads what is to be warmed. That a list is not there yet is how a
// first start is; that one is no good must not keep the image from being
// served.
func (f *flags) readList(env *cli.Env) ([]disk.Range, error) {
	name := f.Recorded
	if name == "" {
		name = f.Record
	}
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) && f.Recorded == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	list, err := disk.ReadRecord(file)
	if err != nil {
		env.Errorf("warning: %s: %v; nothing is prefetched", name, err)
		return nil, nil
	}
	return list, nil
}

// useDir sets the cache directory up. One that cannot be written to is a
// warning; what is in it is used.
func (c *caching) useDir(env *cli.Env, dir string, size int64) (ok bool) {
	if size == 0 {
		size = math.MaxInt64
	}
	ok = true
	c.store = spancache.OpenDisk(dir, size, func(err error) {
		ok = false
		env.Errorf("warning: --cache-dir: %v; nothing new is kept there", err)
	})
	return ok
}

// options adds to a disk's options what its layers have to know.
func (c *caching) options(o *disk.Options, bandwidth int64) {
	if c.store != nil {
		o.Store = c.store
	}
	if c.record != nil {
		o.OnUse = c.record.Add
	}
	o.Bandwidth = bandwidth
	o.OnWhole = func(d digest.Digest, err error) {
		if err != nil {
			c.log.printf("%v: nothing more of it is served", err)
		} else if c.verbose {
			c.log.printf("layer %s: all of it is cached now, and its digest is right", d)
		}
	}
}

// start begins to prefetch.
func (c *caching) start(ctx context.Context, d *disk.Disk) {
	c.started = true
	ctx, c.endJobs = context.WithCancel(ctx)
	c.jobs.Go(func() {
		var err error
		switch {
		case c.gentle:
			err = c.fill(ctx, d)
		case len(c.list) > 0:
			err = d.Warm(ctx, c.list, c.memory)
		}
		if err != nil && ctx.Err() == nil {
			c.log.printf("prefetch: %v", err)
		}
	})
}

// A registry that is gone comes back: after this time filling is tried again,
// and after twice as long each time it fails.
var fillAgain = time.Minute

const maxFillAgain = 16 * time.Minute

// fill fills the cache until all is there.
func (c *caching) fill(ctx context.Context, d *disk.Disk) error {
	for wait := fillAgain; ; wait = min(2*wait, maxFillAgain) {
		err := d.Fill(ctx, c.memory)
		if err == nil || ctx.Err() != nil {
			return err
		}
		c.log.printf("prefetch: %v; again in %v", err, wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stop ends prefetching. The layers may be closed then.
func (c *caching) stop() {
	c.endJobs()
	c.jobs.Wait()
}

// close completes what is written. Nothing reads any more.
func (c *caching) close() error {
	if c.store != nil {
		c.store.Close()
	}
	if c.out == nil {
		return nil
	}
	defer c.out.Close()
	if !c.started { // the last record is worth more than an empty one
		return nil
	}
	err := c.record.Err()
	if err == nil {
		err = c.out.Commit()
	}
	if err != nil {
		return fmt.Errorf("--record: %w", err)
	}
	return nil
}

// spans reports whether a reference's layers come over a network, so that their
// spans are worth to be kept.
func (f *flags) spans() bool { return f.CacheDir != "" && !source.IsLocal(f.Blob[0]) }
