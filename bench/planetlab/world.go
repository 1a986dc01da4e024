package main

import (
	"cmp"
	"math"
	"slices"

	"atoll/internal/trace/planetlab"
)

// The published set-up. Sizes in MIPS and MB, power in W at 0, 10, …, 100 % of CPU.
const (
	hostCount   = 800
	hostRAM     = 4096
	hostNet     = 1_000_000.0 // kbit/s; half of it moves machines
	vmNet       = 100_000.0
	decideEvery = 300.0
	dayEnd      = 86_400.0
	firstEvent  = 0.1 // machines are created at 0, their work arrives then
)

var hostTypes = [2]struct {
	core  float64
	watts [11]float64
}{
	{1860, [11]float64{86, 89.4, 92.6, 96, 99.5, 102, 106, 108, 112, 114, 117}},
	{2660, [11]float64{93.7, 97, 101, 105, 110, 116, 121, 125, 129, 133, 135}},
}

var vmTypes = [4]struct {
	mips float64
	ram  int
}{{2500, 870}, {2000, 1740}, {1000, 1740}, {500, 613}}

// keep is how many measured values a machine remembers, as the published one does.
const keep = 30

// vm is a virtual machine and what was counted of it.
type vm struct {
	id      int
	mips    float64
	ram     int
	data    [planetlab.Samples + 1]float64 // fraction of mips
	at      float64                        // when demand was measured
	demand  float64                        // MIPS wanted at at
	hist    []float64                      // fractions, newest first
	host    *host
	moving  bool
	noted   note
	asked   float64 // MIPS·s
	got     float64
	lostMig float64 // MIPS·s not had while moving
}

// note is a state since a time, counted once the next begins.
type note struct {
	t           float64
	alloc, want float64
	on          bool // a host: active; a machine: leaving its host
	set         bool
}

// host is a machine that carries others.
type host struct {
	id         int
	core, mips float64
	watts      *[11]float64
	vms        []*vm
	in         map[*vm]bool
	ramUsed    map[*vm]int // booked, which is not what is there (see world.enforce)
	netUsed    float64
	util, prev float64 // MIPS
	free       float64 // MIPS not booked
	alloc      map[*vm]float64
	noted      note
	active     float64 // s
	short      float64 // s active and not giving all
	shutdowns  int
	was        bool // on, before what is noted; taken for so at first
}

// world is the simulator: the published one's order of events and arithmetic.
type world struct {
	hosts   []*host
	vms     []*vm
	enforce bool // memory counts all day (B+)
	leave   bool // a machine that wants nothing is gone for good (the simulator as it is)
	clock   float64
	last    float64 // up to when energy is counted
	joule   float64
	moves   int
	step    int
	broken  int // moves to a host that had no memory left for them, with enforce
}

// move is a decision.
type move struct {
	vm *vm
	to *host
}

// chooser is a policy under test.
type chooser interface {
	place(w *world, v *vm) *host
	decide(w *world) []move
}

func newWorld(day []planetlab.Machine) *world {
	w := &world{}
	for i := range hostCount {
		t := &hostTypes[i%2]
		w.hosts = append(w.hosts, &host{id: i, core: t.core, mips: 2 * t.core, watts: &t.watts, free: 2 * t.core, was: true,
			in: map[*vm]bool{}, ramUsed: map[*vm]int{}, alloc: map[*vm]float64{}})
	}
	quarter := (len(day) + 3) / 4
	for i := range day {
		t := vmTypes[i/quarter]
		v := &vm{id: i, mips: t.mips, ram: t.ram}
		for k, u := range day[i].Use {
			v.data[k] = float64(u) / 100
		}
		v.data[planetlab.Samples] = v.data[planetlab.Samples-1]
		w.vms = append(w.vms, v)
	}
	return w
}

