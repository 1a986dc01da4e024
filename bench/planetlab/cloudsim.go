package main

import (
	"cmp"
	"slices"
)

// fixed is no power management: the first host that has room, and no move ever.
type fixed struct{}

func (fixed) place(w *world, v *vm) *host {
	for _, h := range w.hosts {
		if admits(h, v) {
			return h
		}
	}
	return nil
}

func (fixed) decide(*world) []move { return nil }

// admits is the published admission of a new machine: all it was sold, at once.
func admits(h *host, v *vm) bool {
	return h.core >= v.mips && h.free >= v.mips && h.ram()+v.ram <= hostRAM && h.netUsed+vmNet <= hostNet
}

// published is the planner of the published experiment, with its detectors THR and LR.
type published struct {
	threshold float64 // THR
	safety    float64 // LR when not 0
	// repaired takes three of its mistakes away: a sleeping host's price leaves out
	// its idle power, a host that got one in this round looks dearer for the next, and
	// what was just moved may be moved again at once.
	repaired bool
	slots    []slot
	enforce  bool
}

// slot is a host in a plan.
type slot struct {
	h         *host
	vms       []*vm
	req       float64 // wanted
	alloc     float64 // given
	free      float64
	ram       int
	forecast  float64 // MIPS the line through the last ten values gives for the next
	old       int     // machines with a value other than 0 that is ten or more back
	over, off bool
	excluded  bool
}

const (
	regression = 10 // values
	fallback   = 0.7
)

// ahead are the weights by which ten values, newest first, give the least squares
// line's value at the next one.
var ahead = func() (w [regression]float64) {
	for i := range w {
		x := float64(regression - i)
		w[i] = 1.0/regression + (x-5.5)/82.5*5.5
	}
	return w
}()

func (p *published) place(w *world, v *vm) *host {
	var best *host
	least := 0.0
	for _, h := range w.hosts {
		if !admits(h, v) {
			continue
		}
		// Its machines ask for nothing yet, so only the new one counts for overload.
		if limit := p.limit(); h.free < h.mips && v.mips/h.mips > limit {
			continue
		}
		d := watts(h.watts, (h.mips-h.free+v.mips)/h.mips) - watts(h.watts, 0)
		if best == nil || d < least {
			best, least = h, d
		}
	}
	return best
}

func (p *published) limit() float64 {
	if p.safety > 0 {
		return fallback
	}
	return p.threshold
}

func (p *published) decide(w *world) []move {
	p.enforce = w.enforce
	p.slots = make([]slot, len(w.hosts))
	for i, h := range w.hosts {
		s := &p.slots[i]
		s.h, s.vms, s.off = h, slices.Clone(h.vms), h.util == 0
		p.rebuild(s)
	}
	var out []*vm
	for i := range p.slots {
		s := &p.slots[i]
		s.over = p.overloaded(s, nil)
	}
	for i := range p.slots {
		if p.slots[i].over {
			out = append(out, p.relieve(&p.slots[i])...)
		}
	}
	for i := range p.slots {
		p.slots[i].excluded = p.slots[i].over
	}
	moves, _ := p.pack(out, false)
	return append(moves, p.empty(moves)...)
}

// relieve takes the machines with the least memory off until the host is no longer overloaded.
func (p *published) relieve(s *slot) []*vm {
	var out []*vm
	for len(s.vms) > 0 {
		least := s.vms[0]
		for _, v := range s.vms {
			if v.ram < least.ram {
				least = v
			}
		}
		out = append(out, least)
		p.remove(s, least)
		if !p.overloaded(s, nil) {
			break
		}
	}
	return out
}

// empty tries the hosts with the least use, one by one.
func (p *published) empty(before []move) []move {
	var moves []move
	tried := make([]bool, len(p.slots))
	for i := range p.slots {
		s := &p.slots[i]
		tried[i] = s.over || s.off
		s.excluded = s.over || s.off
	}
	if p.repaired {
		for _, m := range before {
			tried[m.to.id] = true
		}
	}
	for {
		least := -1
		lu := 1.0
		for i := range p.slots {
			s := &p.slots[i]
			if u := s.h.util / s.h.mips; !tried[i] && u > 0 && u < lu && len(s.vms) > 0 {
				least, lu = i, u
			}
		}
		if least < 0 {
			return moves
		}
		tried[least] = true
		p.slots[least].excluded = true
		ms, ok := p.pack(slices.Clone(p.slots[least].vms), true)
		if !ok {
			continue
		}
		for _, m := range ms {
			tried[m.to.id] = true
		}
		moves = append(moves, ms...)
	}
}

