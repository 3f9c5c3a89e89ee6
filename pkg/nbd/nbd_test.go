package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// TestWireSizes checks the hand-written codecs against encoding/binary.
func TestWireSizes(t *testing.T) {
	r := request{Magic: magicRequestExt, Flags: 0x1234, Type: 0x5678, Cookie: 0x1122334455667788, Offset: 0x99aabbccddeeff00, Length: 0xfedcba9876543210}
	var b bytes.Buffer
	binary.Write(&b, binary.BigEndian, r)
	if got := decodeRequestExt((*[requestExtLen]byte)(b.Bytes())); got != r {
		t.Errorf("%+v, want %+v", got, r)
	}
	var short [requestLen]byte
	copy(short[:], b.Bytes())
	r.Length >>= 32
	if got := decodeRequest(&short); got != r {
		t.Errorf("%+v, want %+v", got, r)
	}
	o := option{magicOption, 0x11223344, 0x55667788}
	b.Reset()
	binary.Write(&b, binary.BigEndian, o)
	if got := decodeOption((*[optionLen]byte)(b.Bytes())); got != o {
		t.Errorf("%+v, want %+v", got, o)
	}
	for _, s := range []struct {
		name string
		b    []byte
		want int
	}{
		{"hello", appendHello(nil), helloLen},
		{"option reply", appendOptionReply(nil, 1, 2, nil), optionReplyLen},
		{"simple", appendSimpleReply(nil, 1, 2), simpleReplyLen},
		{"structured", appendChunk(nil, false, 1, &r, 1), structReplyLen},
		{"extended", appendChunk(nil, true, 1, &r, 1), extendedReplyLen},
		{"error", appendErrorPayload(nil, 1), errorPayloadLen},
	} {
		if len(s.b) != s.want {
			t.Errorf("%s: %d bytes, want %d", s.name, len(s.b), s.want)
		}
	}
}

// TestReads reads random pieces, many at a time, in every mode.
func TestReads(t *testing.T) {
	dev := pattern(1<<20 + 123)
	path := listen(t, &Server{Exports: []Export{{Device: dev}}})
	for _, m := range []mode{simple, structured, extended} {
		t.Run(fmt.Sprint(m), func(t *testing.T) {
			t.Parallel()
			c := connect(t, path, m)
			rng := rand.New(rand.NewPCG(uint64(m), 1))
			for range 20 {
				asked := map[uint64]request{}
				var b []byte
				for i := range 100 { // more than there are slots
					off := rng.IntN(len(dev))
					r := request{Type: cmdRead, Cookie: uint64(i) + 1<<63, Offset: uint64(off), Length: uint64(1 + rng.IntN(min(len(dev)-off, 9000)))}
					asked[r.Cookie] = r
					b = c.appendRequest(b, r)
				}
				c.send(b)
				for len(asked) > 0 {
					a := c.anyAnswer(asked)
					r := asked[a.Cookie]
					delete(asked, a.Cookie)
					if want := dev[r.Offset:][:r.Length]; !bytes.Equal(a.Data, want) {
						t.Fatalf("%d bytes at %d: wrong data", r.Length, r.Offset)
					}
				}
			}
			c.check(dev, len(dev)-1, 1)
			c.check(dev, 0, len(dev))
		})
	}
}

// anyAnswer receives the answer to one of several reads.
func (c *client) anyAnswer(asked map[uint64]request) answer {
	c.t.Helper()
	if c.structured {
		return c.answer(0)
	}
	h := c.recv(simpleReplyLen)
	a := answer{Cookie: be.Uint64(h[8:]), Errno: be.Uint32(h[4:])}
	if a.Errno == 0 {
		a.Data = c.recv(int(asked[a.Cookie].Length))
	}
	return a
}

