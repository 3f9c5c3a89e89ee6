package nbddev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// Commands and attributes of the family, include/uapi/linux/nbd-netlink.h.
const (
	familyName = "nbd"
	groupName  = "nbd_mc_group"

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdLinkDead    = 4
	cmdStatus      = 5

	attrIndex           = 1  // u32
	attrSizeBytes       = 2  // u64
	attrBlockSizeBytes  = 3  // u64
	attrTimeout         = 4  // u64, seconds
	attrServerFlags     = 5  // u64
	attrClientFlags     = 6  // u64
	attrSockets         = 7  // nested
	attrDeadConnTimeout = 8  // u64, seconds
	attrDeviceList      = 9  // nested
	attrBackend         = 10 // string

	sockItem = 1 // nested, in attrSockets
	sockFD   = 1 // u32, in sockItem

	deviceItem      = 1 // nested, in attrDeviceList
	deviceIndex     = 1 // u32, in deviceItem
	deviceConnected = 2 // u8, in deviceItem

	// Transmission flags, from the protocol.
	serverHasFlags = 1 << 0
	serverReadOnly = 1 << 1

	clientDisconnectOnClose = 1 << 1
)

// A link is a connection to the driver.
type link struct {
	c      *genetlink.Conn
	family genetlink.Family
}

// errNoFamily says that netlink does not know the driver.
var errNoFamily = errors.New("netlink has no nbd family")

func openLink() (*link, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoFamily, err)
	}
	family, err := c.GetFamily(familyName)
	if err != nil {
		c.Close()
		if errors.Is(err, os.ErrNotExist) {
			err = errNoFamily
		}
		return nil, err
	}
	return &link{c, family}, nil
}

func (l *link) Close() error { return l.c.Close() }

// do sends a command and gives the messages that answer it.
func (l *link) do(command uint8, flags netlink.HeaderFlags, encode func(*netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	encode(e)
	data, err := e.Encode()
	if err != nil {
		return nil, err
	}
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: l.family.Version}, Data: data}
	replies, err := l.c.Execute(m, l.family.ID, netlink.Request|flags)
	if err != nil {
		// The errno says it all; the library's words around it are about
		// netlink's, which is nobody's concern.
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			err = errno
		}
		return nil, err
	}
	return replies, nil
}

func socket(e *netlink.AttributeEncoder, fd int) {
	e.Nested(attrSockets, func(e *netlink.AttributeEncoder) error {
		e.Nested(sockItem, func(e *netlink.AttributeEncoder) error {
			e.Uint32(sockFD, uint32(fd))
			return nil
		})
		return nil
	})
}

// connect gives the driver a socket and gets a device for it, the one that c
// names or any that is free.
func (l *link) connect(c *Config, fd int) (index int, err error) {
	// Without an acknowledgement: the answer and the acknowledgement would come
	// in two datagrams, of which the library expects one.
	replies, err := l.do(cmdConnect, 0, func(e *netlink.AttributeEncoder) {
		if c.Index >= 0 {
			e.Uint32(attrIndex, uint32(c.Index))
		}
		e.Uint64(attrSizeBytes, uint64(c.Size))
		e.Uint64(attrBlockSizeBytes, uint64(c.BlockSize))
		// No timeout: the driver then never drops a socket for being slow.
		e.Uint64(attrTimeout, 0)
		e.Uint64(attrServerFlags, serverHasFlags|serverReadOnly)
		e.Uint64(attrDeadConnTimeout, uint64(max(1, c.DeadTimeout/time.Second)))
		if c.Backend != "" {
			e.String(attrBackend, c.Backend)
		}
		socket(e, fd)
	})
	if err != nil {
		return 0, err
	}
	for _, m := range replies {
		d, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return 0, err
		}
		for d.Next() {
			if d.Type() == attrIndex {
				return int(d.Uint32()), nil
			}
		}
	}
	return 0, errors.New("the driver did not say which device it chose")
}

// reconfigure gives the driver a socket in the place of one that is dead. It
// succeeds, and drops the socket, if none is.
func (l *link) reconfigure(c *Config, fd int) error {
	_, err := l.do(cmdReconfigure, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrIndex, uint32(c.Index))
		e.Uint64(attrDeadConnTimeout, uint64(max(1, c.DeadTimeout/time.Second)))
		if c.Backend != "" {
			e.String(attrBackend, c.Backend)
		}
		socket(e, fd)
	})
	return err
}

// clientFlags sets what the driver does with the device on its own.
func (l *link) clientFlags(index int, backend string, flags uint64) error {
	_, err := l.do(cmdReconfigure, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrIndex, uint32(index))
		if backend != "" {
			e.String(attrBackend, backend)
		}
		e.Uint64(attrClientFlags, flags)
	})
	return err
}

func (l *link) disconnect(index int) error {
	_, err := l.do(cmdDisconnect, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
		e.Uint32(attrIndex, uint32(index))
	})
	return err
}

// Watch calls dead with a device's index whenever a server's connection to the
// driver is lost, until ctx is done.
func Watch(ctx context.Context, dead func(index int)) error {
	l, err := openLink()
	if err != nil {
		return err
	}
	defer l.Close()
	for _, g := range l.family.Groups {
		if g.Name == groupName {
			if err := l.c.JoinGroup(g.ID); err != nil {
				return err
			}
		}
	}
	defer context.AfterFunc(ctx, func() { l.c.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		messages, _, err := l.c.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, m := range messages {
			d, err := netlink.NewAttributeDecoder(m.Data)
			if err != nil || m.Header.Command != cmdLinkDead {
				continue
			}
			for d.Next() {
				if d.Type() == attrIndex {
					dead(int(d.Uint32()))
				}
			}
		}
	}
}
