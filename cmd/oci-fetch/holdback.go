package main

import (
	"bytes"
	"io"
)

// A holdback passes bytes on, but for the last one that is not zero and the
// zeros behind it. A blob is only known to be right at its end, when all of it
// has gone down the pipe; without its last bytes no reader takes it for whole:
// a compressed stream lacks its trailer, a tar its end marker.
type holdback struct {
	w     io.Writer
	last  []byte // none, or the byte that is held back
	zeros int64  // behind it
}

func (h *holdback) Write(p []byte) (int, error) {
	keep := len(bytes.TrimRight(p, "\x00"))
	if keep == 0 {
		h.zeros += int64(len(p))
		return len(p), nil
	}
	if err := h.release(); err != nil {
		return 0, err
	}
	if _, err := h.w.Write(p[:keep-1]); err != nil {
		return 0, err
	}
	h.last = append(h.last, p[keep-1])
	h.zeros = int64(len(p) - keep)
	return len(p), nil
}

var zeroPage [32 << 10]byte

// release passes on what was held back.
func (h *holdback) release() error {
	if _, err := h.w.Write(h.last); err != nil {
		return err
	}
	h.last = h.last[:0]
	for h.zeros > 0 {
		n, err := h.w.Write(zeroPage[:min(h.zeros, int64(len(zeroPage)))])
		h.zeros -= int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}
