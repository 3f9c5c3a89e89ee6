package nbd

import (
	"encoding/binary"
)

// This file is the only home of the wire protocol: all numbers are big-endian;
// sections named are those of doc/proto.md.

// Magic numbers.
const (
	magicServer        = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption        = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply   = 0x0003e889045565a9
	magicRequest       = 0x25609513
	magicRequestExt    = 0x21e41c71
	magicSimpleReply   = 0x67446698
	magicStructReply   = 0x668e33ef
	magicExtendedReply = 0x6e8a278c
)

// Handshake flags, server's and client's ("Handshake flags").
const (
	handshakeFixed    = 1 << 0
	handshakeNoZeroes = 1 << 1
)

// Options ("Option types").
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10
	optExtendedHeaders = 11
)

// Replies to options ("Option reply types").
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErr              = 1 << 31
	repErrUnsupported   = repErr + 1
	repErrPolicy        = repErr + 2
	repErrInvalid       = repErr + 3
	repErrTLSRequired   = repErr + 5
	repErrUnknown       = repErr + 6
	repErrTooBig        = repErr + 9
	repErrExtHeaderReqd = repErr + 10
)

// Kinds of information about an export ("NBD_REP_INFO").
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags of an export ("Transmission flags").
const (
	flagHasFlags  = 1 << 0
	flagReadOnly  = 1 << 1
	flagDF        = 1 << 7
	flagMultiConn = 1 << 8
	flagCache     = 1 << 10
)

// Commands ("Request types").
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags ("Command flags").
const (
	cmdFlagFUA        = 1 << 0
	cmdFlagNoHole     = 1 << 1
	cmdFlagDF         = 1 << 2
	cmdFlagReqOne     = 1 << 3
	cmdFlagFastZero   = 1 << 4
	cmdFlagPayloadLen = 1 << 5
)

// Structured reply chunks ("Structured reply types").
const (
	replyFlagDone = 1 << 0

	replyNone           = 0
	replyOffsetData     = 1
	replyBlockStatus    = 5
	replyBlockStatusExt = 6
	replyError          = 1<<15 + 1
)

// Error values ("Error values").
const (
	errPerm    = 1
	errIO      = 5
	errNoMem   = 12
	errInval   = 22
	errNoSpace = 28
)

// The one meta context there is here ("Metadata contexts").
const (
	contextAllocation   = "base:allocation"
	contextNamespace    = "base:"
	contextAllocationID = 1

	stateHole = 1 << 0
	stateZero = 1 << 1
)

// Lengths in bytes.
const (
	helloLen         = 18
	clientFlagsLen   = 4
	optionLen        = 16
	optionReplyLen   = 20
	requestLen       = 28
	requestExtLen    = 32
	simpleReplyLen   = 16
	structReplyLen   = 20
	extendedReplyLen = 32
	exportZeroes     = 124 // padding of an EXPORT_NAME answer, unless NO_ZEROES
)

var be = binary.BigEndian

// appendHello is what the server says first.
func appendHello(b []byte) []byte {
	b = be.AppendUint64(b, magicServer)
	b = be.AppendUint64(b, magicOption)
	return be.AppendUint16(b, handshakeFixed|handshakeNoZeroes)
}

// An option is the header of what a client asks for in the handshake.
type option struct {
	Magic  uint64
	Type   uint32
	Length uint32 // bytes of data that follow
}

func decodeOption(b *[optionLen]byte) option {
	return option{
		Magic:  be.Uint64(b[0:]),
		Type:   be.Uint32(b[8:]),
		Length: be.Uint32(b[12:]),
	}
}

// appendOptionReply appends one whole reply to an option.
func appendOptionReply(b []byte, opt, rep uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOptionReply)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, rep)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendServer is the data of NBD_REP_SERVER.
func appendServer(b []byte, name, description string) []byte {
	b = be.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	return append(b, description...)
}

// appendExport is the data of an EXPORT_NAME answer, and, after the kind, of
// NBD_INFO_EXPORT.
func appendExport(b []byte, size int64, flags uint16) []byte {
	b = be.AppendUint64(b, uint64(size))
	return be.AppendUint16(b, flags)
}

// appendBlockSize is the data of NBD_INFO_BLOCK_SIZE after the kind.
func appendBlockSize(b []byte, min, preferred, max uint32) []byte {
	b = be.AppendUint32(b, min)
	b = be.AppendUint32(b, preferred)
	return be.AppendUint32(b, max)
}

