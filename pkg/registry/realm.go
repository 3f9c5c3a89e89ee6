package registry

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// realm checks the address of a token server before anything is sent there.
// The registry chooses it, so it may be a trap: plain HTTP for a registry that
// speaks HTTPS would show the password to the network, and an address that only
// this machine or its network can reach may be a service of quite another kind.
// A registry that is itself internal has its token server there too; any other
// needs Options.TokenServers.
func (a *authorizer) realm(ctx context.Context, s string) (*url.URL, error) {
	refuse := func(why string) (*url.URL, error) {
		return nil, finalError{fmt.Errorf("%s names a token server %s: %w", a.c.host, why, fault.ErrUnauthorized)}
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return refuse("with a bad address")
	}
	if u.Scheme == "http" && a.c.scheme() == "https" {
		return refuse(u.Host + " without encryption")
	}
	name := u.Hostname()
	own := (&url.URL{Host: a.c.host}).Hostname()
	if strings.EqualFold(name, own) || slices.Contains(a.c.o.TokenServers, u.Host) || slices.Contains(a.c.o.TokenServers, name) {
		return u, nil
	}
	if internal(ctx, name) && !internal(ctx, own) {
		return refuse(u.Host + ", an internal address")
	}
	return u, nil
}

// sharedSpace is for carriers' own networks (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// internal reports whether a host is one that the outside world cannot reach. A
// name that does not resolve is not: behind a proxy no name may.
func internal(ctx context.Context, host string) bool {
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, a)
	} else {
		// Where only a proxy can resolve names, asking may take long.
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
			return false
		}
	}
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		a = a.Unmap()
		return a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() ||
			a.IsUnspecified() || sharedSpace.Contains(a)
	})
}
