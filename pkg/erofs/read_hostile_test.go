package erofs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// hostile is an image by hand, whose metadata need not make sense. Its blocks
// have 512 bytes, and its nids count from the first byte.
type hostile struct{ img []byte }

// newHostile makes an image of n bytes with a superblock.
func newHostile(n int, change func(*ondisk.SuperBlock)) *hostile {
	h := &hostile{make([]byte, n)}
	sb := ondisk.SuperBlock{Magic: ondisk.Magic, BlkSzBits: 9, BlocksLo: uint32(n / 512), RootNidOrBlksHi: 64, Inos: 1 << 40,
		FeatureIncompat: ondisk.IncompatChunkedFile}
	if change != nil {
		change(&sb)
	}
	copy(h.img[ondisk.SuperOffset:], sb.Append(nil))
	return h
}

// inode writes a compact inode, with what follows it.
func (h *hostile) inode(nid int, layout uint16, mode uint16, size, u uint32, after ...byte) {
	ino := ondisk.InodeCompact{Format: ondisk.Format(layout, 0), Mode: mode, Nb: 2, Size: size, U: u}
	copy(h.img[nid*ondisk.SlotSize:], append(ino.Append(nil), after...))
}

// dirBlock makes a directory's only block out of entries whose names follow it.
func dirBlock(nids []uint64, names []string, types uint8) []byte {
	var b []byte
	at := len(nids) * ondisk.DirentSize
	for i, nid := range nids {
		b = (&ondisk.Dirent{Nid: nid, NameOff: uint16(at), FileType: types}).Append(b)
		at += len(names[i])
	}
	for _, n := range names {
		b = append(b, n...)
	}
	return b
}

// allocated is how many bytes a function allocates in all.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// checkHostile goes through an image in every way that follows its tree, and
// counts what it costs. It returns the rules that are broken.
func checkHostile(t *testing.T, img []byte, most uint64) map[erofs.Rule]bool {
	t.Helper()
	rules := make(map[erofs.Rule]bool)
	used := allocated(func() {
		fsys, err := erofs.Open(bytes.NewReader(img))
		if err != nil {
			t.Fatal(err)
		}
		visits := 0
		err = fsys.Walk(fsys.RootNid(), func(_ string, st *erofs.Stat) error { visits++; return nil })
		t.Logf("walk: %d entries, %.200v", visits, err)
		if visits > len(img) {
			t.Errorf("a walk of %d entries in an image of %d bytes", visits, len(img))
		}
		problems := 0
		seen, err := fsys.Check(t.Context(), erofs.CheckOptions{}, func(p erofs.Problem) {
			if problems++; problems < 4 {
				t.Logf("%.200v", p)
			}
			rules[p.Rule] = true
		})
		t.Logf("check: %+v, %d problems, %v", seen, problems, err)
		if seen.Entries > uint64(len(img)) {
			t.Errorf("%d entries in an image of %d bytes", seen.Entries, len(img))
		}
		erofs.Diff(t.Context(), fsys, fsys, func(erofs.Difference) error { return nil })
	})
	t.Logf("%d MiB allocated", used>>20)
	if used > most {
		t.Errorf("%d bytes allocated for an image of %d", used, len(img))
	}
	return rules
}

// TestSharedDirectories: as many directories as there is room for, all with the
// same long list of files.
func TestSharedDirectories(t *testing.T) {
	const dirs, first, files = 700, 128, 900
	h := newHostile(128<<10, nil)
	// The list: blocks of 36 entries each, from block 120 on.
	const start = 120
	end := start
	for i := 0; i < files; i += 30 {
		var nids []uint64
		var names []string
		for k := i; k < i+30; k++ {
			nids, names = append(nids, 80), append(names, fmt.Sprintf("%03d", k))
		}
		b := dirBlock(nids, names, ondisk.FTRegular)
		copy(h.img[end*512:], b)
		end++
	}
	h.inode(80, ondisk.LayoutFlatPlain, ondisk.ModeRegular, 0, 0)
	for i := range dirs {
		h.inode(first+i, ondisk.LayoutFlatPlain, ondisk.ModeDir, uint32(end-start)*512, start)
	}
	// The root names them all, 25 a block.
	root := end
	for i := 0; i < dirs; i += 25 {
		var nids []uint64
		var names []string
		for k := i; k < i+25; k++ {
			nids, names = append(nids, uint64(first+k)), append(names, fmt.Sprintf("%03d", k))
		}
		copy(h.img[end*512:], dirBlock(nids, names, ondisk.FTDir))
		end++
	}
	h.inode(64, ondisk.LayoutFlatPlain, ondisk.ModeDir, uint32(end-root)*512, uint32(root))
	if rules := checkHostile(t, h.img, 64<<20); !rules[erofs.RuleDirBlock] {
		t.Error("that directories share their blocks is not reported")
	}
}

