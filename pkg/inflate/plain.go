package inflate

// plainLoop does what loop does, one plain step at a time. It can be read as
// the specification, RFC 1951 section 3.2.3, and works where loop does not: on
// the last bytes of the input, where it stops before the first symbol that is
// cut off, and while a trace is taken, 32 KiB in a span of 4 MiB.
func (z *Reader) plainLoop() result {
	for z.op < z.olim {
		if tracing := z.trace != nil && z.op < z.tend; !tracing && z.ip <= z.ilim {
			break // loop can go on
		}
		z.refill()
		e := z.lit[z.b&z.litMask]
		if e&entSubtable != 0 {
			z.drop(uint(e & 0xff))
			e = z.lit[uint64(e>>16)+z.b&(1<<(e>>8&15)-1)]
		}
		switch {
		case e&entLiteral != 0:
			z.drop(uint(e & 0xff))
			if z.overrun() {
				return resOverrun
			}
			z.out[z.op] = byte(e >> 16)
			z.op++
			continue
		case e&entEnd != 0:
			z.drop(uint(e & 0xff))
			return resEnd
		case e&entExceptional != 0:
			z.drop(uint(e & 0xff))
			return resSymbol
		}
		n := z.value(e)
		// 20 of 56 bits may be gone, and 28 may be needed.
		e = z.dist[z.b&z.distMask]
		if e&entSubtable != 0 {
			z.drop(uint(e & 0xff))
			e = z.dist[uint64(e>>16)+z.b&(1<<(e>>8&15)-1)]
		}
		if e&entExceptional != 0 {
			return resDist
		}
		src := z.op - z.value(e)
		if z.overrun() {
			return resOverrun
		}
		if src < z.floor {
			return resTooFar
		}
		if z.trace != nil && z.op < z.tend {
			z.mark(src, n)
		}
		for range n {
			z.out[z.op] = z.out[src]
			z.op++
			src++
		}
	}
	return resLimit
}

// value uses up an entry's code and extra bits, and adds those to its base.
func (z *Reader) value(e uint32) int {
	total, code := e&0xff, e>>8&15
	v := int(e>>16) + int(z.b&(1<<total-1)>>code)
	z.drop(uint(total))
	return v
}
