package erofs_test

import (
	"bytes"
	"compress/flate"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// encodedImage is an image by hand: one file, "f", whose extents are raw
// deflate streams and zstd frames at odd offsets of an extra device, as those
// of a compressed layer are. recsz is the size of a record: 16 or 32.
func encodedImage(t testing.TB, recsz int) (image, blob, content []byte) {
	t.Helper()
	const bits, bs, root, file = 9, 512, 0, 4 // nids: an inode has two slots
	content = text(60000, 11)
	content = append(content, make([]byte, 4096)...) // a hole
	tail := text(7000, 12)
	content = append(content, tail...)

	blob = []byte("odd")
	var deflated bytes.Buffer
	fw, err := flate.NewWriter(&deflated, 9)
	if err != nil {
		t.Fatal(err)
	}
	// The member decodes past its extent: what follows belongs to another file.
	fw.Write(content[:30000])
	fw.Write(text(9000, 13))
	fw.Close()
	deflateAt := len(blob)
	blob = append(blob, deflated.Bytes()...)
	blob = append(blob, "\x00?"...)
	enc, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	zstdAt := len(blob)
	blob = enc.EncodeAll(content[30000:60000], blob)
	plainAt := len(blob)
	blob = append(blob, tail...)
	end := len(blob)
	blob = append(blob, make([]byte, (bs-len(blob)%bs)%bs)...)

	const metaBlk, blocks = 4, 8
	image = make([]byte, blocks*bs)
	put := func(at int, b []byte) { copy(image[at:], b) }

	meta := metaBlk * bs
	sb := ondisk.SuperBlock{
		Magic: ondisk.Magic, BlkSzBits: bits, Inos: 2, BlocksLo: blocks, MetaBlkaddr: metaBlk,
		FeatureCompat: ondisk.CompatSBChecksum,
		FeatureIncompat: ondisk.Incompat48Bit | ondisk.IncompatDeviceTable | ondisk.IncompatComprCfgs |
			ondisk.IncompatLZ4ZeroPadding,
		ComprAlgs:    1<<ondisk.AlgDeflate | 1<<ondisk.AlgZstd,
		ExtraDevices: 1, DevtSlotOff: 12, // byte 1536
		RootNidOrBlksHi: root,
	}
	// Nid 0 cannot be told from none in the 48-bit field, so the root is at 2.
	const rootNid = 2
	sb.RootNid8b = rootNid
	put(ondisk.SuperOffset, sb.Append(nil))
	at := ondisk.SuperOffset + ondisk.SuperBlockSize
	put(at, (&ondisk.DeflateCfg{WindowBits: 15}).Append([]byte{ondisk.DeflateCfgSize, 0}))
	put(at+8, (&ondisk.ZstdCfg{WindowLog: 6}).Append([]byte{ondisk.ZstdCfgSize, 0}))
	slot := ondisk.DeviceSlot{BlocksLo: uint32(len(blob) / bs), UniaddrLo: blocks}
	put(int(sb.DevtSlotOff)*ondisk.DeviceSlotSize, slot.Append(nil))

	const dirNames = "...f"
	dir := ondisk.InodeExtended{
		Format: ondisk.Format(ondisk.LayoutFlatInline, ondisk.FormatExtended), Mode: ondisk.ModeDir | 0o755,
		Size: 3*ondisk.DirentSize + uint64(len(dirNames)), Nlink: 2,
	}
	b := dir.Append(nil)
	for _, e := range []ondisk.Dirent{
		{Nid: rootNid, NameOff: 36, FileType: ondisk.FTDir},
		{Nid: rootNid, NameOff: 37, FileType: ondisk.FTDir},
		{Nid: rootNid + file, NameOff: 39, FileType: ondisk.FTRegular},
	} {
		b = e.Append(b)
	}
	put(meta+rootNid*ondisk.SlotSize, append(b, dirNames...))

	ino := ondisk.InodeExtended{
		Format: ondisk.Format(ondisk.LayoutCompressedFull, ondisk.FormatExtended), Mode: ondisk.ModeRegular | 0o644,
		Size: uint64(len(content)), Nlink: 1,
	}
	log := uint16(2) // of 16/4
	if recsz == 32 {
		log = 3
	}
	h := ondisk.MapHeader{FragmentOff: 4, Advise: ondisk.AdviseExtents | log<<ondisk.AdviseExtRecSzBit}
	b = ino.Append(nil)
	b = h.Append(b)
	start := meta + (rootNid+file)*ondisk.SlotSize
	for (start+len(b))%recsz != 0 {
		b = append(b, 0)
	}
	base := blocks * bs
	for _, e := range []ondisk.Extent{
		{Plen: uint32(deflated.Len()) | ondisk.ExtentPlenPartial | (ondisk.AlgDeflate+1)<<ondisk.ExtentPlenFmtBit,
			PstartLo: uint32(base + deflateAt)},
		{Plen: uint32(plainAt-zstdAt) | (ondisk.AlgZstd+1)<<ondisk.ExtentPlenFmtBit, PstartLo: uint32(base + zstdAt), LstartLo: 30000},
		{LstartLo: 60000}, // the hole
		{Plen: uint32(end - plainAt), PstartLo: uint32(base + plainAt), LstartLo: 64096},
	} {
		b = append(b, e.Append(nil)[:recsz]...)
	}
	put(start, b)
	resum(image)
	return image, blob, content
}

// TestEncodedExtents reads extents with byte addresses, with records of both
// sizes that tell where in the file they begin.
func TestEncodedExtents(t *testing.T) {
	for _, recsz := range []int{16, 32} {
		image, blob, content := encodedImage(t, recsz)
		for name, fsys := range map[string]*erofs.FS{
			"device": openImage(t, image, erofs.WithDevices(bytes.NewReader(blob))),
			"flat":   openImage(t, append(bytes.Clone(image), blob...)),
		} {
			b, err := fsys.ReadFile("f")
			if err != nil || !bytes.Equal(b, content) {
				t.Errorf("records of %d bytes, %s: %d bytes, %v", recsz, name, len(b), err)
			}
			fsys.Check(t.Context(), erofs.CheckOptions{Data: true}, func(p erofs.Problem) { t.Errorf("%s: %v", name, p) })
		}
		_, err := openImage(t, image).ReadFile("f")
		wantErr(t, err, erofs.ErrNoDevice)
		blob[3] = 7 // a block of the type that deflate does not have
		_, err = openImage(t, image, erofs.WithDevices(bytes.NewReader(blob))).ReadFile("f")
		wantErr(t, err, fault.ErrCorrupt)
	}
}
