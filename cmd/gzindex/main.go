// Command gzindex makes checkpoint files for random access into gzip data, and
// shows, verifies and uses them.
package main

import "github.com/layerpipe/layerpipe/cmd/internal/cli"

func main() { cli.Main("gzindex", run) }
