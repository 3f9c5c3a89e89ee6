package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
)

// mountFlags are the options of mount(8) that are flags of mount(2). All
// others are the filesystem's.
var mountFlags = map[string]struct{ set, clear uintptr }{
	"ro": {set: unix.MS_RDONLY}, "defaults": {},
	"nosuid": {set: unix.MS_NOSUID}, "suid": {clear: unix.MS_NOSUID},
	"nodev": {set: unix.MS_NODEV}, "dev": {clear: unix.MS_NODEV},
	"noexec": {set: unix.MS_NOEXEC}, "exec": {clear: unix.MS_NOEXEC},
	"noatime": {set: unix.MS_NOATIME}, "atime": {clear: unix.MS_NOATIME},
	"nodiratime": {set: unix.MS_NODIRATIME}, "diratime": {clear: unix.MS_NODIRATIME},
	"relatime": {set: unix.MS_RELATIME}, "norelatime": {clear: unix.MS_RELATIME},
	"nosymfollow": {set: unix.MS_NOSYMFOLLOW}, "symfollow": {clear: unix.MS_NOSYMFOLLOW},
}

// parseMountOptions splits a list of options into flags and data.
func parseMountOptions(list string) (flags uintptr, data string, err error) {
	flags = unix.MS_RDONLY
	var rest []string
	for _, o := range strings.Split(list, ",") {
		known, ok := mountFlags[o]
		switch {
		case o == "":
		case o == "rw":
			return 0, "", cli.Usagef("--mount-options: rw: EROFS is read-only")
		case ok:
			flags = flags&^known.clear | known.set
		default:
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ","), nil
}

// mountErofs mounts a device.
func mountErofs(dev, dir, options string) error {
	flags, data, err := parseMountOptions(options)
	if err != nil {
		return err
	}
	switch err := unix.Mount(dev, dir, "erofs", flags, data); {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount %s on %s: this kernel has no EROFS (modprobe erofs): %w", dev, dir, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("mount %s on %s: the kernel's log says more: %w", dev, dir, err)
	default:
		return fmt.Errorf("mount %s on %s: %w", dev, dir, err)
	}
}

// mountedOn reports whether the device's filesystem is what one sees on dir.
func mountedOn(dir string, index int) (bool, error) {
	dev, err := os.ReadFile(fmt.Sprintf("/sys/block/nbd%d/dev", index))
	if err != nil {
		return false, err
	}
	f, err := os.Open("/proc/self/mountinfo") // proc(5)
	if err != nil {
		return false, err
	}
	defer f.Close()
	mounted := false
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxMountLine)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		// ID, parent, major:minor, root, mount point; the last one is on top.
		if len(fields) > 4 && unescape(fields[4]) == dir {
			mounted = fields[2] == strings.TrimSpace(string(dev))
		}
	}
	return mounted, lines.Err()
}

// maxMountLine bounds a line of mountinfo, in bytes: an overlay of many layers
// names them all.
const maxMountLine = 1 << 20

// unescape undoes the octal escapes that mountinfo has for spaces and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unmount unmounts dir if the device is mounted there. What is busy is, if lazy,
// taken out of sight: nobody new gets to it, and the device is free when the
// last one is done.
func unmount(dir string, index int, lazy bool) (busy bool, err error) {
	mounted, err := mountedOn(dir, index)
	if err != nil || !mounted {
		return false, err
	}
	err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	busy = errors.Is(err, unix.EBUSY)
	if busy && lazy {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil {
		err = fmt.Errorf("unmount %s: %w", dir, err)
	}
	return busy, err
}
