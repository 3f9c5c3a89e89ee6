package seek

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

func TestFind(t *testing.T) {
	var s Section
	for _, l := range []struct {
		text string
		size int64
	}{{"a", 10}, {"b", 20}, {"b", 20}, {"c", 30}, {"d", 30}} {
		s.Layers = append(s.Layers, Layer{Descriptor: ocispec.Descriptor{Digest: digest.FromString(l.text), Size: l.size}})
	}
	for _, tt := range []struct {
		text string
		size int64
		want int
		err  error
	}{
		{"a", 10, 0, nil},
		{"", 10, 0, nil},
		{"b", 20, 1, nil},
		{"", 20, 1, nil}, // twice the same
		{"d", 30, 4, nil},
		{"", 30, 0, fault.ErrUsage},
		{"a", 20, 0, fault.ErrNotFound},
		{"e", 10, 0, fault.ErrNotFound},
		{"", 11, 0, fault.ErrNotFound},
	} {
		var d digest.Digest
		if tt.text != "" {
			d = digest.FromString(tt.text)
		}
		got, err := s.Find(d, tt.size)
		if !errors.Is(err, tt.err) || err == nil && got != &s.Layers[tt.want] {
			t.Errorf("%q, %d: %v, %v", tt.text, tt.size, got, err)
		}
	}
}
