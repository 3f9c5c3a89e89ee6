package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A mem is a device in memory.
type mem []byte

func (m mem) Size() int64 { return int64(len(m)) }

func (m mem) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

// pattern is n bytes of which each aligned 4 tell their offset.
func pattern(n int) mem {
	b := make(mem, 0, n+4)
	for i := 0; i < n; i += 4 {
		b = be.AppendUint32(b, uint32(i)^0xa5a5a5a5)
	}
	return b[:n]
}

// listen serves on a unix socket until the test ends and returns its path.
func listen(t testing.TB, s *Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return path
}

// A client speaks the protocol by hand, and so can break it.
type client struct {
	t                    testing.TB
	nc                   net.Conn
	structured, extended bool
}

// hangs bounds what a test waits for: never reached when all is well.
const hangs = time.Minute

func dial(t testing.TB, path string) *client {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(hangs))
	return &client{t: t, nc: nc}
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *client) recv(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.nc, b); err != nil {
		c.t.Fatalf("read of %d bytes: %v", n, err)
	}
	return b
}

// closed wants the server to have hung up, and nothing left to read.
func (c *client) closed() {
	c.t.Helper()
	if n, err := c.nc.Read(make([]byte, 1)); n != 0 || err == nil {
		c.t.Fatalf("the connection is open: %d bytes, %v", n, err)
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Fatalf("the connection is open: %v", err)
	}
}

// hello receives the greeting and sends the flags.
func (c *client) hello(flags uint32) {
	c.t.Helper()
	if got, want := c.recv(helloLen), appendHello(nil); !bytes.Equal(got, want) {
		c.t.Fatalf("greeting %x, want %x", got, want)
	}
	c.send(be.AppendUint32(nil, flags))
}

