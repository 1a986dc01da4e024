package control

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/balance"
	"atoll/internal/policy"
	"atoll/internal/store"
)

// facts is the pool at the beginning of a round.
type facts struct {
	view      *policy.View
	placed    []*placed // in the order of their names
	byUID     map[string]*placed
	instances map[string]bool // UIDs of all
	moves     map[api.Ref]*api.Move
}

// placed is an instance that has a node.
type placed struct {
	in   *api.Instance
	as   *api.Assignment
	item *policy.Item
}

func (f *facts) moveRefs() []api.Ref {
	out := make([]api.Ref, 0, len(f.moves))
	for r := range f.moves {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b api.Ref) int { return strings.Compare(api.SortKey(a), api.SortKey(b)) })
	return out
}

// read builds a view of its own: a plan puts things where they are not.
func (r *Rebalance) read(ctx context.Context, s store.Store) (*facts, error) {
	f := &facts{view: policy.NewView(), byUID: map[string]*placed{}, instances: map[string]bool{}, moves: map[api.Ref]*api.Move{}}
	nodes, _, err := store.List[*api.Node](ctx, s, api.Selector{Kind: api.KindNode})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	ins, _, err := store.List[*api.Instance](ctx, s, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	as, _, err := store.List[*api.Assignment](ctx, s, api.Selector{Kind: api.KindAssignment})
	if err != nil {
		return nil, fmt.Errorf("list assignments: %w", err)
	}
	budgets, _, err := store.List[*api.DisruptionBudget](ctx, s, api.Selector{Kind: api.KindDisruptionBudget})
	if err != nil {
		return nil, fmt.Errorf("list disruption budgets: %w", err)
	}
	ms, err := listMoves(ctx, s)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		f.view.SetNode(n)
	}
	for _, b := range budgets {
		f.view.SetBudget(b)
	}
	for _, m := range ms {
		f.moves[api.RefOf(m)] = m
	}
	f.place(ins, as)
	f.view.Arrange()
	return f, nil
}

func (f *facts) place(ins []*api.Instance, as []*api.Assignment) {
	where := make(map[string]*api.Assignment, len(as))
	for _, a := range as {
		where[a.Spec.InstanceUID] = a
	}
	slices.SortFunc(ins, func(a, b *api.Instance) int {
		return strings.Compare(api.SortKey(api.RefOf(a)), api.SortKey(api.RefOf(b)))
	})
	for _, in := range ins {
		f.instances[in.UID] = true
		it := policy.ItemOf(in)
		a := where[in.UID]
		if a == nil || a.Spec.Node == "" {
			if in.DeletedAt == nil && !in.Spec.Stopped {
				f.view.Wait(it)
			}
			continue
		}
		if in.Spec.Stopped {
			it = it.Idle()
		}
		p := &placed{in: in, as: a, item: it}
		f.view.Place(it, a.Spec.Node, policy.AllocOf(&a.Spec))
		f.placed = append(f.placed, p)
		f.byUID[in.UID] = p
	}
}

// fixed says why an instance is better left alone; "" when it may move. A move is a
// stop here and a start there, so what would lose something by it stays.
func (r *Rebalance) fixed(f *facts, p *placed) string {
	s := &p.in.Spec
	switch {
	case p.in.DeletedAt != nil || s.Stopped:
		return "it does not run"
	case p.as.Spec.Evict != nil:
		return "it is leaving its node already"
	case p.in.Status.State != api.StateRunning:
		return "it does not run"
	case gangOf(s) != nil:
		return "it belongs to a gang"
	case s.Restart == "never" || s.AutoRm:
		return "it runs once, and would begin anew"
	}
	for _, v := range s.Volumes {
		if v.Name != "" || v.HostPath != "" {
			return "it has files on its node"
		}
	}
	if n, by, bounded := f.view.Spare(p.item); bounded && n < 1 {
		return "disruption budget " + by.Name + " spares none"
	}
	return ""
}

// pool tells the engine what it needs to know.
func (r *Rebalance) pool(f *facts, now time.Time) balance.Pool {
	lift := newLift(f, r.chain)
	p := balance.Pool{Rules: lift, Hosts: make([]balance.Host, len(f.view.Nodes)), Instances: make([]balance.Instance, len(f.placed))}
	for h, n := range f.view.Nodes {
		p.Hosts[h] = hostOf(n)
	}
	for i, x := range f.placed {
		node := f.view.Node(x.as.Spec.Node)
		in := balance.Instance{Name: x.in.Tenant + "/" + x.in.Name, Host: node.ID, Request: amounts(&x.item.Request), Size: size(x),
			Load: r.load[x.in.UID], Fixed: r.fixed(f, x), Cost: downtime(x), Rested: r.rested(f, x, now), Came: -1}
		if len(in.Load) == 0 && !x.in.Spec.Stopped {
			in.Load = []float64{float64(x.item.Request[policy.CPU])}
		}
		r.before(f, x, &in)
		if in.Fixed == "" && x.in.Spec.Placement != nil {
			in.Wrong = lift.wrong(x)
		}
		p.Instances[i] = in
	}
	for _, s := range r.c.Shapes {
		v := policy.VectorOf(s)
		p.Shapes = append(p.Shapes, amounts(&v))
	}
	return p
}

// before tells what was proposed or done last.
func (r *Rebalance) before(f *facts, x *placed, in *balance.Instance) {
	m := f.moves[api.Ref{Kind: api.KindMove, Tenant: x.in.Tenant, Name: x.in.Name}]
	if m == nil || m.Spec.InstanceUID != x.in.UID {
		return
	}
	if from := f.view.Node(m.Spec.From); from != nil && m.Spec.BegunAt != nil {
		in.Came = from.ID
	}
	if to := f.view.Node(m.Spec.To); to != nil && m.Spec.State == api.MoveProposed {
		in.Leans = to.ID + 1
	}
}

