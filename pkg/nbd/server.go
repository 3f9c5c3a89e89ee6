package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// serverState is what all connections of a server share.
type serverState struct {
	once   sync.Once
	err    error
	shared budget // bytes of replies beyond the connections' own reserves
	conns  atomic.Int64
	young  handshakes

	served, refused, reads, bytes, failed atomic.Int64
}

// Stats are counts since the server began.
type Stats struct {
	Conns   int64 // connections open now
	Served  int64 // connections accepted
	Refused int64 // connections closed because there were too many
	Reads   int64 // READ commands answered with data
	Bytes   int64 // bytes in those answers
	Failed  int64 // reads of the device that failed
}

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	return Stats{
		Conns:   s.state.conns.Load(),
		Served:  s.state.served.Load(),
		Refused: s.state.refused.Load(),
		Reads:   s.state.reads.Load(),
		Bytes:   s.state.bytes.Load(),
		Failed:  s.state.failed.Load(),
	}
}

// init fills in the defaults and checks what the exports say.
func (s *Server) init() error {
	s.state.once.Do(func() {
		setDefault(&s.MaxConns, 64)
		setDefault(&s.MaxRequests, 64)
		setDefault(&s.MaxMemory, 128<<20)
		setDefault(&s.HandshakeTimeout, time.Minute)
		setDefault(&s.WriteTimeout, 2*time.Minute)
		setDefault(&s.DrainTimeout, 10*time.Second)
		s.state.shared.free = max(s.MaxMemory, 2*MaxRead)
		s.state.err = s.checkExports()
	})
	return s.state.err
}

func setDefault[T int | int64 | time.Duration](p *T, v T) {
	if *p <= 0 {
		*p = v
	}
}

func (s *Server) checkExports() error {
	if len(s.Exports) == 0 {
		return fault.Usagef("nbd: no export")
	}
	s.Exports = append([]Export(nil), s.Exports...) // the defaults below are ours
	for i := range s.Exports {
		e := &s.Exports[i]
		if len(e.Name) > maxString || len(e.Description) > maxString {
			return fault.Usagef("nbd: the name or description of export %d is longer than %d bytes", i, maxString)
		}
		if e.Device == nil || e.Device.Size() < 0 {
			return fault.Usagef("nbd: export %q has no device", e.Name)
		}
		for j := range i {
			if s.Exports[j].Name == e.Name {
				return fault.Usagef("nbd: two exports are named %q", e.Name)
			}
		}
		if e.MinBlock == 0 {
			e.MinBlock = 1
		}
		if e.PreferredBlock == 0 {
			e.PreferredBlock = max(4096, e.MinBlock)
		}
		// "Block size constraints": powers of two, the preferred one at least 512.
		if e.MinBlock&(e.MinBlock-1) != 0 || e.MinBlock > 64<<10 ||
			e.PreferredBlock&(e.PreferredBlock-1) != 0 || e.PreferredBlock < max(512, e.MinBlock) || e.PreferredBlock > MaxRead {
			return fault.Usagef("nbd: export %q: block sizes %d and %d", e.Name, e.MinBlock, e.PreferredBlock)
		}
	}
	return nil
}

// export finds an export by the name a client gave.
func (s *Server) export(name string) *Export {
	for i := range s.Exports {
		if s.Exports[i].Name == name {
			return &s.Exports[i]
		}
	}
	if name == "" {
		return &s.Exports[0]
	}
	return nil
}

func (s *Server) logf(format string, args ...any) {
	if s.Logf != nil {
		s.Logf(format, args...)
	}
}

// Serve accepts clients until ctx is done or the listener fails, and closes
// the listener. When ctx is done, requests in flight are still answered, for
// DrainTimeout at most; then Serve returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if err := s.init(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for delay := time.Duration(0); ; {
		nc, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				nc.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("nbd: %w", err)
			}
			// Out of descriptors, or a client that went away early: those
			// connected must not suffer for it.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			s.logf("accept: %v", err)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			continue
		}
		delay = 0
		if s.state.conns.Load() >= int64(s.MaxConns) && !s.giveWay() {
			s.state.refused.Add(1)
			s.logf("client refused: %d are connected", s.MaxConns)
			nc.Close()
			continue
		}
		s.state.conns.Add(1)
		wg.Go(func() {
			defer s.state.conns.Add(-1)
			s.handle(ctx, nc)
		})
	}
}

// giveWay ends a handshake for the sake of a new client: who could get through,
// be it with a certificate, must not be kept out by those who cannot.
func (s *Server) giveWay() bool {
	c := s.state.young.first()
	if c == nil {
		return false
	}
	s.state.refused.Add(1)
	s.logf("client %s gave way in its handshake: %d are connected", clientName(c.raw), s.MaxConns)
	// TLS would say goodbye, and wait for a client that does not read it.
	c.cancel()
	c.raw.Close()
	return true
}

// handshakes are the connections that have not chosen an export yet.
type handshakes struct {
	mu  sync.Mutex
	all []*conn // as they came
}

func (h *handshakes) add(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, c)
}

// remove takes one out that is through, or has ended.
func (h *handshakes) remove(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.all, c); i >= 0 {
		h.all = slices.Delete(h.all, i, i+1)
	}
}

// first takes out the one that is to end first, nil if there is none: of the
// peer that has the most, so that nobody drives out others by coming often, the
// oldest.
func (h *handshakes) first() *conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.all) == 0 {
		return nil
	}
	have := make(map[netip.Prefix]int)
	for _, c := range h.all {
		have[peer(c.raw)]++
	}
	at := 0
	for i, c := range h.all {
		if have[peer(c.raw)] > have[peer(h.all[at].raw)] {
			at = i
		}
	}
	c := h.all[at]
	h.all = slices.Delete(h.all, at, at+1)
	return c
}

// peer is where a client comes from: an address, or of IPv6 the network that one
// machine may have to itself. All clients of a Unix socket are one.
func peer(nc net.Conn) netip.Prefix {
	a, ok := nc.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := a.AddrPort().Addr().Unmap()
	p, _ := ip.Prefix(min(ip.BitLen(), 64)) // no address: none
	return p
}

// ServeConn serves one client and closes its connection. It is not refused for
// MaxConns, but counts there for those who come to Serve.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	if err := s.init(); err != nil {
		nc.Close()
		return err
	}
	s.state.conns.Add(1)
	defer s.state.conns.Add(-1)
	return s.handle(ctx, nc)
}

// ServeTransmission serves a client that needs no handshake, as an operating
// system's driver that was told all about the export already: requests come
// from the first byte on, and are answered with simple replies. It serves the
// first export, and is otherwise like ServeConn.
func (s *Server) ServeTransmission(ctx context.Context, nc net.Conn) error {
	if err := s.init(); err != nil {
		nc.Close()
		return err
	}
	s.state.conns.Add(1)
	defer s.state.conns.Add(-1)
	c := newConn(s, nc)
	c.choose(&s.Exports[0])
	return s.handleConn(ctx, c)
}

func (s *Server) handle(ctx context.Context, nc net.Conn) error {
	return s.handleConn(ctx, newConn(s, nc))
}

func (s *Server) handleConn(ctx context.Context, c *conn) error {
	s.state.served.Add(1)
	nc := c.nc
	err := c.serve(ctx)
	if err != nil {
		s.logf("client %s: %v", clientName(nc), err)
	}
	return err
}

// clientName is the client's address where it has one.
func clientName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return "on " + nc.LocalAddr().String()
}
