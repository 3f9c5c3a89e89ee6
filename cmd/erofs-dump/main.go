// Command erofs-dump shows what is in an EROFS image.
package main

import "github.com/layerpipe/layerpipe/cmd/internal/cli"

func main() { cli.Main("erofs-dump", run) }
