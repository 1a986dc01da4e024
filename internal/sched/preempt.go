package sched

import (
	"slices"
	"sort"

	"atoll/api"
	"atoll/internal/policy"
)

// eviction is what making room on every node would cost, for one kind of item. It
// shares its life with the ranking.
type eviction struct {
	tree    tree
	at      uint64
	built   uint64 // where the view's changes were then
	budgets uint64 // as they were
}

// preempt is the second half of DecideOrPreempt.
func (p *Planner) preempt(r *ranking, it *policy.Item) Placement {
	pl := Placement{Item: it, Decision: api.Decision{Of: len(p.View.Nodes)}}
	if !p.View.Lower(it.Priority) {
		return pl
	}
	r.followEvictions(it)
	if e := r.evict; e.tree.val[1] == none && e.built != r.at && (r.level != policy.Host || p.View.Budgets() > 0) {
		// What stood in the way was not only the node's: look at all again.
		r.evict = nil
		r.followEvictions(it)
	}
	t, by := &r.evict.tree, p.toss(it)
	for len(t.nodes) > 0 && t.val[1] != none {
		leaf := t.top(by)
		n := p.View.Nodes[t.nodes[leaf]]
		victims, ok := r.victims(n, it)
		if cost := -price(p.View, victims); !ok || cost < t.val[1] {
			// What surrounds the node has changed since: a whole domain, or a budget.
			if !ok {
				cost = none
			}
			t.set(leaf, cost)
			continue
		}
		pl.Node, pl.Victims, pl.Decision.Chosen = n.Name, victims, n.Name
		p.View.Try(n, func() {
			for _, x := range victims {
				p.View.Unplace(x.UID)
			}
			pl.Alloc = p.Chain.Pick(n, it)
			if !p.Terse {
				pl.Decision.Nodes = []api.NodeVerdict{r.verdict(n.ID)}
			}
		})
		break
	}
	if !p.Terse {
		pl.Decision.Refusals = r.refusals(false)
	}
	return pl
}

func (r *ranking) followEvictions(it *policy.Item) {
	if r.evict != nil && r.evict.budgets != r.view.Budgeted() {
		r.evict = nil
	}
	if r.evict == nil {
		e := &eviction{budgets: r.view.Budgeted()}
		for id := range r.view.Nodes {
			e.tree.nodes = append(e.tree.nodes, int32(id))
		}
		e.tree.size()
		r.evict = e
		for id := range r.view.Nodes {
			e.tree.val[e.tree.base+id] = r.evictionWorth(id, it)
		}
		e.tree.fill()
		e.at, e.built = r.at, r.at
		return
	}
	nodes, now, ok := r.view.Changes(r.evict.at)
	if !ok { // the ranking was brought up to date in between, this was not
		r.evict = nil
		r.followEvictions(it)
		return
	}
	for _, id := range nodes {
		r.evict.tree.set(int(id), r.evictionWorth(int(id), it))
	}
	r.evict.at = now
}

func (r *ranking) evictionWorth(id int, it *policy.Item) float64 {
	victims, ok := r.victims(r.view.Nodes[id], it)
	if !ok {
		return none
	}
	return -price(r.view, victims)
}

// victims finds what has to go from a node; ok is false when that would not help.
func (r *ranking) victims(n *policy.Node, it *policy.Item) (out []*policy.Item, ok bool) {
	lower := r.evictable(n, it)
	if len(lower) == 0 {
		return nil, false
	}
	v := r.view
	fits := func() bool {
		if _, why := r.refusal(n); why != "" {
			return false
		}
		_, why := r.domainRefusal(n.Place)
		return why == ""
	}
	allocs := make([]policy.Alloc, len(lower))
	v.Try(n, func() {
		for i, x := range lower {
			allocs[i] = v.Alloc(x.UID)
			v.Unplace(x.UID)
		}
		if ok = fits(); !ok {
			return
		}
		// The most important ones come back first, as far as there is room.
		for i := len(lower) - 1; i >= 0; i-- {
			v.Place(lower[i], n.Name, allocs[i])
			if !fits() {
				v.Unplace(lower[i].UID)
				out = append(out, lower[i])
			}
		}
	})
	return out, ok && len(out) > 0
}

// evictable lists the items of a node that may be taken away, least important first.
func (r *ranking) evictable(n *policy.Node, it *policy.Item) []*policy.Item {
	var lower []*policy.Item
	for _, x := range slices.Backward(n.Items) { // among equals the newest goes
		if x.Priority < it.Priority {
			lower = append(lower, x)
		}
	}
	sort.SliceStable(lower, func(i, j int) bool {
		if lower[i].Priority != lower[j].Priority {
			return lower[i].Priority < lower[j].Priority
		}
		return weight(n, lower[i]) > weight(n, lower[j]) // one large one rather than many small ones
	})
	spent := map[api.Ref]int{}
	return slices.DeleteFunc(lower, func(x *policy.Item) bool {
		spare, by, bounded := r.view.Spare(x)
		if !bounded || policy.TopTenant(x.Ref.Tenant) != policy.TopTenant(it.Ref.Tenant) && r.view.Borrows(x.Ref.Tenant) {
			return false // what is borrowed is no tenant's to protect from others
		}
		spent[by]++
		return spent[by] > spare
	})
}

// weight is the largest part of a node that an item has.
func weight(n *policy.Node, x *policy.Item) float64 {
	most := 0.0
	for i, v := range x.Request {
		if v > 0 && n.Allocatable[i] > 0 {
			most = max(most, float64(v)/float64(n.Allocatable[i]))
		}
	}
	return most
}

// price orders sets of victims: first by the highest priority among them, then by
// how many they are, then by how much they have.
func price(v *policy.View, victims []*policy.Item) float64 {
	top, size := 0, 0.0
	for _, x := range victims {
		top = max(top, v.Rank(x.Priority))
		size += weight(v.Node(v.Where(x.UID)), x)
	}
	return float64(top)*1e9 + float64(len(victims))*1e4 + size
}
