package layer

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/spancache"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// storeIn is a store in a directory, as one process has it.
func storeIn(t testing.TB, dir string) *spancache.Disk {
	t.Helper()
	d := spancache.OpenDisk(dir, 1<<30, func(err error) { t.Errorf("warning: %v", err) })
	t.Cleanup(func() { d.Close() })
	return d
}

// stored are the files of a store.
func stored(t testing.TB, dir string) (names []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*", "??", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// opened are the ways to open a blob for tests of the store: verified, and not.
func opened(t testing.TB, c blobCase, blob *blobAt, o LazyOptions) map[string]func() *Lazy {
	m := map[string]func() *Lazy{
		"verified": func() *Lazy { return open(t, blob, seekOf(t, c.blob, 1<<20), 64<<20, o) },
		"spilled": func() *Lazy {
			o := o
			o.SpillOver = 400_000
			return open(t, blob, seekOf(t, c.blob, 1<<20), 64<<20, o)
		},
	}
	o.Digest = digest.FromBytes(c.blob)
	if c.kind == Plain {
		m["raw"] = func() *Lazy {
			l, err := OpenRaw(blob, spancache.New(64<<20), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			return l
		}
	}
	if c.kind == Gzip {
		m["zinfo"] = func() *Lazy {
			l, err := OpenZinfo(context.Background(), blob, zinfoOf(t, c.blob), spancache.New(64<<20), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			return l
		}
	}
	return m
}

func zinfoOf(t testing.TB, blob []byte) *zinfo.Index {
	t.Helper()
	zr := zinfo.NewReader(bytes.NewReader(blob), zinfo.Options{SpanSize: 1 << 20})
	if _, err := bytes.NewBuffer(nil).ReadFrom(zr); err != nil {
		t.Fatal(err)
	}
	x, err := zr.Index()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func (z *Lazy) all(t testing.TB) []byte {
	t.Helper()
	p := make([]byte, z.Size())
	if _, err := z.ReadAtContext(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestStore: what one process has fetched another finds, without reading the
// blob; each file that is torn, emptied or tampered with is a miss, and the
// bytes are right all the same.
func TestStore(t *testing.T) {
	for _, c := range lazyCases(t) {
		for name := range opened(t, c, nil, LazyOptions{}) {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				dir := t.TempDir()
				run := func() (fetched int64, z *Lazy) {
					blob := &blobAt{b: c.blob}
					store := storeIn(t, dir)
					z = opened(t, c, blob, LazyOptions{Store: store})[name]()
					if !bytes.Equal(z.all(t), c.raw) {
						t.Error("wrong bytes")
					}
					z.Close()
					store.Close()
					return blob.bytes.Load(), z
				}
				if n, _ := run(); n < int64(len(c.blob))*9/10 {
					t.Errorf("fetched %d bytes of %d at first", n, len(c.blob))
				}
				files := stored(t, dir)
				if len(files) < 2 {
					t.Fatalf("%d files", len(files))
				}
				// For the digest of the whole the gzip header is fetched, too.
				if n, z := run(); n > 100 || z.Stats().Loads == 0 {
					t.Errorf("fetched %d bytes although all is stored", n)
				}
				for i, damage := range []func([]byte) []byte{
					func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
					func(b []byte) []byte { b[len(b)-1] ^= 0x80; return b },
					func(b []byte) []byte { return b[:len(b)/2] },
					func(b []byte) []byte { return nil },
					func(b []byte) []byte { clear(b); return b }, // as a crash leaves them
				} {
					file := files[i%len(files)]
					b, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(file, damage(bytes.Clone(b)), 0o600); err != nil {
						t.Fatal(err)
					}
					if n, _ := run(); n == 0 || n > int64(len(b))+100 {
						t.Errorf("damage %d: fetched %d bytes for a file of %d", i, n, len(b))
					}
					if again, err := os.ReadFile(file); err != nil || !bytes.Equal(again, b) {
						t.Errorf("damage %d: not repaired: %v", i, err)
					}
				}
			})
		}
	}
}

// TestStoreSwapped: files without digests are bound to their place.
func TestStoreSwapped(t *testing.T) {
	raw := text(1<<20, 8)
	dir := t.TempDir()
	c := blobCase{"plain", Plain, raw, raw}
	for range 2 {
		store := storeIn(t, dir)
		z := opened(t, c, &blobAt{b: raw}, LazyOptions{Store: store})["raw"]()
		if !bytes.Equal(z.all(t), raw) {
			t.Error("wrong bytes")
		}
		z.Close()
		store.Close()
		files := stored(t, dir)
		if len(files) != 4 {
			t.Fatalf("%d files", len(files))
		}
		a, _ := os.ReadFile(files[0])
		b, _ := os.ReadFile(files[1])
		os.WriteFile(files[0], b, 0o600)
		os.WriteFile(files[1], a, 0o600)
	}
}

// TestStoreNeverWrong: what does not match its digest is never stored.
func TestStoreNeverWrong(t *testing.T) {
	for _, c := range lazyCases(t) {
		for _, name := range []string{"verified", "spilled"} {
			dir := t.TempDir()
			blob := &blobAt{b: bytes.Clone(c.blob)}
			for i := 1000; i < len(blob.b); i += 100_000 {
				blob.b[i] ^= 4 // in every piece
			}
			store := storeIn(t, dir)
			z := opened(t, c, blob, LazyOptions{Store: store})[name]()
			p := make([]byte, 100)
			for off := int64(0); off < z.Size(); off += 500_000 {
				if _, err := z.ReadAtContext(context.Background(), p, off); !errors.Is(err, fault.ErrIntegrity) {
					t.Errorf("%s/%s at %d: %v", c.name, name, off, err)
				}
			}
			if err := z.Fill(context.Background(), new(int64)); !errors.Is(err, fault.ErrIntegrity) {
				t.Errorf("%s/%s, fill: %v", c.name, name, err)
			}
			z.Close()
			store.Close()
			if files := stored(t, dir); len(files) != 0 {
				t.Errorf("%s/%s: %d files", c.name, name, len(files))
			}
		}
	}
}

// TestFill: idle time brings everything into the store, once, and reads need
// nothing more.
func TestFill(t *testing.T) {
	for _, c := range lazyCases(t) {
		for name := range opened(t, c, nil, LazyOptions{}) {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				blob := &blobAt{b: c.blob}
				z := opened(t, c, blob, LazyOptions{Store: storeIn(t, t.TempDir())})[name]()
				if err := z.Fill(t.Context(), new(int64)); err != nil {
					t.Fatal(err)
				}
				n := blob.bytes.Load()
				if n < int64(len(c.blob))-100 || n > int64(len(c.blob))+100 {
					t.Errorf("fetched %d bytes of %d", n, len(c.blob))
				}
				if s := z.Stats(); s.IdleFetched != n || s.Fetches != s.IdleFetches {
					t.Errorf("%+v", s)
				}
				if !bytes.Equal(z.all(t), c.raw) {
					t.Error("wrong bytes")
				}
				if z.Stats().Fetched > n+100 {
					t.Errorf("%d bytes were fetched again", z.Stats().Fetched-n)
				}
			})
		}
	}
	// Without a store, memory, as far as it goes.
	raw := text(3<<20, 42)
	blob := &blobAt{b: raw}
	z := open(t, blob, seekOf(t, raw, 0), 64<<20, LazyOptions{})
	room := int64(2 << 20)
	if err := z.Fill(t.Context(), &room); err != nil || room < 0 || blob.bytes.Load() > 2<<20 {
		t.Errorf("%v; %d bytes were fetched, there is room for %d more", err, blob.bytes.Load(), room)
	}
}

// TestFillGoesOn: what is wrong in one place does not keep the rest from being
// stored.
func TestFillGoesOn(t *testing.T) {
	raw := long()[:16<<20]
	blob := &blobAt{b: bytes.Clone(raw)}
	blob.b[5<<20] ^= 1
	z := open(t, blob, seekOf(t, raw, 0), 64<<20, LazyOptions{Store: storeIn(t, t.TempDir())})
	if err := z.Fill(t.Context(), new(int64)); !errors.Is(err, fault.ErrIntegrity) {
		t.Error(err)
	}
	n := blob.bytes.Load()
	for _, off := range []int64{0, 4 << 20, 6 << 20, 15 << 20} {
		p := make([]byte, 100)
		if _, err := z.ReadAtContext(t.Context(), p, off); err != nil || !bytes.Equal(p, raw[off:][:100]) {
			t.Errorf("at %d: %v, or wrong bytes", off, err)
		}
	}
	if blob.bytes.Load() != n {
		t.Errorf("%d bytes are fetched again", blob.bytes.Load()-n)
	}
}

// TestAhead: a list's spans wait in memory, or in the store.
func TestAhead(t *testing.T) {
	for _, c := range lazyCases(t) {
		for _, memory := range []bool{true, false} {
			blob := &blobAt{b: c.blob}
			z := open(t, blob, seekOf(t, c.blob, 1<<20), 64<<20, LazyOptions{Store: storeIn(t, t.TempDir())})
			if err := z.Ahead(t.Context(), 1<<20+10, 1000, memory); err != nil {
				t.Fatal(err)
			}
			z.opt.Store.(*spancache.Disk).Close() // waits; nothing is found or kept from now on
			if s := z.Stats(); s.AheadFetches != 1 || s.Fetches != 1 {
				t.Errorf("%+v", s)
			}
			n := blob.reads.Load()
			p := make([]byte, 1000)
			if z.ReadReady(p, 1<<20+10) != memory {
				t.Errorf("%s: in memory: %v, want %v", c.name, !memory, memory)
			}
			if memory && (!bytes.Equal(p, c.raw[1<<20+10:][:1000]) || blob.reads.Load() != n) {
				t.Errorf("%s: wrong bytes, or another read", c.name)
			}
		}
	}
}

// TestOnUse: each span is told of once, when it is first read, and not when it
// is fetched for other reasons.
func TestOnUse(t *testing.T) {
	raw := text(3<<20, 42)
	var got []int64
	z := open(t, &blobAt{b: raw}, seekOf(t, raw, 0), 64<<20, LazyOptions{OnUse: func(off, n int64) { got = append(got, off, n) }})
	if err := z.Ahead(t.Context(), 0, 3<<20, true); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	z.ReadAtContext(t.Context(), p, 2<<20+5)
	z.ReadReady(p, 100)
	z.ReadReady(p, 200)
	z.ReadAtContext(t.Context(), make([]byte, 2<<20), 500_000)
	want := []int64{2 << 20, 1 << 20, 0, 1 << 20, 1 << 20, 1 << 20}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%v, want %v", got, want)
		}
	}
}