// commandErrors are requests that fail, by what they do to the connection:
// nothing. nbdkit gives the same errors (see TestErrorsAsNbdkit).
func commandErrors(size uint64) []struct {
	name    string
	r       request
	payload int
	want    uint32
} {
	return []struct {
		name    string
		r       request
		payload int
		want    uint32
	}{
		{"read of nothing", request{Type: cmdRead}, 0, errInval},
		{"read of nothing at the end", request{Type: cmdRead, Offset: size}, 0, errInval},
		{"read across the end", request{Type: cmdRead, Offset: size - 512, Length: 513}, 0, errInval},
		{"read past the end", request{Type: cmdRead, Offset: size, Length: 1}, 0, errInval},
		{"read far past the end", request{Type: cmdRead, Offset: 1<<64 - 1, Length: 1}, 0, errInval},
		{"read with overflow", request{Type: cmdRead, Offset: 1<<64 - 512, Length: 1024}, 0, errInval},
		{"read with overflow to within", request{Type: cmdRead, Offset: 1<<63 + 1, Length: 1<<32 - 1}, 0, errInval},
		{"long read", request{Type: cmdRead, Length: 64<<20 + 512}, 0, errNoMem},
		{"long read past the end", request{Type: cmdRead, Offset: 512, Length: 1<<32 - 1}, 0, errInval},
		{"read with FUA", request{Type: cmdRead, Flags: cmdFlagFUA, Length: 512}, 0, errInval},
		{"read with REQ_ONE", request{Type: cmdRead, Flags: cmdFlagReqOne, Length: 512}, 0, errInval},
		{"read with an unknown flag", request{Type: cmdRead, Flags: 1 << 15, Length: 512}, 0, errInval},
		{"write", request{Type: cmdWrite, Length: 512}, 512, errPerm},
		{"write of nothing", request{Type: cmdWrite}, 0, errPerm},
		{"write past the end", request{Type: cmdWrite, Offset: size, Length: 512}, 512, errPerm},
		{"write of a megabyte", request{Type: cmdWrite, Length: 1 << 20}, 1 << 20, errPerm},
		{"write with an unknown flag", request{Type: cmdWrite, Flags: 1 << 14, Length: 512}, 512, errPerm},
		{"write with DF", request{Type: cmdWrite, Flags: cmdFlagDF, Length: 512}, 512, errPerm},
		{"trim", request{Type: cmdTrim, Length: 512}, 0, errPerm},
		{"trim past the end", request{Type: cmdTrim, Offset: size, Length: 512}, 0, errPerm},
		{"write zeroes", request{Type: cmdWriteZeroes, Length: 512}, 0, errPerm},
		{"write zeroes, no hole", request{Type: cmdWriteZeroes, Flags: cmdFlagNoHole, Length: 512}, 0, errPerm},
		{"write zeroes past the end", request{Type: cmdWriteZeroes, Offset: size, Length: 512}, 0, errPerm},
		{"trim with NO_HOLE", request{Type: cmdTrim, Flags: cmdFlagNoHole, Length: 512}, 0, errPerm},
		{"flush with a length", request{Type: cmdFlush, Length: 1}, 0, errInval},
		{"cache of nothing", request{Type: cmdCache}, 0, errInval},
		{"cache past the end", request{Type: cmdCache, Offset: size - 1, Length: 2}, 0, errInval},
		{"block status of nothing", request{Type: cmdBlockStatus}, 0, errInval},
		{"block status past the end", request{Type: cmdBlockStatus, Offset: size - 1, Length: 2}, 0, errInval},
		{"block status with DF", request{Type: cmdBlockStatus, Flags: cmdFlagDF, Length: 1}, 0, errInval},
		{"unknown command", request{Type: 8, Length: 512}, 0, errInval},
		{"unknown command, highest", request{Type: 0xffff}, 0, errInval},
	}
}

// errorsDevice has the size that commandErrors wants: longer than the longest
// read, without the memory.
type errorsDevice struct{ mem }

const errorsSize = 65 << 20

