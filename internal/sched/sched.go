// Package sched decides where instances run. It is pure: the same view, items,
// chain and seed give the same plan; it reads no clock, does no I/O and cannot
// fail. What cannot be placed comes back with the reasons, counted.
//
// A Planner keeps, for every kind of item it has seen (policy.Item.Key), what each
// node is worth for it in a tree whose root is the best. A decision brings in only
// the nodes that changed since, so it does not grow with the pool.
package sched

import (
	"hash/fnv"
	"math"
	"sort"

	"atoll/api"
	"atoll/internal/policy"
)

// Placement is one decision. Node is "" when no node admits the item; Decision says why.
type Placement struct {
	Item     *policy.Item
	Node     string
	Alloc    policy.Alloc
	Victims  []*policy.Item // what must go first; only when asked to preempt
	Decision api.Decision
}

// Ties is how equal nodes are told apart.
type Ties int

const (
	// TiesShared lets equal nodes share the load, by a hash of seed and item.
	TiesShared Ties = iota
	// TiesFirst takes the first by name.
	TiesFirst
)

// Planner decides on one View and remembers what it found out. It changes the
// View only where it says so.
type Planner struct {
	View  *policy.View
	Chain policy.Chain
	Seed  uint64
	Ties  Ties
	// Terse leaves out of decisions what is only to be shown.
	Terse bool

	rankings map[string]*ranking
	uses     uint64
}

const (
	maxVerdicts = 20 // what a decision keeps, node by node; the rest is counted only
	topVerdicts = 3  // of a pool with more nodes than that
)

// NewPlanner makes one.
func NewPlanner(v *policy.View, chain policy.Chain, seed uint64) *Planner {
	return &Planner{View: v, Chain: chain, Seed: seed, rankings: map[string]*ranking{}}
}

// Plan places items in the order given, each seeing the ones before it. The view
// is as before when Plan returns.
func Plan(v *policy.View, items []*policy.Item, chain policy.Chain, seed uint64) []Placement {
	return NewPlanner(v, chain, seed).Plan(items)
}

// Plan places items in the order given, each seeing the ones before it. The view
// is as before when Plan returns.
func (p *Planner) Plan(items []*policy.Item) []Placement {
	out := make([]Placement, 0, len(items))
	for _, it := range items {
		pl := p.Decide(it)
		p.Take(pl)
		out = append(out, pl)
	}
	p.undo(out)
	return out
}

// Gang places all items or none. The view is as before when Gang returns.
func (p *Planner) Gang(items []*policy.Item) (plan []Placement, all bool) {
	plan, all = p.Plan(items), true
	for _, pl := range plan {
		all = all && pl.Node != ""
	}
	return plan, all
}

// Take makes a decision so in the view.
func (p *Planner) Take(pl Placement) {
	if pl.Node == "" {
		return
	}
	for _, x := range pl.Victims {
		p.View.Unplace(x.UID)
	}
	p.View.Place(pl.Item, pl.Node, pl.Alloc)
}

func (p *Planner) undo(plan []Placement) {
	for i := len(plan) - 1; i >= 0; i-- {
		if plan[i].Node != "" {
			p.View.Unplace(plan[i].Item.UID)
		}
	}
}

// Decide finds the best node for an item, which must not be in the view.
func (p *Planner) Decide(it *policy.Item) Placement {
	r := p.ranking(it)
	if best := r.best(p.toss(it)); best.node >= 0 {
		return p.chosen(r, it, best)
	}
	return p.refused(r, it)
}

// DecideOrPreempt finds the best node, or the one on which it fits once the fewest
// and least important items of lower priority are gone (Victims). It never takes
// what a disruption budget protects, nor anything of the item's own or a higher
// priority.
func (p *Planner) DecideOrPreempt(it *policy.Item) Placement {
	r := p.ranking(it)
	if best := r.best(p.toss(it)); best.node >= 0 {
		return p.chosen(r, it, best)
	}
	if pl := p.preempt(r, it); pl.Node != "" {
		return pl
	}
	return p.refused(r, it)
}

// Fits is Decide without the reasons.
func (p *Planner) Fits(it *policy.Item) Placement {
	best := p.ranking(it).best(p.toss(it))
	if best.node < 0 {
		return Placement{Item: it}
	}
	n := p.View.Nodes[best.node]
	return Placement{Item: it, Node: n.Name, Alloc: p.Chain.Pick(n, it)}
}

func (p *Planner) chosen(r *ranking, it *policy.Item, best pick) Placement {
	n := p.View.Nodes[best.node]
	pl := Placement{Item: it, Node: n.Name, Alloc: p.Chain.Pick(n, it), Decision: api.Decision{Of: len(p.View.Nodes), Chosen: n.Name}}
	if !p.Terse {
		pl.Decision.Nodes = r.verdicts(best, p.toss(it))
		pl.Decision.Refusals = r.refusals(false)
	}
	return pl
}

func (p *Planner) refused(r *ranking, it *policy.Item) Placement {
	d := api.Decision{Of: len(p.View.Nodes), Nodes: r.verdicts(pick{node: -1}, p.toss(it)), Refusals: r.refusals(true)}
	d.Hints = hints(p.View, it, d.Refusals)
	return Placement{Item: it, Decision: d}
}

// toss tells equal nodes apart.
type toss struct {
	first bool
	hash  uint64
}

func (p *Planner) toss(it *policy.Item) toss {
	if p.Ties == TiesFirst {
		return toss{first: true}
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(it.UID)) // never fails
	return toss{hash: h.Sum64() ^ p.Seed*0x9e3779b97f4a7c15}
}

// right tells whether to take the second of two equals.
func (t toss) right(at int) bool {
	if t.first {
		return false
	}
	x := t.hash + uint64(at)*0xbf58476d1ce4e5b9
	x ^= x >> 31
	x *= 0x94d049bb133111eb
	return x>>63 == 1
}

// ranking finds or makes what is known of a kind of item, brought up to date.
func (p *Planner) ranking(it *policy.Item) *ranking {
	p.View.Arrange()
	p.uses++
	r := p.rankings[it.Key()]
	if r == nil {
		if len(p.rankings) >= p.keep() {
			p.dropOldest()
		}
		r = &ranking{}
		p.rankings[it.Key()] = r
	}
	r.used = p.uses
	r.follow(p.View, p.Chain, it)
	return r
}

// keep bounds the memory of rankings: about 40 bytes a node each.
func (p *Planner) keep() int {
	return min(max(4<<20/max(len(p.View.Nodes), 1), 16), 1024)
}

func (p *Planner) dropOldest() {
	oldest, at := uint64(math.MaxUint64), ""
	for k, r := range p.rankings {
		if r.used < oldest {
			oldest, at = r.used, k
		}
	}
	delete(p.rankings, at)
}

func sortRefusals(out []api.Refusal) {
	sort.Slice(out, func(i, j int) bool {
		if out[i].Nodes != out[j].Nodes {
			return out[i].Nodes > out[j].Nodes
		}
		return out[i].Reason < out[j].Reason
	})
}
