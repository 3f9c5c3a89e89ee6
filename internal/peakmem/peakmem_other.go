//go:build !unix

package peakmem

import "os"

const supported = false

func maxRSS(*os.ProcessState) int64 { return 0 }