// run plays the day. When every host stays on whatever happens (always), the
// energy is that of full power all the time.
func (w *world) run(p chooser, always bool) bool {
	for _, v := range w.vms {
		h := p.place(w, v)
		if h == nil {
			return false
		}
		h.vms = append(h.vms, v)
		h.ramUsed[v] = v.ram
		h.netUsed += vmNet
		h.alloc[v] = v.mips
		h.free -= v.mips
		v.host = h
	}
	w.clock, w.last = firstEvent, 0
	for next := w.clock + decideEvery; next < dayEnd; next = w.clock + decideEvery {
		w.clock = next
		w.update()
		moves := p.decide(w)
		w.step++
		if w.step == 1 || len(moves) > 0 {
			w.rebook(len(moves) > 0)
		}
		decided := w.clock
		w.start(moves)
		w.finish(moves)
		w.clock = decided
	}
	if always {
		w.joule = 0
		for _, h := range w.hosts {
			w.joule += h.watts[10] * w.last
		}
	}
	return true
}

// rebook is what the published planner does to the books when it restores them: from
// then on a machine's present demand of memory counts, which is nothing, or all.
func (w *world) rebook(planned bool) {
	if !planned || w.enforce {
		return
	}
	for _, h := range w.hosts {
		clear(h.ramUsed)
		h.netUsed = 0
	}
}

func (w *world) booking(v *vm) int {
	if w.enforce {
		return v.ram
	}
	return 0
}

// moveTime is how long a machine's memory takes over half of the network.
func moveTime(v *vm) float64 { return float64(v.ram) / (hostNet / (2 * 8000)) }

// start begins all moves of a decision.
func (w *world) start(moves []move) {
	for _, m := range moves {
		m.vm.moving = true
		if !m.to.in[m.vm] {
			m.to.in[m.vm] = true
			m.to.vms = append(m.to.vms, m.vm)
			m.to.ramUsed[m.vm] = w.booking(m.vm)
			if m.to.ram() > hostRAM {
				w.broken++
			}
			w.updateHost(m.to)
			w.updateHost(m.vm.host)
		}
		w.moves++
	}
}

func (h *host) ram() int {
	sum := 0
	for _, r := range h.ramUsed {
		sum += r
	}
	return sum
}

// finish ends the moves in the order of their length, all of one length together.
func (w *world) finish(moves []move) {
	began := w.clock
	byEnd := slices.Clone(moves)
	slices.SortStableFunc(byEnd, func(a, b move) int { return cmp.Compare(moveTime(a.vm), moveTime(b.vm)) })
	for i := 0; i < len(byEnd); {
		w.clock = began + moveTime(byEnd[i].vm)
		w.update()
		for ; i < len(byEnd) && began+moveTime(byEnd[i].vm) == w.clock; i++ {
			m := byEnd[i]
			w.take(m.vm.host, m.vm)
			m.vm.host = m.to
			w.take(m.to, m.vm)
			m.to.vms = append(m.to.vms, m.vm)
			m.to.ramUsed[m.vm] = w.booking(m.vm)
			m.vm.moving = false
		}
		w.update()
	}
}

func (w *world) take(h *host, v *vm) {
	h.vms = slices.DeleteFunc(h.vms, func(x *vm) bool { return x == v })
	delete(h.in, v)
	delete(h.ramUsed, v)
	delete(h.alloc, v)
}

// update measures everything at the present moment and counts the energy since the last time.
func (w *world) update() {
	for _, h := range w.hosts {
		w.updateHost(h)
	}
	if dt := w.clock - w.last; dt > 0 {
		for _, h := range w.hosts {
			if h.prev != 0 {
				from, to := h.power(h.prev), h.power(h.util)
				w.joule += (from + (to-from)/2) * dt
			}
		}
	}
	w.last = w.clock
	if w.leave {
		for _, h := range w.hosts {
			h.vms = slices.DeleteFunc(h.vms, func(v *vm) bool { return !v.moving && v.demand == 0 })
		}
	}
}

func (w *world) updateHost(h *host) {
	for _, v := range h.vms {
		w.measure(v)
	}
	h.prev, h.util = h.util, 0
	h.share()
	want := 0.0
	for _, v := range h.vms {
		got := h.alloc[v]
		if !h.in[v] {
			v.note(w.clock, got, v.moving)
			if v.moving {
				got /= 0.9
			}
		}
		h.util += got
		want += v.demand
	}
	h.note(w.clock, want)
}