func appendOption(b []byte, opt uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// An optReply is one reply to an option.
type optReply struct {
	Type uint32
	Data string
}

// option sends an option and receives its replies up to ACK or an error.
func (c *client) option(opt uint32, data []byte) []optReply {
	c.t.Helper()
	c.send(appendOption(nil, opt, data))
	return c.optReplies(opt)
}

func (c *client) optReplies(opt uint32) []optReply {
	c.t.Helper()
	var all []optReply
	for {
		h := c.recv(optionReplyLen)
		if be.Uint64(h) != magicOptionReply || be.Uint32(h[8:]) != opt {
			c.t.Fatalf("option reply %x to option %d", h, opt)
		}
		r := optReply{be.Uint32(h[12:]), string(c.recv(int(be.Uint32(h[16:]))))}
		all = append(all, r)
		if r.Type == repAck || r.Type&repErr != 0 {
			return all
		}
	}
}

// ack sends an option that must succeed.
func (c *client) ack(opt uint32, data []byte) []optReply {
	c.t.Helper()
	r := c.option(opt, data)
	if last := r[len(r)-1]; last.Type != repAck {
		c.t.Fatalf("option %d: reply %#x", opt, last.Type)
	}
	return r[:len(r)-1]
}

func appendString(b []byte, s string) []byte {
	return append(be.AppendUint32(b, uint32(len(s))), s...)
}

func infoData(name string, kinds ...uint16) []byte {
	b := be.AppendUint16(appendString(nil, name), uint16(len(kinds)))
	for _, k := range kinds {
		b = be.AppendUint16(b, k)
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := be.AppendUint32(appendString(nil, name), uint32(len(queries)))
	for _, q := range queries {
		b = appendString(b, q)
	}
	return b
}

// A mode is how much of the protocol a client asks for.
type mode int

const (
	simple mode = iota
	structured
	extended
)

// connect goes all the way to transmission, with base:allocation where it may.
func connect(t testing.TB, path string, m mode) *client {
	t.Helper()
	c := dial(t, path)
	c.enter(m)
	return c
}

func (c *client) enter(m mode) {
	c.t.Helper()
	c.hello(handshakeFixed | handshakeNoZeroes)
	switch m {
	case structured:
		c.ack(optStructuredReply, nil)
		c.structured = true
	case extended:
		c.ack(optExtendedHeaders, nil)
		c.structured, c.extended = true, true
	}
	if m != simple {
		c.ack(optSetMeta, metaData("", contextAllocation))
	}
	c.ack(optGo, infoData(""))
}

func (c *client) appendRequest(b []byte, r request) []byte {
	if c.extended {
		b = be.AppendUint32(b, magicRequestExt)
	} else {
		b = be.AppendUint32(b, magicRequest)
	}
	b = be.AppendUint16(b, r.Flags)
	b = be.AppendUint16(b, r.Type)
	b = be.AppendUint64(b, r.Cookie)
	b = be.AppendUint64(b, r.Offset)
	if c.extended {
		return be.AppendUint64(b, r.Length)
	}
	return be.AppendUint32(b, uint32(r.Length))
}

// An answer is a reply of any form.
type answer struct {
	Cookie uint64
	Errno  uint32
	Type   uint16 // of the chunk; replyNone for a simple one
	Offset uint64 // extended ones
	Data   []byte
}

// answer receives one reply; length is what a successful simple one carries.
func (c *client) answer(length int) answer {
	c.t.Helper()
	magic := be.Uint32(c.recv(4))
	if magic == magicSimpleReply && !c.extended {
		h := c.recv(simpleReplyLen - 4)
		a := answer{Errno: be.Uint32(h), Cookie: be.Uint64(h[4:])}
		if a.Errno == 0 {
			a.Data = c.recv(length)
		}
		return a
	}
	var h []byte
	var a answer
	var n uint64
	switch {
	case c.extended && magic == magicExtendedReply:
		h = c.recv(extendedReplyLen - 4)
		a.Offset, n = be.Uint64(h[12:]), be.Uint64(h[20:])
	case c.structured && !c.extended && magic == magicStructReply:
		h = c.recv(structReplyLen - 4)
		n = uint64(be.Uint32(h[12:]))
	default:
		c.t.Fatalf("reply magic %#x", magic)
	}
	if be.Uint16(h) != replyFlagDone {
		c.t.Fatalf("reply flags %#x", be.Uint16(h))
	}
	a.Type, a.Cookie = be.Uint16(h[2:]), be.Uint64(h[4:])
	a.Data = c.recv(int(n))
	switch a.Type {
	case replyError:
		a.Errno = be.Uint32(a.Data)
		a.Data = a.Data[errorPayloadLen+int(be.Uint16(a.Data[4:])):]
	case replyOffsetData:
		a.Offset, a.Data = be.Uint64(a.Data), a.Data[8:]
	}
	return a
}

// do sends one request, with payload, and receives its answer.
func (c *client) do(r request, payload []byte) answer {
	c.t.Helper()
	c.send(append(c.appendRequest(nil, r), payload...))
	n := 0
	if r.Type == cmdRead && !c.structured {
		n = int(r.Length)
	}
	a := c.answer(n)
	if a.Cookie != r.Cookie {
		c.t.Fatalf("cookie %#x, want %#x", a.Cookie, r.Cookie)
	}
	return a
}

// check reads a piece of dev, to see that the connection is in step.
func (c *client) check(dev mem, off, n int) {
	c.t.Helper()
	a := c.do(request{Type: cmdRead, Cookie: uint64(off)<<32 | 7, Offset: uint64(off), Length: uint64(n)}, nil)
	if a.Errno != 0 || !bytes.Equal(a.Data, dev[off:off+n]) {
		c.t.Fatalf("read of %d bytes at %d: error %d, %d bytes", n, off, a.Errno, len(a.Data))
	}
	if c.structured && a.Offset != uint64(off) {
		c.t.Fatalf("read at %d: the data is for %d", off, a.Offset)
	}
}
