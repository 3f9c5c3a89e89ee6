package erofs

import (
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

// dirBlocks cuts a directory's entries, which are in order and have the dots
// among them, into blocks, each as full as can be. yield gets the entries of a
// block and the bytes that they take.
func dirBlocks(entries []rootfs.Entry, bs int64, yield func(in []rootfs.Entry, used int64)) {
	from, used := 0, int64(0)
	for k, e := range entries {
		n := int64(ondisk.DirentSize + len(e.Name))
		if used+n > bs {
			yield(entries[from:k], used)
			from, used = k, 0
		}
		used += n
	}
	yield(entries[from:], used)
}

// dirSize is a directory's size in bytes: whole blocks, and what the last one
// uses.
func dirSize(entries []rootfs.Entry, bs int64) (size int64) {
	dirBlocks(entries, bs, func(_ []rootfs.Entry, used int64) {
		size = (size+bs-1)&^(bs-1) + used
	})
	return size
}

// appendDir appends a directory's contents: dirSize bytes.
func appendDir(dst []byte, entries []rootfs.Entry, bs int64) []byte {
	start := len(dst)
	dirBlocks(entries, bs, func(in []rootfs.Entry, _ int64) {
		for (len(dst)-start)&int(bs-1) != 0 {
			dst = append(dst, 0)
		}
		nameOff := ondisk.DirentSize * len(in)
		for _, e := range in {
			d := ondisk.Dirent{Nid: e.Inode.Nid, NameOff: uint16(nameOff), FileType: ondisk.FileType(e.Inode.Mode)}
			dst = d.Append(dst)
			nameOff += len(e.Name)
		}
		for _, e := range in {
			dst = append(dst, e.Name...)
		}
	})
	return dst
}
