package erofs

import (
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

// A dirList is a sorted directory's entries with "." and ".." among them, as
// EROFS wants it: in bytewise order, where some names come before the dots.
type dirList struct {
	self        *rootfs.Inode
	dot, dotdot int // positions
}

func listOf(self *rootfs.Inode) dirList {
	// ".." is behind ".", and behind any name between the two.
	return dirList{self: self, dot: self.Search("."), dotdot: self.Search("..") + 1}
}

func (l *dirList) len() int { return l.self.Len() + 2 }

var dotNames = []byte("..")

func (l *dirList) at(k int) (name []byte, i *rootfs.Inode) {
	switch {
	case k < l.dot:
		return l.self.Entry(k)
	case k == l.dot:
		return dotNames[:1], l.self
	case k < l.dotdot:
		return l.self.Entry(k - 1)
	case k == l.dotdot:
		return dotNames, l.self.Parent()
	}
	return l.self.Entry(k - 2)
}

// blocks cuts the list into blocks, each as full as can be. yield gets the
// entries [from, to) of a block and the bytes that they take.
func (l *dirList) blocks(bs int64, yield func(from, to int, used int64)) {
	from, used := 0, int64(0)
	for k := range l.len() {
		name, _ := l.at(k)
		n := int64(ondisk.DirentSize + len(name))
		if used+n > bs {
			yield(from, k, used)
			from, used = k, 0
		}
		used += n
	}
	yield(from, l.len(), used)
}

// size is a directory's size in bytes: whole blocks, and what the last one
// uses.
func (l *dirList) size(bs int64) (size int64) {
	l.blocks(bs, func(_, _ int, used int64) {
		size = (size+bs-1)&^(bs-1) + used
	})
	return size
}

// append appends a directory's contents: size bytes.
func (l *dirList) append(dst []byte, bs int64) []byte {
	start := len(dst)
	l.blocks(bs, func(from, to int, _ int64) {
		for (len(dst)-start)&int(bs-1) != 0 {
			dst = append(dst, 0)
		}
		nameOff := ondisk.DirentSize * (to - from)
		for k := from; k < to; k++ {
			name, i := l.at(k)
			d := ondisk.Dirent{Nid: uint64(i.Nid), NameOff: uint16(nameOff), FileType: ondisk.FileType(i.Mode)}
			dst = d.Append(dst)
			nameOff += len(name)
		}
		for k := from; k < to; k++ {
			name, _ := l.at(k)
			dst = append(dst, name...)
		}
	})
	return dst
}
