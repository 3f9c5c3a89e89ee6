package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestNoProgress: on no terminal there are lines, and no bars.
func TestNoProgress(t *testing.T) {
	var buf bytes.Buffer
	p := (&Env{Stderr: &buf}).NewProgress(false)
	p.Wait("a moment")
	p.Start("layer 0", 100)
	p.Set(50)
	p.Line("one\nline")
	p.End()
	if buf.String() != "one line\n" || p.Shown() {
		t.Errorf("%q", buf.String())
	}
}

// screen is what a terminal of so many columns shows of what was written to it,
// line by line; nothing but line ends and carriage returns moves its cursor.
func screen(t *testing.T, columns int, text string) []string {
	t.Helper()
	lines, x := [][]rune{{}}, 0
	for _, r := range text {
		if r == '\r' {
			x = 0
			continue
		}
		if r == '\n' || x == columns {
			lines, x = append(lines, nil), 0
		}
		if r == '\n' {
			continue
		}
		if r < ' ' {
			t.Fatalf("%q in %q", r, text)
		}
		last := &lines[len(lines)-1]
		if x == len(*last) {
			*last = append(*last, ' ')
		}
		(*last)[x] = r
		x++
	}
	var out []string
	for _, l := range lines {
		out = append(out, strings.TrimRight(string(l), " "))
	}
	return out
}

// TestProgress: what is shown, step by step, on terminals of different widths,
// one of which changes meanwhile.
func TestProgress(t *testing.T) {
	for _, tt := range []struct {
		columns int
		want    string
	}{
		{100, `
layer 1 of 2   25%  [=======                       ]  50.0 MiB of 200 MiB  10.0 MiB/s  15s left
layer 1 of 2  100%  200 MiB  10.0 MiB/s  in 20s
a retry
layer 2 of 2  7 B  in 0s
`},
		{64, `
layer 1 of 2   25%  50.0 MiB of 200 MiB  10.0 MiB/s  15s left
layer 1 of 2  100%  200 MiB  10.0 MiB/s  in 20s
a retry
layer 2 of 2  7 B  in 0s
`},
		{43, `
layer 1 of 2   25%  10.0 MiB/s  15s left
layer 1 of 2  100%  200 MiB  in 20s
a retry
layer 2 of 2  7 B  in 0s
`},
		{24, `
layer 1 of 2   25%
layer 1 of 2  100%
a retry
layer 2 of 2  7 B
`},
		{9, `
layer 1
layer 1
a retry
layer 2
`},
	} {
		var buf bytes.Buffer
		now := time.Unix(1, 0)
		p := &Progress{w: &buf, now: func() time.Time { return now }, width: func() int { return tt.columns }}
		p.Wait("asking")
		p.Start("layer 1 of 2", 200<<20)
		p.mu.Lock()
		close(p.ticker) // the test's own clock instead
		p.ticker = make(chan struct{})
		for i := range 6 {
			p.step.done = int64(i) * (10 << 20)
			p.step.sample(now.Add(time.Duration(i) * time.Second))
			p.draw()
		}
		p.mu.Unlock()
		got := screen(t, tt.columns, buf.String())
		p.Set(200 << 20)
		now = now.Add(20 * time.Second)
		p.End()
		p.Start("layer 2 of 2", 0)
		p.Line("a retry")
		p.Set(7)
		p.End()
		got = append(got, screen(t, tt.columns, buf.String())...)
		if s := "\n" + strings.Join(got, "\n"); s != tt.want {
			t.Errorf("%d columns:%s\nwant%s", tt.columns, s, tt.want)
		}
	}
}

// TestProgressResized: a terminal that got narrower gets no line that is wider
// than it is now, and nothing stays of a bar that was longer.
func TestProgressResized(t *testing.T) {
	var buf bytes.Buffer
	columns := 80
	p := &Progress{w: &buf, now: time.Now, width: func() int { return columns }}
	p.Start("layer 1 of 2", 1<<20)
	buf.Reset()
	columns = 40
	p.Line("a line")
	p.End()
	for l := range strings.FieldsFuncSeq(buf.String(), func(r rune) bool { return r == '\r' || r == '\n' }) {
		if len(l) >= columns {
			t.Errorf("%q wraps", l)
		}
	}
	if got := screen(t, columns, buf.String()); len(got) != 3 || got[0] != "a line" || !strings.HasPrefix(got[1], "layer 1 of 2") || got[2] != "" {
		t.Errorf("%q", got)
	}
}

// TestProgressTexts: times, and names of any script.
func TestProgressTexts(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 40 * time.Millisecond: "0.0s", 1234 * time.Millisecond: "1.2s", 59 * time.Second: "59s",
		61 * time.Second: "1m01s", 3*time.Hour + 2*time.Minute: "3h02m", 1 << 62: "100h00m",
	} {
		if got := span(d); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := clip("läyer 層層", 8); got != "läyer 層" {
		t.Error(got)
	}
	s := step{total: 1 << 62, done: 1, samples: []sample{{time.Unix(1, 0), 0}, {time.Unix(2, 0), 1}}}
	if got := s.bar(200); !strings.Contains(got, "100h00m left") {
		t.Error(got)
	}
}
