package host

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/sched"
	"atoll/internal/store"
)

// pool is all that drains are decided from. The objects are only read.
type pool struct {
	now         time.Time
	nodes       []*api.Node
	instances   []*api.Instance
	assignments []*api.Assignment
	classes     []*api.PriorityClass
	budgets     []*api.DisruptionBudget
	tenants     []*api.Tenant
	drains      []*api.Drain
	// known are instances compiled in an earlier round: what is stored is never changed, so
	// the same object is the same item.
	known items
}

type items map[*api.Instance]*policy.Item

// readPool reads it. Instances come after assignments, so that one that is placed
// meanwhile is taken for waiting, not for placed and gone.
func readPool(ctx context.Context, s store.Store, now time.Time) (p *pool, err error) {
	p = &pool{now: now}
	p.nodes, err = store.All[*api.Node](ctx, s, api.KindNode, err)
	p.assignments, err = store.All[*api.Assignment](ctx, s, api.KindAssignment, err)
	p.instances, err = store.All[*api.Instance](ctx, s, api.KindInstance, err)
	p.classes, err = store.All[*api.PriorityClass](ctx, s, api.KindPriorityClass, err)
	p.budgets, err = store.All[*api.DisruptionBudget](ctx, s, api.KindDisruptionBudget, err)
	p.tenants, err = store.All[*api.Tenant](ctx, s, api.KindTenant, err)
	p.drains, err = store.All[*api.Drain](ctx, s, api.KindDrain, err)
	return p, err
}

// thing is an instance with its assignment, which it always has here.
type thing struct {
	in   *api.Instance
	as   *api.Assignment
	item *policy.Item
	size float64 // largest part of the pool it asks for
}

func (t *thing) ref() api.Ref { return api.RefOf(t.in) }

// over reports whether it does not run, and nobody would start it elsewhere.
func (t *thing) over() bool {
	st := t.in.Status
	ended := (st.State == api.StateStopped || st.State == api.StateFailed) && st.Reason != api.ReasonEvicted && st.Reason != api.ReasonMaintenance
	return t.in.Spec.Stopped || ended
}

// runs reports whether it has something on its node that must be stopped.
func (t *thing) runs() bool {
	switch t.in.Status.State {
	case api.StateStopped, api.StateFailed:
		return false
	}
	return true
}

// halted reports whether its agent has stopped it for a maintenance.
func (t *thing) halted() bool {
	st := t.in.Status
	return t.as.Spec.Evict != nil && t.as.Spec.Evict.Stay && st.Node == t.as.Spec.Node && st.Assigned == t.as.Spec.Generation && !t.runs()
}

// up reports whether it does on its node what it is for.
func (t *thing) up() bool {
	st := t.in.Status
	if st.Node != t.as.Spec.Node || st.State != api.StateRunning {
		return false
	}
	return t.in.Spec.Health == nil || st.Healthy != nil && *st.Healthy
}

// slow is how long a move may take until it no longer keeps others waiting.
const slow = 15 * time.Minute

// round is one look at all drains at once: they share budgets, pace and room.
type round struct {
	*pool
	atOnce  int
	keep    policy.Keep
	chain   policy.Chain
	view    *policy.View
	planner *sched.Planner
	byUID   map[string]*thing
	on      map[string][]*thing       // by node; of a sheet's, the most important first
	moves   map[string]*api.DrainMove // by UID: on its way for some drain
	under   int                       // how many are on their way
	items   items
	acts    []act
	out     []*api.Drain // as they should be
}

// act is one change of an assignment, made in one commit.
type act struct {
	as    *api.Assignment
	node  *api.Node
	evict *api.Eviction // nil: it may start again where it is
}

func newRound(p *pool, d Deps) *round {
	r := &round{pool: p, atOnce: d.AtOnce, keep: d.Keep, chain: d.Chain, view: policy.NewView(), byUID: make(map[string]*thing, len(p.instances)), items: make(items, len(p.instances)), on: map[string][]*thing{}, moves: map[string]*api.DrainMove{}}
	for _, n := range p.nodes {
		r.view.SetNode(n)
	}
	for _, b := range p.budgets {
		r.view.SetBudget(b)
	}
	for _, t := range p.tenants {
		r.view.SetTenant(t)
	}
	for _, x := range p.drains {
		for i := range x.Spec.Moves {
			if m := &x.Spec.Moves[i]; m.State == api.DrainMoveMoving || m.State == api.DrainMoveReturning {
				r.moves[m.UID] = m
			}
		}
	}
	r.place()
	r.planner = sched.NewPlanner(r.view, d.Chain, d.Seed)
	r.planner.Terse = true
	return r
}

