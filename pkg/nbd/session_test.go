package nbd

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/session-*.txt anew")

// recorder writes down what passes, as hex with what it is.
type recorder struct {
	net.Conn
	text strings.Builder
}

func (r *recorder) note(format string, args ...any) { fmt.Fprintf(&r.text, "# "+format+"\n", args...) }

func (r *recorder) Write(p []byte) (int, error) {
	r.dump("C", p)
	return r.Conn.Write(p)
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := io.ReadFull(r.Conn, p)
	r.dump("S", p[:n])
	return n, err
}

func (r *recorder) dump(who string, p []byte) {
	for len(p) > 0 {
		n := min(len(p), 16)
		fmt.Fprintf(&r.text, "%s % -48x|%s|\n", who, p[:n], strings.Map(func(c rune) rune {
			if c < 0x20 || c > 0x7e {
				return '.'
			}
			return c
		}, latin1(p[:n])))
		p = p[n:]
	}
}

func latin1(p []byte) string {
	var b strings.Builder
	for _, c := range p {
		b.WriteRune(rune(c))
	}
	return b.String()
}

// TestSessions plays one session in each mode and compares every byte on the
// wire with testdata/session-*.txt (go test ./pkg/nbd -run TestSessions -update).
func TestSessions(t *testing.T) {
	for m, name := range []string{"simple", "structured", "extended"} {
		t.Run(name, func(t *testing.T) {
			s := &Server{Exports: []Export{{Name: "disk", Description: "four sectors", Device: extents{pattern(2048)}}}}
			nc, done := serveOne(context.Background(), s)
			rec := &recorder{Conn: nc}
			c := &client{t: t, nc: rec}
			rec.note("greeting and client flags")
			c.hello(handshakeFixed | handshakeNoZeroes)
			switch mode(m) {
			case structured:
				rec.note("STRUCTURED_REPLY")
				c.ack(optStructuredReply, nil)
				c.structured = true
			case extended:
				rec.note("EXTENDED_HEADERS")
				c.ack(optExtendedHeaders, nil)
				c.structured, c.extended = true, true
			default:
				rec.note("LIST")
				c.ack(optList, nil)
				rec.note("STARTTLS: ERR_POLICY")
				c.option(optStartTLS, nil)
				rec.note("INFO of an export there is not: ERR_UNKNOWN")
				c.option(optInfo, infoData("tape"))
			}
			if mode(m) != simple {
				rec.note("LIST_META_CONTEXT")
				c.ack(optListMeta, metaData("disk"))
				rec.note("SET_META_CONTEXT base:allocation")
				c.ack(optSetMeta, metaData("disk", contextAllocation))
			}
			rec.note("GO, asking for name, description, block sizes")
			c.ack(optGo, infoData("disk", infoName, infoDescription, infoBlockSize))
			rec.note("READ of 20 bytes at 510")
			c.do(request{Type: cmdRead, Cookie: 1, Offset: 510, Length: 20}, nil)
			rec.note("READ past the end: EINVAL")
			c.do(request{Type: cmdRead, Cookie: 2, Offset: 2048, Length: 1}, nil)
			rec.note("WRITE: EPERM")
			c.do(request{Type: cmdWrite, Cookie: 3, Length: 4}, []byte("data"))
			rec.note("CACHE")
			c.do(request{Type: cmdCache, Cookie: 4, Length: 2048}, nil)
			rec.note("BLOCK_STATUS")
			c.do(request{Type: cmdBlockStatus, Cookie: 5, Length: 2048}, nil)
			rec.note("DISC")
			c.send(c.appendRequest(nil, request{Type: cmdDisconnect, Cookie: 6}))
			c.closed()
			if err := <-done; err != nil {
				t.Fatal(err)
			}

			file := filepath.Join("testdata", "session-"+name+".txt")
			got := []byte(rec.text.String())
			if *update {
				if err := os.MkdirAll("testdata", 0o777); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, got, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the wire bytes differ from %s:\n%s", file, got)
			}
		})
	}
}
