package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// A Progress shows how far the steps of a command are: one bar at a time, on a
// terminal. On anything else it shows nothing, so that no log fills with bars.
type Progress struct {
	mu  sync.Mutex
	w   io.Writer
	bar *progressbar.ProgressBar
	on  bool
}

// NewProgress shows progress on stderr if that is a terminal, unless quiet.
func (e *Env) NewProgress(quiet bool) *Progress {
	return &Progress{w: e.Stderr, on: !quiet && IsTerminal(e.Stderr)}
}

// Start begins a step of total bytes (0 or less: not known) and ends the last.
func (p *Progress) Start(label string, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.on {
		return
	}
	p.end()
	if total <= 0 {
		total = -1
	}
	p.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(p.w),
		progressbar.OptionSetDescription(label),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionShowCount(),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionSetWidth(20),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetRenderBlankState(true),
		progressbar.OptionSetPredictTime(true),
	)
}

// Set says how many bytes of the step are done.
func (p *Progress) Set(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		p.bar.Set64(n)
	}
}

// Line prints a line without disturbing the bar.
func (p *Progress) Line(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		p.bar.Clear()
	}
	fmt.Fprintln(p.w, oneLine(line))
}

// End ends the last step, wherever it is.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end()
}

func (p *Progress) end() {
	if p.bar != nil {
		p.bar.Exit()
		fmt.Fprintln(p.w)
		p.bar = nil
	}
}
