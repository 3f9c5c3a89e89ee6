package nbd

import (
	"context"
	"fmt"
	"io"
)

// cacheStep is how much of a CACHE request is read at a time.
const cacheStep = 1 << 20

// Reads of bytes that are at hand are done by the goroutine that receives
// requests up to maxReady bytes, or maxReadyAlone where nothing else is asked
// for. Longer ones are better spread over processors.
const (
	maxReady      = 64 << 10
	maxReadyAlone = 512 << 10
)

// A task is a request with what its reply may use: a slot, and memory.
type task struct {
	request
	errno  uint32  // of the validation
	room   int64   // bytes taken from the budgets
	source *budget // where room came from, apart from conn.mem
	class  int     // of the buffer
}

// bufferNeed is the data length of the buffer that a request's reply needs.
func (c *conn) bufferNeed(t *task) int {
	switch {
	case t.errno != 0:
		return 0
	case t.Type == cmdRead:
		return int(t.Length)
	case t.Type == cmdCache:
		if _, ok := c.export.Device.(CachingDevice); !ok {
			return int(min(t.Length, cacheStep))
		}
	case t.Type == cmdBlockStatus && t.Flags&cmdFlagReqOne == 0:
		if _, ok := c.export.Device.(ExtentDevice); ok {
			return maxExtents * 16
		}
	}
	return 0
}

