package erofs

import (
	"encoding/binary"
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// super checks the superblock and the image as a whole.
func (c *checker) super() {
	f := c.f
	primary := f.devices[0]
	if f.sb.FeatureCompat&ondisk.CompatSBChecksum != 0 {
		if err := f.verifySuper(primary.r); err != nil {
			c.imageProblem(RuleChecksum, "%v", err)
		}
	}
	if size := sizeOf(primary.r); size >= 0 && size < primary.size {
		c.imageProblem(RuleSize, "%d bytes, but %d blocks of %d", size, primary.size>>f.blkBits, f.BlockSize())
	}
	if f.sb.FeatureCompat&ondisk.CompatIshareXattrs != 0 && f.sb.IshareXattrID >= f.sb.XattrPrefixCount {
		c.imageProblem(RuleXattr, "the prefix that identifies shared page cache is number %d of %d", f.sb.IshareXattrID, f.sb.XattrPrefixCount)
	}
	if f.sharedXattrSpace() == nil {
		c.imageProblem(RuleXattr, "shared attributes are in a metabox, but there is none")
	}
	// What stands before the superblock is for boot loaders.
	c.note(f.meta, 0, ondisk.SuperOffset+int64(f.sb.Size()), noNid, true)
	if n := len(f.devices) - 1; n > 0 {
		c.note(f.meta, int64(f.sb.DevtSlotOff)*ondisk.DeviceSlotSize, int64(n)*ondisk.DeviceSlotSize, noNid, true)
	}
}

// deviceTable checks that addresses have one meaning.
func (c *checker) deviceTable() {
	devs := c.f.devices
	before := 0 // the device that reaches farthest so far
	for _, i := range c.f.byAddr {
		a, b := devs[before], devs[i]
		if b.addr < a.addr+a.size {
			c.imageProblem(RuleDevices, "device %d at %#x of %d bytes overlaps device %d at %#x of %d", i, b.addr, b.size, before, a.addr, a.size)
		}
		if b.addr+b.size > a.addr+a.size {
			before = i
		}
	}
	// Layers that follow an index in one file must all be there.
	file := sizeOf(devs[0].r)
	flat := len(c.f.opts.devices) == 0 && file > devs[0].size
	for i := 1; i < len(devs); i++ {
		d, size := &devs[i], int64(-1)
		switch {
		case flat && d.addr != 0:
			size = max(file-d.addr, 0)
		case d.r != nil && d.base == 0:
			size = sizeOf(d.r)
		}
		if size >= 0 && size+c.f.BlockSize() <= d.size {
			c.imageProblem(RuleSize, "device %d: %d bytes, but %d blocks of %d", i, size, d.size>>c.f.blkBits, c.f.BlockSize())
		}
	}
}

// configs checks the algorithms' configurations, which Linux wants to be right
// before it mounts an image. The reader does without them: the format bounds
// what it allocates.
func (c *checker) configs() {
	f := c.f
	if !f.has(ondisk.IncompatComprCfgs) {
		return
	}
	algs := f.sb.ComprAlgs
	if unknown := algs >> ondisk.AlgMax << ondisk.AlgMax; unknown != 0 {
		c.imageProblem(RuleConfig, "unknown algorithms %#x", unknown)
	}
	off := int64(ondisk.SuperOffset + f.sb.Size())
	for a := range Algorithm(ondisk.AlgMax) {
		if algs>>a&1 == 0 {
			continue
		}
		off = (off + 3) &^ 3
		b, err := f.config(off)
		if err == nil {
			err = f.checkConfig(a, b)
		}
		if err != nil {
			c.imageProblem(RuleConfig, "%v at offset %#x: %v", a, off, err)
			return // where the next one is nobody knows
		}
		c.note(f.meta, off, int64(2+len(b)), noNid, true)
		off += int64(2 + len(b))
	}
}

// config reads a record: its size, and that many bytes.
func (f *FS) config(off int64) ([]byte, error) {
	b, err := f.meta.read(off, 2)
	if err != nil {
		return nil, err
	}
	n := int(binary.LittleEndian.Uint16(b))
	if n == 0 {
		n = 1 << 16
	}
	return f.meta.read(off+2, n)
}

// checkConfig holds a configuration against Linux's bounds.
func (f *FS) checkConfig(a Algorithm, b []byte) error {
	if size := [...]int{ondisk.LZ4CfgSize, ondisk.LZMACfgSize, ondisk.DeflateCfgSize, ondisk.ZstdCfgSize}[a]; len(b) < size {
		return fmt.Errorf("%d bytes of %d: %w", len(b), size, fault.ErrCorrupt)
	}
	switch a {
	case ondisk.AlgLZ4:
		var x ondisk.LZ4Cfg
		if x.Decode(b); int(x.MaxPclusterBlks) > ondisk.PclusterMaxSize>>f.blkBits {
			return fmt.Errorf("pclusters of %d blocks: %w", x.MaxPclusterBlks, fault.ErrCorrupt)
		}
	case ondisk.AlgLZMA:
		var x ondisk.LZMACfg
		if x.Decode(b); x.Format != 0 || x.DictSize < ondisk.LZMAMinDictSize || x.DictSize > ondisk.LZMAMaxDictSize {
			return fmt.Errorf("format %d, a dictionary of %d bytes: %w", x.Format, x.DictSize, fault.ErrCorrupt)
		}
	case ondisk.AlgDeflate:
		var x ondisk.DeflateCfg
		if x.Decode(b); x.WindowBits > ondisk.DeflateMaxWindowBits {
			return fmt.Errorf("a window of 2^%d bytes: %w", x.WindowBits, fault.ErrCorrupt)
		}
	case ondisk.AlgZstd:
		var x ondisk.ZstdCfg
		if x.Decode(b); x.Format != 0 || x.WindowLog > ondisk.ZstdMaxWindowLog {
			return fmt.Errorf("format %d, a window of 2^%d KiB: %w", x.Format, x.WindowLog, fault.ErrCorrupt)
		}
	}
	return nil
}
