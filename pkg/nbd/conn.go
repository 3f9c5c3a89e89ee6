package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// readerSize holds a whole queue of requests, so that one system call
	// fetches what a busy client has sent.
	readerSize = 8 << 10
	// unixBuffer is asked for, in bytes; the system may grant less.
	unixBuffer = 1 << 20
	// connReserve is what each connection may hold in memory, whatever the
	// others do: more than the kernel's longest read (1280 KiB).
	connReserve = 2 << 20
	// connMemory is the most that one connection may hold.
	connMemory = 2 * MaxRead
)

// A conn is one client. One goroutine receives its requests and answers those
// whose answer is at hand; workers, started as they are needed, carry out the
// others. Whoever has a reply writes what replies have gathered (see reply.go).
type conn struct {
	srv *Server
	raw net.Conn // as it was accepted, below TLS; constant
	br  *bufio.Reader

	// mu guards nc and its deadlines against the shutdown, which comes from
	// another goroutine.
	mu       sync.Mutex
	nc       net.Conn
	stopping atomic.Bool

	// The handshake's outcome, constant afterwards.
	noZeroes, tls        bool
	structured, extended bool
	metaExport           *Export
	export               *Export
	allocation           bool // base:allocation was set for export
	ready                ReadyDevice

	slots    chan struct{} // one for each request in flight
	mem      budget        // connMemory
	reserve  budget        // connReserve
	work     chan task
	inflight atomic.Int64 // tasks handed over whose workers are not free again
	running  atomic.Int64 // of those, the ones without a reply yet
	workers  int64
	wg       sync.WaitGroup

	out    outbox
	cancel context.CancelFunc // of the reads in flight: nobody waits for them
}

func newConn(s *Server, nc net.Conn) *conn {
	return &conn{
		srv:     s,
		raw:     nc,
		nc:      nc,
		br:      bufio.NewReaderSize(nc, readerSize),
		slots:   make(chan struct{}, s.MaxRequests),
		work:    make(chan task, s.MaxRequests),
		mem:     budget{free: connMemory},
		reserve: budget{free: connReserve},
	}
}

// setNetConn replaces the connection by one inside it (TLS).
func (c *conn) setNetConn(nc net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nc = nc
}

// serve is the life of a connection. A client that leaves is no error, one that
// breaks the protocol is.
func (c *conn) serve(ctx context.Context) error {
	defer func() { c.nc.Close() }()
	// Reads go on after ctx is done, until they are drained.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	c.cancel = cancel

	drained := make(chan struct{})
	defer close(drained)
	defer context.AfterFunc(ctx, func() {
		c.stopReading()
		t := time.NewTimer(c.srv.DrainTimeout)
		defer t.Stop()
		select {
		case <-drained:
		case <-t.C:
			c.abandon()
		}
	})()

	var err error
	if c.export == nil {
		c.srv.state.young.add(c)
		err = c.negotiate(ctx)
		c.srv.state.young.remove(c)
	}
	if err == nil {
		c.setDeadline(time.Time{})
		if u, ok := c.nc.(*net.UnixConn); ok {
			// By default not even one of nbdcopy's reads fits. TCP grows its
			// own buffers unless one interferes.
			u.SetWriteBuffer(unixBuffer)
		}
		err = c.transmit(work)
		close(c.work)
		c.wg.Wait()
		if e := c.out.failure(); e != nil && err == nil {
			err = e
		}
	}
	switch {
	case err == errBye, ctx.Err() != nil, errors.Is(err, net.ErrClosed):
		return nil
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil // killed, most likely: nothing that we could tell it or anybody
	}
	return err
}

// past is a deadline that has gone by.
var past = time.Unix(1, 0)

// stopReading makes the reader see the end.
func (c *conn) stopReading() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping.Store(true)
	c.nc.SetReadDeadline(past)
}