// acquire waits until a reply may be made. Everything that is sent holds a
// slot and memory until it is written, errors included: a client that asks
// and never reads is stopped here. What is queued is written before waiting,
// since it holds what is waited for.
func (c *conn) acquire(ctx context.Context, t *task) error {
	select {
	case c.slots <- struct{}{}:
	default:
		c.flush()
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	t.class = bufferClass(c.bufferNeed(t))
	t.room = bufferSize(t.class)
	if !c.mem.try(t.room) {
		c.flush()
		if err := c.mem.take(ctx, t.room); err != nil {
			return err
		}
	}
	shared := &c.srv.state.shared
	switch {
	case c.reserve.try(t.room):
		t.source = &c.reserve
		return nil
	case shared.try(t.room):
		t.source = shared
		return nil
	case t.room > connReserve:
		t.source = shared
	default:
		t.source = &c.reserve
	}
	c.flush()
	return t.source.take(ctx, t.room)
}

// release undoes acquire.
func (c *conn) release(t *task) {
	t.source.give(t.room)
	c.mem.give(t.room)
	<-c.slots
}

func (c *conn) worker(ctx context.Context) {
	for t := range c.work {
		var r *reply
		if ctx.Err() == nil {
			r = c.execute(ctx, &t)
		}
		c.running.Add(-1)
		if r != nil {
			c.send(ctx, r)
		} else {
			c.release(&t)
		}
		c.inflight.Add(-1)
	}
}

// execute carries out a valid request.
func (c *conn) execute(ctx context.Context, t *task) *reply {
	switch t.Type {
	case cmdRead:
		return c.read(ctx, t)
	case cmdCache:
		return c.cache(ctx, t)
	case cmdBlockStatus:
		return c.blockStatus(ctx, t)
	}
	panic(fmt.Sprintf("nbd: command %d was validated and is not known", t.Type))
}

// readDevice fills p or fails, whatever the device says.
func (c *conn) readDevice(ctx context.Context, p []byte, off int64) error {
	n, err := c.export.Device.ReadAtContext(ctx, p, off)
	if n == len(p) {
		return nil // as with io.ReaderAt, an error may come with the last byte
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.deviceFailed(ctx, off, len(p), err)
	return err
}

// deviceFailed tells those who watch; not of reads that nobody waits for.
func (c *conn) deviceFailed(ctx context.Context, off int64, length int, err error) {
	if ctx.Err() != nil {
		return
	}
	c.srv.state.failed.Add(1)
	if c.srv.OnError != nil {
		c.srv.OnError(c.export, off, length, err)
	}
}

// readReady answers a read whose bytes are at hand, or returns nil.
func (c *conn) readReady(t *task) *reply {
	if c.ready == nil || t.Type != cmdRead {
		return nil
	}
	alone := c.br.Buffered() == 0 && c.running.Load() == 0
	if t.Length > maxReadyAlone || t.Length > maxReady && !alone {
		return nil
	}
	buf := getBuffer(t.class)
	if !c.ready.ReadReady(buf.b[headRoom:headRoom+int(t.Length)], int64(t.Offset)) {
		buf.put()
		return nil
	}
	return c.data(t, buf)
}

func (c *conn) read(ctx context.Context, t *task) *reply {
	buf := getBuffer(t.class)
	if err := c.readDevice(ctx, buf.b[headRoom:headRoom+int(t.Length)], int64(t.Offset)); err != nil {
		buf.put()
		return c.failed(t, errIO)
	}
	return c.data(t, buf)
}

// data puts the header in front of what was read.
func (c *conn) data(t *task, buf *buffer) *reply {
	n := int(t.Length)
	c.srv.state.reads.Add(1)
	c.srv.state.bytes.Add(int64(n))
	var head []byte
	var room [headRoom]byte
	if c.structured {
		head = appendChunk(room[:0], c.extended, replyOffsetData, &t.request, uint64(n)+8)
		head = be.AppendUint64(head, t.Offset)
	} else {
		head = appendSimpleReply(room[:0], 0, t.Cookie)
	}
	start := headRoom - len(head)
	copy(buf.b[start:], head)
	return &reply{task: *t, buf: buf, b: buf.b[start : headRoom+n]}
}

func (c *conn) cache(ctx context.Context, t *task) *reply {
	off, left := int64(t.Offset), int64(t.Length)
	if d, ok := c.export.Device.(CachingDevice); ok {
		if err := d.Cache(ctx, off, left); err != nil {
			c.deviceFailed(ctx, off, int(left), err)
			return c.failed(t, errIO)
		}
		return c.done(t)
	}
	buf := getBuffer(t.class)
	defer buf.put()
	for left > 0 {
		n := min(left, bufferSize(t.class))
		if err := c.readDevice(ctx, buf.b[:n], off); err != nil {
			return c.failed(t, errIO)
		}
		off, left = off+n, left-n
	}
	return c.done(t)
}

func (c *conn) blockStatus(ctx context.Context, t *task) *reply {
	off, length := int64(t.Offset), int64(t.Length)
	limit := maxExtents
	if t.Flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	extents := []Extent{{Length: length}} // data, as far as we know
	if d, ok := c.export.Device.(ExtentDevice); ok {
		found, err := d.Extents(ctx, off, length, limit)
		if err != nil {
			c.deviceFailed(ctx, off, int(length), err)
			return c.failed(t, errIO)
		}
		if found = clampExtents(found, length, limit); len(found) > 0 {
			extents = found
		}
	}
	kind, size := uint16(replyBlockStatus), 4+8*len(extents)
	if c.extended {
		kind, size = replyBlockStatusExt, 8+16*len(extents)
	}
	buf := getBuffer(t.class)
	b := appendChunk(buf.b[:0], c.extended, kind, &t.request, uint64(size))
	b = appendExtents(b, c.extended, contextAllocationID, extents)
	return &reply{task: *t, buf: buf, b: b}
}

// clampExtents cuts a device's answer to what was asked for, so that lengths
// fit the reply's fields and the reply fits its buffer.
func clampExtents(extents []Extent, length int64, limit int) []Extent {
	var out []Extent
	for _, e := range extents {
		e.Length = min(e.Length, length)
		if e.Length <= 0 {
			break
		}
		length -= e.Length
		if n := len(out); n > 0 && out[n-1].Hole == e.Hole && out[n-1].Zero == e.Zero {
			out[n-1].Length += e.Length
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, e)
	}
	return out
}
