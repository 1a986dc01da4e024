package balance

import (
	"math"
	"slices"
)

// guess is what an instance's load is taken to be for the time to come.
type guess struct {
	now, mean, variance float64
}

// place is a host within a plan.
type place struct {
	members []int
	booked  Vector // without Config.InTurn also what leaves: it is there until it has gone
	guess          // sums over members
	price   float64
	arrived int
	off     bool
	emptied bool
}

type plan struct {
	p      Pool
	c      Config
	rules  Rules
	guess  []guess
	at     []int // where instances are in the plan
	moved  []bool
	places []place
	moves  []Move
	groups int
	tries  int // see ways
}

// step is a move within a plan that may be taken back.
type step struct {
	i, from, to int
}

func newPlan(p Pool, c Config) *plan {
	pl := &plan{p: p, c: c, rules: p.Rules, guess: guesses(p.Instances, c.Memory), at: make([]int, len(p.Instances)),
		moved: make([]bool, len(p.Instances)), places: make([]place, len(p.Hosts))}
	if pl.rules == nil {
		pl.rules = Free{}
	}
	for h := range p.Hosts {
		pl.places[h].booked = make(Vector, len(p.Hosts[h].Capacity))
		pl.places[h].off = p.Hosts[h].Off
	}
	for i := range p.Instances {
		h := p.Instances[i].Host
		pl.at[i] = h
		pl.places[h].members = append(pl.places[h].members, i)
		pl.places[h].book(p.Instances[i].Request, 1)
	}
	for h := range pl.places {
		pl.sum(&pl.places[h])
	}
	pl.prices()
	return pl
}

func (s *place) book(v Vector, sign int64) {
	for d := range min(len(s.booked), len(v)) {
		s.booked[d] += sign * v[d]
	}
}

func (pl *plan) sum(s *place) {
	s.guess = guess{}
	for _, i := range s.members {
		s.guess = s.guess.plus(pl.guess[i])
	}
}

func (g guess) plus(o guess) guess {
	return guess{g.now + o.now, g.mean + o.mean, g.variance + o.variance}
}

// expected is the load to be ready for.
func (g guess) expected(sigma float64) float64 {
	return max(g.now, g.mean) + sigma*math.Sqrt(g.variance)
}

// guesses weighs measured values by age. What little is known of one instance is
// filled up with what is known of all, in parts of their sizes.
func guesses(in []Instance, halfLife float64) []guess {
	out := make([]guess, len(in))
	weight := make([]float64, len(in))
	decay := math.Exp2(-1 / halfLife)
	var parts, square, n float64
	for i := range in {
		load := in[i].Load
		if len(load) == 0 {
			continue
		}
		g := &out[i]
		g.now = load[len(load)-1]
		w, sum, sq := 1.0, 0.0, 0.0
		for k := len(load) - 1; k >= 0 && w > 1e-3; k-- {
			sum += w * load[k]
			sq += w * load[k] * load[k]
			weight[i] += w
			w *= decay
		}
		g.mean = sum / weight[i]
		g.variance = max(0, sq/weight[i]-g.mean*g.mean)
		if s := in[i].Size; s > 0 {
			parts, square, n = parts+sum/s, square+sq/s/s, n+weight[i]
		}
	}
	if n == 0 {
		return out
	}
	mean := parts / n
	variance := max(0, square/n-mean*mean)
	const prior = 3 // values that the pool's habit counts for
	for i := range in {
		s := in[i].Size
		if s <= 0 {
			continue
		}
		g, w := &out[i], weight[i]
		m := (w*g.mean + prior*mean*s) / (w + prior)
		d, dp := g.mean-m, mean*s-m
		g.variance = (w*(g.variance+d*d) + prior*(variance*s*s+dp*dp)) / (w + prior)
		g.mean = m
	}
	return out
}

// prices says what a host costs in power: what the whole pool would draw if all its
// hosts were like this one, over the same of the best. So where CPU is scarce the
// host that computes most per watt is best, and where memory is scarce the one that
// holds most.
func (pl *plan) prices() {
	var all guess
	var booked Vector
	for i := range pl.p.Instances {
		all = all.plus(pl.guess[i])
		for d, v := range pl.p.Instances[i].Request {
			if d == len(booked) {
				booked = append(booked, 0)
			}
			booked[d] += v
		}
	}
	best := math.Inf(1)
	for h := range pl.places {
		host := &pl.p.Hosts[h]
		n := 0.0
		if host.CPU > 0 {
			n = all.mean / (pl.c.Low * host.CPU)
		}
		for d, c := range host.Capacity {
			if d < len(booked) && c > 0 {
				n = max(n, float64(booked[d])/float64(c))
			}
		}
		if n == 0 || len(host.Watts) == 0 {
			continue
		}
		pl.places[h].price = n * pl.watts(h, all.mean/n)
		best = min(best, pl.places[h].price)
	}
	for h := range pl.places {
		if s := &pl.places[h]; s.price > 0 {
			s.price /= best
		} else {
			s.price = 1
		}
	}
}

