//go:build !linux

package main

import (
	"context"
	"fmt"
)

func (b *bench) mounted(context.Context) error {
	fmt.Println("mounted: nothing, that wants Linux")
	return nil
}
