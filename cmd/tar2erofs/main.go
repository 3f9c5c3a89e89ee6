// Command tar2erofs makes an EROFS image of a container image's layers, or of
// any tar.
package main

import "github.com/layerpipe/layerpipe/cmd/internal/cli"

func main() { cli.Main("tar2erofs", run) }