// fits tells whether an instance may come to a host: by the books, by the rules and
// by its load, uncertainty included. It must also fit right now.
func (pl *plan) fits(i, h int) bool {
	s, host, in := &pl.places[h], &pl.p.Hosts[h], &pl.p.Instances[i]
	if s.emptied || host.Closed != "" || host.Drain != "" || h == pl.at[i] || h == in.Host || h == in.Came && !pl.rested(i) {
		return false
	}
	for d := range min(len(s.booked), len(in.Request)) {
		if s.booked[d]+in.Request[d] > host.Capacity[d] {
			return false
		}
	}
	g := pl.guess[i]
	if host.Core > 0 && g.expected(2*pl.c.Sigma) > host.Core {
		return false
	}
	if s.plus(g).expected(pl.c.Sigma) > pl.c.Low*host.CPU {
		return false
	}
	return pl.rules.Admits(i, h)
}

func (pl *plan) put(i, to int) step {
	st := step{i: i, from: pl.at[i], to: to}
	pl.shift(i, st.from, to)
	b := &pl.places[to]
	b.book(pl.p.Instances[i].Request, 1)
	if pl.c.InTurn {
		pl.places[st.from].book(pl.p.Instances[i].Request, -1)
	}
	b.arrived++
	b.off = false
	pl.moved[i] = true
	return st
}

// back takes a step back; those that wake a host never are.
func (pl *plan) back(st step) {
	pl.shift(st.i, st.to, st.from)
	b := &pl.places[st.to]
	b.book(pl.p.Instances[st.i].Request, -1)
	if pl.c.InTurn {
		pl.places[st.from].book(pl.p.Instances[st.i].Request, 1)
	}
	b.arrived--
	pl.moved[st.i] = false
}

func (pl *plan) shift(i, from, to int) {
	a, b := &pl.places[from], &pl.places[to]
	a.members = slices.DeleteFunc(a.members, func(x int) bool { return x == i })
	b.members = append(b.members, i)
	pl.sum(a)
	pl.sum(b)
	pl.at[i] = to
	pl.rules.Moved(i, from, to)
}

// target finds the best host for an instance; -1 when none. Hosts that are off
// count only if they may be woken.
func (pl *plan) target(i int, wake bool) int {
	best, bestScore := -1, math.Inf(-1)
	for h := range pl.places {
		if pl.places[h].off && !wake {
			continue
		}
		if sc := pl.score(i, h); sc > bestScore && pl.fits(i, h) {
			best, bestScore = h, sc
		}
	}
	return best
}

// score prefers hosts that are on, that give most for their power, that take
// someone in already (one host is disturbed instead of two), that were proposed
// before, and that are full.
func (pl *plan) score(i, h int) float64 {
	s, host := &pl.places[h], &pl.p.Hosts[h]
	sc := -10 * s.price
	if s.off {
		sc -= 100
	}
	if s.arrived > 0 {
		sc += 0.5
	}
	if pl.p.Instances[i].Leans == h+1 {
		sc += 2
	}
	if host.CPU > 0 {
		sc += s.plus(pl.guess[i]).expected(pl.c.Sigma) / host.CPU
	}
	for d, c := range host.Capacity {
		if c > 0 {
			sc += float64(s.booked[d]) / float64(c) / float64(len(host.Capacity))
		}
	}
	return sc
}

// watts of a host at a load.
func (pl *plan) watts(h int, load float64) float64 {
	w := pl.p.Hosts[h].Watts
	if len(w) == 0 {
		return 0
	}
	if len(w) == 1 || pl.p.Hosts[h].CPU <= 0 {
		return w[0]
	}
	x := min(max(load/pl.p.Hosts[h].CPU, 0), 1) * float64(len(w)-1)
	k := min(int(x), len(w)-2)
	return w[k] + (w[k+1]-w[k])*(x-float64(k))
}

func (pl *plan) cost(i int) float64 { return pl.p.Instances[i].Cost * pl.c.MovePrice }

func (pl *plan) left() int {
	if pl.c.MaxMoves == 0 {
		return math.MaxInt
	}
	return pl.c.MaxMoves - len(pl.moves)
}

func (pl *plan) movable(i int) bool { return pl.p.Instances[i].Fixed == "" && !pl.moved[i] }

func (pl *plan) rested(i int) bool { return pl.p.Instances[i].Rested >= pl.c.Rest }

// accept turns steps into moves of one group that share a gain.
func (pl *plan) accept(steps []step, g Goal, gain float64, reason func(step) string) {
	pl.groups++
	for _, st := range steps {
		pl.moves = append(pl.moves, Move{Instance: st.i, From: st.from, To: st.to, Goal: g, Group: pl.groups,
			Gain: gain / float64(len(steps)), Cost: pl.cost(st.i), Reason: reason(st)})
	}
}
