package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"

	"tidemark/internal/progress"
)

const (
	barEvery   = 150 * time.Millisecond
	plainEvery = 5 * time.Second
	plainWorth = 2 * time.Second // a phase that took less gets no closing line
)

// reporter draws a progress.Reporter on stderr. The counters are atomic, so
// that Add costs a worker nothing; a goroutine of its own draws.
type reporter struct {
	mode progressMode
	note bool // whether notes are wanted

	done, total atomic.Int64

	mu      sync.Mutex // guards what follows, and everything written to w
	w       io.Writer
	phase   string
	unit    progress.Unit
	started time.Time
	bar     *progressbar.ProgressBar
	printed bool // plain: this phase has had a line
	stop    chan struct{}
	stopped chan struct{}
}

// newReporter resolves "auto": a bar on a terminal, lines elsewhere, nothing
// where --quiet says so. With --json lines stay possible, bars do not.
func newReporter(w io.Writer, mode progressMode, quiet, asJSON bool) *reporter {
	if mode == "" || mode == progressAuto {
		switch {
		case quiet:
			mode = progressNone
		case isTerminal(w) && !asJSON:
			mode = progressBar
		default:
			mode = progressPlain
		}
	}
	return &reporter{mode: mode, note: !quiet, w: w}
}

// Phase implements progress.Reporter.
func (r *reporter) Phase(name string, total int64, unit progress.Unit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endPhase()
	r.done.Store(0)
	r.total.Store(total)
	r.phase, r.unit, r.started, r.printed = name, unit, time.Now(), false
	switch r.mode {
	case progressBar:
		r.bar = newBar(r.w, name, total, unit)
	case progressNone:
		return
	}
	if r.stop == nil {
		r.stop, r.stopped = make(chan struct{}), make(chan struct{})
		go r.draw(r.stop, r.stopped)
	}
}

// Grow implements progress.Reporter.
func (r *reporter) Grow(delta int64) { r.total.Add(delta) }

// Add implements progress.Reporter.
func (r *reporter) Add(n int64) { r.done.Add(n) }

// Note implements progress.Reporter.
func (r *reporter) Note(format string, args ...any) {
	if r.note {
		fmt.Fprintf(r, format+"\n", args...)
	}
}

// Write prints whole lines above the bar.
func (r *reporter) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bar != nil {
		_ = r.bar.Clear()
	}
	return r.w.Write(p)
}

// clear takes the bar away before something goes to stdout.
func (r *reporter) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endPhase()
}

func (r *reporter) close() {
	r.mu.Lock()
	r.endPhase()
	stop, stopped := r.stop, r.stopped
	r.stop, r.stopped = nil, nil
	r.mu.Unlock()
	if stop != nil {
		close(stop)
		<-stopped
	}
}

func (r *reporter) draw(stop, stopped chan struct{}) {
	defer close(stopped)
	every := barEvery
	if r.mode == progressPlain {
		every = plainEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			r.redraw()
		}
	}
}

func (r *reporter) redraw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.phase == "":
	case r.bar != nil:
		if t := r.total.Load(); t > 0 && t != r.bar.GetMax64() {
			r.bar.ChangeMax64(t)
		}
		_ = r.bar.Set64(r.done.Load())
	default:
		r.printed = true
		fmt.Fprintln(r.w, r.line(false))
	}
}

// endPhase is called with the lock held.
func (r *reporter) endPhase() {
	switch {
	case r.phase == "":
		return
	case r.bar != nil:
		_ = r.bar.Clear()
		r.bar = nil
	case r.mode == progressPlain && (r.printed || time.Since(r.started) >= plainWorth):
		fmt.Fprintln(r.w, r.line(true))
	}
	r.phase = ""
}

// line is one line of plain progress:
// copying files: 1.2 GiB of 4.0 GiB (30%), 85 MiB/s, 34 s left
func (r *reporter) line(end bool) string {
	done, total, took := r.done.Load(), r.total.Load(), time.Since(r.started)
	show := func(n int64) string { return Count(n) }
	if r.unit == progress.Bytes {
		show = Bytes[int64]
	}
	if done == 0 && total <= 0 { // a phase that counts nothing
		if end {
			return r.phase + ": " + Duration(took)
		}
		return r.phase + ": since " + Duration(took)
	}
	if end {
		return strings.Join(append([]string{r.phase + ": " + show(done)}, r.rate(done, took, "in "+Duration(took))...), ", ")
	}
	if total <= 0 {
		return strings.Join(append([]string{r.phase + ": " + show(done)}, r.rate(done, took, "")...), ", ")
	}
	left := ""
	if done > 0 && done < total {
		left = Duration(time.Duration(float64(took)*float64(total-done)/float64(done))) + " left"
	}
	head := fmt.Sprintf("%s: %s of %s (%d%%)", r.phase, show(done), show(total), min(100, done*100/total))
	return strings.Join(append([]string{head}, r.rate(done, took, left)...), ", ")
}

func (r *reporter) rate(done int64, took time.Duration, last string) []string {
	var out []string
	if r.unit == progress.Bytes && done > 0 && took > 0 {
		out = append(out, Rate(done, took))
	}
	if last != "" {
		out = append(out, last)
	}
	return out
}

func newBar(w io.Writer, name string, total int64, unit progress.Unit) *progressbar.ProgressBar {
	if total <= 0 {
		total = -1
	}
	return progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(name),
		progressbar.OptionShowBytes(unit == progress.Bytes),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(total > 0),
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionThrottle(barEvery/2),
		progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionSpinnerType(14),
		progressbar.OptionSetWidth(24),
		progressbar.OptionClearOnFinish(),
	)
}
