package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"time"
)

// errBye ends a handshake as the client wished.
var errBye = errors.New("client left")

// protocolError is a client's breach of the protocol that leaves no way to go
// on.
type protocolError string

func (e protocolError) Error() string { return string(e) }

func protocolErrorf(format string, args ...any) error {
	return protocolError(fmt.Sprintf(format, args...))
}

// negotiate goes through the handshake until the client has chosen an export.
func (c *conn) negotiate(ctx context.Context) error {
	c.setDeadline(time.Now().Add(c.srv.HandshakeTimeout))
	if _, err := c.nc.Write(appendHello(nil)); err != nil {
		return err
	}
	var flags [clientFlagsLen]byte
	if _, err := io.ReadFull(c.br, flags[:]); err != nil {
		if err == io.EOF {
			return errBye // a probe: someone wanted to know whether we live
		}
		return err
	}
	f := be.Uint32(flags[:])
	if f&^(handshakeFixed|handshakeNoZeroes) != 0 {
		return protocolErrorf("unknown handshake flags %#x", f)
	}
	c.noZeroes = f&handshakeNoZeroes != 0

	for range maxOptions {
		var head [optionLen]byte
		if _, err := io.ReadFull(c.br, head[:]); err != nil {
			if err == io.EOF {
				return errBye
			}
			return err
		}
		o := decodeOption(&head)
		if o.Magic != magicOption {
			return protocolErrorf("bad option magic %#x", o.Magic)
		}
		if o.Length > maxOption {
			return protocolErrorf("option %d with %d bytes of data", o.Type, o.Length)
		}
		data := make([]byte, o.Length)
		if _, err := io.ReadFull(c.br, data); err != nil {
			return err
		}
		if done, err := c.option(ctx, o.Type, data); done || err != nil {
			return err
		}
	}
	return protocolErrorf("more than %d options", maxOptions)
}

// option answers one option; done means that transmission begins.
func (c *conn) option(ctx context.Context, opt uint32, data []byte) (done bool, err error) {
	if c.srv.TLS != nil && !c.tls && opt != optStartTLS && opt != optAbort {
		if opt == optExportName {
			return false, protocolErrorf("EXPORT_NAME before TLS")
		}
		return false, c.reply(opt, repErrTLSRequired)
	}
	switch opt {
	case optAbort:
		c.reply(opt, repAck) // it may be gone already
		return false, errBye
	case optExportName:
		return true, c.exportName(data)
	case optList:
		return false, c.list(data)
	case optStartTLS:
		return false, c.startTLS(ctx, data)
	case optInfo, optGo:
		return c.info(opt, data)
	case optStructuredReply, optExtendedHeaders:
		return false, c.headers(opt, data)
	case optListMeta, optSetMeta:
		return false, c.metaContext(opt, data)
	}
	return false, c.reply(opt, repErrUnsupported)
}

// reply sends one reply without data to an option.
func (c *conn) reply(opt, rep uint32) error {
	_, err := c.nc.Write(appendOptionReply(nil, opt, rep, nil))
	return err
}

// exportName is the old way to choose; its only error is to hang up.
func (c *conn) exportName(data []byte) error {
	if c.extended {
		return protocolErrorf("EXPORT_NAME after EXTENDED_HEADERS")
	}
	e := c.srv.export(string(data))
	if e == nil {
		return protocolErrorf("no export named %.100q", data)
	}
	c.choose(e)
	b := appendExport(nil, e.Device.Size(), c.exportFlags())
	if !c.noZeroes {
		b = append(b, make([]byte, exportZeroes)...)
	}
	_, err := c.nc.Write(b)
	return err
}

func (c *conn) list(data []byte) error {
	if len(data) != 0 {
		return c.reply(optList, repErrInvalid)
	}
	var b []byte
	for i := range c.srv.Exports {
		e := &c.srv.Exports[i]
		b = appendOptionReply(b, optList, repServer, appendServer(nil, e.Name, e.Description))
	}
	_, err := c.nc.Write(appendOptionReply(b, optList, repAck, nil))
	return err
}

