package zinfo

// combine gives the CRC-32 of a followed by b, of which the latter has n bytes,
// from those of a and b: a's is moved on by 8n bits, that is, multiplied by
// x^(8n) modulo the polynomial.
func combine(a, b uint32, n int64) uint32 {
	if a == 0 {
		return b
	}
	// pow is x^(8*2^k) for the k-th bit of n.
	pow := uint32(1) << (31 - 8)
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			a = multiply(a, pow)
		}
		pow = multiply(pow, pow)
	}
	return a ^ b
}

// multiply multiplies polynomials over GF(2) modulo that of CRC-32. As in
// hash/crc32, bit 31 is the coefficient of x^0.
func multiply(a, b uint32) (p uint32) {
	for bit := uint32(1) << 31; bit != 0; bit >>= 1 {
		if a&bit != 0 {
			p ^= b
		}
		// b times x
		carry := b & 1
		b >>= 1
		if carry != 0 {
			b ^= 0xedb88320
		}
	}
	return p
}