// infoRequest is the data of NBD_OPT_INFO and NBD_OPT_GO.
type infoRequest struct {
	Name  string
	Kinds []uint16
}

func decodeInfoRequest(b []byte) (r infoRequest, ok bool) {
	if r.Name, b, ok = cutString(b); !ok || len(b) < 2 {
		return r, false
	}
	n := int(be.Uint16(b))
	if b = b[2:]; len(b) != 2*n {
		return r, false
	}
	for ; len(b) > 0; b = b[2:] {
		r.Kinds = append(r.Kinds, be.Uint16(b))
	}
	return r, true
}

// metaRequest is the data of NBD_OPT_LIST_META_CONTEXT and
// NBD_OPT_SET_META_CONTEXT.
type metaRequest struct {
	Name    string
	Queries []string
}

func decodeMetaRequest(b []byte) (r metaRequest, ok bool) {
	if r.Name, b, ok = cutString(b); !ok || len(b) < 4 {
		return r, false
	}
	n := be.Uint32(b)
	for b = b[4:]; n > 0; n-- {
		var q string
		if q, b, ok = cutString(b); !ok {
			return r, false
		}
		r.Queries = append(r.Queries, q)
	}
	return r, len(b) == 0
}

// cutString takes a string with a 32-bit length from the front of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", b, false
	}
	n := be.Uint32(b)
	if b = b[4:]; n > maxString || int(n) > len(b) {
		return "", b, false
	}
	return string(b[:n]), b[n:], true
}

// A request is the header of a command, compact or extended.
type request struct {
	Magic  uint32
	Flags  uint16
	Type   uint16
	Cookie uint64
	Offset uint64
	Length uint64 // 32 bits on the wire when compact
}

func decodeRequest(b *[requestLen]byte) request {
	return request{
		Magic:  be.Uint32(b[0:]),
		Flags:  be.Uint16(b[4:]),
		Type:   be.Uint16(b[6:]),
		Cookie: be.Uint64(b[8:]),
		Offset: be.Uint64(b[16:]),
		Length: uint64(be.Uint32(b[24:])),
	}
}

func decodeRequestExt(b *[requestExtLen]byte) request {
	return request{
		Magic:  be.Uint32(b[0:]),
		Flags:  be.Uint16(b[4:]),
		Type:   be.Uint16(b[6:]),
		Cookie: be.Uint64(b[8:]),
		Offset: be.Uint64(b[16:]),
		Length: be.Uint64(b[24:]),
	}
}

func appendSimpleReply(b []byte, errno uint32, cookie uint64) []byte {
	b = be.AppendUint32(b, magicSimpleReply)
	b = be.AppendUint32(b, errno)
	return be.AppendUint64(b, cookie)
}

// appendChunk is the header of a structured or extended chunk that is the last
// of its reply.
func appendChunk(b []byte, extended bool, kind uint16, r *request, length uint64) []byte {
	magic := uint32(magicStructReply)
	if extended {
		magic = magicExtendedReply
	}
	b = be.AppendUint32(b, magic)
	b = be.AppendUint16(b, replyFlagDone)
	b = be.AppendUint16(b, kind)
	b = be.AppendUint64(b, r.Cookie)
	if extended {
		b = be.AppendUint64(b, r.Offset)
		return be.AppendUint64(b, length)
	}
	return be.AppendUint32(b, uint32(length))
}

// appendErrorPayload is the payload of NBD_REPLY_TYPE_ERROR, without a message.
func appendErrorPayload(b []byte, errno uint32) []byte {
	b = be.AppendUint32(b, errno)
	return be.AppendUint16(b, 0)
}

const errorPayloadLen = 6

// appendExtents is the payload of NBD_REPLY_TYPE_BLOCK_STATUS, or of its _EXT.
func appendExtents(b []byte, extended bool, id uint32, extents []Extent) []byte {
	b = be.AppendUint32(b, id)
	if extended {
		b = be.AppendUint32(b, uint32(len(extents)))
	}
	for _, e := range extents {
		var state uint32
		if e.Hole {
			state |= stateHole
		}
		if e.Zero {
			state |= stateZero
		}
		if extended {
			b = be.AppendUint64(b, uint64(e.Length))
			b = be.AppendUint64(b, uint64(state))
		} else {
			b = be.AppendUint32(b, uint32(e.Length))
			b = be.AppendUint32(b, state)
		}
	}
	return b
}
