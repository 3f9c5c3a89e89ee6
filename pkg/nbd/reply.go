package nbd

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"time"
)

// A reply is bytes to send, and what to give back when they are sent.
type reply struct {
	task
	buf *buffer // nil: b is its own
	b   []byte
}

// done is a success without data.
func (c *conn) done(t *task) *reply { return c.status(t, 0) }

// failed is an error; it carries no data.
func (c *conn) failed(t *task, errno uint32) *reply { return c.status(t, errno) }

func (c *conn) status(t *task, errno uint32) *reply {
	var b []byte
	switch {
	case c.structured && errno != 0 && (c.extended || t.Type == cmdRead || t.Type == cmdBlockStatus):
		b = appendChunk(nil, c.extended, replyError, &t.request, errorPayloadLen)
		b = appendErrorPayload(b, errno)
	case c.extended:
		b = appendChunk(nil, true, replyNone, &t.request, 0)
	default:
		b = appendSimpleReply(nil, errno, t.Cookie)
	}
	return &reply{task: *t, b: b}
}

// An outbox gathers replies while one goroutine writes, so that replies are
// never interleaved and those that are ready together leave together. Slots
// and memory (see acquire) bound what it holds.
type outbox struct {
	mu      sync.Mutex
	pending []*reply
	writing bool
	err     error // the first failure; nothing is sent after it
	armed   time.Time
	iov     net.Buffers // the writer's
	batch   []*reply    // the writer's
}

func (o *outbox) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// send queues a reply, and writes whatever is queued unless someone does.
func (c *conn) send(ctx context.Context, r *reply) {
	c.post(ctx, r)
	c.flush()
}

// post queues a reply for the next flush, which has to follow.
func (c *conn) post(ctx context.Context, r *reply) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if ctx.Err() != nil {
		c.drop(r)
		return
	}
	o.pending = append(o.pending, r)
}

// flush writes whatever is queued; if someone is writing, then that one does.
func (c *conn) flush() {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writing {
		return
	}
	o.writing = true
	for len(o.pending) > 0 {
		if c.running.Load() > 0 {
			// Others may be about to finish: their replies share our write.
			o.mu.Unlock()
			runtime.Gosched()
			o.mu.Lock()
		}
		o.batch, o.pending = o.pending, o.batch[:0]
		failed := o.err != nil
		o.mu.Unlock()

		var err error
		if !failed {
			err = c.write(o.batch)
		}
		for i, r := range o.batch {
			c.drop(r)
			o.batch[i] = nil
		}
		if err != nil {
			c.abandon() // nobody will get what is being read; the reader ends too
		}

		o.mu.Lock()
		if err != nil && o.err == nil {
			o.err = err
		}
	}
	o.writing = false
}

// drop gives back what a reply held.
func (c *conn) drop(r *reply) {
	if r.buf != nil {
		r.buf.put()
	}
	c.release(&r.task)
}

// write sends a batch, in one system call where the connection can do that.
func (c *conn) write(batch []*reply) error {
	o := &c.out
	iov := o.iov[:0]
	for _, r := range batch {
		iov = append(iov, r.b)
	}
	o.iov = iov // WriteTo moves iov along; keep its room
	for {
		// Moving the deadline costs more than looking at the clock.
		if now := time.Now(); now.Sub(o.armed) > c.srv.WriteTimeout/8 {
			if err := c.nc.SetWriteDeadline(now.Add(c.srv.WriteTimeout)); err != nil {
				return err
			}
			o.armed = now
		}
		n, err := writeBuffers(c.nc, &iov)
		if err == nil {
			return nil
		}
		// A slow client is not a dead one.
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		o.armed = time.Time{}
	}
}

// writeBuffers is WriteTo, which is dearer for a single buffer.
func writeBuffers(nc net.Conn, iov *net.Buffers) (int64, error) {
	if len(*iov) > 1 {
		return iov.WriteTo(nc)
	}
	n, err := nc.Write((*iov)[0])
	(*iov)[0] = (*iov)[0][n:]
	return int64(n), err
}
