package erofs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
)

// findDirent is the offset of the entry for a name with a nid.
func findDirent(t testing.TB, img []byte, name string, nid uint64) int {
	t.Helper()
	for off := ondisk.SuperOffset; off+ondisk.DirentSize <= len(img); off += 4 {
		var e ondisk.Dirent
		e.Decode(img[off:])
		if e.Nid != nid || e.FileType == 0 || e.FileType > ondisk.FTSymlink {
			continue
		}
		// Its name is in the same directory, which has at most a block.
		if bytes.Contains(img[off:min(off+1024, len(img))], []byte(name)) {
			return off
		}
	}
	t.Fatalf("no entry %q with nid %d", name, nid)
	return 0
}

// damage is an image, and what is in it.
type damage struct {
	t    *testing.T
	img  []byte
	fsys *erofs.FS
}

// inode is the offset of a path's inode.
func (d *damage) inode(name string) int64 { return statOf(d.t, d.fsys, name).Offset }

// header is the offset of a compressed file's map header.
func (d *damage) header(name string) int64 { return mapHeader(statOf(d.t, d.fsys, name)) }

// compact changes bits of a cluster's entry in a compact index that has four
// bytes for each, of which two are the pair's address.
func (d *damage) compact(name string, lcn int64, clear, set uint16) {
	at := d.header(name) + ondisk.MapHeaderSize + lcn/2*8 + lcn%2*2
	v := binary.LittleEndian.Uint16(d.img[at:])
	d.put(at, 2, uint64(v&^clear|set))
}

// put writes n bytes at an offset.
func (d *damage) put(off int64, n int, v uint64) { putUint(d.img[off:off+int64(n)], v) }

// super writes n bytes of the superblock.
func (d *damage) super(off int64, n int, v uint64) { d.put(ondisk.SuperOffset+off, n, v) }

// dirent is the offset of the entry for a path's last name.
func (d *damage) dirent(name string) int64 {
	st := statOf(d.t, d.fsys, name)
	return int64(findDirent(d.t, d.img, name[strings.LastIndexByte(name, '/')+1:], st.Nid))
}

// self is the offset of "." or ".." in a directory.
func (d *damage) self(dir, name string) int64 {
	st := statOf(d.t, d.fsys, dir)
	err := d.fsys.Extents(st.Nid, func(e erofs.FileExtent) error {
		for i := int64(0); i < e.Length; i += ondisk.DirentSize {
			var ent ondisk.Dirent
			ent.Decode(d.img[e.Addr+i:])
			if strings.HasPrefix(string(d.img[e.Addr+int64(ent.NameOff):]), name+".") == (name == ".") &&
				d.img[e.Addr+int64(ent.NameOff)] == '.' {
				return found(e.Addr + i)
			}
		}
		return nil
	})
	f, ok := err.(found)
	if !ok {
		d.t.Fatalf("no %q in %s: %v", name, dir, err)
	}
	return int64(f)
}

type found int64

func (f found) Error() string { return fmt.Sprint(int64(f)) }

