package ondisk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// record is the pair that every structure has.
type record interface {
	Append([]byte) []byte
	Decode([]byte)
}

var records = []struct {
	rec  record
	size int
}{
	{&SuperBlock{}, SuperBlockMaxSize},
	{&DeviceSlot{}, DeviceSlotSize},
	{&InodeCompact{}, InodeCompactSize},
	{&InodeExtended{}, InodeExtendedSize},
	{&Dirent{}, DirentSize},
	{&ChunkIndex{}, ChunkIndexSize},
	{&XattrHeader{}, XattrHeaderSize},
	{&XattrEntry{}, XattrEntrySize},
	{&MapHeader{}, MapHeaderSize},
	{&LClusterIndex{}, LClusterIndexSize},
	{&Extent{}, ExtentMaxSize},
}

func name(r record) string { return reflect.TypeOf(r).Elem().Name() }

// TestSizes holds the structures against encoding/binary, which knows the
// layout from the types alone.
func TestSizes(t *testing.T) {
	for _, r := range records {
		if n := binary.Size(r.rec); n != r.size {
			t.Errorf("%s: %d bytes, want %d", name(r.rec), n, r.size)
		}
	}
}

// TestOffsets checks the offset in the comment of each field against its
// type's layout, and so the comments, the types and the table of the format.
func TestOffsets(t *testing.T) {
	want := map[string]string{
		"SuperBlock": "Magic:0 Checksum:4 FeatureCompat:8 BlkSzBits:c ExtSlots:d RootNidOrBlksHi:e Inos:10 Epoch:18 " +
			"FixedNsec:20 BlocksLo:24 MetaBlkaddr:28 XattrBlkaddr:2c UUID:30 VolumeName:40 FeatureIncompat:50 ComprAlgs:54 " +
			"ExtraDevices:56 DevtSlotOff:58 DirBlkBits:5a XattrPrefixCount:5b XattrPrefixStart:5c PackedNid:60 " +
			"XattrFilterRsvd:68 IshareXattrID:69 BuildTime:6c RootNid8b:70 MetaboxNid:80",
		"DeviceSlot":    "Tag:0 BlocksLo:40 UniaddrLo:44 BlocksHi:48 UniaddrHi:4a",
		"InodeCompact":  "Format:0 XattrIcount:2 Mode:4 Nb:6 Size:8 Mtime:c U:10 Ino:14 UID:18 GID:1a",
		"InodeExtended": "Format:0 XattrIcount:2 Mode:4 Nb:6 Size:8 U:10 Ino:14 UID:18 GID:1c Mtime:20 MtimeNsec:28 Nlink:2c",
		"Dirent":        "Nid:0 NameOff:8 FileType:a",
		"ChunkIndex":    "StartblkHi:0 DeviceID:2 StartblkLo:4",
		"XattrHeader":   "NameFilter:0 SharedCount:4",
		"XattrEntry":    "NameLen:0 NameIndex:1 ValueSize:2",
		"MapHeader":     "FragmentOff:0 Advise:4 AlgorithmType:6 ClusterBits:7",
		"LClusterIndex": "Advise:0 ClusterOfs:2 U:4",
		"Extent":        "Plen:0 PstartLo:4 PstartHi:8 LstartLo:c LstartHi:10",
	}
	for _, r := range records {
		typ := reflect.TypeOf(r.rec).Elem()
		var got []string
		off := 0
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Name != "_" {
				got = append(got, fmt.Sprintf("%s:%x", f.Name, off))
			}
			off += binary.Size(reflect.Zero(f.Type).Interface())
		}
		if g := strings.Join(got, " "); g != want[name(r.rec)] {
			t.Errorf("%s:\n got %s\nwant %s", name(r.rec), g, want[name(r.rec)])
		}
	}
}

