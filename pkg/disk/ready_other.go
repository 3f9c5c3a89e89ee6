//go:build !linux

package disk

// ReadReady does not know: only Linux tells what it has in memory.
func (f *file) ReadReady([]byte, int64) bool { return false }