func (c *conn) startTLS(ctx context.Context, data []byte) error {
	switch {
	case len(data) != 0, c.tls:
		return c.reply(optStartTLS, repErrInvalid)
	case c.srv.TLS == nil:
		return c.reply(optStartTLS, repErrPolicy)
	case c.br.Buffered() > 0:
		// Bytes sent in the clear must not pass for bytes sent within TLS.
		return protocolErrorf("data behind STARTTLS")
	}
	if err := c.reply(optStartTLS, repAck); err != nil {
		return err
	}
	t := tls.Server(c.nc, c.srv.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	// All that was negotiated in the clear is forgotten.
	c.setNetConn(t)
	c.br = bufio.NewReaderSize(t, readerSize)
	c.tls, c.structured, c.extended, c.metaExport = true, false, false, nil
	return nil
}

// headers turns on the longer forms of replies.
func (c *conn) headers(opt uint32, data []byte) error {
	if len(data) != 0 {
		return c.reply(opt, repErrInvalid)
	}
	if opt == optExtendedHeaders {
		if c.extended {
			return c.reply(opt, repErrInvalid)
		}
		c.extended = true
	} else if c.extended {
		return c.reply(opt, repErrExtHeaderReqd)
	}
	c.structured = true
	return c.reply(opt, repAck)
}

// info answers INFO and GO.
func (c *conn) info(opt uint32, data []byte) (done bool, err error) {
	r, ok := decodeInfoRequest(data)
	if !ok {
		return false, c.reply(opt, repErrInvalid)
	}
	e := c.srv.export(r.Name)
	if e == nil {
		return false, c.reply(opt, repErrUnknown)
	}
	info := func(b []byte, kind uint16, data []byte) []byte {
		return appendOptionReply(b, opt, repInfo, append(be.AppendUint16(nil, kind), data...))
	}
	b := info(nil, infoExport, appendExport(nil, e.Device.Size(), c.exportFlags()))
	var seen [infoBlockSize + 1]bool // a kind asked for twice is told once
	for _, kind := range r.Kinds {
		if kind > infoBlockSize || seen[kind] {
			continue
		}
		seen[kind] = true
		switch kind {
		case infoName:
			b = info(b, kind, []byte(e.Name))
		case infoDescription:
			if e.Description != "" {
				b = info(b, kind, []byte(e.Description))
			}
		case infoBlockSize:
			b = info(b, kind, appendBlockSize(nil, e.MinBlock, e.PreferredBlock, MaxRead))
		}
	}
	b = appendOptionReply(b, opt, repAck, nil)
	if opt == optGo {
		c.choose(e)
	}
	_, err = c.nc.Write(b)
	return opt == optGo, err
}

// choose ends the handshake with an export. The client may hear of it then, and
// nobody makes it give way any more.
func (c *conn) choose(e *Export) {
	c.srv.state.young.remove(c)
	c.export = e
	c.ready, _ = e.Device.(ReadyDevice)
	c.allocation = c.metaExport == e // contexts hold for the export they were set for
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (c *conn) metaContext(opt uint32, data []byte) error {
	if opt == optSetMeta {
		c.metaExport = nil // what was set before goes, even if this fails
	}
	r, ok := decodeMetaRequest(data)
	if !ok || opt == optSetMeta && !c.structured {
		return c.reply(opt, repErrInvalid)
	}
	e := c.srv.export(r.Name)
	if e == nil {
		return c.reply(opt, repErrUnknown)
	}
	found := opt == optListMeta && len(r.Queries) == 0
	for _, q := range r.Queries {
		if q == contextAllocation || opt == optListMeta && q == contextNamespace {
			found = true
		}
	}
	var b []byte
	if found {
		var id uint32 // meaningless when listing
		if opt == optSetMeta {
			id = contextAllocationID
			c.metaExport = e
		}
		b = appendOptionReply(b, opt, repMetaContext, append(be.AppendUint32(nil, id), contextAllocation...))
	}
	_, err := c.nc.Write(appendOptionReply(b, opt, repAck, nil))
	return err
}

// exportFlags are the transmission flags.
func (c *conn) exportFlags() uint16 {
	var f uint16 = flagHasFlags | flagReadOnly | flagMultiConn | flagCache
	if c.structured {
		f |= flagDF
	}
	return f
}
