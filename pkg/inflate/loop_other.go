//go:build inflate_safe || !(amd64 || arm64)

package inflate

// loop is safeLoop where there is no better one.
func (z *Reader) loop() result { return z.safeLoop() }