// TestSharedIndexes: as many files as there is room for, each with an index of
// chunks that is most of the image.
func TestSharedIndexes(t *testing.T) {
	const files, first = 1800, 100
	h := newHostile(128<<10, nil)
	for i := range files {
		h.inode(first+i, ondisk.LayoutChunkBased, ondisk.ModeRegular, 60<<10/4*512, 0)
	}
	root := (first+files)*ondisk.SlotSize/512 + 1
	end := root
	for i := 0; i < files; i += 30 {
		var nids []uint64
		var names []string
		for k := i; k < i+30; k++ {
			nids, names = append(nids, uint64(first+k)), append(names, fmt.Sprintf("%04d", k))
		}
		copy(h.img[end*512:], dirBlock(nids, names, ondisk.FTRegular))
		end++
	}
	h.inode(64, ondisk.LayoutFlatPlain, ondisk.ModeDir, uint32(end-root)*512, uint32(root))
	if rules := checkHostile(t, h.img, 128<<20); !rules[erofs.RuleOverlap] {
		t.Error("that indexes share bytes is not reported")
	}
}

// TestDeepTree: directories within one another, each with another beside it
// that is still to be visited, so that all their paths together would be large.
func TestDeepTree(t *testing.T) {
	const depth, first = 1500, 100 // four slots each: an inode, its entries, another inode
	h := newHostile((first+4*depth+64)*ondisk.SlotSize, func(sb *ondisk.SuperBlock) { sb.RootNidOrBlksHi = first })
	for i := range depth {
		nid := first + 4*i
		b := dirBlock([]uint64{uint64(nid + 4), uint64(nid + 3)}, []string{"aaaaaaaa", "b"}, ondisk.FTDir)
		h.inode(nid, ondisk.LayoutFlatInline, ondisk.ModeDir, uint32(len(b)), 0, b...)
		// An empty one beside, in the slot that is left; its link count is wrong.
		h.inode(nid+3, ondisk.LayoutFlatPlain, ondisk.ModeDir, 0, 0)
	}
	checkHostile(t, h.img, 256<<20)
}

// TestHugeSizes: sizes and addresses at the ends of their ranges.
func TestHugeSizes(t *testing.T) {
	for _, size := range []uint64{1 << 32, 1<<62 - 1, 1 << 62, 1 << 63, 1<<64 - 1} {
		for layout := range uint16(5) {
			for _, u := range []uint32{0, 1, 0x1f, 0x20, 0x3f, 0x7f, 1<<32 - 1} {
				h := newHostile(8192, func(sb *ondisk.SuperBlock) {
					sb.FeatureIncompat |= ondisk.IncompatLZ4ZeroPadding | ondisk.Incompat48Bit
					sb.RootNid8b = 64
					sb.RootNidOrBlksHi = 0
				})
				b := dirBlock([]uint64{64, 64, 128}, []string{".", "..", "f"}, ondisk.FTDir)
				h.inode(64, ondisk.LayoutFlatInline, ondisk.ModeDir, uint32(len(b)), 0, b...)
				ino := ondisk.InodeExtended{Format: ondisk.Format(layout, ondisk.FormatExtended), Mode: ondisk.ModeRegular, Size: size, U: u, Nb: 0xffff, Nlink: 1}
				copy(h.img[128*ondisk.SlotSize:], ino.Append(nil))
				readDamaged(t, h.img)
				fsys := openImage(t, h.img)
				if b, err := fsys.ReadFile("f"); err == nil {
					t.Errorf("size %d, layout %d, i_u %#x: %d bytes are read", size, layout, u, len(b))
				}
			}
		}
	}
}

// TestHugeDevices: devices whose sizes in bytes do not fit what counts them.
func TestHugeDevices(t *testing.T) {
	h := newHostile(1<<17, func(sb *ondisk.SuperBlock) {
		sb.BlkSzBits, sb.BlocksLo = 16, 2
		sb.FeatureIncompat |= ondisk.IncompatDeviceTable | ondisk.Incompat48Bit
		sb.ExtraDevices, sb.DevtSlotOff, sb.RootNid8b, sb.RootNidOrBlksHi = 1, 12, 64, 0
	})
	h.inode(64, ondisk.LayoutFlatInline, ondisk.ModeDir, 26, 0, dirBlock([]uint64{64, 64}, []string{".", ".."}, ondisk.FTDir)...)
	slot := h.img[12*ondisk.DeviceSlotSize:]
	binary.LittleEndian.PutUint16(slot[0x48:], 0xffff)
	_, err := erofs.Open(bytes.NewReader(h.img))
	wantErr(t, err, fault.ErrCorrupt)
}
