//go:build unix

package peakmem

import (
	"os"
	"runtime"
	"syscall"
)

const supported = true

// maxRSS is in bytes; the kernels differ in the unit.
func maxRSS(s *os.ProcessState) int64 {
	usage, ok := s.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	if runtime.GOOS == "darwin" || runtime.GOOS == "ios" {
		return int64(usage.Maxrss)
	}
	return int64(usage.Maxrss) << 10
}