// setDeadline sets both deadlines, but never revives a reader that was
// stopped.
func (c *conn) setDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nc.SetDeadline(t)
	if c.stopping.Load() {
		c.nc.SetReadDeadline(past)
	}
}

// abandon gives up what is in flight. No error is sent for it: a client whose
// connection broke may ask again elsewhere, one that was told EIO will not.
func (c *conn) abandon() {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nc.Close()
}

// transmit receives requests until the client leaves or breaks the protocol.
func (c *conn) transmit(ctx context.Context) error {
	defer c.flush()
	for !c.stopping.Load() {
		r, err := c.readRequest(ctx)
		if err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil // without DISC; what is in flight is still answered
		}
		if err != nil {
			return err
		}
		if r.Type == cmdDisconnect {
			return nil
		}
		errno := c.validate(&r)
		if n := payload(&r); n > 0 {
			if n > maxDrain {
				return protocolErrorf("command %d with %d bytes of payload", r.Type, n)
			}
			c.flush()
			if _, err := c.br.Discard(int(n)); err != nil {
				return err
			}
		}
		t := task{request: r, errno: errno}
		if err := c.acquire(ctx, &t); err != nil {
			return nil // the outbox knows why
		}
		if errno != 0 {
			c.post(ctx, c.failed(&t, errno))
		} else if r := c.readReady(&t); r != nil {
			c.post(ctx, r)
		} else {
			c.dispatch(ctx, t)
		}
	}
	return nil
}

// dispatch hands a task to a worker.
func (c *conn) dispatch(ctx context.Context, t task) {
	c.running.Add(1)
	c.work <- t // has room: there are as many slots
	if c.inflight.Add(1) > c.workers {
		c.workers++
		c.wg.Go(func() { c.worker(ctx) })
	}
}

// readRequest reads one request header. io.EOF means that the client left
// between requests.
func (c *conn) readRequest(ctx context.Context) (r request, err error) {
	want, n := uint32(magicRequest), requestLen
	if c.extended {
		want, n = magicRequestExt, requestExtLen
	}
	if c.br.Buffered() < n {
		c.flush() // there may be nothing to come before the client has it
	}
	var b [requestExtLen]byte
	if _, err := io.ReadFull(c.br, b[:n]); err != nil {
		return r, err
	}
	if c.extended {
		r = decodeRequestExt(&b)
	} else {
		r = decodeRequest((*[requestLen]byte)(b[:]))
	}
	if r.Magic != want {
		return r, protocolErrorf("bad request magic %#x", r.Magic)
	}
	return r, nil
}

// payload is the number of bytes that follow a request's header.
func payload(r *request) uint64 {
	if r.Type == cmdWrite || r.Flags&cmdFlagPayloadLen != 0 {
		return r.Length
	}
	return 0
}

// validate refuses, before anything else happens, what cannot be done. The
// order of the checks is nbdkit's, so that clients see its errors.
func (c *conn) validate(r *request) (errno uint32) {
	switch r.Type {
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		return errPerm
	case cmdRead, cmdCache, cmdBlockStatus:
		if !c.inRange(r) {
			return errInval
		}
	default: // FLUSH too: it was not offered
		return errInval
	}
	var allowed uint16
	switch {
	case r.Type == cmdRead && c.structured:
		allowed = cmdFlagDF
	case r.Type == cmdBlockStatus:
		allowed = cmdFlagReqOne
	}
	switch {
	case r.Flags&^allowed != 0: // FUA too
		return errInval
	case r.Type == cmdRead && r.Length > MaxRead:
		return errNoMem
	case r.Type == cmdBlockStatus && !c.allocation:
		return errInval
	}
	return 0
}

// inRange says whether a request names at least one byte, and none that the
// device does not have.
func (c *conn) inRange(r *request) bool {
	size := uint64(c.export.Device.Size())
	return r.Length > 0 && r.Offset <= size && r.Length <= size-r.Offset
}
