package cli

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// A step is what a bar shows.
type step struct {
	label string
	total int64 // bytes; 0 or less: not known
	done  int64
	began time.Time
	waits bool // there is nothing to count

	samples []sample // of the last seconds, the oldest first
}

// sample is how far a step was.
type sample struct {
	at   time.Time
	done int64
}

// rateSamples is how many the rate is taken over: five seconds of them.
const rateSamples = int(5 * time.Second / redraw)

// sample notes how far the step is now. The first one comes a moment after the
// start: what was there already then has not come at the rate of the line.
func (s *step) sample(now time.Time) {
	if len(s.samples) == rateSamples {
		s.samples = append(s.samples[:0], s.samples[1:]...)
	}
	s.samples = append(s.samples, sample{now, s.done})
}

// rate is bytes a second of late, and whether it is known.
func (s *step) rate() (perSecond float64, ok bool) {
	if len(s.samples) < 2 {
		return 0, false
	}
	first, last := s.samples[0], s.samples[len(s.samples)-1]
	d := last.at.Sub(first.at)
	return float64(last.done-first.done) / d.Seconds(), d > 0
}

const (
	leastBar = 10 // columns, brackets included
	mostBar  = 32
)

// bar is the step while it goes on, in so many columns.
func (s *step) bar(width int) string {
	if s.waits {
		if s.samples == nil {
			return ""
		}
		return clip(s.label+" ...", width)
	}
	percent, amount, rate, left := "", Size(s.done).String(), "", ""
	if s.total > 0 {
		percent = fmt.Sprintf("%3d%%", s.percent())
		amount = fmt.Sprintf("%s of %s", Size(s.done), Size(s.total))
	}
	if r, ok := s.rate(); ok {
		rate = Size(r).String() + "/s"
		if r > 0 && s.total > 0 {
			seconds := min(math.Ceil(float64(s.total-s.done)/r), maxSpan.Seconds())
			left = span(time.Duration(seconds)*time.Second) + " left"
		}
	}
	text := fit(width, []string{s.label, percent, amount, rate, left}, 2, 3, 4, 1)
	// The bar itself gets what room there is.
	head := join(s.label, percent)
	if n := min(width-columns(text)-2, mostBar); percent != "" && n >= leastBar && strings.HasPrefix(text, head) {
		full := int(float64(n-2) * float64(s.percent()) / 100)
		return join(head, "["+strings.Repeat("=", full)+strings.Repeat(" ", n-2-full)+"]", strings.TrimPrefix(text, head+"  "))
	}
	return text
}

func (s *step) percent() int64 {
	return int64(float64(min(s.done, s.total)) / float64(s.total) * 100)
}

// result is the step when it has ended.
func (s *step) result(now time.Time, width int) string {
	percent, amount := "", Size(s.done).String()
	if s.total > 0 {
		percent = fmt.Sprintf("%3d%%", s.percent())
		if s.done < s.total {
			amount = fmt.Sprintf("%s of %s", Size(s.done), Size(s.total))
		}
	}
	rate, took := "", now.Sub(s.began)
	if took >= redraw {
		rate = Size(float64(s.done)/took.Seconds()).String() + "/s"
	}
	return fit(width, []string{s.label, percent, amount, rate, "in " + span(took)}, 3, 4, 2, 1)
}

// fit joins parts; where they do not all fit, it leaves some out, in this
// order.
func fit(width int, parts []string, leaveOut ...int) string {
	for _, i := range leaveOut {
		if text := join(parts...); columns(text) <= width {
			return text
		}
		parts[i] = ""
	}
	return clip(join(parts...), width)
}

// join puts parts on one line, those that there are.
func join(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		if p == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("  ")
		}
		b.WriteString(p)
	}
	return b.String()
}

// maxSpan is what is said of times that are longer, too.
const maxSpan = 100 * time.Hour

// span is a time for people: whole seconds where it has no others, or many.
func span(d time.Duration) string {
	switch d = min(d, maxSpan); {
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d >= 10*time.Second || d%time.Second == 0:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

// columns is how wide a text is on a terminal, or somewhat more: all scripts
// beyond the Middle East's count as wide ones.
func columns(s string) (n int) {
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	if r >= 0x1100 {
		return 2
	}
	return 1
}

// clip cuts a text to so many columns.
func clip(s string, width int) string {
	for i, r := range s {
		if width -= runeColumns(r); width < 0 {
			return s[:i]
		}
	}
	return s
}