func (d errorsDevice) Size() int64 { return errorsSize }

func (d errorsDevice) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(d.mem)) {
		copy(p, d.mem[off:])
	}
	return len(p), nil
}

func TestCommandErrors(t *testing.T) {
	dev := pattern(4096)
	path := listen(t, &Server{Exports: []Export{{Device: errorsDevice{dev}}}})
	for _, m := range []mode{simple, structured, extended} {
		c := connect(t, path, m)
		for _, tt := range commandErrors(errorsSize) {
			tt.r.Cookie = 0xc0ffee
			if m == extended && tt.payload > 0 {
				tt.r.Flags |= cmdFlagPayloadLen
			}
			if a := c.do(tt.r, make([]byte, tt.payload)); a.Errno != tt.want {
				t.Errorf("mode %d: %s: error %d, want %d", m, tt.name, a.Errno, tt.want)
			}
			c.check(dev, 8, 100)
		}
		// What depends on the mode.
		want := uint32(0)
		if m == simple {
			want = errInval
		}
		if a := c.do(request{Type: cmdBlockStatus, Length: 512}, nil); a.Errno != want {
			t.Errorf("mode %d: block status: error %d, want %d", m, a.Errno, want)
		}
		c.check(dev, 8, 100)
		c.send(c.appendRequest(nil, request{Type: cmdRead, Flags: cmdFlagDF, Length: 512}))
		if a := c.answer(512); a.Errno != want {
			t.Errorf("mode %d: read with DF: error %d, want %d", m, a.Errno, want)
		}
		c.check(dev, 8, 100)
		if a := c.do(request{Type: cmdFlush}, nil); a.Errno != errInval { // not offered
			t.Errorf("mode %d: flush: error %d", m, a.Errno)
		}
		c.check(dev, 8, 100)
		if a := c.do(request{Type: cmdCache, Length: 3 << 20}, nil); a.Errno != 0 {
			t.Errorf("mode %d: cache: error %d", m, a.Errno)
		}
		c.check(dev, 8, 100)
	}
	// MaxRead itself is allowed; a payload flag without extended headers is
	// only a wrong flag, and with them brings a payload along.
	c := connect(t, path, simple)
	if a := c.do(request{Type: cmdRead, Length: MaxRead}, nil); a.Errno != 0 || len(a.Data) != MaxRead {
		t.Errorf("longest read: error %d, %d bytes", a.Errno, len(a.Data))
	}
	c = connect(t, path, extended)
	if a := c.do(request{Type: cmdRead, Flags: cmdFlagPayloadLen, Length: 4}, []byte("abcd")); a.Errno != errInval {
		t.Errorf("read with a payload: error %d", a.Errno)
	}
	c.check(dev, 0, 4)
	if a := c.do(request{Type: cmdRead, Length: 1<<64 - 1}, nil); a.Errno != errInval {
		t.Errorf("64-bit length: error %d", a.Errno)
	}
	c.check(dev, 0, 4)
}

