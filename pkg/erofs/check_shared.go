package erofs

import (
	"cmp"
	"slices"
)

// pcluster is where an encoded extent lies, and what an inode takes it for.
type pcluster struct {
	addr   int64
	nid    uint64
	size   int32 // bytes; ondisk.PclusterMaxSize at most
	device uint16
	alg    uint8
}

// notePcluster notes an encoded extent on a device.
func (c *checker) notePcluster(ino *inode, e *FileExtent) {
	c.pclusters = append(c.pclusters, pcluster{e.Addr, ino.Nid, int32(e.AddrLen), uint16(e.Device), uint8(e.Algorithm)})
}

// sharedPclusters reports encoded extents that begin at the same place without
// being the same. Deduplication does share extents; Linux knows them by their
// place, and takes all for what the first is that it meets.
func (c *checker) sharedPclusters() {
	slices.SortFunc(c.pclusters, func(a, b pcluster) int {
		return cmp.Or(cmp.Compare(a.device, b.device), cmp.Compare(a.addr, b.addr), cmp.Compare(a.nid, b.nid))
	})
	for i := 1; i < len(c.pclusters); i++ {
		a, b := &c.pclusters[i-1], &c.pclusters[i]
		if a.device == b.device && a.addr == b.addr && (a.size != b.size || a.alg != b.alg) {
			c.problem(RuleExtent, b.nid, c.named(describeNid(b.nid)), "%v in %d bytes at %#x, which are %v in %d for nid %s",
				Algorithm(b.alg), b.size, b.addr, Algorithm(a.alg), a.size, FormatNid(a.nid))
		}
	}
}
