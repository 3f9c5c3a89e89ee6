package blockmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// mem is a source in memory.
type mem []byte

func (m mem) Size() int64 { return int64(len(m)) }

func (m mem) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

// ReadReady says no now and then, as a cache does.
func (m mem) ReadReady(p []byte, off int64) bool {
	n, _ := bytes.NewReader(m).ReadAt(p, off)
	return n == len(p) && off%3 != 0
}

// TestFlat compares random maps with the flat bytes they stand for.
func TestFlat(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	readies := 0
	for round := range 300 {
		var segs []Segment
		var flat []byte
		for range rng.IntN(9) {
			data := random(rng.IntN(2000) * rng.IntN(2))
			pad := rng.IntN(600) * rng.IntN(2)
			s := Segment{Source: mem(data), Size: int64(len(data) + pad)}
			if len(data) == 0 && rng.IntN(2) == 0 {
				s.Source = nil
			}
			segs = append(segs, s)
			flat = append(append(flat, data...), make([]byte, pad)...)
		}
		m, err := New(segs)
		if err != nil {
			t.Fatal(err)
		}
		if m.Size() != int64(len(flat)) {
			t.Fatalf("size %d, want %d", m.Size(), len(flat))
		}
		for range 40 {
			off := rng.Int64N(int64(len(flat)) + 3)
			got := random(rng.IntN(3000)) // not zeros: padding must be written
			want := make([]byte, len(got))
			wantN, wantErr := bytes.NewReader(flat).ReadAt(want, off)
			if len(got) == 0 {
				wantErr = nil // io.ReaderAt leaves this open
			}
			if ready := append([]byte{1}, got...)[1:]; m.ReadReady(ready, off) {
				readies++
				if wantErr != nil || !bytes.Equal(ready, want) {
					t.Fatalf("round %d: %d bytes at %d of %d were ready, and wrong", round, len(got), off, len(flat))
				}
			}
			n, err := m.ReadAtContext(t.Context(), got, off)
			if n != wantN || err != wantErr || !bytes.Equal(got[:n], want[:n]) {
				t.Fatalf("round %d: %d bytes at %d of %d: got %d, %v, want %d, %v", round, len(got), off, len(flat), n, err, wantN, wantErr)
			}
		}
	}
	if readies == 0 {
		t.Error("nothing was ever ready")
	}
}

// short ends before its size, as a file does that was truncated under us.
type short struct{ mem }

func (s short) Size() int64 { return int64(len(s.mem)) + 100 }

func TestErrors(t *testing.T) {
	for _, segs := range [][]Segment{
		{{Size: -1}},
		{{Source: mem("12345"), Size: 4}},
		{{Size: 1 << 62}, {Size: 1}},
	} {
		if _, err := New(segs); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%v: %v", segs, err)
		}
	}
	m, err := New([]Segment{{Source: mem("abc"), Size: 512}, {Source: short{mem("def")}, Size: 512}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, n int64
		want   error
	}{
		{0, 512, nil},
		{512, 3, nil},
		{512, 4, io.ErrUnexpectedEOF}, // never io.EOF, never zeros
		{600, 4, io.ErrUnexpectedEOF},
		{400, 200, io.ErrUnexpectedEOF},
		{615, 409, nil},
		{615, 410, io.EOF},
		{1024, 1, io.EOF},
		{-1, 1, fault.ErrUsage},
	} {
		if _, err := m.ReadAtContext(t.Context(), make([]byte, c.n), c.off); !errors.Is(err, c.want) {
			t.Errorf("%d bytes at %d: %v, want %v", c.n, c.off, err, c.want)
		}
	}
}

// rendezvous answers only when so many reads have begun.
type rendezvous struct {
	mem
	arrived chan struct{}
	all     chan struct{}
}

func (r rendezvous) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	r.arrived <- struct{}{}
	select {
	case <-r.all:
		return r.mem.ReadAtContext(ctx, p, off)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// TestParallel: both sides of a seam are read at the same time, and an error of
// one ends the other.
func TestParallel(t *testing.T) {
	r := rendezvous{mem("abcd"), make(chan struct{}), make(chan struct{})}
	m, err := New([]Segment{{r, 4}, {r, 4}})
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-r.arrived; <-r.arrived; close(r.all) }()
	got := make([]byte, 8)
	if _, err := m.ReadAtContext(t.Context(), got, 0); err != nil || string(got) != "abcdabcd" {
		t.Fatalf("%q, %v", got, err)
	}

	r.all = make(chan struct{}) // never closed
	go func() { <-r.arrived }()
	bad := failing{}
	m, err = New([]Segment{{r, 4}, {bad, 4}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadAtContext(t.Context(), got, 0); !errors.Is(err, errBroken) {
		t.Fatalf("%v", err)
	}
}

var errBroken = fmt.Errorf("broken")

type failing struct{}

func (failing) Size() int64 { return 4 }
func (failing) ReadAtContext(context.Context, []byte, int64) (int, error) {
	return 0, errBroken
}