// TestFatal: what cannot be answered ends the connection, and only it.
func TestFatal(t *testing.T) {
	dev := pattern(4096)
	path := listen(t, &Server{Exports: []Export{{Device: dev}}})
	other := connect(t, path, simple)
	for _, tt := range []struct {
		name string
		do   func(c *client)
	}{
		{"bad magic", func(c *client) { c.enter(simple); c.send(make([]byte, requestLen)) }},
		{"compact request in extended mode", func(c *client) {
			c.enter(extended)
			c.extended = false
			c.send(append(c.appendRequest(nil, request{Type: cmdRead, Length: 1}), 0, 0, 0, 0))
		}},
		{"huge write", func(c *client) {
			c.enter(simple)
			c.send(c.appendRequest(nil, request{Type: cmdWrite, Length: maxDrain + 1}))
		}},
		{"huge payload of an unknown command", func(c *client) {
			c.enter(extended)
			c.send(c.appendRequest(nil, request{Type: 99, Flags: cmdFlagPayloadLen, Length: 1 << 40}))
		}},
		{"disconnect", func(c *client) { c.enter(simple); c.send(c.appendRequest(nil, request{Type: cmdDisconnect})) }},
		{"unknown client flags", func(c *client) { c.hello(1 << 31) }},
		{"bad option magic", func(c *client) { c.hello(handshakeFixed); c.send(make([]byte, optionLen)) }},
		{"option without end", func(c *client) {
			c.hello(handshakeFixed)
			c.send(appendOption(nil, optList, make([]byte, maxOption+1))[:optionLen])
		}},
		{"export name unknown", func(c *client) { c.hello(handshakeFixed); c.send(appendOption(nil, optExportName, []byte("no"))) }},
		{"export name after extended headers", func(c *client) {
			c.hello(handshakeFixed)
			c.ack(optExtendedHeaders, nil)
			c.send(appendOption(nil, optExportName, nil))
		}},
		{"abort", func(c *client) { c.hello(handshakeFixed); c.ack(optAbort, nil) }},
		{"options without end", func(c *client) {
			c.hello(handshakeFixed)
			for range maxOptions {
				c.option(optList, []byte{1})
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, path)
			tt.do(c)
			c.closed()
			other.check(dev, 0, 4096)
		})
	}
}

// optionCases are options before GO with the type of the last reply. nbdkit
// agrees on those that are not marked as ours.
var optionCases = []struct {
	name string
	m    mode // simple: none was asked for before
	opt  uint32
	data []byte
	want uint32
	ours bool
}{
	{"unknown", simple, 99, []byte("data"), repErrUnsupported, false},
	{"PEEK_EXPORT", simple, 4, nil, repErrUnsupported, false},
	{"LIST", simple, optList, nil, repAck, false},
	{"LIST with data", simple, optList, []byte("x"), repErrInvalid, false},
	{"STARTTLS", simple, optStartTLS, nil, repErrPolicy, false},
	{"STARTTLS with data", simple, optStartTLS, []byte("x"), repErrInvalid, false},
	{"STRUCTURED_REPLY", simple, optStructuredReply, nil, repAck, false},
	{"STRUCTURED_REPLY again", structured, optStructuredReply, nil, repAck, false},
	{"STRUCTURED_REPLY with data", simple, optStructuredReply, []byte("x"), repErrInvalid, false},
	{"STRUCTURED_REPLY after EXTENDED_HEADERS", extended, optStructuredReply, nil, repErrExtHeaderReqd, true},
	{"EXTENDED_HEADERS", simple, optExtendedHeaders, nil, repAck, true},
	{"EXTENDED_HEADERS again", extended, optExtendedHeaders, nil, repErrInvalid, true},
	{"EXTENDED_HEADERS with data", simple, optExtendedHeaders, []byte("x"), repErrInvalid, true},
	{"INFO", simple, optInfo, infoData(""), repAck, false},
	{"INFO of all kinds", simple, optInfo, infoData("", 0, 1, 2, 3, 3, 4, 99), repAck, false},
	{"INFO without data", simple, optInfo, nil, repErrInvalid, false},
	{"INFO with a name too long for its data", simple, optInfo, append(be.AppendUint32(nil, 7), 0, 0), repErrInvalid, false},
	{"INFO with a name of 4 GiB", simple, optInfo, append(be.AppendUint32(nil, 1<<32-1), 0, 0), repErrInvalid, false},
	{"INFO with kinds missing", simple, optInfo, infoData("", 1, 2)[:8], repErrInvalid, false},
	{"INFO of another export", simple, optInfo, infoData("other"), repErrUnknown, true},
	{"GO with kinds missing", simple, optGo, infoData("", 1, 2)[:8], repErrInvalid, false},
	{"GO with more than it says", simple, optGo, append(infoData("", 1, 2), 0), repErrInvalid, true},
	{"GO to another export", simple, optGo, infoData("other"), repErrUnknown, true},
	{"LIST_META_CONTEXT before structured replies", simple, optListMeta, metaData(""), repAck, false},
	{"SET_META_CONTEXT before structured replies", simple, optSetMeta, metaData("", contextAllocation), repErrInvalid, false},
	{"LIST_META_CONTEXT", structured, optListMeta, metaData(""), repAck, false},
	{"LIST_META_CONTEXT of a namespace", structured, optListMeta, metaData("", "base:"), repAck, false},
	{"LIST_META_CONTEXT of nothing known", structured, optListMeta, metaData("", "x:y"), repAck, false},
	{"LIST_META_CONTEXT of another export", structured, optListMeta, metaData("other"), repErrUnknown, true},
	{"LIST_META_CONTEXT cut short", structured, optListMeta, metaData("", "base:")[:10], repErrInvalid, false},
	{"SET_META_CONTEXT", structured, optSetMeta, metaData("", contextAllocation), repAck, false},
	{"SET_META_CONTEXT twice the same", structured, optSetMeta, metaData("", contextAllocation, contextAllocation), repAck, true},
	{"SET_META_CONTEXT of nothing", structured, optSetMeta, metaData(""), repAck, false},
	{"SET_META_CONTEXT of a namespace", structured, optSetMeta, metaData("", "base:"), repAck, false},
	{"SET_META_CONTEXT with a count too high", structured, optSetMeta, be.AppendUint32(appendString(nil, ""), 1<<32-1), repErrInvalid, false},
}

