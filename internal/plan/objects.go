package plan

import (
	"context"
	"fmt"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/sched"
	"atoll/internal/store"
)

// newUID begins the UIDs of instances that are not there yet.
const newUID = "plan/"

// objects plays an apply of objects: the tenants, ranks, budgets and nodes first, then
// every instance in the order the pool would place them.
func (p *Plan) objects(ctx context.Context, objs []api.Object, best bool) (*api.PlanAnswer, error) {
	a := &api.PlanAnswer{Question: "objects"}
	then := New(p.with(objs), p.again())
	objs, unknown := then.ranked(objs)
	var err error
	if a.Admission, err = p.admission(ctx, objs); err != nil {
		return nil, err
	}
	if unknown != nil {
		a.Admission = unknown
	}
	t := then.try()
	defer t.end()
	before := then.promised(then.pending)
	q := &queue{Plan: then, trial: t, answer: a, at: map[string]int{}}
	for _, o := range objs {
		switch o := o.(type) {
		case *api.Instance:
			q.add(o)
		case *api.Node:
			if then.view.Node(o.Name) == nil {
				a.Notes = append(a.Notes, fmt.Sprintf("node %s is not there: it takes part when its agent runs (atoll plan add plays it)", o.Name))
			}
		}
	}
	if a.Places == nil {
		a.Notes = append(a.Notes, "there is no instance among the objects: nothing is to be placed")
	}
	if best {
		if err := q.exact(ctx); err != nil {
			return nil, err
		}
	}
	if err := q.run(ctx); err != nil {
		return nil, err
	}
	for _, place := range a.Places {
		if place.Stays == "" && place.To != "" {
			a.Placed++
		} else if place.Stays == "" {
			a.Pending++
		}
	}
	if a.Admission == nil { // what is not admitted has no claim
		a.Guarantees = then.broken(before, q.left, nil)
	}
	a.Holds = a.Pending == 0 && a.Admission == nil && len(a.Guarantees) == 0 && !q.over
	return a, then.spares(ctx, p, a)
}

// ranked makes of instances what the server makes of them by their classes: one that
// may make room for itself is admitted to a full pool.
func (p *Plan) ranked(objs []api.Object) (out []api.Object, unknown *api.PlanRefusal) {
	out = slices.Clone(objs)
	for i, o := range out {
		in, ok := o.(*api.Instance)
		if !ok || in.Spec.Priority == "" {
			continue
		}
		if _, known := p.ranks.by[in.Spec.Priority]; !known {
			unknown = &api.PlanRefusal{Kind: string(errs.Invalid), Message: fmt.Sprintf("instance %s/%s: there is no PriorityClass %s", in.Tenant, in.Name, in.Spec.Priority), Hint: "atoll get priorityclasses lists them"}
			continue
		}
		if p.ranks.of(in).Preempt {
			in = api.Clone(in)
			in.Spec.Queue = true
			out[i] = in
		}
	}
	return out, unknown
}

// admission asks whether the objects would be taken as one transaction, as apply does.
func (p *Plan) admission(ctx context.Context, objs []api.Object) (*api.PlanRefusal, error) {
	b := p.books()
	var ops []store.Op
	for _, o := range objs {
		switch o.(type) {
		case *api.Tenant, *api.Instance:
			ops = append(ops, b.op(ctx, o))
		}
	}
	return b.judge(ctx, ops)
}

// queue places instances of a file among those that wait already.
type queue struct {
	*Plan
	trial  *trial
	answer *api.PlanAnswer
	items  []*policy.Item
	at     map[string]int // UID -> in answer.Places; those that waited before have none
	left   []*policy.Item // without a node in the end
	over   bool           // something would be overbooked where it is, or has to go with no place left
}

// add notes an instance of the file.
func (q *queue) add(in *api.Instance) {
	place := api.PlanPlace{Instance: api.RefOf(in), Requests: in.Spec.Requests, PriorityValue: q.ranks.of(in).Value}
	in = api.Clone(in)
	in.UID = newUID + in.Tenant + "/" + in.Name
	for _, old := range q.pool.Instances {
		if old.Name == in.Name && old.Tenant == in.Tenant {
			in.UID = old.UID
			break
		}
	}
	it := policy.ItemAt(in, q.ranks.of(in).Value)
	where := q.view.Where(in.UID)
	q.pending = slices.DeleteFunc(q.pending, func(x *policy.Item) bool { return x.UID == in.UID })
	switch {
	case where != "":
		q.change(it, in, where, &place)
	case in.Spec.Stopped:
		place.Stays = "it is stopped, and takes no room until it is started"
	default:
		q.items = append(q.items, it)
		q.at[in.UID] = len(q.answer.Places)
	}
	q.answer.Places = append(q.answer.Places, place)
}

