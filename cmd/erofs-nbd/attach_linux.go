package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/blockmap"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/nbd"
	"github.com/layerpipe/layerpipe/pkg/nbddev"
)

// backendPrefix begins the name under which the driver knows our devices.
const backendPrefix = "layerpipe-"

// probe says early, and in words, that the kernel cannot be the client.
func (f *flags) probe() error {
	if f.Attach.name != "" {
		if _, ok := nbddev.ParseName(f.Attach.name); !ok {
			return cli.Usagef("--attach=%s: no name of an nbd device", f.Attach.name)
		}
	}
	if f.Mount != "" {
		if st, err := os.Stat(f.Mount); err != nil {
			return err
		} else if !st.IsDir() {
			return cli.Usagef("--mount %s: no directory", f.Mount)
		}
	}
	err := nbddev.Probe()
	if errors.Is(err, nbddev.ErrNoDriver) {
		return fmt.Errorf(`%w; without it, --run 'nbdfuse FILE "$uri"' shows the image as a FILE, for mount -t erofs -o ro,loop FILE DIR`, err)
	}
	return err
}

// A kernelServer serves one device to the kernel.
type kernelServer struct {
	f     *flags
	env   *cli.Env
	log   *log
	srv   *nbd.Server
	mount string // "": attached only
	dev   *nbddev.Device
	state *nbddev.StateFile
	ended chan error // of the driver's connection
	serve func(net.Conn)
}

// ctxReader reads a device with one context.
type ctxReader struct {
	ctx context.Context
	d   nbd.Device
}

func (r ctxReader) ReadAt(p []byte, off int64) (int, error) { return r.d.ReadAtContext(r.ctx, p, off) }

// sector is the unit of the kernel's block layer.
const sector = 512

// geometry is a device as the kernel wants it: whole sectors, and the largest
// blocks that both the filesystem and the size are made of.
func geometry(ctx context.Context, d nbd.Device) (nbd.Device, int, error) {
	img, err := erofs.Open(io.NewSectionReader(ctxReader{ctx, d}, 0, d.Size()))
	if err != nil {
		return nil, 0, err
	}
	if d.Size()%sector != 0 {
		whole := (d.Size() + sector - 1) / sector * sector
		if d, err = blockmap.New([]blockmap.Segment{{Source: d, Size: whole}}); err != nil {
			return nil, 0, err
		}
	}
	const most = 4096 // the driver takes no more than a page
	block := min(img.BlockSize(), most)
	for d.Size()%block != 0 {
		block /= 2
	}
	return d, int(block), nil
}

