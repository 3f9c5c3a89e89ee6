package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// What is discarded before it is decoded makes no difference to what is read
// around it, nor to the seek data.
func TestDiscardIsReading(t *testing.T) {
	for _, c := range blobCases(t, 2<<20) {
		t.Run(c.name, func(t *testing.T) {
			want := seekOf(t, c.blob, 300_000)
			rnd := rand.New(rand.NewPCG(3, 4))
			r := NewReader(context.Background(), bytes.NewReader(c.blob), Options{Descriptor: describe(c.blob), Seek: true, SpanSize: 300_000})
			defer r.Close()
			at := 0
			for at < len(c.raw) {
				p, err := r.Peek(rnd.IntN(2000))
				if !bytes.Equal(p, c.raw[at:at+len(p)]) || err != nil && err != io.EOF {
					t.Fatalf("Peek at %d: %v", at, err)
				}
				n := rnd.IntN(1 + rnd.IntN(1<<20))
				k, err := r.Discard(int64(n))
				if k != int64(min(n, len(c.raw)-at)) || err != nil && err != io.EOF {
					t.Fatalf("Discard(%d) at %d: %d, %v", n, at, k, err)
				}
				at += int(k)
			}
			if k, err := r.Discard(1 << 40); k != 0 || err != io.EOF {
				t.Fatalf("Discard at the end: %d, %v", k, err)
			}
			got, err := r.Seek()
			if err != nil {
				t.Fatal(err)
			}
			got.Descriptor.MediaType = want.Descriptor.MediaType
			if !reflect.DeepEqual(got, want) {
				t.Error("other seek data than of one that is read")
			}
		})
	}
}

// Damage is seen where it is discarded, too: what a Reader decodes and drops
// counts like what it hands out.
func TestDiscardSeesDamage(t *testing.T) {
	blob := gzipped(t, text(2<<20, 8))
	for k := range 12 {
		bad := bytes.Clone(blob)
		at := 20 + len(bad)*k/13
		if k%2 == 0 {
			bad[at] ^= 0x10
		} else {
			bad = bad[:at]
		}
		for _, o := range []Options{{Seek: true}, {Seek: true, Descriptor: describe(blob)}} {
			r := NewReader(context.Background(), bytes.NewReader(bad), o)
			n, err := r.Discard(1 << 40)
			r.Close()
			found := errors.Is(err, fault.ErrIntegrity) || o.Descriptor == nil && errors.Is(err, fault.ErrCorrupt)
			if !found {
				t.Errorf("damaged at %d, digest known: %t: %d bytes, %v", at, o.Descriptor != nil, n, err)
			}
		}
	}
}