func amounts(v *policy.Vector) balance.Vector { return append(balance.Vector(nil), v[:]...) }

// unbounded stands for what a node does not publish, and so does not run out of.
const unbounded = math.MaxInt64 / 4

func hostOf(n *policy.Node) balance.Host {
	h := balance.Host{Name: n.Name, CPU: float64(n.Allocatable[policy.CPU]), Capacity: amounts(&n.Allocatable)}
	spec := &n.Object.Spec
	h.Capacity[policy.CPU] = h.Capacity[policy.CPU] * int64(max(spec.Overcommit.Burstable, spec.Overcommit.Guaranteed, 100)) / 100
	for d, c := range h.Capacity {
		if c == 0 && d != policy.CPU && d != policy.Memory && d != policy.GPU {
			h.Capacity[d] = unbounded
		}
	}
	if spec.IdleWatts > 0 && spec.MaxWatts > 0 {
		h.Watts = []float64{float64(spec.IdleWatts), float64(spec.MaxWatts)}
		h.Off = len(n.Items) == 0
	}
	switch {
	case !n.Object.Ready():
		h.Closed = "node is not ready"
	case spec.Closed() != "":
		h.Closed = spec.Closed()
	}
	return h
}

func size(x *placed) float64 {
	if l := x.in.Spec.Limits[api.CPU]; l > 0 {
		return float64(l)
	}
	return float64(x.item.Request[policy.CPU])
}

// downtime weighs a move: seconds without service count ten times as seconds of worse service.
func downtime(x *placed) float64 {
	stop := 10 * time.Second
	if t := x.in.Spec.StopTimeout; t != nil {
		stop = min(t.D(), 10*time.Minute)
	}
	start := 5 * time.Second
	return 10 * (stop/2 + start).Seconds()
}

// rested is how many rounds an instance has been where it is.
func (r *Rebalance) rested(f *facts, x *placed, now time.Time) int {
	at := x.in.Status.StartedAt
	if m := f.moves[api.Ref{Kind: api.KindMove, Tenant: x.in.Tenant, Name: x.in.Name}]; m != nil && m.Spec.InstanceUID == x.in.UID && m.Spec.EndedAt != nil && m.Spec.BegunAt != nil {
		at = m.Spec.EndedAt
	}
	if at == nil {
		return balance.Never
	}
	return int(max(now.Sub(*at), 0) / r.c.Every)
}

// lift asks the pool's own filters. An instance is judged while it is taken off its
// node in the view, so that it is not in its own way.
type lift struct {
	f      *facts
	chain  policy.Chain
	up     *placed
	node   string // where up was
	alloc  policy.Alloc
	checks []named
	home   map[string]policy.Alloc // what instances have of the node they really are on
}

type named struct {
	name string
	*policy.Check
}

func newLift(f *facts, chain policy.Chain) *lift {
	return &lift{f: f, chain: chain, home: map[string]policy.Alloc{}}
}

func (l *lift) take(p *placed) {
	if l.up == p {
		return
	}
	l.down()
	v := l.f.view
	l.up, l.node, l.alloc = p, v.Where(p.in.UID), v.Alloc(p.in.UID)
	v.Unplace(p.in.UID)
	v.Arrange()
	l.checks = checks(v, l.chain, p.item)
}

// checks asks all filters about an item, which must not be in the view.
func checks(v *policy.View, chain policy.Chain, it *policy.Item) []named {
	var out []named
	for _, c := range chain.Filters {
		if k := c.Check(v, it); k != nil {
			out = append(out, named{c.Name(), k})
		}
	}
	return out
}

// down puts what is lifted back.
func (l *lift) down() {
	if l.up != nil {
		l.f.view.Place(l.up.item, l.node, l.alloc)
		l.f.view.Arrange()
		l.up = nil
	}
}

// refusal is why a node would not take an instance; "" when it would.
func (l *lift) refusal(p *placed, n *policy.Node) string {
	l.take(p)
	for _, c := range l.checks {
		if why := c.refusal(n); why != "" {
			return why
		}
	}
	return ""
}

func (c named) refusal(n *policy.Node) string {
	if c.Node != nil {
		if why := c.Node(n); why != "" {
			return why
		}
	}
	if c.In != nil {
		return c.In(n.Place)
	}
	return ""
}

// repaired names the filters whose refusal of an instance's own node is worth a move.
// A node that is full, cordoned or not ready is not.
func repaired(filter string) bool { return filter == "affinity" || filter == "spread" }

func (l *lift) wrong(p *placed) string {
	l.take(p)
	n := l.f.view.Node(l.node)
	defer l.down()
	for _, c := range l.checks {
		if !repaired(c.name) {
			continue
		}
		if why := c.refusal(n); why != "" {
			return "does not belong on " + n.Name + ": " + why
		}
	}
	return ""
}

// Admits asks the filters.
func (l *lift) Admits(i, h int) bool {
	return l.refusal(l.f.placed[i], l.f.view.Nodes[h]) == ""
}

// Moved follows the plan.
func (l *lift) Moved(i, _, to int) {
	p, n := l.f.placed[i], l.f.view.Nodes[to]
	l.take(p)
	if _, ok := l.home[p.in.UID]; !ok {
		l.home[p.in.UID] = l.alloc
	}
	l.node, l.alloc = n.Name, l.home[p.in.UID]
	if n.Name != p.as.Spec.Node {
		l.alloc = l.chain.Pick(n, p.item)
	}
	l.down()
}
