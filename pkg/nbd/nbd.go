// Package nbd serves read-only block devices over the NBD protocol (fixed
// newstyle, with structured replies and extended headers), as described in
// doc/proto.md of https://github.com/NetworkBlockDevice/nbd.
//
// A reply is sent only when all of its bytes are at hand: what cannot be read
// is an error to the client, never bytes that look good. A connection stays
// usable after every failed command. What a client can make the server hold in
// memory is bounded, for each connection and for all of them together.
package nbd

import (
	"context"
	"crypto/tls"
	"time"
)

// A Device is what an export serves. Its methods are called by many goroutines
// at once.
type Device interface {
	// ReadAtContext fills p from offset off, or fails. It is never asked for
	// bytes past Size.
	ReadAtContext(ctx context.Context, p []byte, off int64) (n int, err error)
	// Size is in bytes, and never changes.
	Size() int64
}

// An Extent is a run of bytes that is alike in how it is stored.
type Extent struct {
	Length int64 // bytes
	Hole   bool  // takes no room where it is stored
	Zero   bool  // reads as zeros
}

// An ExtentDevice knows which of its ranges read as zeros; clients that copy
// then leave those out.
type ExtentDevice interface {
	Device
	// Extents describes the range from off on, in at most limit extents; it
	// may stop short of length, but describes at least one byte.
	Extents(ctx context.Context, off, length int64, limit int) ([]Extent, error)
}

// A ReadyDevice can tell whether bytes are at hand. Short reads of such bytes
// are answered without handing them to another goroutine.
type ReadyDevice interface {
	Device
	// ReadReady fills p from offset off if that needs no waiting, for a disk, a
	// network or much computation, and reports whether it did.
	ReadReady(p []byte, off int64) bool
}

// A CachingDevice has its own way to bring a range near (NBD_CMD_CACHE). Of
// other devices, the range is read and dropped.
type CachingDevice interface {
	Device
	Cache(ctx context.Context, off, length int64) error
}

// An Export is a device under a name.
type Export struct {
	Name        string // at most 4096 bytes
	Description string // shown by clients that list
	Device      Device
	// Block sizes told to clients: powers of two. Zero means 1 and 4096.
	MinBlock, PreferredBlock uint32
}

// Limits of the protocol and of this server.
const (
	// MaxRead is the longest READ, in bytes; beyond it the answer is ENOMEM.
	MaxRead = 32 << 20
	// maxDrain is the longest payload that is skipped to keep in step with a
	// client that writes; beyond it the connection is closed.
	maxDrain = 64 << 20
	// maxString is the protocol's longest name or message.
	maxString = 4096
	// maxOption bounds an option's data; the longest sensible one is a meta
	// context request with a few names.
	maxOption = 64 << 10
	// maxOptions bounds how long a client may haggle.
	maxOptions = 256
	// maxExtents bounds one BLOCK_STATUS reply.
	maxExtents = 8192
)

// A Server serves exports. The zero value of every field but Exports is
// usable. Fields must not change once Serve or ServeConn was called.
type Server struct {
	// Exports; the first one is also what the empty name means.
	Exports []Export

	// TLS, if set, is required of every client before anything else.
	TLS *tls.Config

	// MaxConns bounds the connections at one time. One more is closed at once,
	// or takes the place of one that is still in its handshake: the oldest one of
	// the address that has the most of them. Default 64.
	MaxConns int
	// MaxRequests bounds the requests in flight on one connection. Default 64.
	MaxRequests int
	// MaxMemory bounds the bytes of replies in flight on all connections
	// together, apart from a small reserve that each one has for itself so
	// that a client that does not read its replies cannot starve the others.
	// Default 128 MiB, at least 64 MiB.
	MaxMemory int64

	// HandshakeTimeout bounds the whole of the negotiation. Default 1 minute.
	HandshakeTimeout time.Duration
	// WriteTimeout is how long a client may leave a reply lying before it is
	// disconnected. Default 2 minutes.
	WriteTimeout time.Duration
	// DrainTimeout is how long a shutdown waits for requests in flight.
	// Default 10 seconds.
	DrainTimeout time.Duration

	// OnError hears of each read of a device that failed; the client got EIO.
	OnError func(e *Export, off int64, length int, err error)
	// Logf hears of clients that break the protocol.
	Logf func(format string, args ...any)

	state serverState
}