// TestCheckRules damages an image for each rule, in the way that breaks this
// rule and, where that cannot be helped, those that follow from it.
func TestCheckRules(t *testing.T) {
	const (
		mode, nlink, size, u = 4, 6, 8, 16 // in a compact inode
	)
	cases := []struct {
		rule   erofs.Rule
		also   []erofs.Rule
		damage func(*damage)
	}{
		{erofs.RuleChecksum, nil, nil}, // below
		{erofs.RuleInos, nil, func(d *damage) { d.super(0x10, 8, 3) }},
		{erofs.RuleSize, []erofs.Rule{erofs.RuleDevices}, func(d *damage) { d.super(0x24, 4, 10000) }},
		{erofs.RuleConfig, nil, func(d *damage) {
			d.super(0x50, 4, uint64(superOf(d.img).FeatureIncompat|ondisk.IncompatComprCfgs))
			d.super(0x54, 2, 1<<ondisk.AlgDeflate) // which has no record
		}},
		{erofs.RuleDevices, nil, func(d *damage) {
			first := superOf(d.img).DevtSlotOff
			off := int64(first) * ondisk.DeviceSlotSize
			copy(d.img[off+ondisk.DeviceSlotSize+0x44:], d.img[off+0x44:off+0x48])
		}},
		{erofs.RuleInode, nil, func(d *damage) { d.put(d.inode("etc/empty")+mode, 2, 0) }},
		{erofs.RuleDirBlock, []erofs.Rule{erofs.RuleNlink, erofs.RuleDirBlock}, func(d *damage) { d.put(d.self("usr", ".")+8, 2, 13) }},
		{erofs.RuleDirOrder, nil, func(d *damage) {
			st := statOf(d.t, d.fsys, "etc")
			at := bytes.Index(d.img[st.Offset:], []byte("empty")) // becomes "zmpty"
			d.img[st.Offset+int64(at)] = 'z'
		}},
		{erofs.RuleDot, nil, func(d *damage) { d.put(d.self("usr", "."), 8, d.fsys.RootNid()) }},
		{erofs.RuleDotDot, nil, func(d *damage) { d.put(d.self("usr/bin", "..")+0, 8, d.fsys.RootNid()) }},
		{erofs.RuleDirOnce, nil, func(d *damage) {
			d.put(d.dirent("usr/bin"), 8, statOf(d.t, d.fsys, "usr").Nid)
		}},
		{erofs.RuleType, nil, func(d *damage) { d.put(d.dirent("etc/empty")+10, 1, ondisk.FTFIFO) }},
		{erofs.RuleNlink, nil, func(d *damage) { d.put(d.inode("etc/empty")+nlink, 2, 9) }},
		{erofs.RuleSymlink, nil, func(d *damage) { d.put(d.inode("etc/link")+size, 4, 0) }},
		{erofs.RuleXattr, nil, func(d *damage) { d.put(d.inode("etc/xattr")+ondisk.InodeCompactSize+ondisk.XattrHeaderSize+1, 1, 99) }},
		{erofs.RuleFilter, nil, func(d *damage) {
			d.super(0x08, 4, uint64(superOf(d.img).FeatureCompat|ondisk.CompatXattrFilter))
			d.super(0x68, 1, 0)
			d.put(d.inode("etc/xattr")+ondisk.InodeCompactSize, 4, ondisk.XattrFilterDefault)
		}},
		{erofs.RuleExtent, nil, func(d *damage) { d.put(d.inode("etc/small")+size, 4, 1020) }},
		{erofs.RuleBounds, nil, func(d *damage) { d.put(d.inode("etc/large")+u, 4, 1<<30) }},
		{erofs.RuleOverlap, nil, func(d *damage) { d.put(d.inode("etc/large")+u, 4, 1) }},
		{erofs.RuleData, []erofs.Rule{erofs.RuleBounds}, func(d *damage) { d.put(d.inode("etc/large")+u, 4, 1<<20) }},
	}
	tested := make(map[erofs.Rule]bool)
	for _, c := range cases {
		t.Run(string(c.rule), func(t *testing.T) {
			tested[c.rule] = true
			devices := []erofs.DeviceSpec{{Tag: "one", Size: 10240}, {Tag: "two", Size: 10240}}
			img := buildImage(t, erofs.WriterOptions{BlockSize: 1024, Devices: 2}, erofs.Final{Devices: devices}, sampleEntries())
			d := &damage{t, img, openImage(t, img)}
			d.fsys.Check(t.Context(), erofs.CheckOptions{Data: true}, func(p erofs.Problem) { t.Errorf("before any damage: %v", p) })
			if c.damage == nil {
				d.img[ondisk.SuperOffset+0x30]++ // the UUID
			} else {
				c.damage(d)
				resum(d.img)
			}
			got := make(map[erofs.Rule]bool)
			fsys := openImage(t, d.img, erofs.WithoutChecksum())
			fsys.Check(t.Context(), erofs.CheckOptions{Data: c.rule == erofs.RuleData}, func(p erofs.Problem) {
				got[p.Rule] = true
				t.Log(p)
			})
			if !got[c.rule] {
				t.Errorf("%s is not reported", c.rule)
			}
			delete(got, c.rule)
			for _, r := range c.also {
				delete(got, r)
			}
			for r := range got {
				t.Errorf("%s is reported too", r)
			}
		})
	}
	for _, r := range erofs.Rules {
		if !tested[r] {
			t.Errorf("no image breaks %s", r)
		}
	}
}

