package balance

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// repair moves what stands where it must not, and what has to leave.
func (pl *plan) repair() {
	for i := range pl.p.Instances {
		in := &pl.p.Instances[i]
		why := in.Wrong
		if why == "" {
			why = pl.p.Hosts[in.Host].Drain
		}
		if why == "" || !pl.movable(i) || pl.left() < 1 {
			continue
		}
		if h := pl.target(i, true); h >= 0 {
			pl.accept([]step{pl.put(i, h)}, Repair, pl.c.WrongPrice, func(step) string { return why })
		}
	}
}

// relieve takes load off hosts that are short, the shortest first.
func (pl *plan) relieve() {
	var short []int
	for h := range pl.places {
		if host := &pl.p.Hosts[h]; host.CPU > 0 && (pl.places[h].now > pl.c.High*host.CPU || pl.cramped(h) >= 0) {
			short = append(short, h)
		}
	}
	over := func(h int) float64 { return pl.places[h].now / pl.p.Hosts[h].CPU }
	slices.SortStableFunc(short, func(a, b int) int { return cmp.Compare(over(b), over(a)) })
	for _, h := range short {
		for pl.left() > 0 && pl.relieveOne(h) {
		}
	}
}

// cramped finds an instance that wants more than one core of its host gives.
func (pl *plan) cramped(h int) int {
	host := &pl.p.Hosts[h]
	if host.Core <= 0 {
		return -1
	}
	for _, i := range pl.places[h].members {
		if pl.guess[i].now > host.Core && pl.movable(i) {
			return i
		}
	}
	return -1
}

func (pl *plan) relieveOne(h int) bool {
	s, host := &pl.places[h], &pl.p.Hosts[h]
	if i := pl.cramped(h); i >= 0 {
		// Another host is worth waking only for what lasts.
		if to := pl.target(i, pl.guess[i].mean > host.Core); to >= 0 {
			gain := (pl.guess[i].now - host.Core) / host.CPU * pl.c.ShortPrice
			if gain > pl.cost(i) {
				pl.accept([]step{pl.put(i, to)}, Pressure, gain, func(step) string {
					return fmt.Sprintf("wants %s of what %s can give one instance", percent(pl.guess[i].now, host.Core), host.Name)
				})
				return true
			}
		}
	}
	lack := s.now - pl.c.High*host.CPU
	if lack <= 0 {
		return false
	}
	i, to := pl.reliever(h, lack)
	if i < 0 {
		return false
	}
	gain := min(lack, pl.guess[i].now) / host.CPU * pl.c.ShortPrice
	if gain <= pl.cost(i) {
		return false
	}
	used := s.now
	pl.accept([]step{pl.put(i, to)}, Pressure, gain, func(step) string {
		return fmt.Sprintf("%s is short: %s of its CPU is wanted, %s of it here", host.Name, percent(used, host.CPU), percent(pl.guess[i].now, used))
	})
	return true
}

// reliever is the cheapest instance that ends a shortage alone, or else the one that
// takes most of it away.
func (pl *plan) reliever(h int, lack float64) (best, to int) {
	members := slices.Clone(pl.places[h].members)
	solves := func(i int) bool { return pl.guess[i].now >= lack }
	slices.SortStableFunc(members, func(a, b int) int {
		if solves(a) != solves(b) {
			if solves(a) {
				return -1
			}
			return 1
		}
		if solves(a) {
			return cmp.Or(cmp.Compare(pl.cost(a)*(1+pl.guess[a].now/lack), pl.cost(b)*(1+pl.guess[b].now/lack)), cmp.Compare(a, b))
		}
		return cmp.Or(cmp.Compare(pl.guess[b].now, pl.guess[a].now), cmp.Compare(a, b))
	})
	for _, i := range members {
		if pl.guess[i].now <= 0 || !pl.movable(i) {
			continue
		}
		if t := pl.target(i, false); t >= 0 {
			return i, t
		}
		if t := pl.target(i, true); t >= 0 {
			return i, t
		}
	}
	return -1, -1
}

// empty frees hosts that can be switched off. Which of them are tried first decides
// how many it will be, so a few orders are tried, and the best is kept.
func (pl *plan) empty() {
	var best []clearing
	most := 0.0
	for _, try := range pl.attempts() {
		got := pl.emptyBy(try.order, try.first)
		won := 0.0
		for _, c := range got {
			won += c.gain - c.cost
			if c.stands {
				won += c.gain * leaning
			}
		}
		for k := len(got) - 1; k >= 0; k-- {
			pl.undo(got[k])
		}
		if won > most {
			best, most = got, won
		}
	}
	for _, c := range best {
		pl.places[c.host].emptied = true
		for k := range c.steps {
			c.steps[k] = pl.put(c.steps[k].i, c.steps[k].to)
		}
		name := pl.p.Hosts[c.host].Name
		pl.accept(c.steps, Power, c.gain, func(step) string {
			return fmt.Sprintf("empties %s, which can then be switched off (%.0f Wh in %.3g h)", name, c.gain, pl.c.Horizon)
		})
	}
}

