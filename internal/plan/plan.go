// Package plan answers "what if" about a pool: where new instances would land, what
// becomes of those on hosts that fail or are drained, how many more fit, whether a
// tenant's new share would be admitted. It asks the very policies, planner and
// admission that decide in the pool, on a view made of the pool's objects.
//
// It is pure: it starts no goroutine, reads no clock and does no I/O; the context
// only ends long answers early. It must never change the objects it was given, and
// leaves its view as it found it.
package plan

import (
	"cmp"
	"context"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/sched"
)

// Pool is the objects of a pool at one moment. They are only read.
type Pool struct {
	Nodes       []*api.Node
	Tenants     []*api.Tenant
	Ledgers     []*api.Ledger
	Instances   []*api.Instance
	Assignments []*api.Assignment
	Classes     []*api.PriorityClass
	Budgets     []*api.DisruptionBudget
}

// Config is how the pool decides.
type Config struct {
	Chain policy.Chain
	Seed  uint64
	Keep  policy.Keep // of the pool, from what is promised and from those that wait for room
	Solve Solver      // for Question.Exact; nil: there is none
	Items Items       // of an earlier plan of the pool, for speed; nil: none
}

// Items are instances compiled for an earlier plan. They are never changed: what is
// stored is not, either, so the same object is the same item.
type Items map[*api.Instance]*policy.Item

// Question is an api.PlanRequest with its objects decoded and checked.
type Question struct {
	Objects []api.Object
	Exact   bool // with Objects: also how many could have a place at best
	Lose    *api.PlanHosts
	Drain   *api.PlanHosts
	Add     *api.PlanAdd
	Fit     *api.PlanFit
	Quota   *api.PlanQuota
}

// Plan knows a pool. One goroutine uses it.
type Plan struct {
	pool    Pool
	cfg     Config
	view    *policy.View
	planner *sched.Planner
	ranks   ranks
	// fixed are the placed instances that nobody would start elsewhere: stopped,
	// ended, or being removed.
	fixed   map[string]bool // by UID
	pending []*policy.Item  // should run, but have no node
	waits   map[string]bool // their UIDs
	items   Items
}

// New makes the view of a pool.
func New(pool Pool, cfg Config) *Plan {
	p := &Plan{pool: pool, cfg: cfg, view: policy.NewView(), ranks: ranksOf(pool.Classes), fixed: map[string]bool{}, waits: map[string]bool{},
		items: make(Items, len(pool.Instances))}
	for _, n := range pool.Nodes {
		p.view.SetNode(n)
	}
	for _, b := range pool.Budgets {
		p.view.SetBudget(b)
	}
	for _, t := range pool.Tenants {
		p.view.SetTenant(t)
	}
	type name struct{ tenant, name string }
	assigned := make(map[name]*api.Assignment, len(pool.Assignments))
	for _, a := range pool.Assignments {
		assigned[name{a.Tenant, a.Name}] = a
	}
	placed := make([]spot, 0, len(pool.Instances))
	for _, in := range pool.Instances {
		a := assigned[name{in.Tenant, in.Name}]
		it := p.item(in)
		switch {
		case a != nil && a.Spec.InstanceUID == in.UID && a.Spec.Node != "":
			if in.Spec.Stopped {
				it = it.Idle()
			}
			placed = append(placed, spot{it, &a.Spec})
			if over(in) {
				p.fixed[in.UID] = true
			}
		case !over(in):
			p.view.Wait(it)
			p.pending = append(p.pending, it)
			p.waits[it.UID] = true
		}
	}
	p.warm(placed)
	for _, s := range placed {
		p.view.Place(s.item, s.on.Node, policy.AllocOf(s.on))
	}
	p.planner = sched.NewPlanner(p.view, cfg.Chain, cfg.Seed)
	return p
}

// item compiles an instance of the pool, or finds it compiled.
func (p *Plan) item(in *api.Instance) *policy.Item {
	priority := p.ranks.of(in).Value
	it := p.cfg.Items[in]
	if it == nil || it.Priority != priority {
		it = policy.ItemAt(in, priority)
	}
	p.items[in] = it
	return it
}

// Items can speed up the next plan of the same pool.
func (p *Plan) Items() Items { return p.items }

// spot is what is placed, and where.
type spot struct {
	item *policy.Item
	on   *api.AssignmentSpec
}

// maxWarm bounds how many kinds of items are prepared for.
const maxWarm = 1000

// warm asks the policies about one item of each kind while little is placed: what
// they count is then counted as the rest is placed, not over all of it for each kind.
// What it places is placed again, in its turn.
func (p *Plan) warm(placed []spot) {
	kinds := map[string]bool{}
	var first []spot
	for _, s := range placed {
		if !kinds[s.item.Key()] {
			kinds[s.item.Key()] = true
			first = append(first, s)
			if len(first) >= maxWarm {
				break
			}
		}
	}
	for _, s := range first {
		p.view.Place(s.item, s.on.Node, policy.Alloc{})
	}
	p.view.Arrange()
	for _, s := range first {
		for _, f := range p.cfg.Chain.Filters {
			_ = f.Check(p.view, s.item)
		}
		for _, w := range p.cfg.Chain.Scorers {
			_ = w.Grade(p.view, s.item)
		}
	}
}

