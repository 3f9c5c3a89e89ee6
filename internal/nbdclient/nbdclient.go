// Package nbdclient is a small NBD client for tests and the demo: enough of
// fixed newstyle negotiation and simple replies to read an export. It is
// written from the protocol's document, apart from pkg/nbd, so that the two do
// not share a mistake.
package nbdclient

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Client is one connection to one export. It is an io.ReaderAt; reads go out
// one at a time.
type Client struct {
	mu     sync.Mutex
	conn   net.Conn
	r      *bufio.Reader
	size   int64
	flags  uint16
	handle uint64
}

const (
	nbdMagic    = 0x4e42444d41474943 // "NBDMAGIC"
	haveOpt     = 0x49484156454f5054 // "IHAVEOPT"
	replyMagic  = 0x3e889045565a9
	reqMagic    = 0x25609513
	simpleMagic = 0x67446698

	flagFixedNewstyle = 1
	flagNoZeroes      = 2

	optGo      = 7
	repAck     = 1
	repInfo    = 3
	infoExport = 0

	cmdRead = 0
	cmdDisc = 2

	// maxRead is the most that is asked for at once; servers must allow 32 MiB.
	maxRead = 1 << 20
)

// An Error is the error number of a reply that reports a failure.
type Error uint32

func (e Error) Error() string {
	return fmt.Sprintf("NBD error %d (%v)", uint32(e), syscall.Errno(e))
}

// EIO is the error of a read that the server could not do.
const EIO = Error(5)

// Dial connects to nbd://HOST:PORT/NAME or nbd+unix:///NAME?socket=PATH.
func Dial(uri string) (*Client, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	network, addr := "tcp", u.Host
	switch u.Scheme {
	case "nbd":
		if u.Port() == "" {
			addr = net.JoinHostPort(u.Hostname(), "10809")
		}
	case "nbd+unix":
		network, addr = "unix", u.Query().Get("socket")
	default:
		return nil, fmt.Errorf("%s: not an NBD address", uri)
	}
	conn, err := net.DialTimeout(network, addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, r: bufio.NewReader(conn)}
	if err := c.negotiate(strings.TrimPrefix(u.Path, "/")); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	return c, nil
}

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return c.size }

// Flags are the export's transmission flags.
func (c *Client) Flags() uint16 { return c.flags }

func (c *Client) negotiate(export string) error {
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c.r, hello); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello) != nbdMagic || binary.BigEndian.Uint64(hello[8:]) != haveOpt {
		return errors.New("not an NBD server of the newstyle")
	}
	flags := binary.BigEndian.Uint16(hello[16:]) & (flagFixedNewstyle | flagNoZeroes)
	if flags&flagFixedNewstyle == 0 {
		return errors.New("the server does not speak fixed newstyle")
	}
	// Client flags, then NBD_OPT_GO: name length, name, no information requests.
	msg := binary.BigEndian.AppendUint32(nil, uint32(flags))
	msg = binary.BigEndian.AppendUint64(msg, haveOpt)
	msg = binary.BigEndian.AppendUint32(msg, optGo)
	msg = binary.BigEndian.AppendUint32(msg, uint32(4+len(export)+2))
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(export)))
	msg = append(msg, export...)
	msg = binary.BigEndian.AppendUint16(msg, 0)
	if _, err := c.conn.Write(msg); err != nil {
		return err
	}
	described := false
	for {
		head := make([]byte, 20)
		if _, err := io.ReadFull(c.r, head); err != nil {
			return err
		}
		kind, length := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if binary.BigEndian.Uint64(head) != replyMagic || length > 1<<16 {
			return errors.New("malformed option reply")
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(c.r, data); err != nil {
			return err
		}
		switch {
		case kind == repAck && described:
			return nil
		case kind == repInfo && length >= 2 && binary.BigEndian.Uint16(data) == infoExport:
			if length != 12 {
				return errors.New("malformed NBD_INFO_EXPORT")
			}
			c.size, c.flags = int64(binary.BigEndian.Uint64(data[2:])), binary.BigEndian.Uint16(data[10:])
			described = true
		case kind == repInfo:
		case kind&(1<<31) != 0:
			return fmt.Errorf("the server refuses export %q: error %#x %s", export, kind, data)
		default:
			return fmt.Errorf("unexpected option reply %#x", kind)
		}
	}
}

// ReadAt implements io.ReaderAt. What the server refuses is an Error; the
// connection can be used on.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var tail error
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= c.size {
		return 0, io.EOF
	}
	if int64(len(p)) > c.size-off {
		p, tail = p[:c.size-off], io.EOF
	}
	done := 0
	for done < len(p) {
		n := min(len(p)-done, maxRead)
		if err := c.read(p[done:done+n], off+int64(done)); err != nil {
			return done, err
		}
		done += n
	}
	return done, tail
}

func (c *Client) read(p []byte, off int64) error {
	if err := c.send(cmdRead, off, uint32(len(p))); err != nil {
		return err
	}
	head := make([]byte, 16)
	if _, err := io.ReadFull(c.r, head); err != nil {
		return noEOF(err)
	}
	if binary.BigEndian.Uint32(head) != simpleMagic || binary.BigEndian.Uint64(head[8:]) != c.handle {
		return errors.New("malformed reply")
	}
	if e := binary.BigEndian.Uint32(head[4:]); e != 0 {
		return Error(e)
	}
	_, err := io.ReadFull(c.r, p)
	return noEOF(err)
}

func (c *Client) send(command uint16, off int64, length uint32) error {
	c.handle++
	msg := binary.BigEndian.AppendUint32(nil, reqMagic)
	msg = binary.BigEndian.AppendUint16(msg, 0)
	msg = binary.BigEndian.AppendUint16(msg, command)
	msg = binary.BigEndian.AppendUint64(msg, c.handle)
	msg = binary.BigEndian.AppendUint64(msg, uint64(off))
	msg = binary.BigEndian.AppendUint32(msg, length)
	_, err := c.conn.Write(msg)
	return err
}

// Close says goodbye and closes the connection.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.send(cmdDisc, 0, 0), c.conn.Close())
}

// Abandon closes the connection as a client does that is killed: at once,
// whatever is under way.
func (c *Client) Abandon() error { return c.conn.Close() }

// noEOF keeps a lost connection from looking like the end of the device.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadBeyond asks for a range that need not be within the export, and returns
// the error that the server answers with.
func (c *Client) ReadBeyond(off int64, n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.read(make([]byte, n), off)
}
