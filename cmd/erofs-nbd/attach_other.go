//go:build !linux

package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/nbd"
)

// A takeover is a dead server's device.
type takeover struct{}

func errLinux() error {
	return fmt.Errorf("devices, mounts and --daemon are Linux's; this is %s: %w", runtime.GOOS, fault.ErrUnsupported)
}

func isDaemon() bool                                         { return false }
func startDaemon(context.Context, *cli.Env, []string) error  { return errLinux() }
func tellReady(*cli.Env) error                               { return nil }
func (f *flags) probe() error                                { return errLinux() }
func (f *flags) list(*cli.Env) error                         { return errLinux() }
func (f *flags) detach() error                               { return errLinux() }
func (f *flags) take() (*takeover, error)                    { return nil, errLinux() }
func (f *flags) reattachAll(context.Context, *cli.Env) error { return errLinux() }
func (f *flags) serveKernel(context.Context, *cli.Env, *log, *nbd.Server, *takeover) error {
	return errLinux()
}
