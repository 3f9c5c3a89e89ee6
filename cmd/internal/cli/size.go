package cli

import (
	"fmt"
	"strconv"
	"strings"
)

// A Size is a number of bytes, as a flag ("4MiB", "512", "64k") and for people.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3},
	// A letter alone means what it means to dd and mkfs.
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"k", 1 << 10},
	{"B", 1}, {"", 1},
}

// UnmarshalText reads a flag's value.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range sizeUnits {
		num, ok := strings.CutSuffix(string(text), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(num), 10, 64)
		if err != nil || n < 0 || n > 1<<62/u.bytes {
			return fmt.Errorf("%q is no size: give bytes, or a number with KiB, MiB, GiB", text)
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return nil
}

// MarshalText is the exact size, for UnmarshalText.
func (s Size) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(s), 10), nil }

// String is the size for people: three digits and a unit.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if int64(s) >= u.bytes {
			v := float64(s) / float64(u.bytes)
			switch {
			case v < 10:
				return fmt.Sprintf("%.2f %s", v, u.name)
			case v < 100:
				return fmt.Sprintf("%.1f %s", v, u.name)
			}
			return fmt.Sprintf("%.0f %s", v, u.name)
		}
	}
	return fmt.Sprintf("%d B", int64(s))
}

// Count is n of a noun that takes an s: "1 span", "2 spans".
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