// options runs optionCases against a server and hands over the replies.
func options(t *testing.T, path string, ours bool, got func(name string, want uint32, replies []optReply)) {
	for _, tt := range optionCases {
		if tt.ours && !ours {
			continue
		}
		c := dial(t, path)
		c.hello(handshakeFixed | handshakeNoZeroes)
		switch tt.m {
		case structured:
			c.ack(optStructuredReply, nil)
		case extended:
			c.ack(optExtendedHeaders, nil)
		}
		got(tt.name, tt.want, c.option(tt.opt, tt.data))
		// Whatever it was, the handshake goes on.
		c.ack(optInfo, infoData(""))
	}
}

func TestOptions(t *testing.T) {
	path := listen(t, &Server{Exports: []Export{{Name: "disk", Description: "a disk", Device: pattern(4096)}}})
	exportInfo := func(flags uint16) optReply {
		return optReply{repInfo, "\x00\x00" + string(appendExport(nil, 4096, flags))}
	}
	base := uint16(flagHasFlags | flagReadOnly | flagMultiConn | flagCache)
	content := map[string][]optReply{
		"LIST": {{repServer, "\x00\x00\x00\x04diska disk"}},
		"INFO": {exportInfo(base)},
		"INFO of all kinds": {
			exportInfo(base),
			{repInfo, "\x00\x01disk"},
			{repInfo, "\x00\x02a disk"},
			{repInfo, "\x00\x03" + string(appendBlockSize(nil, 1, 4096, MaxRead))},
		},
		"LIST_META_CONTEXT":                  {{repMetaContext, "\x00\x00\x00\x00base:allocation"}},
		"LIST_META_CONTEXT of a namespace":   {{repMetaContext, "\x00\x00\x00\x00base:allocation"}},
		"LIST_META_CONTEXT of nothing known": {},
		"SET_META_CONTEXT":                   {{repMetaContext, "\x00\x00\x00\x01base:allocation"}},
		"SET_META_CONTEXT twice the same":    {{repMetaContext, "\x00\x00\x00\x01base:allocation"}},
		"SET_META_CONTEXT of nothing":        {},
		"SET_META_CONTEXT of a namespace":    {},
	}
	options(t, path, true, func(name string, want uint32, replies []optReply) {
		last := replies[len(replies)-1]
		if last.Type != want {
			t.Errorf("%s: reply %#x, want %#x", name, last.Type, want)
		}
		if wantReplies, ok := content[name]; ok {
			if got := replies[:len(replies)-1]; !(len(got) == 0 && len(wantReplies) == 0) && !reflect.DeepEqual(got, wantReplies) {
				t.Errorf("%s: %v, want %v", name, got, wantReplies)
			}
			delete(content, name)
		}
	})
	for name := range content {
		t.Errorf("no case named %q", name)
	}

	// DF is offered with structured replies only.
	c := dial(t, path)
	c.hello(handshakeFixed)
	c.ack(optStructuredReply, nil)
	if got, want := c.ack(optInfo, infoData("disk")), []optReply{exportInfo(base | flagDF)}; !reflect.DeepEqual(got, want) {
		t.Errorf("with structured replies: %v, want %v", got, want)
	}

	// EXPORT_NAME, with its padding and without.
	for _, flags := range []uint32{handshakeFixed, handshakeFixed | handshakeNoZeroes, 0} {
		c := dial(t, path)
		c.hello(flags)
		c.send(appendOption(nil, optExportName, []byte("disk")))
		want := appendExport(nil, 4096, base)
		if flags&handshakeNoZeroes == 0 {
			want = append(want, make([]byte, exportZeroes)...)
		}
		if got := c.recv(len(want)); !bytes.Equal(got, want) {
			t.Errorf("EXPORT_NAME with flags %d: %x, want %x", flags, got, want)
		}
		c.check(pattern(4096), 0, 512)
	}
}

