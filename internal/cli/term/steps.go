package term

import (
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Steps shows work that is counted: a bar on a terminal, otherwise a line whenever
// something changed. Use it from one goroutine.
type Steps struct {
	io    Streams
	name  string
	bars  *mpb.Progress
	bar   *mpb.Bar
	what  atomic.Pointer[string] // read by the bar's goroutine
	last  string
	ended bool
}

// Steps makes one; nothing is shown before the first Update.
func (s Streams) Steps(name string) *Steps { return &Steps{io: s, name: name} }

// Update shows that so many of all are done, and in words what is going on.
func (p *Steps) Update(done, of int, what string) {
	if p.ended {
		return
	}
	if !p.io.Term.ErrIs() {
		if what != p.last {
			p.io.Note("%s: %s", p.name, what)
		}
		p.last = what
		return
	}
	p.what.Store(&what)
	if p.bars == nil {
		p.bars = mpb.New(mpb.WithOutput(p.io.Err), mpb.WithWidth(p.width()), mpb.WithAutoRefresh())
		p.bar = p.bars.New(int64(of), mpb.BarStyle(), mpb.BarWidth(30), mpb.PrependDecorators(decor.Name(p.name+" ")),
			mpb.AppendDecorators(decor.CountersNoUnit(" %d/%d"), decor.Any(func(decor.Statistics) string { return "  " + *p.what.Load() })))
	}
	p.bar.SetTotal(int64(of), false)
	p.bar.SetCurrent(int64(done))
}

// width is that of the line: the terminal's, when it says so.
func (p *Steps) width() int {
	if n := int(p.io.Term.Size().Cols); n > 0 {
		return n
	}
	return 100
}

// End leaves the line as it is and gives the terminal back. It may be called again.
func (p *Steps) End() {
	if p.ended {
		return
	}
	p.ended = true
	if p.bars == nil {
		return
	}
	p.bar.Abort(false)
	p.bars.Wait()
}
