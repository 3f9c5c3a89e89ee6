package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// A Progress shows how far the steps of a command are: one bar at a time, on a
// terminal, and the steps that are done above it. On anything else it shows
// nothing, so that no log fills with bars.
//
// Bars are drawn with carriage returns and spaces alone, which every terminal
// knows, and are as wide as the terminal is at that moment.
type Progress struct {
	mu     sync.Mutex
	w      io.Writer
	width  func() int // columns; nil: bars are off
	now    func() time.Time
	step   *step         // nil: there is none
	shown  int           // columns that the bar takes up on the terminal's current line
	ticker chan struct{} // ends the redrawing of the step; nil: not running
}

// redraw is how often a bar is drawn anew, even when nothing has arrived: the
// rate falls then, and the time left grows.
const redraw = 200 * time.Millisecond

// NewProgress shows progress on stderr if that is a terminal, unless quiet.
func (e *Env) NewProgress(quiet bool) *Progress {
	p := &Progress{w: e.Stderr, now: time.Now}
	if f, ok := e.Stderr.(*os.File); ok && !quiet && IsTerminal(f) {
		p.width = func() int {
			if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
				return n
			}
			return 80
		}
	}
	e.progress.Store(p)
	return p
}

// Shown reports whether there are bars.
func (p *Progress) Shown() bool { return p.width != nil }

// Start begins a step of total bytes (0 or less: not known) and ends the last.
func (p *Progress) Start(label string, total int64) {
	p.start(&step{label: oneLine(label), total: total})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draw()
}

// Wait begins a step whose end is all that can be told. It is shown if it takes
// a while, and leaves nothing behind.
func (p *Progress) Wait(label string) {
	p.start(&step{label: oneLine(label), waits: true})
}

func (p *Progress) start(s *step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width == nil {
		return
	}
	p.end()
	s.began = p.now()
	stop := make(chan struct{})
	p.step, p.ticker = s, stop
	go func() {
		t := time.NewTicker(redraw)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-stop:
				return
			}
			p.mu.Lock()
			if p.ticker == stop {
				p.step.sample(p.now())
				p.draw()
			}
			p.mu.Unlock()
		}
	}()
}

// Set says how many bytes of the step are done.
func (p *Progress) Set(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step != nil {
		p.step.done = n
	}
}

// Line prints a line above the bar.
func (p *Progress) Line(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprintln(p.w, oneLine(line))
	p.draw()
}

// End ends the last step, wherever it is. What is printed next has a line of
// its own.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end()
}

// abandon is End for a process that ends by force: whoever draws may be stuck,
// and nobody draws any more.
func (p *Progress) abandon() {
	if p.mu.TryLock() {
		p.end()
	}
}

// end leaves the step as the line that it has come to. mu is held.
func (p *Progress) end() {
	s := p.step
	if s == nil {
		return
	}
	close(p.ticker)
	p.step, p.ticker = nil, nil
	if s.waits {
		p.erase()
		return
	}
	p.show(s.result(p.now(), p.width()-1))
	fmt.Fprintln(p.w)
	p.shown = 0
}

// draw shows the step as it is. mu is held.
func (p *Progress) draw() {
	if p.step != nil {
		p.show(p.step.bar(p.width() - 1))
	}
}

// show replaces the current line. The last column stays free: terminals go on
// to the next line when it is written.
func (p *Progress) show(text string) {
	n := columns(text)
	if n == 0 && p.shown == 0 {
		return
	}
	fmt.Fprint(p.w, "\r", text, strings.Repeat(" ", max(0, min(p.shown, p.width()-1)-n)))
	p.shown = n
}

// erase takes the bar away. mu is held.
func (p *Progress) erase() {
	if p.shown > 0 {
		p.show("")
		fmt.Fprint(p.w, "\r")
	}
}
