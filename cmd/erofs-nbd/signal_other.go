//go:build !unix

package main

import "context"

// onStatsSignal does nothing: there is no such signal here.
func onStatsSignal(context.Context, func()) {}
