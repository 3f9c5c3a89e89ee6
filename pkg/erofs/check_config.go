package erofs

import (
	"encoding/binary"
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

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
