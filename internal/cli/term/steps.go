package term

import (
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
	what  string
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
	p.what = what
	if p.bars == nil {
		p.bars = mpb.New(mpb.WithOutput(p.io.Err), mpb.WithWidth(30))
		p.bar = p.bars.AddBar(int64(of), mpb.PrependDecorators(decor.Name(p.name)),
			mpb.AppendDecorators(decor.CountersNoUnit("%d/%d"), decor.Any(func(decor.Statistics) string { return "  " + p.what })))
	}
	p.bar.SetTotal(int64(of), false)
	p.bar.SetCurrent(int64(done))
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