// TestMetaContextIsOfItsExport: contexts set for one export do not hold for
// another.
func TestMetaContextIsOfItsExport(t *testing.T) {
	path := listen(t, &Server{Exports: []Export{{Name: "a", Device: pattern(64)}, {Name: "b", Device: pattern(64)}}})
	for name, want := range map[string]uint32{"": 0, "a": 0, "b": errInval} {
		c := dial(t, path)
		c.structured = true
		c.hello(handshakeFixed)
		c.ack(optStructuredReply, nil)
		c.ack(optSetMeta, metaData("a", contextAllocation))
		c.ack(optGo, infoData(name))
		if a := c.do(request{Type: cmdBlockStatus, Length: 64}, nil); a.Errno != want {
			t.Errorf("export %q: error %d, want %d", name, a.Errno, want)
		}
	}
}

// extents is a device with a map: data and holes by turns of 512 bytes.
type extents struct{ mem }

func (e extents) Extents(_ context.Context, off, length int64, limit int) ([]Extent, error) {
	var out []Extent
	for ; length > 0 && len(out) < limit; length -= 512 {
		hole := off/512%2 == 1
		out = append(out, Extent{512 - off%512, hole, hole})
		off += 512 - off%512
	}
	return out, nil
}

func TestBlockStatus(t *testing.T) {
	dev := extents{make(mem, 4096)}
	path := listen(t, &Server{Exports: []Export{{Device: dev}}})
	for _, tt := range []struct {
		r    request
		want []uint64
	}{
		{request{Offset: 0, Length: 4096}, []uint64{512, 0, 512, 3, 512, 0, 512, 3, 512, 0, 512, 3, 512, 0, 512, 3}},
		{request{Offset: 10, Length: 600}, []uint64{502, 0, 98, 3}},
		{request{Offset: 10, Length: 600, Flags: cmdFlagReqOne}, []uint64{502, 0}},
		{request{Offset: 600, Length: 5, Flags: cmdFlagReqOne}, []uint64{5, 3}},
	} {
		tt.r.Type, tt.r.Cookie = cmdBlockStatus, 99
		for _, m := range []mode{structured, extended} {
			c := connect(t, path, m)
			a := c.do(tt.r, nil)
			var got []uint64
			b := a.Data[4:]
			if id := be.Uint32(a.Data); id != contextAllocationID {
				t.Errorf("context %d", id)
			}
			if m == extended {
				if n := be.Uint32(b); int(n) != len(tt.want)/2 || a.Type != replyBlockStatusExt {
					t.Errorf("%d extents in a chunk of type %d", n, a.Type)
				}
				for b = b[4:]; len(b) > 0; b = b[8:] {
					got = append(got, be.Uint64(b))
				}
			} else {
				for ; len(b) > 0; b = b[4:] {
					got = append(got, uint64(be.Uint32(b)))
				}
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("mode %d: %d bytes at %d: %v, want %v", m, tt.r.Length, tt.r.Offset, got, tt.want)
			}
		}
	}
}

