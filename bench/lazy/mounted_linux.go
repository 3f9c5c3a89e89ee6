package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A mounter mounts the image on a directory, cold.
type mounter struct {
	name  string
	mount func(ctx context.Context, dir string) (end func() error, err error)
}

// mounted measures what programs read of a mounted image.
func (b *bench) mounted(ctx context.Context) error {
	for _, m := range b.mounters() {
		for _, r := range b.programs() {
			if err := b.mountedLine(ctx, m, r.name, r.run); err != nil {
				return fmt.Errorf("%s, %s: %w", m.name, r.name, err)
			}
		}
	}
	return nil
}

// mounters are the ways to mount that there are here.
func (b *bench) mounters() (list []mounter) {
	if os.Geteuid() != 0 {
		fmt.Println("mounted: nothing, that wants root")
		return nil
	}
	if _, err := os.Stat("/dev/nbd0"); err == nil {
		list = append(list, mounter{"erofs-nbd --mount", b.mountKernel})
		if b.mountErofs != "" {
			list = append(list, mounter{"mount.erofs", b.mountOther})
		}
		return list
	}
	for _, name := range []string{"nbdfuse", "/dev/fuse"} {
		_, err := exec.LookPath(name)
		if _, err2 := os.Stat(name); err != nil && err2 != nil {
			fmt.Printf("mounted: nothing, there is neither the kernel's NBD driver nor %s\n", name)
			return nil
		}
	}
	return append(list, mounter{"nbdfuse", b.mountFuse})
}

type program struct {
	name string
	run  func(ctx context.Context, dir string) error
}

// programs are what is run in a mounted image.
func (b *bench) programs() (list []program) {
	const tool = "usr/local/go/bin/go"
	if len(b.image.in(path.Dir(tool))) > 0 {
		list = append(list, program{"go version", func(ctx context.Context, dir string) error {
			cmd := exec.CommandContext(ctx, filepath.Join(dir, tool), "version")
			cmd.Env = []string{"GOTOOLCHAIN=local", "HOME=" + b.dir}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), "go version ") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}})
	}
	sources, big := b.image.sources(), b.image.sized(15<<20)
	return append(list,
		program{"package " + path.Base(sources), func(_ context.Context, dir string) error {
			for _, f := range b.image.in(sources) {
				if err := readFile(filepath.Join(dir, f.path), f.size); err != nil {
					return err
				}
			}
			return nil
		}},
		program{fmt.Sprintf("file %s, %.1f MB", path.Base(big.path), float64(big.size)/1e6), func(_ context.Context, dir string) error {
			return readFile(filepath.Join(dir, big.path), big.size)
		}})
}

func readFile(name string, size int64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(struct{ io.Writer }{io.Discard}, f)
	if err == nil && n != size {
		err = fmt.Errorf("%s: %d bytes, not %d", name, n, size)
	}
	return err
}

func (b *bench) mountedLine(ctx context.Context, m mounter, name string, run func(context.Context, string) error) error {
	dir := filepath.Join(b.dir, "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b.reg.Reset()
	began := time.Now()
	end, err := m.mount(ctx, dir)
	if err != nil {
		return err
	}
	r := result{what: m.name + ": " + name}
	err = func() error {
		before, err := delivered(dir) // a loop device counts on from who had it before
		if err != nil {
			return err
		}
		if err := run(ctx, dir); err != nil {
			return err
		}
		r.took = time.Since(began)
		r.read, err = delivered(dir)
		r.read -= before
		return err
	}()
	if err := errors.Join(err, end()); err != nil {
		return err
	}
	b.row(r, b.countAll())
	return nil
}

// delivered is how many bytes were read of the block device that is mounted.
func delivered(dir string) (n int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // no device
	}
	if err != nil {
		return 0, err
	}
	// Documentation/block/stat.rst: the third number is sectors of 512 bytes.
	var ios, merges, sectors int64
	if _, err := fmt.Sscan(string(text), &ios, &merges, &sectors); err != nil {
		return 0, err
	}
	return sectors * 512, nil
}

// mountKernel lets erofs-nbd attach and mount.
func (b *bench) mountKernel(ctx context.Context, dir string) (func() error, error) {
	cmd := exec.CommandContext(ctx, b.tool("erofs-nbd"), append([]string{"--plain-http", "--index", b.image.index, "--blob", b.ref, "--mount", dir,
		"--state-dir", filepath.Join(b.dir, "state")}, strings.Fields(b.flags)...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, fmt.Errorf("erofs-nbd: %w, %v", err, cmd.Wait())
	}
	return func() error { return errors.Join(unmount(dir), cmd.Wait()) }, nil
}

// mountFuse mounts the file that nbdfuse makes of the server, as a loop device.
func (b *bench) mountFuse(ctx context.Context, dir string) (_ func() error, err error) {
	s, err := b.serve(ctx)
	if err != nil {
		return nil, err
	}
	file, ready := filepath.Join(b.dir, "nbd"), filepath.Join(b.dir, "nbdfuse.pid")
	fuse := exec.CommandContext(ctx, "nbdfuse", "-P", ready, file, s.uri)
	fuse.Stderr = os.Stderr
	undo := func() error {
		unix.Unmount(file, unix.MNT_DETACH)
		if fuse.Process != nil {
			fuse.Wait()
		}
		return errors.Join(os.Remove(file), os.Remove(ready), s.stop())
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return nil, err
	}
	if err := fuse.Start(); err != nil {
		return nil, err
	}
	for {
		if st, err := os.Stat(file); err == nil && st.Size() > 0 {
			break
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := command(ctx, "mount", "-t", "erofs", "-o", "ro,loop", file, dir); err != nil {
		return nil, err
	}
	return func() error {
		return errors.Join(unmount(dir), undo())
	}, nil
}

// mountOther lets mount.erofs of erofs-utils mount the layer that the files are
// in; it knows no indexes of several.
func (b *bench) mountOther(ctx context.Context, dir string) (func() error, error) {
	options := fmt.Sprintf("oci.layer=%d,oci.tarindex=%s,oci.zinfo=%s,oci.insecure", b.other.layer, b.other.index, b.other.zinfo)
	// Its server is a child that keeps stdout and stderr: a pipe would have no end.
	said, err := os.Create(filepath.Join(b.dir, "mount.erofs.log"))
	if err != nil {
		return nil, err
	}
	defer said.Close()
	cmd := exec.CommandContext(ctx, b.mountErofs, "-t", "erofs.nbd", "-o", options, b.ref, dir)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said.Name())
		return nil, fmt.Errorf("mount.erofs: %w: %s", err, text)
	}
	return func() error { return unmount(dir) }, nil
}

// unmount waits for those who still use it: the go command leaves a child behind
// for its telemetry.
func unmount(dir string) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			unix.Unmount(dir, unix.MNT_DETACH)
			return fmt.Errorf("umount %s: %w", dir, err)
		}
	}
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