// place fills the view. What is on its way has the room where it goes, and is none that
// can be spared.
func (r *round) place() {
	where := make(map[string]*api.Assignment, len(r.assignments))
	for _, a := range r.assignments {
		where[a.Spec.InstanceUID] = a
	}
	rank, none := ranks(r.classes)
	total := r.view.Capacity()
	for _, in := range r.instances {
		priority := none
		if in.Spec.Priority != "" {
			priority = rank[in.Spec.Priority]
		}
		it := r.known[in]
		if it == nil || it.Priority != priority {
			it = policy.ItemAt(in, priority)
		}
		r.items[in] = it
		a := where[in.UID]
		if a == nil {
			if in.DeletedAt == nil && !in.Spec.Stopped {
				r.view.Wait(it)
			}
			continue
		}
		t := &thing{in: in, as: a, item: it, size: share(&it.Request, &total)}
		r.byUID[in.UID] = t
		if in.Spec.Stopped {
			t.item = it.Idle()
		}
		if a.Spec.Node != "" {
			r.on[a.Spec.Node] = append(r.on[a.Spec.Node], t)
		}
		r.settle(t)
	}
}

// bySize sorts what is on a node: the most important first, then the largest.
func bySize(list []*thing) {
	slices.SortFunc(list, func(a, b *thing) int {
		return cmp.Or(cmp.Compare(b.item.Priority, a.item.Priority), cmp.Compare(b.size, a.size), strings.Compare(api.SortKey(a.ref()), api.SortKey(b.ref())))
	})
}

// settle puts one thing into the view. Which devices and cores it gets where it goes is
// placement's to say; here it is enough that there is room.
func (r *round) settle(t *thing) {
	a, m := &t.as.Spec, r.moves[t.in.UID]
	alloc := policy.AllocOf(a)
	leaves := a.Evict != nil
	node, goal := a.Node, ""
	if m != nil {
		if goal = m.To; m.State == api.DrainMoveReturning {
			goal = m.From
		}
	}
	switch {
	case a.Node == "" && (goal == "" || t.in.DeletedAt != nil || t.over()):
		if t.in.DeletedAt == nil && !t.over() {
			r.view.Wait(t.item)
		}
		return
	case a.Node == "":
		node, alloc, leaves = goal, policy.Alloc{}, true
	case a.Evict != nil && a.Evict.To != "":
		node, alloc = a.Evict.To, policy.Alloc{}
	case a.Evict == nil && m != nil && (a.Node == m.From) == (m.State == api.DrainMoveReturning):
		leaves = !t.up() && !t.over() // has arrived, but is not there yet
	}
	if r.view.Node(node) == nil {
		node = a.Node
	}
	if node == "" {
		r.view.Wait(t.item)
		return
	}
	r.view.Place(t.item, node, alloc)
	if leaves {
		r.view.Leaves(t.in.UID)
	}
}

// ranks are the values of priority classes, and that of instances that name none.
func ranks(classes []*api.PriorityClass) (by map[string]int64, none int64) {
	by = make(map[string]int64, len(classes))
	first := ""
	for _, c := range classes {
		by[c.Name] = c.Spec.Value
		if c.Spec.Default && (first == "" || c.Name < first) { // of several, always the same
			first, none = c.Name, c.Spec.Value
		}
	}
	return by, none
}

// share is the largest part of a total that is asked for.
func share(v, total *policy.Vector) float64 {
	most := 0.0
	for i, x := range v {
		if x > 0 && total[i] > 0 {
			most = max(most, float64(x)/float64(total[i]))
		}
	}
	return most
}

// admits says why a node would not take an instance now; "" when it would.
func (r *round) admits(t *thing, n *policy.Node) (why string) {
	was, alloc := r.view.Where(t.in.UID), r.view.Alloc(t.in.UID)
	r.view.Unplace(t.in.UID)
	r.view.Arrange()
	for _, f := range r.chain.Filters {
		k := f.Check(r.view, t.item)
		if k == nil || why != "" {
			continue
		}
		if k.Node != nil {
			why = k.Node(n)
		}
		if why == "" && k.In != nil {
			why = k.In(n.Place)
		}
	}
	r.view.Place(t.item, was, alloc)
	r.view.Arrange()
	return why
}
