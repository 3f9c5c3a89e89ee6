// Command erofs-nbd serves an EROFS image as a network block device, with the
// data of its files still lying in the registry.
package main

import "github.com/layerpipe/layerpipe/cmd/internal/cli"

func main() { cli.Main("erofs-nbd", run) }