// pack finds places, the machines with most demand first; all or none if so asked.
func (p *published) pack(vms []*vm, all bool) ([]move, bool) {
	var moves []move
	slices.SortStableFunc(vms, func(a, b *vm) int { return cmp.Compare(b.demand, a.demand) })
	for _, v := range vms {
		s := p.find(v)
		if s != nil {
			p.add(s, v)
			moves = append(moves, move{v, s.h})
			continue
		}
		if all {
			for _, m := range moves {
				p.remove(&p.slots[m.to.id], m.vm)
			}
			return nil, false
		}
	}
	return moves, true
}

// find is the least power increase, priced against the power before this round.
func (p *published) find(v *vm) *slot {
	var best *slot
	least := 0.0
	for i := range p.slots {
		s := &p.slots[i]
		if s.excluded || s.h.core < v.demand || s.free < v.demand || p.ram(v)+s.ram > hostRAM {
			continue
		}
		if s.alloc != 0 && p.overloaded(s, v) {
			continue
		}
		d := watts(s.h.watts, (s.alloc+v.demand)/s.h.mips) - p.paid(s)
		if best == nil || d < least {
			best, least = s, d
		}
	}
	return best
}

// paid is the power a host is taken to draw anyway.
func (p *published) paid(s *slot) float64 {
	switch {
	case !p.repaired:
		return s.h.power(s.h.util)
	case len(s.vms) == 0:
		return 0
	}
	return watts(s.h.watts, s.alloc/s.h.mips)
}

func (p *published) ram(v *vm) int {
	if p.enforce {
		return v.ram
	}
	return 0
}

// overloaded judges a host, as it would be with one more machine.
func (p *published) overloaded(s *slot, with *vm) bool {
	req, fc, old := s.req, s.forecast, s.old
	if with != nil {
		req += with.demand
		if p.safety > 0 {
			f, o := forecast(with)
			fc, old = fc+f, old+o
		}
	}
	if p.safety == 0 {
		return req/s.h.mips > p.threshold
	}
	if old == 0 {
		return req/s.h.mips > fallback
	}
	return fc/s.h.mips*p.safety >= 1
}

// forecast is a machine's part in its host's line, and 1 when its history is long enough to count.
func forecast(v *vm) (float64, int) {
	sum, old := 0.0, 0
	for i, u := range v.hist {
		if i < regression {
			sum += ahead[i] * u * v.mips
		}
		if i >= regression-1 && u != 0 {
			old = 1
		}
	}
	return sum, old
}

func (p *published) add(s *slot, v *vm) {
	s.vms = append(s.vms, v)
	s.req += v.demand
	s.alloc += v.demand
	s.free -= v.demand
	s.ram += p.ram(v)
	if p.safety > 0 {
		f, o := forecast(v)
		s.forecast, s.old = s.forecast+f, s.old+o
	}
}

func (p *published) remove(s *slot, v *vm) {
	s.vms = slices.DeleteFunc(s.vms, func(x *vm) bool { return x == v })
	p.rebuild(s)
}

func (p *published) rebuild(s *slot) {
	h := s.h
	s.req, s.alloc, s.ram, s.forecast, s.old = 0, 0, 0, 0, 0
	over := false
	s.free = h.mips
	sum := 0.0
	for _, v := range s.vms {
		need := min(v.demand, h.core)
		sum += need
		if s.free >= need {
			s.free -= need
		} else {
			over, s.free = true, 0
		}
		s.req += v.demand
		s.ram += p.ram(v)
		if p.safety > 0 {
			f, o := forecast(v)
			s.forecast, s.old = s.forecast+f, s.old+o
		}
	}
	for _, v := range s.vms {
		a := min(v.demand, h.core)
		if over {
			a = float64(int(a * (h.mips / sum)))
		}
		s.alloc += a
	}
}
