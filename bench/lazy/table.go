package main

import (
	"fmt"
	"strings"
	"time"
)

// counts are the registry's.
type counts struct {
	gets  int
	bytes int64
	open  int // requests that are still being answered; their bytes are not known
}

func (b *bench) count() (c counts) {
	for _, q := range b.reg.Requests() {
		c.gets++
		c.bytes += q.Bytes
		if q.Status == 0 {
			c.open++
		}
	}
	return c
}

// countAll counts when nobody asks for anything any more, with what was on its
// way when that ended: it came over the network like all else.
func (b *bench) countAll() counts {
	const most = 2 * time.Second // those cut off before they had an answer stay open
	for end := time.Now().Add(most); ; time.Sleep(5 * time.Millisecond) {
		if c := b.count(); c.open == 0 || time.Now().After(end) {
			return c
		}
	}
}

// A result is a line of the table.
type result struct {
	what   string
	took   time.Duration
	read   int64 // bytes
	spans  int
	stored int64 // bytes of those spans in the blobs
	note   string
}

// columns are the table's, and how wide they are.
var columns = []struct {
	name  string
	width int
}{
	{"", -44}, {"s", 7}, {"of whole", 9}, {"GETs", 6}, {"MB", 8}, {"MB read", 8}, {"MB/read", 8}, {"spans", 6}, {"GETs/span", 10}, {"MB/spans'", 10},
}

func header() {
	var names []string
	for _, c := range columns {
		names = append(names, c.name)
	}
	line(append(names, "bounds"))
}

// line prints a line of the table; its last cell is as wide as it is.
func line(cells []string) {
	var s strings.Builder
	for i, c := range columns {
		fmt.Fprintf(&s, "%*s", c.width, cells[i])
	}
	fmt.Println(strings.TrimRight(s.String()+"  "+cells[len(columns)], " "))
}

func (b *bench) row(r result, c counts) {
	// What does not apply is left empty.
	ratio := func(a, b float64) string {
		if b == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f", a/b)
	}
	mb := func(n int64) string { return strings.TrimSuffix(ratio(float64(n), 1e6), "0.00") }
	spans := ""
	if r.spans > 0 {
		spans = fmt.Sprint(r.spans)
	}
	line([]string{r.what, ratio(r.took.Seconds(), 1), ratio(r.took.Seconds(), b.whole.Seconds()), fmt.Sprint(c.gets), mb(c.bytes), mb(r.read),
		ratio(float64(c.bytes), float64(r.read)), spans, ratio(float64(c.gets), float64(r.spans)), ratio(float64(c.bytes), float64(r.stored)), r.note})
}

// bound says whether a value keeps its bound, for the table.
func (b *bench) bound(what string, value, bound float64) string {
	verdict := "ok"
	if value > bound {
		verdict = "MISSED"
		b.missed++
	}
	return fmt.Sprintf("%s %.2f <= %g: %s", what, value, bound, verdict)
}