type attempt struct {
	order order
	first int // place in the order to begin at; those before come last
}

// few is how many hosts a pool has at most to be tried from every one of them.
const few = 32

// attempts are three orders, and for a small pool, where one host is much, each of
// them from every beginning.
func (pl *plan) attempts() []attempt {
	var out []attempt
	for _, o := range []order{mostForTheMoves, leastFilled, dearest} {
		out = append(out, attempt{order: o})
		if n := len(pl.places); n <= few {
			for k := 1; k < n; k++ {
				out = append(out, attempt{o, k})
			}
		}
	}
	return out
}

// clearing is a host that is emptied.
type clearing struct {
	host       int
	steps      []step
	gain, cost float64
	stands     bool // was proposed before
}

// leaning is how much better something else must be to replace what was proposed.
const leaning = 0.25

// stands: all that is on a host was to leave it already.
func (pl *plan) stands(h int) bool {
	for _, i := range pl.places[h].members {
		if l := pl.p.Instances[i].Leans; l == 0 || l == h+1 {
			return false
		}
	}
	return len(pl.places[h].members) > 0
}

// order says which host to empty first: the one with the larger number.
type order func(pl *plan, h int, cost float64) float64

func mostForTheMoves(pl *plan, h int, cost float64) float64 {
	return pl.saving(h) / (cost + 1e-9) * pl.places[h].price * pl.places[h].price
}

func leastFilled(pl *plan, h int, _ float64) float64 {
	sum := 0.0
	for _, i := range pl.places[h].members {
		sum -= pl.bulk(i, h)
	}
	return sum
}

func dearest(pl *plan, h int, cost float64) float64 { return pl.saving(h) - cost }

func (pl *plan) emptyBy(o order, first int) []clearing {
	var hosts []int
	worth := make([]float64, len(pl.places))
	for h := range pl.places {
		if cost, ok := pl.canLeave(h); ok {
			worth[h] = o(pl, h, cost)
			if pl.stands(h) {
				worth[h] += math.Abs(worth[h]) * leaning
			}
			hosts = append(hosts, h)
		}
	}
	slices.SortStableFunc(hosts, func(a, b int) int {
		return cmp.Or(cmp.Compare(worth[b], worth[a]), cmp.Compare(pl.places[a].mean, pl.places[b].mean))
	})
	if first > 0 {
		if first >= len(hosts) {
			return nil
		}
		hosts = append(hosts[first:], hosts[:first]...)
	}
	var out []clearing
	used, failed := 0, 0
	pl.tries = 0
	for _, h := range hosts {
		c, ok := pl.emptyOne(h, pl.left()-used)
		if failed++; failed > patience {
			break
		}
		if ok {
			out = append(out, c)
			used, failed = used+len(c.steps), 0
		}
	}
	return out
}

// patience is after how many hosts in a row that could not be emptied the rest is not
// tried: they are fuller, and a large pool must not be searched in vain.
const patience = 64

func (pl *plan) undo(c clearing) {
	pl.takeBack(c.steps)
	pl.places[c.host].emptied = false
}

func (pl *plan) takeBack(steps []step) {
	for k := len(steps) - 1; k >= 0; k-- {
		pl.back(steps[k])
	}
}

// canLeave adds up what it costs to empty a host, when that is allowed at all.
func (pl *plan) canLeave(h int) (float64, bool) {
	s := &pl.places[h]
	if s.off || len(s.members) == 0 || len(pl.p.Hosts[h].Watts) == 0 || s.arrived > 0 {
		return 0, false
	}
	cost := 0.0
	for _, i := range s.members {
		if !pl.movable(i) || !pl.rested(i) {
			return 0, false
		}
		cost += pl.cost(i)
	}
	return cost, true
}

// saving is what switching a host off saves, in Wh: all it draws now, less what its
// load draws elsewhere.
func (pl *plan) saving(h int) float64 {
	s := &pl.places[h]
	w := pl.p.Hosts[h].Watts
	elsewhere := 0.0
	if c := pl.p.Hosts[h].CPU; c > 0 {
		elsewhere = (w[len(w)-1] - w[0]) * s.mean / c
	}
	return max(0, pl.watts(h, s.mean)-elsewhere) * pl.c.Horizon
}

