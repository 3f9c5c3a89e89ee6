package nbd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A counted device is as long as it says, all zeros, and counts the bytes that
// were read of it.
type counted struct {
	size  int64
	bytes atomic.Int64
}

func (d *counted) Size() int64 { return d.size }

func (d *counted) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	d.bytes.Add(int64(len(p)))
	clear(p)
	return len(p), nil
}

// settle waits until a number has stopped to change.
func settle(n *atomic.Int64) int64 {
	last, same := n.Load(), 0
	for same < 20 {
		time.Sleep(10 * time.Millisecond)
		if now := n.Load(); now == last {
			same++
		} else {
			last, same = now, 0
		}
	}
	return last
}

// TestSlowReaders: clients that ask for everything and read nothing hold no
// more than their share, and another client goes on undisturbed.
func TestSlowReaders(t *testing.T) {
	dev := &counted{size: 1 << 40}
	s := &Server{Exports: []Export{{Device: dev}}, MaxMemory: 64 << 20}
	path := listen(t, s)
	const greedy = 8
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range greedy {
		c := connect(t, path, simple)
		defer c.nc.Close() // ends the writer below
		wg.Go(func() {
			r := request{Type: cmdRead, Length: MaxRead >> (2 * i)}
			for range 10000 {
				if _, err := c.nc.Write(c.appendRequest(nil, r)); err != nil {
					return
				}
			}
		})
	}
	// The shared memory, and each one's own reserve; what lies in the sockets
	// is the kernel's, but was read from the device as well.
	got, limit := settle(&dev.bytes), s.MaxMemory+greedy*(connReserve+1<<20)
	if got > limit || got < MaxRead {
		t.Errorf("%d bytes read for clients that do not listen, limit %d", got, limit)
	}
	c := connect(t, path, structured)
	for i := range uint64(20) {
		if a := c.do(request{Type: cmdRead, Cookie: i, Offset: i << 20, Length: 1 << 20}, nil); a.Errno != 0 || len(a.Data) != 1<<20 {
			t.Fatalf("error %d, %d bytes", a.Errno, len(a.Data))
		}
	}
}

func freeBytes(b *budget) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.free
}

// TestErrorsAreBounded: error replies nobody reads do not pile up either.
func TestErrorsAreBounded(t *testing.T) {
	t.Parallel()
	s := &Server{Exports: []Export{{Device: pattern(4096)}}}
	c := connect(t, listen(t, s), simple)
	const many, batch = 1 << 20, 1 << 10
	var b []byte
	for range batch {
		b = c.appendRequest(b, request{Type: 99})
	}
	n := 0
	for ; n < many; n += batch {
		c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := c.nc.Write(b); err != nil {
			break
		}
	}
	if n >= many {
		t.Errorf("%d bad requests were taken without a reply being read", n)
	}
}

// TestBudgetComesBack: after all kinds of traffic nothing is missing.
func TestBudgetComesBack(t *testing.T) {
	dev := &counted{size: 1 << 40}
	s := &Server{Exports: []Export{{Device: dev}}}
	path := listen(t, s)
	for _, m := range []mode{simple, structured, extended} {
		c := connect(t, path, m)
		for i := range uint64(3) {
			for _, n := range []uint64{1, 4096, 4097, 1 << 20, 5 << 20, MaxRead, MaxRead + 1} {
				c.do(request{Type: cmdRead, Cookie: i, Length: n}, nil)
			}
			c.do(request{Type: cmdBlockStatus, Length: 1 << 20}, nil)
			c.do(request{Type: cmdCache, Length: 1 << 24}, nil)
			c.do(request{Type: cmdTrim, Length: 1 << 24}, nil)
		}
		// One that leaves in the middle of a reply.
		c.send(c.appendRequest(nil, request{Type: cmdRead, Length: MaxRead}))
		c.recv(100)
		c.nc.Close()
	}
	deadline := time.Now().Add(hangs)
	for s.Stats().Conns > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if got := freeBytes(&s.state.shared); got != s.MaxMemory {
		t.Errorf("%d bytes free, want %d", got, s.MaxMemory)
	}
}