// TestCheckAsLinux: what Linux refuses and this package reads is reported.
func TestCheckAsLinux(t *testing.T) {
	const (
		layout     = 0 // in an inode
		size       = 0x08
		u          = 0x10
		advise     = 4 // in a map header
		algorithms = 6
		full       = ondisk.MapHeaderSize + 8
		entry      = ondisk.LClusterIndexSize
	)
	chunked := func(d *damage, format uint64) {
		at := d.inode("etc/empty")
		d.put(at+layout, 1, ondisk.LayoutChunkBased<<1)
		d.put(at+u, 4, format)
	}
	for _, c := range []struct {
		name   string
		golden string // or an image of our own
		rule   erofs.Rule
		damage func(*damage)
	}{
		{"a format bit of the 48BIT feature", "", erofs.RuleInode, func(d *damage) { d.img[d.inode("etc/empty")] |= ondisk.FormatNlink1 }},
		{"a chunk format of the 48BIT feature", "", erofs.RuleInode, func(d *damage) { chunked(d, ondisk.Chunk48Bit) }},
		{"a hole of the 48BIT feature", "", erofs.RuleExtent, func(d *damage) {
			at := d.inode("etc/empty")
			d.put(at+layout, 1, ondisk.LayoutFlatPlain<<1)
			d.put(at+size, 4, 1<<30)
			d.put(at+u, 4, 1<<32-1)
		}},
		{"no chunks, in an unknown format", "", erofs.RuleInode, func(d *damage) { chunked(d, 1<<15) }},
		{"no xattr prefix for shared page cache", "", erofs.RuleXattr, func(d *damage) { d.super(0x08, 4, ondisk.CompatIshareXattrs) }},
		{"no metabox for shared xattrs", "", erofs.RuleXattr, func(d *damage) { d.super(0x08, 4, ondisk.CompatSharedEAInMetabox) }},
		{"an xattr behind zeros", "", erofs.RuleXattr, func(d *damage) {
			at := d.inode("etc/small") // whose data begins behind it, and becomes xattrs
			d.put(at+2, 2, 1+4)
			clear(d.img[at+ondisk.InodeCompactSize:][:ondisk.XattrHeaderSize+4])
			copy(d.img[at+ondisk.InodeCompactSize+ondisk.XattrHeaderSize+4:], "\x20\x01\x00\x00")
		}},
		{"an xattr header alone", "", erofs.RuleXattr, func(d *damage) { d.put(d.inode("etc/empty")+2, 2, 1) }},
		{"an unknown algorithm that nothing uses", "lz4", erofs.RuleExtent, func(d *damage) { d.img[d.header("long")+algorithms] |= ondisk.AlgMax << 4 }},
		{"big pclusters without their feature", "lz4-legacy", erofs.RuleExtent, func(d *damage) { d.img[d.header("long")+advise] |= ondisk.AdviseBigPcluster2 }},
		{"encoded extents without the 48BIT feature", "lz4-legacy", erofs.RuleExtent, func(d *damage) {
			d.put(d.header("long"), ondisk.MapHeaderSize, (ondisk.AdviseExtents|2<<1)<<32) // none, of 16 bytes each
		}},
		{"a block count within an extent", "lz4", erofs.RuleExtent, func(d *damage) { d.compact("long", 2, 0, ondisk.LID0Cblkcnt) }},
		{"a fragment that is not compressed", "lzma", erofs.RuleExtent, func(d *damage) { d.compact("long", 11, 3<<12, ondisk.LClusterPlain<<12) }},
		{"a cluster that leads past its head", "lz4-legacy", erofs.RuleExtent, func(d *damage) {
			at := d.header("long") + full
			for d.img[at]&ondisk.LClusterTypeMask != ondisk.LClusterNonHead {
				at += entry
			}
			d.img[at+4]++ // how far back
		}},
		{"an extent that another file has as another one", "lz4-legacy", erofs.RuleExtent, func(d *damage) {
			// The last begins the block of dir/again's first, and is short enough.
			at := d.header("long") + full + 17*entry
			copy(d.img[at+4:at+8], d.img[d.header("dir/again")+full+4:])
			d.put(at, 4, 0<<16|ondisk.LClusterPlain)
		}},
		{"an uncompressed extent up to the last cluster's end", "lz4-legacy", erofs.RuleExtent, func(d *damage) {
			at := d.header("long") + full + 16*entry // of 0 to 17
			d.put(at, 4, 400<<16|ondisk.LClusterPlain)
			d.put(at+entry, 4, ondisk.LClusterNonHead)
			d.put(at+entry+4, 4, 1)
		}},
	} {
		img := buildImage(t, erofs.WriterOptions{}, erofs.Final{}, sampleEntries())
		if c.golden != "" {
			var err error
			if img, err = os.ReadFile(goldenFile(c.golden)); err != nil {
				t.Fatal(err)
			}
		}
		d := &damage{t, img, openImage(t, img)}
		c.damage(d)
		resum(d.img)
		reported := false
		openImage(t, d.img).Check(t.Context(), erofs.CheckOptions{}, func(p erofs.Problem) { reported = reported || p.Rule == c.rule })
		if !reported {
			t.Errorf("%s: not reported", c.name)
		}
	}
}

