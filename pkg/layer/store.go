package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/layerpipe/layerpipe/pkg/seek"
)

// A Store keeps the blobs' bytes beyond the life of a Lazy, as spancache.Disk
// does. They are kept as they come from the registry: compressed, which is a
// third of what they decode to, and with the digests that they have anyway. So
// a store needs no trust: what was torn or tampered with does not match.
//
// A name stands for the content where that has digests, and is shared by all
// images that have it. Layers without digests add a checksum of their own, of
// the name and the bytes, which tells a torn file, though not a forged one.
type Store interface {
	Has(name [32]byte, size int64) bool
	Load(name [32]byte, p []byte) bool // fills p, if there is as much
	Save(name [32]byte, p []byte)      // p does not change any more
	// Drop is for bytes p that Load gave and that are not what they should be.
	// What was saved in their place meanwhile stays. Nil stands for any bytes.
	Drop(name [32]byte, p []byte)
}

// A part is a range of the blob that the store has under one name: that of a
// unit, or a piece of one that is too large for memory.
type part struct {
	in, end int64
	sums    [][32]byte // nil: there are none
	name    [32]byte
}

// parts returns those of unit i; none if there is no store for it.
func (l *Lazy) parts(i int) []part {
	if l.opt.Store == nil {
		return nil
	}
	in, end, _, _ := l.units.span(i)
	sums := l.units.digests(i)
	if !l.spillable(i) {
		return []part{l.part(in, end, sums)}
	}
	if sums == nil {
		return nil
	}
	list := make([]part, len(sums))
	for k := range sums {
		at := in + int64(k)*seek.PieceSize
		list[k] = l.part(at, min(at+seek.PieceSize, end), sums[k:k+1])
	}
	return list
}

func (l *Lazy) part(in, end int64, sums [][32]byte) part {
	p := part{in: in, end: end, sums: sums}
	switch {
	case len(sums) == 1:
		p.name = sums[0]
	case len(sums) > 1:
		h := sha256.New()
		for k := range sums {
			h.Write(sums[k][:])
		}
		p.name = [32]byte(h.Sum(nil))
	default:
		b := append([]byte("layerpipe unverified\x00"), l.opt.Digest...)
		b = binary.BigEndian.AppendUint64(b, uint64(in))
		b = binary.BigEndian.AppendUint64(b, uint64(end))
		p.name = sha256.Sum256(b)
	}
	return p
}

// stored is the size of the part's file.
func (p *part) stored() int64 {
	if p.sums == nil {
		return p.end - p.in + sha256.Size
	}
	return p.end - p.in
}

// has reports whether the store seems to have a part.
func (l *Lazy) has(p *part) bool { return l.opt.Store.Has(p.name, p.stored()) }

// Kept counts the layer's spans, and those that the store seems to have.
func (l *Lazy) Kept() (have, all int) {
	all = l.units.count()
	for i := range all {
		parts := l.parts(i)
		lacking := slices.ContainsFunc(parts, func(p part) bool { return !l.has(&p) })
		if len(parts) > 0 && !lacking {
			have++
		}
	}
	return have, all
}

// load gets a part from the store, verified as far as that goes.
func (l *Lazy) load(p *part) ([]byte, bool) {
	b := make([]byte, p.stored())
	if !l.opt.Store.Load(p.name, b) {
		return nil, false
	}
	comp := b[:p.end-p.in]
	ok := false
	if p.sums == nil {
		ok = checksum(p.name, comp) == [32]byte(b[len(comp):])
	} else {
		ok = verify(comp, p.in, p.sums) == nil
	}
	if !ok {
		l.opt.Store.Drop(p.name, b)
		return nil, false
	}
	l.stats.loads.Add(1)
	l.stats.loaded.Add(int64(len(comp)))
	return comp, true
}

// save gives a part to the store. comp was verified, where that can be.
func (l *Lazy) save(p *part, comp []byte) {
	if p.sums == nil {
		sum := checksum(p.name, comp)
		comp = append(append(make([]byte, 0, p.stored()), comp...), sum[:]...)
	}
	l.opt.Store.Save(p.name, comp)
}

func checksum(name [32]byte, comp []byte) (sum [32]byte) {
	h := sha256.New()
	h.Write(name[:])
	h.Write(comp)
	h.Sum(sum[:0])
	return sum
}

// saveUnit gives unit i to the store.
func (l *Lazy) saveUnit(i int, comp []byte) {
	if parts := l.parts(i); len(parts) == 1 {
		l.save(&parts[0], comp)
	}
	l.whole.had(i)
}
