//go:build unix

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// onStatsSignal calls f for each SIGUSR1 until ctx is done.
func onStatsSignal(ctx context.Context, f func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() {
		defer signal.Stop(c)
		for {
			select {
			case <-c:
				f()
			case <-ctx.Done():
				return
			}
		}
	}()
}