// identity tells one disk from another: its size, its beginning, with the
// superblock's UUID and checksum, and the end of the file that begins it, with
// the seek section's checksum.
func (f *flags) identity(ctx context.Context, d nbd.Device) (string, error) {
	const head, tail = 64 << 10, 4 << 10
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", d.Size())
	b := make([]byte, min(head, d.Size()))
	if _, err := d.ReadAtContext(ctx, b, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	h.Write(b)
	name := f.Index
	if name == "" {
		name = f.Image
	}
	if name != "" {
		file, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer file.Close()
		end, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			return "", err
		}
		if _, err := io.Copy(h, io.NewSectionReader(file, max(0, end-tail), tail)); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// serveKernel attaches the disk, or takes a device over if there is a state of
// it, and serves it until it is detached.
func (f *flags) serveKernel(ctx context.Context, env *cli.Env, log *log, s *nbd.Server, old *takeover) (err error) {
	d := s.Exports[0].Device
	identity, err := f.identity(ctx, d)
	if err != nil {
		return err
	}
	if old != nil && old.state.Identity != identity {
		return fmt.Errorf("%s was attached to something else than %s is now: %w", nbddev.Path(old.state.Index), f.name(), fault.ErrIntegrity)
	}
	d, block, err := geometry(ctx, d)
	if err != nil {
		return fmt.Errorf("%s: %w", f.name(), err)
	}
	s.Exports[0].Device = d
	// From here on a signal must not end us before the device is detached.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	env.OwnSignals()
	work, abandon := context.WithCancel(context.WithoutCancel(ctx)) // a signal is no reason to stop serving
	defer abandon()
	k := &kernelServer{f: f, env: env, log: log, srv: s, mount: f.Mount, ended: make(chan error, 1)}
	k.serve = func(nc net.Conn) { k.ended <- s.ServeTransmission(work, nc) }
	if old != nil {
		k.mount = old.state.Mount
		err = k.takeOver(old, block)
	} else {
		err = k.attach(identity, block)
	}
	if err != nil {
		return err
	}
	if err := k.ready(); err != nil {
		if old != nil {
			return err // reads wait for the next one
		}
		if k.mount != "" {
			unmount(k.mount, k.dev.Index, true)
		}
		return errors.Join(err, k.dev.Disconnect(), <-k.ended, k.state.Remove())
	}
	return k.wait(ctx, signals)
}

// attach attaches a new device.
func (k *kernelServer) attach(identity string, block int) error {
	nonce := make([]byte, 8)
	rand.Read(nonce)
	saved, err := json.Marshal(k.f)
	if err != nil {
		return err
	}
	s := &nbddev.State{
		Index:       -1,
		Backend:     backendPrefix + identity[:16] + "-" + hex.EncodeToString(nonce),
		Identity:    identity,
		Size:        k.srv.Exports[0].Device.Size(),
		BlockSize:   block,
		DeadTimeout: k.f.DeadTimeout,
		PID:         os.Getpid(),
		Mount:       k.mount,
		Server:      saved,
	}
	if k.f.Attach.name != "" {
		s.Index, _ = nbddev.ParseName(k.f.Attach.name)
	}
	if k.dev, k.state, err = nbddev.StateDir(k.f.StateDir).Attach(s, k.serve); err != nil {
		return err
	}
	if !k.dev.Netlink {
		k.env.Errorf("warning: %s: no netlink here; if this server dies, no other can take the device over", k.dev.Path())
	}
	return nil
}

// takeOver takes a dead server's place.
func (k *kernelServer) takeOver(old *takeover, block int) (err error) {
	c := old.state.Config()
	if size := k.srv.Exports[0].Device.Size(); size != c.Size || block != c.BlockSize {
		return fmt.Errorf("%s has %d bytes in blocks of %d, %s has %d in blocks of %d: %w",
			nbddev.Path(c.Index), c.Size, c.BlockSize, k.f.name(), size, block, fault.ErrIntegrity)
	}
	if k.dev, err = nbddev.Reattach(c, k.serve); err != nil {
		return err
	}
	s := *old.state
	s.PID = os.Getpid()
	// If this fails, we end, and reads wait for the next one.
	if k.state, err = nbddev.StateDir(k.f.StateDir).Write(&s); err != nil {
		return err
	}
	return old.file.Close()
}

// ready mounts and tells that all is there.
func (k *kernelServer) ready() error {
	if k.mount != "" {
		// After a takeover it is mounted already, most likely.
		mounted, err := mountedOn(k.mount, k.dev.Index)
		if err == nil && !mounted {
			err = mountErofs(k.dev.Path(), k.mount, k.f.MountOptions)
		}
		if err == nil {
			// Not before: looking at the device would have been enough.
			err = k.dev.DisconnectOnClose()
		}
		if err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(k.env.Stdout, k.dev.Path()); err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	return tellReady(k.env)
}

// wait waits until the driver is done with the device: because it was unmounted
// or detached by somebody, or because ctx is done and we did that.
func (k *kernelServer) wait(ctx context.Context, signals <-chan os.Signal) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	done, stopping, count := ctx.Done(), false, 0
	for {
		select {
		case err := <-k.ended:
			return k.end(err)
		case <-done:
			done, stopping = nil, true
			k.stop()
		case <-signals:
			if count++; count == 2 {
				k.log.printf("%s is detached while it is in use", k.dev.Path())
				k.disconnect()
			}
		case <-tick.C:
			// The driver detaches on its own when the last user is gone, but
			// only where there is netlink, and if it was told in time.
			if (stopping || !k.dev.Netlink && k.mount != "") && !nbddev.InUse(k.dev.Index) {
				k.disconnect()
			}
		}
	}
}

// stop unmounts, and detaches what nobody uses.
func (k *kernelServer) stop() {
	busy := false
	if k.mount != "" {
		var err error
		if busy, err = unmount(k.mount, k.dev.Index, true); err != nil {
			k.log.printf("%v", err)
		}
	}
	if busy || nbddev.InUse(k.dev.Index) {
		k.log.printf("%s is in use: served until it is not (a second signal ends that)", k.dev.Path())
	}
}

func (k *kernelServer) disconnect() {
	if err := k.dev.Disconnect(); err != nil {
		k.log.printf("%v", err)
	}
}

// end clears up after the driver's connection has ended.
func (k *kernelServer) end(err error) error {
	if err != nil {
		// The driver did not want that: reads wait for the next server.
		k.state.Close()
		return fmt.Errorf("%s: the kernel's connection broke (erofs-nbd --reattach takes the device over): %w", k.dev.Path(), err)
	}
	if err = errors.Join(k.dev.Wait(), k.state.Remove()); err != nil {
		k.log.printf("%v", err) // after a signal, nobody else says it
	}
	return err
}

// tellReady tells whoever started us.
func tellReady(env *cli.Env) error {
	if err := notifySystemd(); err != nil {
		env.Errorf("warning: %v", err)
	}
	return detachDaemon(env)
}

// targetIndex finds the device that nbdN, /dev/nbdN or a mount's directory
// means.
func (f *flags) targetIndex(name string) (int, error) {
	if i, ok := nbddev.ParseName(name); ok {
		return i, nil
	}
	dir, err := filepath.Abs(name)
	if err != nil {
		return 0, err
	}
	dir = realDir(dir)
	all, err := nbddev.StateDir(f.StateDir).List()
	if err != nil {
		return 0, err
	}
	const (
		unknown = iota
		left    // what is left of it can still be removed
		covered // by another mount
		onTop
	)
	index, best := 0, unknown
	for _, e := range all {
		if e.State == nil || e.Mount != dir {
			continue
		}
		rank := left
		if !e.Stale {
			rank = covered
			if mounted, err := mountedOn(dir, e.Index); err == nil && mounted {
				rank = onTop
			}
		}
		if rank > best {
			index, best = e.Index, rank
		}
	}
	if best > unknown {
		return index, nil
	}
	return 0, fmt.Errorf("%s: no device is known to be mounted there: %w", name, fault.ErrNotFound)
}