// TestAppendDecode compares both directions with encoding/binary, over fields
// of random bytes.
func TestAppendDecode(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		raw := make([]byte, 256)
		for i := range raw {
			raw[i] = byte(rng.Uint32())
		}
		appendDecode(t, raw)
	}
}

// FuzzAppendDecode does so with whatever bytes.
func FuzzAppendDecode(f *testing.F) {
	f.Add((&SuperBlock{Magic: Magic, BlkSzBits: 12}).Append(nil))
	f.Add(bytes.Repeat([]byte{0xff}, 256))
	f.Fuzz(appendDecode)
}

// appendDecode decodes every record that raw is long enough for, and encodes it
// again.
func appendDecode(t *testing.T, raw []byte) {
	for _, r := range records {
		if len(raw) < r.size {
			continue
		}
		raw := bytes.Clone(raw[:r.size])
		if _, ok := r.rec.(*SuperBlock); ok {
			raw[0x0d] = 1 // one extension slot
		}
		create := func() any { return reflect.New(reflect.TypeOf(r.rec).Elem()).Interface() }
		oracle := create()
		if err := binary.Read(bytes.NewReader(raw), le, oracle); err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		if err := binary.Write(&want, le, oracle); err != nil {
			t.Fatal(err)
		}
		rec := create().(record)
		rec.Decode(raw)
		if !reflect.DeepEqual(rec, oracle) {
			t.Fatalf("%s: decoded\n %+v\nwant\n %+v", name(rec), rec, oracle)
		}
		prefix := []byte("before")
		if got := rec.Append(prefix)[len(prefix):]; !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("%s: appended\n %x\nwant\n %x", name(rec), got, want.Bytes())
		}
	}
}

func TestSuperBlockSlots(t *testing.T) {
	for slots := range 4 {
		s := SuperBlock{Magic: Magic, ExtSlots: uint8(slots), MetaboxNid: 7}
		b := s.Append(nil)
		if len(b) != 128+16*slots || len(b) != s.Size() {
			t.Errorf("%d slots: %d bytes, Size %d", slots, len(b), s.Size())
		}
		var d SuperBlock
		d.Decode(b)
		if want := uint64(min(slots, 1) * 7); d.MetaboxNid != want {
			t.Errorf("%d slots: metabox nid %d, want %d", slots, d.MetaboxNid, want)
		}
	}
	s := SuperBlock{RootNidOrBlksHi: 5, BlocksLo: 9, RootNid8b: 77}
	if s.RootNid() != 5 || s.Blocks() != 9 {
		t.Error("rootnid_8b counts without 48BIT")
	}
	s.FeatureIncompat = Incompat48Bit
	if s.RootNid() != 77 || s.Blocks() != 5<<32|9 {
		t.Error("48BIT: root nid or blocks wrong")
	}
}

func TestChecksum(t *testing.T) {
	for bits, want := range map[uint8]int{9: 512, 10: 1024, 11: 1024, 12: 3072, 16: 64512} {
		if got := ChecksumLen(bits); got != want {
			t.Errorf("ChecksumLen(%d) = %d, want %d", bits, got, want)
		}
	}
	b := make([]byte, ChecksumLen(12))
	for i := range b {
		b[i] = byte(i * 7)
	}
	zeroed := bytes.Clone(b)
	copy(zeroed[4:8], make([]byte, 4))
	if got, want := Checksum(b), ^crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)); got != want {
		t.Errorf("Checksum = %08x, want %08x", got, want)
	}
	// Bytes 4..7 are the field itself.
	b[5] ^= 1
	if Checksum(b) != Checksum(zeroed) {
		t.Error("the field's own content changes the checksum")
	}
}

func TestRdev(t *testing.T) {
	for _, c := range []struct{ major, minor, want uint32 }{
		{8, 1, 0x801}, {259, 0, 0x10300}, {8, 256, 0x100800}, {0xfff, 0xfffff, 0xffffffff},
	} {
		got := EncodeRdev(c.major, c.minor)
		major, minor := DecodeRdev(got)
		if got != c.want || major != c.major || minor != c.minor {
			t.Errorf("%d:%d: encoded %#x (want %#x), decoded %d:%d", c.major, c.minor, got, c.want, major, minor)
		}
	}
}