// TestWhole: once all of a layer without digests is cached, its digest is
// checked; if it is not right, nothing more of it is served, or kept.
func TestWhole(t *testing.T) {
	for _, c := range lazyCases(t) {
		for _, name := range []string{"raw", "zinfo"} {
			if opened(t, c, nil, LazyOptions{})[name] == nil {
				continue
			}
			for _, wrong := range []bool{false, true} {
				for _, how := range []string{"read", "fill", "restart"} {
					t.Run(c.name+"/"+how, func(t *testing.T) {
						cc := c
						blob := &blobAt{b: c.blob}
						dir := t.TempDir()
						store := storeIn(t, dir)
						result := make(chan error, 1)
						o := LazyOptions{Store: store, OnWhole: func(err error) { result <- err }}
						if wrong {
							// The header has a time, which nothing else covers.
							blob.b = bytes.Clone(c.blob)
							blob.b[4] ^= 1
						}
						z := opened(t, cc, blob, o)[name]()
						switch how {
						case "read":
							z.all(t)
						default:
							if err := z.Fill(t.Context(), new(int64)); err != nil {
								t.Fatal(err)
							}
						}
						err := <-result
						if how == "restart" && !wrong {
							z.Close()
							store.Close()
							o.Store = storeIn(t, dir)
							z = opened(t, cc, blob, o)[name]()
							err = <-result
						}
						if !wrong {
							if err != nil {
								t.Error(err)
							}
							if !bytes.Equal(z.all(t), c.raw) {
								t.Error("wrong bytes")
							}
							return
						}
						if !errors.Is(err, fault.ErrIntegrity) || !strings.Contains(err.Error(), digest.FromBytes(c.blob).String()) {
							t.Error(err)
						}
						if _, err := z.ReadAtContext(t.Context(), make([]byte, 10), 10); !errors.Is(err, fault.ErrIntegrity) {
							t.Errorf("it is still served: %v", err)
						}
						if z.ReadReady(make([]byte, 10), 10) {
							t.Error("it is still served from memory")
						}
						z.Close()
						store.Close()
						if n := len(stored(t, dir)); n != 0 {
							t.Errorf("%d files are kept", n)
						}
					})
				}
			}
		}
	}
}

