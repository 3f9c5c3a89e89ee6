package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

// TestOffline: what is cached is served without the registry, from the start
// on; nothing that is cached, or a registry that refuses, is an error then.
func TestOffline(t *testing.T) {
	f := newFixture(t)
	reg := testregistry.New()
	if err := reg.AddLayout("team/golang", f.im.Dir); err != nil {
		t.Fatal(err)
	}
	// Where nobody else will be when it comes back.
	l, err := net.Listen("tcp", "127.0.6.1:0")
	if err != nil {
		l, err = net.Listen("tcp", "127.0.0.1:0") // one address is all that some systems have
	}
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: reg}}
	srv.Start()
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/team/golang"

	none, some, all := t.TempDir(), t.TempDir(), t.TempDir()
	with := func(dir string) []string { return f.lazyArgs(ref, "--cache-dir", dir) }
	fill := func(dir string, off, n int64) {
		t.Helper()
		s := start(t, with(dir)...)
		if _, err := dial(t, s.uri).ReadAt(make([]byte, n), off); err != nil {
			t.Fatal(err)
		}
		s.stop()
	}
	fill(all, 0, int64(len(f.disk)))
	cached := f.starts[1] + 1000
	fill(some, cached, 100)

	reg.Reset()
	s := start(t, with(all)...)
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("%d requests to start with everything cached", n)
	}
	s.stop()

	// serves starts with something cached and reads that.
	serves := func(name, want string) *nbdclient.Client {
		t.Helper()
		s := start(t, with(some)...)
		c := dial(t, s.uri)
		p := make([]byte, 100)
		if _, err := c.ReadAt(p, cached); err != nil || !bytes.Equal(p, f.disk[cached:][:100]) {
			t.Errorf("%s: what is cached: %v, or wrong bytes", name, err)
		}
		if got := s.stderr.String(); !strings.Contains(got, "warning: ") || !strings.Contains(got, want) || !strings.Contains(got, "only what is cached can be read for now, 1 of ") {
			t.Errorf("%s: stderr: %s", name, got)
		}
		return c
	}
	for name, tt := range map[string]struct {
		serve func(http.ResponseWriter, *http.Request, http.Handler)
		code  int // 0: it starts
		say   string
	}{
		"unavailable":    {testregistry.Status(http.StatusServiceUnavailable), 0, "503"},
		"not authorized": {testregistry.Status(http.StatusForbidden), cli.ExitUnauthorized, "403"},
		"not found":      {testregistry.Status(http.StatusNotFound), cli.ExitNotFound, "404"},
		"another size":   {testregistry.Header(func(h http.Header) { h.Set("Content-Range", "bytes 0-0/9999999") }), cli.ExitIntegrity, "9999999 bytes"},
	} {
		fault := reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: tt.serve})
		if tt.code == 0 {
			serves(name, tt.say)
		} else {
			mustRefuse(t, name, tt.code, tt.say, with(some)...)
		}
		if fault.Delivered() == 0 {
			t.Errorf("%s: the fault was not delivered", name)
		}
		reg.ClearFaults()
	}
	stall := reg.Inject(&testregistry.Fault{Match: testregistry.Blobs, Serve: func(_ http.ResponseWriter, req *http.Request, _ http.Handler) { <-req.Context().Done() }})
	c := serves("says nothing", "no answer within")
	if stall.Delivered() == 0 {
		t.Error("the registry said something")
	}
	// It is back, and so is the rest.
	reg.ClearFaults()
	p := make([]byte, 100)
	if _, err := c.ReadAt(p, f.starts[2]); err != nil || !bytes.Equal(p, f.disk[f.starts[2]:][:100]) {
		t.Errorf("when the registry is back: %v, or wrong bytes", err)
	}

	srv.Close()
	s = start(t, with(all)...)
	f.same(t, readAll(t, s.uri))
	if code := s.stop(); code != 0 || s.stderr.String() != "" {
		t.Errorf("exit code %d, stderr: %s", code, s.stderr)
	}
	s = start(t, with(some)...)
	c = dial(t, s.uri)
	if _, err := c.ReadAt(p, cached); err != nil {
		t.Errorf("what is cached: %v", err)
	}
	mustRefuse(t, "nothing cached", cli.ExitFailed, "refused", with(none)...)
	mustRefuse(t, "no cache", cli.ExitFailed, "refused", f.lazyArgs(ref)...)

	// What is not cached is asked for again and again, as it would be if the
	// registry had been there at the start.
	read := make(chan error)
	go func() {
		_, err := c.ReadAt(p, f.starts[0])
		read <- err
	}()
	s.logged("trying again")
	if l, err = net.Listen("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	again := &httptest.Server{Listener: l, Config: &http.Server{Handler: reg}}
	again.Start()
	defer again.Close()
	if err := <-read; err != nil || !bytes.Equal(p, f.disk[f.starts[0]:][:100]) {
		t.Errorf("what is not: %v, or wrong bytes", err)
	}
}
