// Command vmrun runs a shell script in a virtual machine, for one who looks for
// something by hand:
//
//	go run ./internal/vm/vmrun -put /data/image=golang.erofs -program /sbin/nbd-client \
//		'mount -t erofs -o ro,loop /data/image /mnt && ls /mnt'
//
// Its exit code is the script's.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/layerpipe/layerpipe/internal/vm"
)

func main() {
	exit, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmrun: %v\n", err)
		os.Exit(1)
	}
	os.Exit(exit)
}

func run() (int, error) {
	g, err := vm.New(".")
	if err != nil {
		return 0, err
	}
	// both splits GUEST=HOST; a name that is alone is the same in both.
	both := func(s string) (guest, host string, err error) {
		guest, host, found := strings.Cut(s, "=")
		if !found {
			host = guest
		}
		guest, err = filepath.Abs(guest)
		return guest, host, err
	}
	flag.IntVar(&g.Memory, "memory", 0, "MiB (default 1024)")
	flag.Func("put", "GUEST=HOST: put a file or directory into the guest", func(s string) error {
		guest, host, err := both(s)
		g.Put(guest, host)
		return err
	})
	flag.Func("program", "GUEST=HOST: put a program and its libraries into the guest", func(s string) error {
		guest, host, err := both(s)
		if err != nil {
			return err
		}
		return g.PutProgram(guest, host)
	})
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	g.Script, g.Output = strings.Join(flag.Args(), " "), os.Stdout
	return g.Run(ctx)
}
