//go:build !inflate_safe

package inflate

import "unsafe"

// loopBMI2 is loop in assembly.
//
//go:noescape
func loopBMI2(b, n uint64, ip, op, lit unsafe.Pointer, litMask uint64, dist, ilim, olim unsafe.Pointer, distMask uint64, floor unsafe.Pointer) (b2, n2 uint64, ip2, op2 unsafe.Pointer, res result)

// hasBMI2 asks the processor for what loopBMI2 takes: BMI2, and so POPCNT.
func hasBMI2() bool

func init() {
	if hasBMI2() {
		fastest = loopBMI2
	}
}