// measure reads the trace, linear between two values; the history grows with the decisions.
func (w *world) measure(v *vm) {
	if v.at == w.clock {
		return
	}
	x := w.clock / decideEvery
	lo, hi := int(math.Floor(x)), int(math.Ceil(x))
	use := v.data[lo]
	if hi > lo {
		use += (v.data[hi] - v.data[lo]) / decideEvery * (w.clock - float64(lo)*decideEvery)
	}
	if math.Mod(w.clock-0.1, decideEvery) == 0 {
		v.hist = append([]float64{use}, v.hist[:min(len(v.hist), keep-1)]...)
	}
	v.at, v.demand = w.clock, use*v.mips
}

// share gives every machine what it wants, at most a core; when that is too much,
// all get the same part of it in whole MIPS. One that leaves loses a tenth, one
// that arrives takes a tenth.
func (h *host) share() {
	h.free = h.mips
	sum, over := 0.0, false
	for _, v := range h.vms {
		need := min(v.demand, h.core)
		if h.in[v] {
			need *= 0.1
		}
		sum += need
		if h.free >= need {
			h.free -= need
		} else {
			over, h.free = true, 0
		}
	}
	for _, v := range h.vms {
		a := min(v.demand, h.core)
		if over && !h.in[v] {
			a *= h.mips / sum
		}
		switch {
		case h.in[v]:
			a *= 0.1
			if over {
				a *= h.mips / sum
			}
		case v.moving:
			a *= 0.9
		}
		if over {
			a = math.Floor(a)
		}
		h.alloc[v] = a
	}
}

func (h *host) power(mips float64) float64 { return watts(h.watts, mips/h.mips) }

func watts(table *[11]float64, u float64) float64 {
	if u > 1 {
		u = 1
	}
	lo, hi := int(math.Floor(u*10)), int(math.Ceil(u*10))
	return table[lo] + (table[hi]-table[lo])/10*(u-float64(lo)/10)*100
}

func (v *vm) note(t, got float64, leaving bool) {
	if v.noted.set && v.noted.t != t {
		n, dt := v.noted, t-v.noted.t
		v.got += n.alloc * dt
		v.asked += n.want * dt
		if n.alloc < n.want && n.on {
			v.lostMig += (n.want - n.alloc) * dt
		}
	}
	v.noted = note{t: t, alloc: got, want: v.demand, on: leaving, set: true}
}

func (h *host) note(t, want float64) {
	if h.noted.set && h.noted.t != t {
		h.count(t)
	}
	h.noted = note{t: t, alloc: h.util, want: want, on: h.util > 0, set: true}
}

func (h *host) count(t float64) {
	n, dt := h.noted, t-h.noted.t
	if h.was && !n.on {
		h.shutdowns++
	}
	if h.was = n.on; !n.on {
		return
	}
	h.active += dt
	if n.alloc < n.want {
		h.short += dt
	}
}

// result is what the published experiment reports.
type result struct {
	KWh, SLATAH, PDM, SLAV, ESV, Overall float64
	Moves, Hosts, Offs, Broken           int
}

func (w *world) result() result {
	var asked, got, mig, active, short float64
	offs := 0
	for _, v := range w.vms {
		asked, got, mig = asked+v.asked, got+v.got, mig+v.lostMig
	}
	for _, h := range w.hosts {
		active, short = active+h.active, short+h.short
		offs += h.shutdowns
		if h.was && !h.noted.on {
			offs++
		}
	}
	r := result{KWh: w.joule / 3.6e6, SLATAH: short / active, PDM: mig / asked, Overall: (asked - got) / asked, Moves: w.moves, Offs: offs, Broken: w.broken}
	r.SLAV = r.SLATAH * r.PDM
	r.ESV = r.KWh * r.SLAV
	r.Hosts = int(math.Round(active / (w.last - (firstEvent + decideEvery))))
	return r
}
