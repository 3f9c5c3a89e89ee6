package erofs

import (
	"fmt"
	"io"
	"sort"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// maxAddr bounds byte addresses and sizes so that sums of two never overflow.
const maxAddr = 1 << 62

// Device is one entry of an image's device table, or the primary device.
type Device struct {
	Tag     string // as recorded, often a digest; empty for the primary device
	Blocks  uint64 // size in blocks
	Size    int64  // the same in bytes
	Uniaddr uint64 // first block in the one address space; 0 if it has no place there
	Present bool   // its data can be read
}

// device is where a device's bytes are read from.
type device struct {
	r    io.ReaderAt // nil: not at hand
	base int64       // where in r it begins
	addr int64       // where in the one address space it begins, bytes; 0: nowhere
	size int64       // bytes
	tag  string
}

// Devices lists the primary device and the extra ones, in the table's order.
func (f *FS) Devices() []Device {
	list := make([]Device, len(f.devices))
	for i, d := range f.devices {
		list[i] = Device{
			Tag:     d.tag,
			Blocks:  uint64(d.size >> f.blkBits),
			Size:    d.size,
			Uniaddr: uint64(d.addr >> f.blkBits),
			Present: d.r != nil,
		}
	}
	return list
}

// readDevices reads the device table. size is r's, or -1.
func (f *FS) readDevices(r io.ReaderAt, size int64) error {
	blocks := f.sb.Blocks()
	if blocks > maxAddr>>f.blkBits {
		return superErr("%d blocks: %w", blocks, fault.ErrCorrupt)
	}
	f.devices = []device{{r: r, size: int64(blocks) << f.blkBits}}
	extra := int(f.sb.ExtraDevices)
	if !f.has(ondisk.IncompatDeviceTable) {
		extra = 0
	}
	given := f.opts.devices
	if len(given) > extra {
		return fault.Usagef("%d devices given, but the image has %d", len(given), extra)
	}
	for i := range extra {
		off := (int64(f.sb.DevtSlotOff) + int64(i)) * ondisk.DeviceSlotSize
		b, err := f.meta.read(off, ondisk.DeviceSlotSize)
		if err != nil {
			return fmt.Errorf("device table: %w", err)
		}
		var slot ondisk.DeviceSlot
		slot.Decode(b)
		blocks, uniaddr := uint64(slot.BlocksLo), uint64(slot.UniaddrLo)
		if f.has(ondisk.Incompat48Bit) {
			blocks |= uint64(slot.BlocksHi) << 32
			uniaddr |= uint64(slot.UniaddrHi) << 32
		}
		if blocks > maxAddr>>f.blkBits || uniaddr > maxAddr>>f.blkBits {
			return fmt.Errorf("device table: offset %#x: %d blocks from %d on: %w", off, blocks, uniaddr, fault.ErrCorrupt)
		}
		d := device{tag: cString(slot.Tag[:]), size: int64(blocks) << f.blkBits, addr: int64(uniaddr) << f.blkBits}
		switch {
		case i < len(given) && given[i] != nil:
			d.r = given[i]
		case len(given) > 0 || d.addr == 0:
		case size < 0 || d.addr < size:
			d.r, d.base = r, d.addr
		}
		f.devices = append(f.devices, d)
		if d.addr != 0 {
			f.byAddr = append(f.byAddr, i+1)
		}
	}
	sort.SliceStable(f.byAddr, func(i, j int) bool { return f.devices[f.byAddr[i]].addr < f.devices[f.byAddr[j]].addr })
	return nil
}

// mapAddr finds the device of an address: id is a device's number, where 0 is
// the one address space, and addr a byte address. It returns the device's
// index, the offset in it, and how many of n bytes lie there.
func (f *FS) mapAddr(id int, addr, n int64) (dev int, off, avail int64, err error) {
	if addr < 0 || addr > maxAddr {
		return 0, 0, 0, fmt.Errorf("address %#x is out of range: %w", addr, fault.ErrCorrupt)
	}
	if id >= len(f.devices) {
		return 0, 0, 0, fmt.Errorf("device %d of %d: %w", id, len(f.devices)-1, fault.ErrCorrupt)
	}
	if id > 0 {
		return id, addr, n, nil
	}
	// The first device that begins behind addr.
	next := sort.Search(len(f.byAddr), func(i int) bool { return f.devices[f.byAddr[i]].addr > addr })
	if next < len(f.byAddr) {
		n = min(n, f.devices[f.byAddr[next]].addr-addr)
	}
	if next > 0 {
		i := f.byAddr[next-1]
		if d := &f.devices[i]; addr-d.addr < d.size {
			return i, addr - d.addr, min(n, d.size-(addr-d.addr)), nil
		}
	}
	return 0, addr, n, nil
}

// readDevice fills p from a device.
func (f *FS) readDevice(dev int, p []byte, off int64) error {
	d := &f.devices[dev]
	if d.r == nil {
		return f.noDevice(dev)
	}
	if err := readFull(d.r, p, d.base+off); err != nil {
		if dev > 0 && d.base > 0 && err == io.ErrUnexpectedEOF {
			return f.noDevice(dev)
		}
		if dev > 0 {
			return fmt.Errorf("device %d, offset %#x: %w", dev, off, corruptShort(err))
		}
		return fmt.Errorf("offset %#x: %w", off, corruptShort(err))
	}
	return nil
}

// noDevice says which device is wanted.
func (f *FS) noDevice(dev int) error {
	d := &f.devices[dev]
	if d.tag == "" {
		return fmt.Errorf("device %d of %d: %w", dev, len(f.devices)-1, ErrNoDevice)
	}
	return fmt.Errorf("device %d of %d (%q): %w", dev, len(f.devices)-1, d.tag, ErrNoDevice)
}