// A smallStore has room for a few parts only, and counts what is read.
type smallStore struct {
	mu    sync.Mutex
	room  int
	has   map[[32]byte][]byte
	loads int
}

func (s *smallStore) Has(name [32]byte, size int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.has[name])) == size
}

func (s *smallStore) Load(name [32]byte, p []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loads++
	return copy(p, s.has[name]) == len(p)
}

func (s *smallStore) Save(name [32]byte, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.has) < s.room {
		s.has[name] = p
	}
}

func (s *smallStore) Drop([32]byte, []byte) {}

// TestWholeNeverThere: where a store has not room for the whole layer, it is not
// read through for a digest that cannot be had.
func TestWholeNeverThere(t *testing.T) {
	const blocks = 8
	raw := bytes.Repeat([]byte("some bytes of a layer\n"), blocks*rawBlock/22)
	for _, room := range []int{blocks - 1, blocks} {
		s := &smallStore{room: room, has: make(map[[32]byte][]byte)}
		checked := false
		z, err := OpenRaw(&blobAt{b: raw}, spancache.New(0), LazyOptions{Digest: digest.FromBytes(raw), Store: s, OnWhole: func(err error) { checked = err == nil }})
		if err != nil {
			t.Fatal(err)
		}
		if err := z.Fill(t.Context(), new(int64)); err != nil {
			t.Fatal(err)
		}
		z.Close() // waits for the check
		if complete := room == blocks; checked != complete || (s.loads == blocks) != complete || s.loads%blocks != 0 {
			t.Errorf("room for %d of %d: checked %t after %d loads", room, blocks, checked, s.loads)
		}
	}
}
