package main

import (
	"io"
	"net"
	"sync"
	"time"
)

// A proxy passes TCP connections on as a slow line would: what the server sends
// is delayed and paced, by one pace for all connections together or by one for
// each.
type proxy struct {
	net.Listener
	to      string
	delay   time.Duration // each way
	rate    float64       // bytes a second, from the server
	perConn bool
	shared  *pace
}

// listen starts a proxy for an address.
func listen(to string, delay time.Duration, rate float64, perConn bool) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{Listener: l, to: to, delay: delay, rate: rate, perConn: perConn, shared: &pace{rate: rate}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p, nil
}

func (p *proxy) host() string { return p.Addr().String() }

func (p *proxy) serve(client net.Conn) {
	// The handshake's round trip, which the loopback has not taken.
	time.Sleep(2 * p.delay)
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		client.Close()
		return
	}
	limit := p.shared
	if p.perConn {
		limit = &pace{rate: p.rate}
	}
	go func() {
		p.pass(server, client, nil)
		server.(*net.TCPConn).CloseWrite()
	}()
	p.pass(client, server, limit)
	client.Close()
	server.Close()
}

// parcel is some bytes and when they may arrive.
type parcel struct {
	buf *[parcelSize]byte
	n   int
	due time.Time
}

// buffered is what is on the line at most, in parcels: several times what
// 1 Gbit/s has under way in 20 ms.
const (
	buffered   = 128
	parcelSize = 64 << 10
)

var parcels = sync.Pool{New: func() any { return new([parcelSize]byte) }}

// pass copies from one side to the other.
func (p *proxy) pass(to io.Writer, from io.Reader, limit *pace) {
	line := make(chan parcel, buffered)
	go func() {
		defer close(line)
		for {
			buf := parcels.Get().(*[parcelSize]byte)
			n, err := from.Read(buf[:])
			if n > 0 {
				line <- parcel{buf, n, time.Now().Add(p.delay)}
			}
			if err != nil {
				return
			}
		}
	}()
	failed := false
	for c := range line {
		if !failed {
			time.Sleep(time.Until(c.due))
			limit.wait(c.n)
			_, err := to.Write(c.buf[:c.n])
			failed = err != nil
		}
		parcels.Put(c.buf)
	}
}

// pace spreads bytes over time.
type pace struct {
	rate float64
	mu   sync.Mutex
	next time.Time
}

// slack is what a late sender may catch up on: timers are that coarse.
const slack = 5 * time.Millisecond

// wait waits until n more bytes may go; a nil pace knows no limit.
func (p *pace) wait(n int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now.Add(-slack)) {
		p.next = now.Add(-slack)
	}
	p.next = p.next.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	until := p.next
	p.mu.Unlock()
	time.Sleep(time.Until(until))
}
