package nbd

import (
	"net"
	"testing"
	"time"
)

// TestServeTransmission: requests from the first byte on, simple replies, and an
// end in good order.
func TestServeTransmission(t *testing.T) {
	dev := pattern(100_000)
	s := &Server{Exports: []Export{{Device: dev}}}
	ours, theirs := net.Pipe()
	defer ours.Close()
	ours.SetDeadline(time.Now().Add(hangs))
	ended := make(chan error, 1)
	go func() { ended <- s.ServeTransmission(t.Context(), theirs) }()
	c := &client{t: t, nc: ours}
	c.check(dev, 0, 4096)
	c.check(dev, 99_000, 1000)
	if a := c.do(request{Type: cmdWrite, Length: 4, Cookie: 7}, []byte("data")); a.Errno != errPerm {
		t.Errorf("WRITE: %+v", a)
	}
	c.check(dev, 50_001, 3)
	c.send(c.appendRequest(nil, request{Type: cmdDisconnect}))
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
