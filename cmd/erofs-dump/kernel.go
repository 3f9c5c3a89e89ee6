package main

import (
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// linuxFor is the first release of Linux that reads an image with a superblock.
func linuxFor(sb *ondisk.SuperBlock) string {
	type release struct{ major, minor int }
	need := release{5, 4} // the first with EROFS for good
	least := func(r release, wanted bool) {
		if wanted && (r.major > need.major || r.major == need.major && r.minor > need.minor) {
			need = r
		}
	}
	has := func(bit uint32) bool { return sb.FeatureIncompat&bit != 0 }
	alg := func(a uint16) bool { return has(ondisk.IncompatComprCfgs) && sb.ComprAlgs>>a&1 != 0 }
	least(release{5, 13}, has(ondisk.IncompatBigPcluster))
	least(release{5, 15}, has(ondisk.IncompatChunkedFile))
	least(release{5, 16}, has(ondisk.IncompatDeviceTable) || alg(ondisk.AlgLZMA))
	least(release{5, 17}, has(ondisk.IncompatZtailpacking))
	least(release{6, 1}, has(ondisk.IncompatFragments))
	least(release{6, 4}, has(ondisk.IncompatXattrPrefixes) || sb.BlkSzBits < 12)
	least(release{6, 6}, alg(ondisk.AlgDeflate))
	least(release{6, 8}, sb.BlkSzBits < 12 && has(ondisk.IncompatLZ4ZeroPadding)) // compressed files
	least(release{6, 10}, alg(ondisk.AlgZstd))
	least(release{6, 15}, has(ondisk.Incompat48Bit))
	least(release{6, 17}, has(ondisk.IncompatMetabox))
	return fmt.Sprintf("%d.%d", need.major, need.minor)
}