func TestXattrSizes(t *testing.T) {
	for _, size := range []int{0, 12, 16, 12 + 4*65534} {
		n, ok := XattrIcount(size)
		if !ok || XattrIbodySize(n) != size {
			t.Errorf("size %d: icount %d, %v, back %d", size, n, ok, XattrIbodySize(n))
		}
	}
	if _, ok := XattrIcount(12 + 4*65535); ok {
		t.Error("an xattr area that is too large fits")
	}
	e := XattrEntry{NameLen: 3, ValueSize: 2}
	if e.Size() != 12 {
		t.Errorf("entry of 4+3+2 bytes: Size %d", e.Size())
	}
	p := LongPrefix{XattrIndexTrusted, "overlay."}
	b := p.Append(nil)
	if string(b) != "\x09\x00\x04overlay.\x00" {
		t.Errorf("long prefix %q", b)
	}
	var q LongPrefix
	q.Decode(b[2:11])
	if p != q {
		t.Errorf("long prefix decoded as %+v", q)
	}
}

// Values of the reference implementation (xxhsum -H32, and its sanity checks).
func TestXXH32(t *testing.T) {
	for _, c := range []struct {
		s    string
		seed uint32
		want uint32
	}{
		{"", 0, 0x02CC5D05},
		{"", xxPrime1, 0x36B78AE7},
		{"a", 0, 0x550D7456},
		{"abc", 0, 0x32D153FF},
		{"Nobody inspects the spammish repetition", 0, 0xE2293B2F},
	} {
		if got := xxh32(c.s, c.seed); got != c.want {
			t.Errorf("xxh32(%q, %#x) = %08X, want %08X", c.s, c.seed, got, c.want)
		}
	}
}

func TestMapHeader(t *testing.T) {
	var h MapHeader
	h.Decode([]byte{1, 0, 0, 0, 2, 0, 3, 0x80})
	if off, ok := h.WholeFragment(); !ok || off != 1|2<<32|3<<48 {
		t.Errorf("fragment at %#x, %v", off, ok)
	}
	h.Decode([]byte{0, 0, 0x34, 0x12, byte(AdviseExtents | 2<<AdviseExtRecSzBit), 0, 1, 0})
	if h.IdataSize() != 0x1234 || h.ExtentRecordSize() != 16 || h.Extents() != 0x1_1234_0000 {
		t.Errorf("idata %#x, record %d, extents %#x", h.IdataSize(), h.ExtentRecordSize(), h.Extents())
	}
	var e Extent
	e.Decode([]byte{1, 0, 0, 0, 2, 0, 0, 0})
	if e != (Extent{Plen: 1, PstartLo: 2}) {
		t.Errorf("short extent %+v", e)
	}
}

func TestConfigs(t *testing.T) {
	for _, c := range []struct {
		rec  record
		size int
		want string
	}{
		{&LZ4Cfg{0x1234, 0x56}, LZ4CfgSize, "34125600"},
		{&LZMACfg{0x10000, 1}, LZMACfgSize, "000001000100"},
		{&DeflateCfg{15}, DeflateCfgSize, "0f"},
		{&ZstdCfg{0, 7}, ZstdCfgSize, "0007"},
	} {
		b := c.rec.Append(nil)
		if len(b) != c.size || !strings.HasPrefix(fmt.Sprintf("%x", b), c.want) {
			t.Errorf("%s: %x", name(c.rec), b)
		}
		back := reflect.New(reflect.TypeOf(c.rec).Elem()).Interface().(record)
		if back.Decode(b); !reflect.DeepEqual(back, c.rec) {
			t.Errorf("%s: decoded %+v", name(c.rec), back)
		}
	}
}
