package seek

// The bytes of a section, all integers little-endian. The section is the tail
// of the index image's primary device:
//
//	body, zero padding to a multiple of 512, footer
//
// Offsets below are from the start of the structure concerned.

// Footer: exactly one block, the last one of the primary device.
const (
	blockSize = 512

	footMagic   = 0  // 8 bytes, magic
	footVersion = 8  // u32, version
	footFlags   = 12 // u32, no flags are defined: 0
	footPadded  = 16 // u64, bytes from the body's start to the footer, a multiple of 512
	footLength  = 24 // u64, bytes of the body, without the padding
	footBodySum = 32 // 32 bytes, SHA-256 of the body
	footZero    = 64 // zeros up to the checksum
	footSum     = 480
	footEnd     = 512 // footSum: 32 bytes, SHA-256 of the footer's first 480

	magic   = "LAYRSEEK"
	version = 1
)

// Body header, followed by the JSON text and then by the layer records.
const (
	bodyLayers  = 0 // u32, number of layer records
	bodyJSONLen = 4 // u32, bytes of JSON
	bodyJSON    = 8 // {"manifest":DESCRIPTOR,"layers":[DESCRIPTOR,...]}
)

// Layer record: header, span entries, digests, windows.
const (
	layerKind    = 0  // u8, Kind
	layerMethod  = 1  // u8, how the windows are stored
	layerZero    = 2  // u16, 0
	layerSpans   = 4  // u32, number of span entries
	layerSize    = 8  // u64, bytes of the uncompressed layer
	layerDigests = 16 // u32, number of digests, of all spans
	layerWinLen  = 20 // u32, bytes of stored windows
	layerHeader  = 24

	// How the windows are stored.
	methodNone = 0 // there are none
	methodZstd = 1 // one zstd frame: 32768 bytes for each span with spanHasWindow, in order
)

// Span entry.
const (
	spanIn    = 0  // u64
	spanOut   = 8  // u64
	spanBits  = 16 // u8, 0..7
	spanFlags = 17 // u8
	spanZero  = 18 // 6 bytes, 0
	spanEntry = 24

	spanHasWindow = 1 // without it the window is all zeros

	digestSize = 32
)

// Bounds on what a reader accepts and a writer writes.
const (
	maxBody   = 256 << 20 // bytes; 1 TB of layers in 4 MiB spans needs less
	maxJSON   = 16 << 20
	maxLayers = 1 << 16 // EROFS numbers its devices in 16 bits

	// All layers' windows: a hostile section must not unpack to more. An image
	// of 300 GB has 75 000 of 3.5 KiB.
	maxWindows     = 1 << 18
	maxWindowBytes = 256 << 20 // as they lie in memory, without their zeros

	// Growth of output by each byte of input. Deflate's limit is 258 bytes for
	// two bits. A zstd block of 4 bytes can stand for 128 KiB.
	maxGrowthGzip = 1032
	maxGrowthZstd = 128 << 10
)
