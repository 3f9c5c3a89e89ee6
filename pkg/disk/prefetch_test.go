package disk

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

var one, two = digest.FromString("one"), digest.FromString("two")

// TestRecord: a list comes back in its order, each range once.
func TestRecord(t *testing.T) {
	var b bytes.Buffer
	r := NewRecorder(&b)
	list := []Range{{one, 4096, 100}, {two, 0, 1 << 59}, {one, 0, 4096}}
	for _, x := range append(list, list[0], list[2], Range{"", 1, 1}) {
		r.Add(x)
	}
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	want := "layerpipe-reads 1\n" + one.String() + " 4096 100\n" + two.String() + " 0 576460752303423488\n" + one.String() + " 0 4096\n"
	if b.String() != want {
		t.Errorf("%s, want %s", b.String(), want)
	}
	got, err := ReadRecord(&b)
	if err != nil || !reflect.DeepEqual(got, list) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := ReadRecord(strings.NewReader("layerpipe-reads 1\n")); err != nil || len(got) != 0 {
		t.Errorf("an empty list: %v, %v", got, err)
	}
}

// full is a disk without room.
type full struct{}

func (full) Write(p []byte) (int, error) { return 0, errors.New("no room") }

func TestRecordFails(t *testing.T) {
	r := NewRecorder(full{})
	r.Add(Range{one, 0, 1})
	if r.Err() == nil {
		t.Error("no error")
	}
}

// badRecords are not lists.
var badRecords = []string{
	"",
	"\n",
	"layerpipe-reads 2\n",
	"layerpipe-reads 1\nsha256:12 0 1\n",
	"layerpipe-reads 1\n" + one.String() + " 0\n",
	"layerpipe-reads 1\n" + one.String() + " 0 0\n",
	"layerpipe-reads 1\n" + one.String() + " -1 5\n",
	"layerpipe-reads 1\n" + one.String() + " 0 5 7\n",
	"layerpipe-reads 1\n" + one.String() + " 9223372036854775807 5\n",
	"layerpipe-reads 1\n" + one.String() + " 5 9223372036854775807\n",
	"layerpipe-reads 1\n" + strings.Repeat("x", 1<<20),
	strings.Repeat("x", 1<<20),
}

func TestBadRecords(t *testing.T) {
	for _, s := range badRecords {
		if got, err := ReadRecord(strings.NewReader(s)); !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("%.60q: %v, %v", s, got, err)
		}
	}
}

func FuzzReadRecord(f *testing.F) {
	for _, s := range badRecords {
		f.Add(s)
	}
	f.Add("layerpipe-reads 1\n" + one.String() + " 0 5\n")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ReadRecord(strings.NewReader(s))
		for _, x := range list {
			if x.Off < 0 || x.Size <= 0 || x.Off+x.Size < 0 {
				t.Errorf("%+v", x)
			}
		}
		if err != nil && !errors.Is(err, fault.ErrCorrupt) {
			t.Error(err)
		}
	})
}