// change plays a new spec of what has a node: it stays there.
func (q *queue) change(it *policy.Item, in *api.Instance, where string, place *api.PlanPlace) {
	old, a := q.view.Item(in.UID), q.view.Alloc(in.UID)
	if in.Spec.Stopped {
		it = it.Idle()
	}
	place.From, place.To = where, where
	if place.Unchanged = old.Key() == it.Key(); place.Unchanged {
		return
	}
	q.trial.off(old)
	n := q.view.Node(where)
	s := &searcher{view: q.view, chain: q.cfg.Chain, kinds: map[string]*kind{}}
	if why := s.kind(it).refusal(n); why != "" && open(n) {
		place.Stays = where + " has no room for the change: " + why
		q.over, it = true, old // as the node could not make it so, either
	}
	q.trial.on(it, where, a)
}

// run places everything, and then what had to go.
func (q *queue) run(ctx context.Context) error {
	var victims []*policy.Item
	done := map[string]bool{}
	for _, it := range sched.Order(q.view, append(slices.Clone(q.pending), q.items...), q.weight) {
		if done[it.UID] {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if g := gang(it); g != nil {
			for _, x := range q.together(it, g) {
				done[x.UID] = true
			}
			continue
		}
		pl := q.decide(it)
		q.tell(it, pl)
		for _, x := range pl.Victims {
			q.answer.Evicted = append(q.answer.Evicted, api.PlanPlace{Instance: x.Ref, From: pl.Node, Requests: x.Spec.Requests, PriorityValue: x.Priority})
		}
		victims = append(victims, pl.Victims...)
	}
	for i, x := range victims {
		place := &q.answer.Evicted[i]
		if !q.put(q.trial, x, place) {
			q.left, q.over = append(q.left, x), true
		}
	}
	return nil
}

// decide finds a node as the pool would, and takes it.
func (q *queue) decide(it *policy.Item) sched.Placement {
	var pl sched.Placement
	_, asked := q.at[it.UID]
	switch kept := q.kept(it); {
	case asked && q.preempts(it):
		pl = q.planner.DecideOrPreempt(it)
	case kept != nil:
		pl = sched.Placement{Item: it, Decision: *kept}
	case !asked:
		pl = q.planner.Fits(it)
	default:
		pl = q.planner.Decide(it)
	}
	if pl.Node == "" {
		return pl
	}
	for _, x := range pl.Victims {
		q.trial.off(x)
	}
	q.trial.on(it, pl.Node, pl.Alloc)
	return pl
}

func (q *queue) preempts(it *policy.Item) bool {
	return q.ranks.class(it.Spec).Preempt
}

// tell notes a decision about an instance of the file.
func (q *queue) tell(it *policy.Item, pl sched.Placement) {
	if pl.Node == "" {
		q.left = append(q.left, it)
	}
	i, asked := q.at[it.UID]
	if !asked {
		return
	}
	place := &q.answer.Places[i]
	place.To, place.Decision = pl.Node, &pl.Decision
	for _, x := range pl.Victims {
		place.Evicts = append(place.Evicts, x.Ref)
	}
}

func gang(it *policy.Item) *api.Gang {
	if it.Spec.Placement == nil {
		return nil
	}
	return it.Spec.Placement.Gang
}

// together places the members of a gang: all or none. A gang takes nobody's place.
func (q *queue) together(first *policy.Item, g *api.Gang) []*policy.Item {
	same := func(x *policy.Item) bool {
		o := gang(x)
		return o != nil && o.Name == g.Name && x.Ref.Tenant == first.Ref.Tenant
	}
	var members []*policy.Item
	for _, x := range append(slices.Clone(q.pending), q.items...) {
		if same(x) {
			members = append(members, x)
		}
	}
	there := len(members)
	for _, n := range q.view.Nodes {
		for _, x := range n.Items {
			if same(x) {
				there++
			}
		}
	}
	if there < g.Size {
		q.refuse(members, fmt.Sprintf("%d of %d members of gang %s are there", there, g.Size, g.Name), nil)
		return members
	}
	mark := q.trial.mark()
	plans := make([]sched.Placement, len(members))
	for i, x := range members {
		if kept := q.kept(x); kept != nil {
			plans[i] = sched.Placement{Item: x, Decision: *kept}
		} else {
			plans[i] = q.planner.Decide(x)
		}
		if plans[i].Node == "" {
			q.trial.back(mark)
			q.refuse(members, fmt.Sprintf("not all members of gang %s fit at once", g.Name), &plans[i].Decision)
			return members
		}
		q.trial.on(x, plans[i].Node, plans[i].Alloc)
	}
	for i, x := range members {
		q.tell(x, plans[i])
	}
	return members
}

// refuse gives every member of a gang the same reason, and those of the one that failed.
func (q *queue) refuse(members []*policy.Item, why string, of *api.Decision) {
	for _, x := range members {
		d := api.Decision{Of: len(q.view.Nodes), Refusals: []api.Refusal{{Policy: "gang", Reason: why, Nodes: len(q.view.Nodes)}}}
		if of != nil {
			d.Refusals = append(d.Refusals, of.Refusals...)
			d.Hints = of.Hints
		}
		q.tell(x, sched.Placement{Item: x, Decision: d})
	}
}