func (pl *plan) emptyOne(h, budget int) (clearing, bool) {
	s := &pl.places[h]
	cost, ok := pl.canLeave(h)
	c := clearing{host: h, gain: pl.saving(h), cost: cost, stands: pl.stands(h)}
	if !ok || c.gain <= cost || len(s.members) > budget {
		return c, false
	}
	members := slices.Clone(s.members)
	slices.SortStableFunc(members, func(a, b int) int {
		return cmp.Or(cmp.Compare(pl.bulk(b, h), pl.bulk(a, h)), cmp.Compare(a, b))
	})
	s.emptied = true
	for _, i := range members {
		to := pl.target(i, false)
		if to < 0 {
			way, h := pl.wayFor(i)
			for _, st := range way {
				c.steps, c.cost = append(c.steps, st), c.cost+pl.cost(st.i)
			}
			if to = h; to < 0 || c.gain <= c.cost || len(c.steps) >= budget {
				pl.undo(c)
				return c, false
			}
		}
		c.steps = append(c.steps, pl.put(i, to))
	}
	if len(c.steps) > budget { // those who made way count, too
		pl.undo(c)
		return c, false
	}
	return c, true
}

// ways bounds the search for those who could make way, over a whole plan.
const ways = 2048

// wayMost is how many may make way for one.
const wayMost = 3

// wayFor moves smaller instances out of the way of one that fits nowhere, in turn. The
// steps are made; the host is where there is room now, -1 when there is no way.
func (pl *plan) wayFor(i int) (way []step, host int) {
	if !pl.c.InTurn {
		return nil, -1
	}
	for g := range pl.places {
		if s := &pl.places[g]; s.off || s.emptied {
			continue
		}
		smaller := slices.DeleteFunc(slices.Clone(pl.places[g].members), func(j int) bool {
			return !pl.movable(j) || !pl.rested(j) || pl.bulk(j, g) >= pl.bulk(i, g)
		})
		for first := range smaller {
			for _, j := range smaller[first:min(first+wayMost, len(smaller))] {
				if pl.tries++; pl.tries > ways {
					pl.takeBack(way)
					return nil, -1
				}
				to := pl.target(j, false)
				if to < 0 {
					continue
				}
				if way = append(way, pl.put(j, to)); pl.fits(i, g) {
					return way, g
				}
			}
			pl.takeBack(way)
			way = nil
		}
	}
	return nil, -1
}

// bulk is the part of a host an instance takes, in the dimension it takes most of.
func (pl *plan) bulk(i, h int) float64 {
	host := &pl.p.Hosts[h]
	b := 0.0
	if host.CPU > 0 {
		b = pl.guess[i].expected(pl.c.Sigma) / host.CPU
	}
	for d, c := range host.Capacity {
		if d < len(pl.p.Instances[i].Request) && c > 0 {
			b = max(b, float64(pl.p.Instances[i].Request[d])/float64(c))
		}
	}
	return b
}

// defragment makes room for wanted shapes: an instance goes elsewhere so that more of
// them fit than before. All shapes count together, so that room for one is not made
// at the price of another, and taken back in the next round.
func (pl *plan) defragment() {
	if len(pl.p.Shapes) == 0 {
		return
	}
	for h := range pl.places {
		for pl.left() > 0 && pl.makeRoom(h) {
		}
	}
}

// rooms adds up over all shapes how often each fits.
func (pl *plan) rooms(h int) int64 {
	n := int64(0)
	for _, shape := range pl.p.Shapes {
		n += pl.room(h, shape)
	}
	return n
}

// room counts how often a shape fits into what is not booked.
func (pl *plan) room(h int, shape Vector) int64 {
	n := int64(math.MaxInt64)
	host := &pl.p.Hosts[h]
	if pl.places[h].off || host.Closed != "" || host.Drain != "" {
		return 0
	}
	for d := range min(len(shape), len(host.Capacity)) {
		if shape[d] > 0 {
			n = min(n, max(0, host.Capacity[d]-pl.remains(h, d))/shape[d])
		}
	}
	if n == math.MaxInt64 {
		return 0
	}
	return n
}

// remains is what is booked once all that leaves has left.
func (pl *plan) remains(h, d int) int64 {
	sum := int64(0)
	for _, i := range pl.places[h].members {
		if r := pl.p.Instances[i].Request; d < len(r) {
			sum += r[d]
		}
	}
	return sum
}

func (pl *plan) makeRoom(h int) bool {
	before := pl.rooms(h)
	host := &pl.p.Hosts[h]
	for _, i := range slices.Clone(pl.places[h].members) {
		if !pl.movable(i) || !pl.rested(i) {
			continue
		}
		to := pl.target(i, false)
		if to < 0 {
			continue
		}
		there := pl.rooms(to)
		st := pl.put(i, to)
		won := pl.rooms(h) + pl.rooms(to) - before - there
		if gain := float64(won) * pl.c.ShapePrice; gain > pl.cost(i) {
			pl.accept([]step{st}, Defragment, gain, func(step) string {
				return fmt.Sprintf("makes room for %d more on %s of a size that is wanted", won, host.Name)
			})
			return true
		}
		pl.back(st)
	}
	return false
}