// TestClampExtents: a device that says nonsense does no harm.
func TestClampExtents(t *testing.T) {
	got := clampExtents([]Extent{{Length: 5}, {Length: 6}, {Length: 7, Hole: true}, {Length: 1 << 62}}, 30, 8)
	if want := []Extent{{Length: 11}, {Length: 7, Hole: true}, {Length: 12}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := clampExtents([]Extent{{Length: -5}, {Length: 6}}, 30, 8); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if got := clampExtents([]Extent{{Length: 5}, {Length: 6, Hole: true}}, 30, 1); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// A gate is a device whose reads wait to be let through, by offset.
type gate struct {
	mem
	begun chan int64
	mu    sync.Mutex
	open  map[int64]chan error
}

func newGate(m mem) *gate {
	return &gate{mem: m, begun: make(chan int64, 1000), open: map[int64]chan error{}}
}

func (g *gate) at(off int64) chan error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[off] == nil {
		g.open[off] = make(chan error, 1)
	}
	return g.open[off]
}

func (g *gate) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	g.begun <- off
	select {
	case err := <-g.at(off):
		if err != nil {
			return 0, err
		}
		return g.mem.ReadAtContext(ctx, p, off)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// TestOutOfOrder: a slow read holds up nobody.
func TestOutOfOrder(t *testing.T) {
	g := newGate(pattern(1 << 16))
	path := listen(t, &Server{Exports: []Export{{Device: g}}})
	c := connect(t, path, simple)
	const n = 50
	for i := range uint64(n) {
		c.send(c.appendRequest(nil, request{Type: cmdRead, Cookie: i, Offset: i * 512, Length: 512}))
	}
	for range n {
		<-g.begun // all at the same time
	}
	for i := n - 1; i >= 0; i-- {
		g.at(int64(i) * 512) <- nil
		if a := c.answer(512); a.Cookie != uint64(i) || !bytes.Equal(a.Data, g.mem[i*512:][:512]) {
			t.Fatalf("answer to %d, want %d", a.Cookie, i)
		}
	}
}

// short is a device that gives less than it should, and says nothing.
type short struct{ mem }

func (s short) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return s.mem.ReadAtContext(ctx, p[:len(p)-1], off)
}

// TestDeviceErrors: EIO, a word to the watcher, and the connection goes on.
func TestDeviceErrors(t *testing.T) {
	boom := errors.New("boom")
	heard := make(chan error, 10)
	onError := func(e *Export, off int64, n int, err error) {
		if off != 1024 || n != 512 {
			t.Errorf("error for %d bytes at %d", n, off)
		}
		heard <- err
	}
	for _, m := range []mode{simple, structured, extended} {
		g := newGate(pattern(4096))
		s := &Server{Exports: []Export{{Device: g}}, OnError: onError}
		c := connect(t, listen(t, s), m)
		g.at(1024) <- boom
		a := c.do(request{Type: cmdRead, Offset: 1024, Length: 512}, nil)
		if a.Errno != errIO || len(a.Data) != 0 {
			t.Errorf("error %d with %d bytes", a.Errno, len(a.Data))
		}
		if err := <-heard; err != boom {
			t.Errorf("heard %v", err)
		}
		g.at(1024) <- nil
		c.check(g.mem, 1024, 512)
		g.at(1024) <- boom
		if a := c.do(request{Type: cmdCache, Offset: 1024, Length: 512}, nil); a.Errno != errIO {
			t.Errorf("cache: error %d", a.Errno)
		}
		<-heard
		if got := s.Stats(); got.Failed != 2 || got.Reads != 1 || got.Bytes != 512 {
			t.Errorf("%+v", got)
		}

		c = connect(t, listen(t, &Server{Exports: []Export{{Device: short{pattern(4096)}}}, OnError: onError}), m)
		if a := c.do(request{Type: cmdRead, Offset: 1024, Length: 512}, nil); a.Errno != errIO {
			t.Errorf("short read: error %d", a.Errno)
		}
		if err := <-heard; err != io.ErrUnexpectedEOF {
			t.Errorf("heard %v", err)
		}
	}
}

// ready has the first half of its bytes at hand.
type ready struct {
	mem
	hits, misses atomic.Int64
}

func (r *ready) ReadReady(p []byte, off int64) bool {
	if off+int64(len(p)) > int64(len(r.mem)/2) {
		return false
	}
	r.hits.Add(1)
	copy(p, r.mem[off:])
	return true
}

func (r *ready) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	r.misses.Add(1)
	return r.mem.ReadAtContext(ctx, p, off)
}