func TestBudget(t *testing.T) {
	b := budget{free: 10}
	if !b.try(4) || !b.try(6) || b.try(1) {
		t.Fatal("try")
	}
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	queued := func(n int) {
		for {
			b.mu.Lock()
			got := len(b.waiters)
			b.mu.Unlock()
			if got == n {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	go func() { first <- b.take(ctx, 10) }()
	queued(1)
	go func() { second <- b.take(t.Context(), 3) }()
	queued(2)
	b.give(4) // enough for the second, but the first came first
	select {
	case <-second:
		t.Fatal("overtaken")
	case <-time.After(10 * time.Millisecond):
	}
	if b.try(1) {
		t.Fatal("try overtakes")
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	b.give(9)
	if b.free != 10 || len(b.waiters) != 0 {
		t.Fatalf("%d free, %d wait", b.free, len(b.waiters))
	}
}

// TestManyConnections: a thousand clients come; those that fit are served, the
// others are turned away, and a place that becomes free can be had.
func TestManyConnections(t *testing.T) {
	dev := pattern(4096)
	s := &Server{Exports: []Export{{Device: dev}}, MaxConns: 10}
	path := listen(t, s)
	var in []*client
	for range 10 {
		in = append(in, connect(t, path, simple))
	}
	for range 990 {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(hangs))
		if n, err := nc.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("%d bytes, %v", n, err)
		}
		nc.Close()
	}
	for _, c := range in {
		c.check(dev, 0, 4096)
	}
	if got := s.Stats(); got.Refused != 990 || got.Conns != 10 {
		t.Errorf("%+v", got)
	}
	in[0].nc.Close()
	deadline := time.Now().Add(hangs)
	for s.Stats().Conns == 10 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	connect(t, path, simple).check(dev, 0, 4096)
}

// TestHandshakesGiveWay: those who do not get on with their handshake keep nobody
// out, and nobody else pays for that.
func TestHandshakesGiveWay(t *testing.T) {
	dev := pattern(4096)
	s := &Server{Exports: []Export{{Device: dev}}, MaxConns: 4}
	path := listen(t, s)
	through := connect(t, path, simple)
	var slow []*client
	for range 3 {
		c := dial(t, path)
		c.hello(handshakeFixed)
		slow = append(slow, c)
	}
	next := connect(t, path, simple)
	slow[0].closed()
	for i, c := range slow[1:] { // these can still get on
		if _, err := c.nc.Write(appendOption(nil, optAbort, nil)); err != nil {
			t.Errorf("%d: %v", i+1, err)
		}
		c.recv(optionReplyLen)
		c.closed()
	}
	for _, c := range []*client{through, next} {
		c.check(dev, 0, 4096)
	}
	if got := s.Stats(); got.Refused != 1 {
		t.Errorf("%+v", got)
	}
}

// TestHandshakesWithinTLS: a client may give way at any moment of its handshake.
func TestHandshakesWithinTLS(t *testing.T) {
	cert, ca := certificate(t)
	dev := pattern(4096)
	s := &Server{Exports: []Export{{Device: dev}}, MaxConns: 1, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}
	path := listen(t, s)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	encrypted := func() *client {
		c := dial(t, path)
		c.hello(handshakeFixed | handshakeNoZeroes)
		c.ack(optStartTLS, nil)
		inner := tls.Client(c.nc, &tls.Config{RootCAs: roots, ServerName: "localhost"})
		if err := inner.Handshake(); err != nil {
			t.Fatal(err)
		}
		c.nc = inner
		c.ack(optStructuredReply, nil)
		c.structured = true
		return c
	}
	first := encrypted()
	second := encrypted()
	first.closed()
	second.ack(optGo, infoData(""))
	second.check(dev, 0, len(dev))
}

// TestWhoGivesWay: the oldest handshake of who has the most.
func TestWhoGivesWay(t *testing.T) {
	var h handshakes
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "::ffff:192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8::ffff:2", "2001:db8:0:1::1"} {
		h.add(&conn{raw: from{addr: &net.TCPAddr{IP: net.ParseIP(a)}}})
	}
	h.add(&conn{raw: from{addr: &net.UnixAddr{Net: "unix"}}})
	var got []string
	for c := h.first(); c != nil; c = h.first() {
		got = append(got, c.raw.RemoteAddr().String())
	}
	want := "[2001:db8::1]:0 192.0.2.2:0 [2001:db8::2]:0 192.0.2.1:0 192.0.2.2:0 [2001:db8::ffff:2]:0 [2001:db8:0:1::1]:0 "
	if s := strings.Join(got, " "); s != want {
		t.Errorf("%q", s)
	}
}

// from is a connection that has nothing but a peer.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	s := &Server{Exports: []Export{{Device: pattern(64)}}, HandshakeTimeout: timeout}
	path := listen(t, s)
	through := connect(t, path, simple)
	silent, talking := dial(t, path), dial(t, path)
	silent.recv(helloLen)
	// One that keeps talking does not get more time.
	talking.hello(handshakeFixed)
	for {
		if _, err := talking.nc.Write(appendOption(nil, optList, nil)); err != nil {
			break
		}
		if _, err := talking.nc.Read(make([]byte, 100)); err != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	silent.closed()
	// One that is through may take its time.
	through.check(pattern(64), 0, 64)
}

// TestWriteTimeout: who does not read is disconnected; who reads slowly is not.
func TestWriteTimeout(t *testing.T) {
	t.Parallel()
	const timeout, length, pieces = 2 * time.Second, 4 << 20, 32
	dev := &counted{size: 1 << 40}
	s := &Server{Exports: []Export{{Device: dev}}, WriteTimeout: timeout}
	path := listen(t, s)
	c := connect(t, path, simple)
	c.send(c.appendRequest(nil, request{Type: cmdRead, Length: MaxRead}))
	slow := connect(t, path, simple)
	slow.send(slow.appendRequest(nil, request{Type: cmdRead, Length: length}))
	slow.recv(simpleReplyLen)
	for range pieces {
		slow.recv(length / pieces)
		time.Sleep(2 * timeout / pieces)
	}
	slow.check(make(mem, 512), 0, 512)
	for deadline := time.Now().Add(hangs / 2); s.Stats().Conns == 2 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	n, err := io.Copy(io.Discard, c.nc)
	if n >= MaxRead || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestShutdownDrains: what was asked before the end is answered, what comes
// later is not, and Serve returns.
func TestShutdownDrains(t *testing.T) {
	g := newGate(pattern(4096))
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&Server{Exports: []Export{{Device: g}}}).Serve(ctx, l) }()
	c := connect(t, l.Addr().String(), simple)
	idle := connect(t, l.Addr().String(), simple)
	early := dial(t, l.Addr().String())
	early.recv(helloLen)
	haggling := dial(t, l.Addr().String()) // half an option
	haggling.hello(handshakeFixed)
	haggling.send(appendOption(nil, optGo, infoData(""))[:optionLen+2])
	half := connect(t, l.Addr().String(), simple)
	half.send(half.appendRequest(nil, request{Type: cmdRead, Length: 512})[:10])
	unpaid := connect(t, l.Addr().String(), simple) // half a payload
	unpaid.send(append(unpaid.appendRequest(nil, request{Type: cmdWrite, Length: 512}), 1, 2, 3))
	for i := range uint64(3) {
		c.send(c.appendRequest(nil, request{Type: cmdRead, Cookie: i, Offset: i * 512, Length: 512}))
		<-g.begun
	}
	cancel()
	for _, c := range []*client{idle, early, haggling, half, unpaid} {
		c.closed()
	}
	select {
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	for i := range int64(3) {
		g.at(i * 512) <- nil
		if a := c.answer(512); a.Errno != 0 || a.Cookie != uint64(i) {
			t.Errorf("answer %d: error %d", a.Cookie, a.Errno)
		}
	}
	c.closed()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("unix", l.Addr().String()); err == nil {
		t.Error("the listener is open")
	}
}

// TestShutdownGivesUp: a read that never ends does not keep the server, and
// its client gets no error that it could take for the device's.
func TestShutdownGivesUp(t *testing.T) {
	g := newGate(pattern(4096))
	ctx, cancel := context.WithCancel(t.Context())
	s := &Server{Exports: []Export{{Device: g}}, DrainTimeout: 30 * time.Millisecond, OnError: func(_ *Export, _ int64, _ int, err error) {
		t.Errorf("told of %v", err)
	}}
	nc, done := serveOne(ctx, s)
	c := &client{t: t, nc: nc}
	c.enter(structured)
	c.send(c.appendRequest(nil, request{Type: cmdRead, Length: 512}))
	<-g.begun
	cancel()
	c.closed()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestClientLeaves: one that says good-bye, or only closes its writing side,
// still gets what it asked for; one that is gone stops the reads made for it.
func TestClientLeaves(t *testing.T) {
	g := newGate(pattern(4096))
	s := &Server{Exports: []Export{{Device: g}}}
	path := listen(t, s)
	for _, say := range []bool{true, false} {
		c := connect(t, path, simple)
		c.send(c.appendRequest(nil, request{Type: cmdRead, Length: 512}))
		if say {
			c.send(c.appendRequest(nil, request{Type: cmdDisconnect}))
		} else {
			c.nc.(*net.UnixConn).CloseWrite()
		}
		<-g.begun
		g.at(0) <- nil
		if a := c.answer(512); a.Errno != 0 {
			t.Errorf("error %d", a.Errno)
		}
		c.closed()
	}
	c := connect(t, path, simple)
	c.send(c.appendRequest(nil, request{Type: cmdRead, Length: 512}))
	c.send(c.appendRequest(nil, request{Type: cmdRead, Offset: 512, Length: 512}))
	<-g.begun
	<-g.begun
	c.nc.Close()
	g.at(0) <- nil // its reply finds nobody; the other read, never let through, ends too
	deadline := time.Now().Add(hangs)
	for s.Stats().Conns > 0 {
		if time.Now().After(deadline) {
			t.Fatal("the connection is still served")
		}
		time.Sleep(time.Millisecond)
	}
}
