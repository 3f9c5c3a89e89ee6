package nbd_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/layerpipe/layerpipe/internal/nbdclient"
	"github.com/layerpipe/layerpipe/pkg/nbd"
)

// text is a device: all that one has to be is a size, and reads that anybody may
// make at any time.
type text struct{ *strings.Reader }

func (t text) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return t.ReadAt(p, off)
}

func ExampleServer() {
	s := &nbd.Server{Exports: []nbd.Export{{Name: "greeting", Device: text{strings.NewReader("Hello, disk!")}}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, l) }()

	// Any client will do: nbdinfo, qemu-img, nbdfuse, ...
	c, err := nbdclient.Dial("nbd://" + l.Addr().String() + "/greeting")
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	fmt.Printf("%s %v\n", b, err)
	c.Close()

	stop() // what is in flight is still answered
	fmt.Println(<-ended)
	fmt.Println(s.Stats().Reads, "reads")
	// Output:
	// Hello, disk! <nil>
	// <nil>
	// 1 reads
}

// One connection, from wherever it comes, without a listener.
func ExampleServer_ServeConn() {
	s := &nbd.Server{
		Exports: []nbd.Export{{Device: text{strings.NewReader("Hello, disk!")}}},
		Logf:    func(format string, args ...any) { fmt.Printf(format+"\n", args...) },
	}
	theirs, ours := net.Pipe()
	go theirs.Write([]byte("this is no NBD client")) // the first 4 bytes are its flags
	go io.Copy(io.Discard, theirs)
	err := s.ServeConn(context.Background(), ours)
	fmt.Println(err)
	// Output:
	// client pipe: unknown handshake flags 0x74686973
	// unknown handshake flags 0x74686973
}
