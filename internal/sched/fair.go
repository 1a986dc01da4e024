package sched

import (
	"container/heap"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/policy"
)

// Order puts items that wait into the order they should be placed in: the highest
// priority first; among equals the tenant whose weighted dominant share is
// smallest (dominant resource fairness, Ghodsi et al., NSDI 2011), then the order
// given. A nested tenant stands behind its parents' shares. weight is a tenant's
// weight, 100 when it says nothing.
func Order(v *policy.View, items []*policy.Item, weight func(tenant string) int64) []*policy.Item {
	byPriority := slices.Clone(items)
	slices.SortStableFunc(byPriority, func(a, b *policy.Item) int { return compare(b.Priority, a.Priority) })
	out := make([]*policy.Item, 0, len(items))
	f := &fair{view: v, weight: weight, used: map[string]*policy.Vector{}, total: v.Capacity()}
	for len(byPriority) > 0 {
		n := 1
		for n < len(byPriority) && byPriority[n].Priority == byPriority[0].Priority {
			n++
		}
		out = f.rank(byPriority[:n], out)
		byPriority = byPriority[n:]
	}
	return out
}

func compare[T int64 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// fair is a heap of tenants, the one to be served next on top.
type fair struct {
	view   *policy.View
	weight func(string) int64
	total  policy.Vector
	used   map[string]*policy.Vector // with what was ranked already
	queue  []*line
}

// line is what one tenant waits for.
type line struct {
	tenant string
	shares []float64 // of the tenant and those around it, the outermost first
	items  []*policy.Item
}

func (f *fair) rank(items, out []*policy.Item) []*policy.Item {
	lines := map[string]*line{}
	f.queue = f.queue[:0]
	for _, it := range items {
		l := lines[it.Ref.Tenant]
		if l == nil {
			l = &line{tenant: it.Ref.Tenant}
			lines[it.Ref.Tenant] = l
			f.queue = append(f.queue, l)
		}
		l.items = append(l.items, it)
	}
	for _, l := range f.queue {
		l.shares = f.shares(l.tenant)
	}
	heap.Init(f)
	for len(f.queue) > 0 {
		l := f.queue[0]
		out = append(out, l.items[0])
		f.give(l.items[0])
		if l.items = l.items[1:]; len(l.items) == 0 {
			heap.Pop(f)
		}
		f.moved(l)
	}
	return out
}

// moved brings the shares of a served tenant, and of those it shares a parent with, up to date.
func (f *fair) moved(served *line) {
	family := 0
	for _, l := range f.queue {
		if policy.TopTenant(l.tenant) == policy.TopTenant(served.tenant) {
			l.shares = f.shares(l.tenant)
			family++
		}
	}
	if family == 1 && len(f.queue) > 0 && f.queue[0] == served {
		heap.Fix(f, 0)
		return
	}
	heap.Init(f)
}

func (f *fair) give(it *policy.Item) {
	for _, t := range api.TenantChain(it.Ref.Tenant) {
		f.of(t).Add(&it.Request)
	}
}

func (f *fair) of(tenant string) *policy.Vector {
	u := f.used[tenant]
	if u == nil {
		u = new(policy.Vector)
		*u = f.view.UsedBy(tenant)
		f.used[tenant] = u
	}
	return u
}

// shares are the weighted dominant shares of a tenant and those around it.
func (f *fair) shares(tenant string) []float64 {
	chain := api.TenantChain(tenant)
	out := make([]float64, 0, len(chain))
	for _, t := range slices.Backward(chain) {
		u, most := f.of(t), 0.0
		for i, have := range f.total {
			if have > 0 && i != policy.Instances {
				most = max(most, float64(u[i])/float64(have))
			}
		}
		w := f.weight(t)
		if w <= 0 {
			w = 100
		}
		out = append(out, most/float64(w))
	}
	return out
}

// Len, Less, Swap, Push and Pop make it a heap.
func (f *fair) Len() int { return len(f.queue) }

// Less compares from the outermost tenant inwards.
func (f *fair) Less(i, j int) bool {
	a, b := f.queue[i], f.queue[j]
	for k := range min(len(a.shares), len(b.shares)) {
		if a.shares[k] != b.shares[k] {
			return a.shares[k] < b.shares[k]
		}
	}
	if len(a.shares) != len(b.shares) {
		return len(a.shares) < len(b.shares)
	}
	return strings.Compare(a.tenant, b.tenant) < 0
}

// Swap exchanges two.
func (f *fair) Swap(i, j int) { f.queue[i], f.queue[j] = f.queue[j], f.queue[i] }

// Push is never called: the heap only shrinks.
func (f *fair) Push(x any) { f.queue = append(f.queue, x.(*line)) }

// Pop takes the last.
func (f *fair) Pop() any {
	l := f.queue[len(f.queue)-1]
	f.queue = f.queue[:len(f.queue)-1]
	return l
}
