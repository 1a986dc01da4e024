package term

import (
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"atoll/api"
)

// Progress shows long work: bars on a terminal, otherwise one line for each step.
// Use it from one goroutine.
type Progress struct {
	io    Streams
	bars  *mpb.Progress
	byID  map[string]*mpb.Bar
	phase map[string]string
	quiet bool
	ended bool
}

// Progress shows nothing when quiet.
func (s Streams) Progress(quiet bool) *Progress {
	return &Progress{io: s, quiet: quiet, byID: map[string]*mpb.Bar{}, phase: map[string]string{}}
}

const maxBars = 200 // more layers than any image has

// Update shows how far one part of the work is.
func (p *Progress) Update(m api.Progress) {
	if p.quiet || p.ended || len(p.phase) > maxBars {
		return
	}
	changed := p.phase[m.ID] != m.Phase
	p.phase[m.ID] = m.Phase
	if !p.io.Term.ErrIs() {
		if changed && m.Phase != "waiting" {
			size := ""
			if m.Total > 0 {
				size = " " + api.HumanQuantity(api.Memory, m.Total)
			}
			p.io.Note("%s: %s%s", m.ID, m.Phase, size)
		}
		return
	}
	if p.bars == nil {
		p.bars = mpb.New(mpb.WithOutput(p.io.Err), mpb.WithWidth(40))
	}
	bar := p.byID[m.ID]
	if bar == nil {
		bar = p.bars.AddBar(m.Total,
			mpb.PrependDecorators(decor.Name(m.ID, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
		p.byID[m.ID] = bar
	}
	if m.Phase == "done" || m.Phase == "exists" {
		bar.SetTotal(max(m.Total, m.Current), false)
		bar.SetCurrent(max(m.Total, m.Current))
		bar.SetTotal(-1, true)
		return
	}
	if m.Total > 0 {
		bar.SetTotal(m.Total, false)
	}
	bar.SetCurrent(m.Current)
}

// End leaves the lines as they are and gives the terminal back. It may be called again.
func (p *Progress) End() {
	if p == nil || p.ended {
		return
	}
	p.ended = true
	if p.bars == nil {
		return
	}
	for _, b := range p.byID {
		if !b.Completed() {
			b.Abort(false)
		}
	}
	p.bars.Wait()
}