// TestCheckOnce: chunks in an unknown format are one problem, not that of the
// inode and of its data as well.
func TestCheckOnce(t *testing.T) {
	img := buildImage(t, erofs.WriterOptions{}, erofs.Final{}, sampleEntries())
	d := &damage{t, img, openImage(t, img)}
	at := d.inode("etc/large")
	d.put(at, 1, ondisk.LayoutChunkBased<<1)
	d.put(at+0x10, 4, 1<<15)
	resum(d.img)
	var found []erofs.Problem
	openImage(t, d.img).Check(t.Context(), erofs.CheckOptions{}, func(p erofs.Problem) { found = append(found, p) })
	if len(found) != 1 || found[0].Rule != erofs.RuleExtent {
		t.Errorf("got %v", found)
	}
}

// TestCheckSound: an image of our own writer, with all block sizes, breaks no
// rule.
func TestCheckSound(t *testing.T) {
	for _, bs := range []int{512, 1024, 2048, 4096, 16384, 65536} {
		img := buildImage(t, erofs.WriterOptions{BlockSize: bs}, erofs.Final{}, sampleEntries())
		fsys := openImage(t, img)
		seen, _ := fsys.Check(t.Context(), erofs.CheckOptions{Data: true}, func(p erofs.Problem) { t.Errorf("blocks of %d: %v", bs, p) })
		if seen.Inodes != superOf(img).Inos || seen.Directories != 4 || seen.Bytes < 10000 {
			t.Errorf("blocks of %d: seen %+v", bs, seen)
		}
	}
}

// TestMissingDevice: an index image can be listed without its layers, and a
// file's data names the layer that it wants.
func TestMissingDevice(t *testing.T) {
	index, layer := indexOf(t)
	fsys := openImage(t, index)
	if _, err := fsys.ReadDir("etc"); err != nil {
		t.Fatal(err)
	}
	_, err := fsys.ReadFile("etc/large")
	wantErr(t, err, erofs.ErrNoDevice)
	if err == nil || !strings.Contains(err.Error(), "device 1 of 1") {
		t.Errorf("the error does not name the device: %v", err)
	}
	for name, fsys := range map[string]*erofs.FS{
		"given":   openImage(t, index, erofs.WithDevices(bytes.NewReader(layer))),
		"flat":    openImage(t, slices.Concat(index, layer)),
		"unsized": mustOpen(t, unsized{slices.Concat(index, layer)}),
	} {
		b, err := fsys.ReadFile("etc/large")
		if err != nil || !bytes.Equal(b, text(10000, 1)) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		fsys.Check(t.Context(), erofs.CheckOptions{Data: true}, func(p erofs.Problem) { t.Errorf("%s: %v", name, p) })
	}
	_, err = mustOpen(t, unsized{index}).ReadFile("etc/large")
	wantErr(t, err, erofs.ErrNoDevice)
}

// TestCheckFlat: of an index with its layers in one file, none may be cut.
func TestCheckFlat(t *testing.T) {
	index, layer := indexOf(t)
	flat := slices.Concat(index, layer)
	far := slices.Clone(flat) // its device lies elsewhere
	slot := int(superOf(far).DevtSlotOff) * ondisk.DeviceSlotSize
	far[slot+0x44+2]++ // the address
	resum(far)
	for name, img := range map[string][]byte{"cut": flat[:len(flat)-len(layer)/2], "far": far} {
		var rules []erofs.Rule
		openImage(t, img).Check(t.Context(), erofs.CheckOptions{}, func(p erofs.Problem) { rules = append(rules, p.Rule) })
		if !slices.Equal(rules, []erofs.Rule{erofs.RuleSize}) {
			t.Errorf("%s: %v", name, rules)
		}
	}
}

// unsized is a reader that does not tell its size.
type unsized struct{ b []byte }

func (u unsized) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(u.b).ReadAt(p, off) }

func mustOpen(t testing.TB, r io.ReaderAt) *erofs.FS {
	t.Helper()
	fsys, err := erofs.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}