// over tells whether an instance would not be started again somewhere else.
func over(in *api.Instance) bool {
	switch in.StateOf() {
	case api.StateStopped, api.StateFailed, api.StateRemoving:
		return true
	}
	return in.Spec.Stopped
}

// ranks are the priority classes by name.
type ranks struct {
	by   map[string]api.PriorityClassSpec
	none api.PriorityClassSpec // of instances that name none
}

func ranksOf(list []*api.PriorityClass) ranks {
	r := ranks{by: make(map[string]api.PriorityClassSpec, len(list))}
	for _, c := range list {
		r.by[c.Name] = c.Spec
		if c.Spec.Default {
			r.none = c.Spec
		}
	}
	return r
}

func (r ranks) of(in *api.Instance) api.PriorityClassSpec { return r.class(&in.Spec) }

func (r ranks) class(s *api.InstanceSpec) api.PriorityClassSpec {
	if s.Priority != "" {
		return r.by[s.Priority] // without it, it is as if there were none
	}
	return r.none
}

// Answer answers one question; At is left to the caller. Errors: errs.Invalid for a
// question that makes no sense, errs.NotFound for hosts that are not there.
func (p *Plan) Answer(ctx context.Context, q Question) (*api.PlanAnswer, error) {
	var a *api.PlanAnswer
	var err error
	switch {
	case q.Lose != nil:
		a, err = p.lose(ctx, *q.Lose)
	case q.Drain != nil:
		a, err = p.drain(ctx, *q.Drain)
	case q.Add != nil:
		a, err = p.add(ctx, *q.Add)
	case q.Fit != nil:
		a, err = p.fit(ctx, *q.Fit)
	case q.Quota != nil:
		a, err = p.quota(ctx, *q.Quota)
	case len(q.Objects) > 0:
		a, err = p.objects(ctx, q.Objects, q.Exact)
	default:
		return nil, errs.New(errs.Invalid, "nothing was asked").WithHint("ask for one of objects, lose, drain, add, fit and quota")
	}
	if err != nil {
		return nil, err
	}
	a.Of = len(p.pool.Nodes)
	return a, nil
}

// hosts finds those that are meant.
func (p *Plan) hosts(h api.PlanHosts) ([]*policy.Node, error) {
	places := h.Region != "" || h.Zone != "" || h.Rack != ""
	if places == (len(h.Nodes) > 0) {
		return nil, errs.New(errs.Invalid, "which hosts? give their names, or a region, zone or rack")
	}
	var out []*policy.Node
	if places {
		for _, n := range p.view.Nodes {
			s := n.Object.Spec
			if (h.Region == "" || s.Region == h.Region) && (h.Zone == "" || s.Zone == h.Zone) && (h.Rack == "" || s.Rack == h.Rack) {
				out = append(out, n)
			}
		}
		if len(out) == 0 {
			return nil, errs.New(errs.NotFound, "no node is there").WithHint("atoll get nodes -o wide shows their zones")
		}
		return out, nil
	}
	names := slices.Clone(h.Nodes)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		n := p.view.Node(name)
		if n == nil {
			e := errs.New(errs.NotFound, "node %s does not exist", name).WithHint("atoll get nodes lists them")
			if near := api.Nearest(name, p.names()); near != "" {
				e.Hint = "did you mean " + near + "?"
			}
			return nil, e
		}
		out = append(out, n)
	}
	return out, nil
}

func (p *Plan) names() []string {
	out := make([]string, len(p.view.Nodes))
	for i, n := range p.view.Nodes {
		out[i] = n.Name
	}
	return out
}

// open tells whether a host takes newcomers at all.
func open(n *policy.Node) bool { return n.Takes() }

// weight of a tenant, for the order of those that wait.
func (p *Plan) weight(tenant string) int64 {
	for _, t := range p.pool.Tenants {
		if t.Name == tenant {
			return t.Spec.EffectiveWeight()
		}
	}
	return api.DefaultWeight
}

// bySize sorts what is to be placed anew: the most important first, then the largest.
func (p *Plan) bySize(items []*policy.Item) {
	total := p.view.Capacity()
	size := make(map[*policy.Item]float64, len(items))
	for _, it := range items {
		size[it] = share(&it.Request, &total)
	}
	slices.SortStableFunc(items, func(a, b *policy.Item) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(size[b], size[a]), cmp.Compare(a.Ref.Tenant, b.Ref.Tenant), cmp.Compare(a.Ref.Name, b.Ref.Name))
	})
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

// amounts writes a vector in words of the API, without what is zero.
func amounts(v policy.Vector) api.Resources {
	out := api.Resources{}
	for i, r := range api.ResourceNames() {
		if v[i] != 0 {
			out[r] = v[i]
		}
	}
	return out
}
