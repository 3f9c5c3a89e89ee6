package nbd

import (
	"context"
	"io"
	"testing"
	"time"
)

// FuzzConn feeds a connection with anything. It must come to its end when the
// client's bytes do, and must not send more than was asked for.
func FuzzConn(f *testing.F) {
	var c client
	hello := be.AppendUint32(nil, handshakeFixed|handshakeNoZeroes)
	goDisk := appendOption(nil, optGo, infoData("", infoName, infoBlockSize))
	requests := func(extended bool) []byte {
		c.extended = extended
		var b []byte
		for _, r := range []request{
			{Type: cmdRead, Offset: 100, Length: 1000},
			{Type: cmdRead, Offset: 1 << 60, Length: 1 << 30},
			{Type: cmdBlockStatus, Length: 4096},
			{Type: cmdCache, Length: 4096},
			{Type: cmdWrite, Flags: cmdFlagPayloadLen, Length: 0},
			{Type: cmdFlush},
			{Type: cmdDisconnect},
		} {
			b = c.appendRequest(b, r)
		}
		return b
	}
	cat := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	set := appendOption(nil, optSetMeta, metaData("", contextAllocation))
	f.Add(cat(hello, goDisk, requests(false)))
	f.Add(cat(hello, appendOption(nil, optStructuredReply, nil), set, goDisk, requests(false)))
	f.Add(cat(hello, appendOption(nil, optExtendedHeaders, nil), set, goDisk, requests(true)))
	f.Add(cat(hello, appendOption(nil, optList, nil), appendOption(nil, optListMeta, metaData("", "base:")), appendOption(nil, optAbort, nil)))
	f.Add(cat(hello, appendOption(nil, optExportName, nil), requests(false)))
	f.Add(cat(hello, appendOption(nil, optStartTLS, nil)))

	s := &Server{Exports: []Export{{Name: "disk", Device: extents{pattern(4096)}}}}
	f.Fuzz(func(t *testing.T, data []byte) {
		nc, done := serveOne(context.Background(), s)
		sent := make(chan int64, 1)
		go func() {
			n, _ := io.Copy(io.Discard, nc)
			sent <- n
		}()
		nc.Write(data)
		// A pipe has no half-close; a moment to answer, and then the end.
		nc.SetWriteDeadline(time.Now())
		nc.Close()
		select {
		case <-done:
		case <-time.After(hangs):
			t.Fatal("the connection does not end")
		}
		// At best, 28 bytes of request fetch the whole device.
		if n, limit := <-sent, int64(len(data)+64)*(4096+64); n > limit {
			t.Fatalf("%d bytes for %d", n, len(data))
		}
	})
}