// TestReady: what is at hand and what is not, mixed, with as many slots as to
// make queued replies wait for each other, and with one.
func TestReady(t *testing.T) {
	for _, slots := range []int{1, 2, 64} {
		dev := &ready{mem: pattern(2 << 20)}
		path := listen(t, &Server{Exports: []Export{{Device: dev}}, MaxRequests: slots})
		for _, m := range []mode{simple, structured, extended} {
			c := connect(t, path, m)
			rng := rand.New(rand.NewPCG(uint64(m), 1))
			for range 4 {
				asked := map[uint64]request{}
				var b []byte
				for i := range uint64(50) {
					off := rng.IntN(len(dev.mem))
					r := request{Type: cmdRead, Cookie: i, Offset: uint64(off), Length: uint64(1 + rng.IntN(min(len(dev.mem)-off, 100000)))}
					asked[i] = r
					b = c.appendRequest(b, r)
				}
				c.send(b)
				for len(asked) > 0 {
					a := c.anyAnswer(asked)
					r := asked[a.Cookie]
					delete(asked, a.Cookie)
					if want := dev.mem[r.Offset:][:r.Length]; !bytes.Equal(a.Data, want) {
						t.Fatalf("%d bytes at %d: wrong data", r.Length, r.Offset)
					}
				}
			}
			c.check(dev.mem, 0, maxReadyAlone)
			c.check(dev.mem, 0, len(dev.mem))
		}
		if dev.hits.Load() == 0 || dev.misses.Load() == 0 {
			t.Errorf("%d hits, %d misses", dev.hits.Load(), dev.misses.Load())
		}
	}
}

// TestServerChecksItself: a server that makes no sense says so at the start.
func TestServerChecksItself(t *testing.T) {
	dev := pattern(64)
	for _, exports := range [][]Export{
		nil,
		{{Name: "x"}},
		{{Device: dev}, {Device: dev}},
		{{Device: dev, MinBlock: 3}},
		{{Device: dev, PreferredBlock: 256}},
		{{Device: dev, MinBlock: 8192, PreferredBlock: 4096}},
		{{Name: string(make([]byte, 5000)), Device: dev}},
	} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		if err := (&Server{Exports: exports}).Serve(t.Context(), l); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%v: %v", exports, err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is open: %v", err)
		}
	}
}

// serveOne serves one end of a pipe and returns the other, with the outcome.
func serveOne(ctx context.Context, s *Server) (net.Conn, chan error) {
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- s.ServeConn(ctx, far) }()
	near.SetDeadline(time.Now().Add(hangs))
	return near, done
}
