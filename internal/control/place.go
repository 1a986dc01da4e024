package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
	"atoll/internal/sched"
	"atoll/internal/store"
)

// retryNominated is how often somebody who waits for others to leave looks whether they do.
const retryNominated = 2 * time.Second

// proposal is a decision that is in the view, with what is committed for it.
type proposal struct {
	in   *api.Instance
	item *policy.Item
	old  *api.Assignment // nil: there is none yet
	sched.Placement
	address    string
	interfaces []api.Interface // on networks of its tenant
	had        []api.Interface // what it had there before
}

func (p *Placement) place(ctx context.Context, s store.Store, in *api.Instance, a *api.Assignment) (reconcile.Result, error) {
	if in.Spec.Stopped { // takes no room until it is started, and makes nobody else go
		if a == nil {
			return reconcile.Result{}, nil
		}
		return reconcile.Result{Also: p.forget(api.RefOf(in), in.UID, false)}, nil
	}
	if in.Status.State == api.StateFailed && in.Status.Reason == api.ReasonGangTimeout && in.Status.Generation == in.Generation {
		return reconcile.Result{}, nil // until somebody changes or restarts it
	}
	if gangOf(&in.Spec) != nil {
		return p.placeGang(ctx, s, in, a)
	}
	pr := p.propose(in, a)
	if len(pr.Victims) == 0 {
		pr.Victims = p.stillThere(in.UID) // asked once more: one of them may just have come
	}
	if len(pr.Victims) > 0 {
		if err := p.evict(ctx, s, pr); err != nil {
			p.mu.Lock()
			p.view.Unplace(in.UID)
			p.unpend(api.RefOf(in), in.UID)
			p.mu.Unlock()
			return reconcile.Result{}, err
		}
		pr.Node = "" // until they have gone
	}
	return p.commit(ctx, s, pr)
}

// stillThere lists the victims that a nominated instance waits for.
func (p *Placement) stillThere(uid string) []*policy.Item {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nominated[uid]
	if n == nil {
		return nil
	}
	var out []*policy.Item
	for v := range n.victims {
		if it := p.view.Item(v); it != nil {
			out = append(out, it)
		}
	}
	return out
}

// propose decides and notes the decision in the view.
func (p *Placement) propose(in *api.Instance, a *api.Assignment) *proposal {
	p.mu.Lock()
	defer p.mu.Unlock()
	start := p.clock.Now()
	it := p.item(in)
	pr := &proposal{in: in, item: it, old: a}
	n := p.nominated[in.UID]
	if n != nil {
		for uid := range n.victims {
			if p.view.Where(uid) != n.node { // it went without being asked, or never came
				delete(n.victims, uid)
			}
		}
	}
	switch {
	case n != nil && len(n.victims) > 0 && p.usable(n.node):
		pr.Placement = waitingFor(it, n, p.view)
	case n != nil && p.view.Where(in.UID) == n.node && p.usable(n.node):
		delete(p.nominated, in.UID)
		pr.Placement = sched.Placement{Item: it, Node: n.node, Alloc: p.view.Alloc(in.UID),
			Decision: api.Decision{Of: len(p.view.Nodes), Chosen: n.node, Hints: []string{n.hint}}}
	default:
		delete(p.nominated, in.UID)
		p.view.Unplace(in.UID)
		switch why := p.view.Keeps(it, p.keep); {
		case p.mayPreempt(it):
			pr.Placement = p.planner.DecideOrPreempt(it)
		case why != "":
			pr.Placement = sched.Placement{Item: it, Decision: api.Decision{Of: len(p.view.Nodes), Refusals: []api.Refusal{{Policy: "pool", Reason: why, Nodes: len(p.view.Nodes)}},
				Hints: []string{"it starts when others give room back; a larger guarantee of its tenant would be its own"}}}
		default:
			pr.Placement = p.planner.Decide(it)
		}
	}
	p.addressFor(pr)
	if pr.Node != "" {
		p.view.Place(it, pr.Node, pr.Alloc)
	}
	pr.Decision.At = start
	pr.Decision.TookUS = p.clock.Now().Sub(start).Microseconds()
	if len(pr.Victims) > 0 {
		n := &nomination{ref: it.Ref, node: pr.Node, victims: map[string]bool{}, hint: "room was made by moving instances of a lower priority"}
		for _, x := range pr.Victims {
			n.victims[x.UID] = true
			p.view.Leaves(x.UID)
		}
		p.nominated[in.UID] = n
		waiting := waitingFor(it, n, p.view)
		pr.Decision.Refusals, pr.Decision.Hints, pr.Decision.Chosen = waiting.Decision.Refusals, waiting.Decision.Hints, ""
	}
	return pr
}

// waitingFor says that others are on their way out.
func waitingFor(it *policy.Item, n *nomination, v *policy.View) sched.Placement {
	return sched.Placement{Item: it, Decision: api.Decision{Of: len(v.Nodes),
		Refusals: []api.Refusal{{Policy: "preemption", Reason: fmt.Sprintf("waits for %d instances of a lower priority to leave %s", len(n.victims), n.node), Nodes: 1, Best: n.node}},
		Hints:    []string{"nothing: it starts on " + n.node + " as soon as they have stopped"}}}
}

// addressFor gives addresses to what has a node and is on a network; without them it has no node either.
func (p *Placement) addressFor(pr *proposal) {
	n := pr.in.Spec.Network()
	if pr.Node == "" || len(pr.Victims) > 0 || n == api.NetworkNone || n == api.NetworkHost {
		return
	}
	var err error
	if pr.in.Spec.OnNetworks() {
		pr.had = p.nets.Has(pr.in.UID)
		pr.interfaces, err = p.nets.Give(pr.in)
	} else {
		pr.address, err = p.pool.give(pr.in.UID, fixedAddress(&pr.in.Spec))
	}
	if err == nil {
		return
	}
	p.view.Unplace(pr.in.UID)
	pr.Node, pr.Decision.Chosen = "", ""
	pr.Decision.Refusals = []api.Refusal{{Policy: "addresses", Reason: err.Error(), Nodes: pr.Decision.Of}}
	pr.Decision.Hints = []string{addressHint(pr.in, err)}
}

func addressHint(in *api.Instance, err error) string {
	switch errs.KindOf(err) {
	case errs.NotFound:
		return fmt.Sprintf("make the network: atoll network create %s --tenant %s --cidr 10.1.0.0/16", in.Spec.Network(), in.Tenant)
	case errs.Invalid, errs.Conflict:
		return "give it another address, or none: then it gets the next free one"
	}
	return "run it without a network (--network none), or free an address"
}

// assignment is what the proposal makes of the assignment; nil when there is nothing new to say.
func (pr *proposal) assignment() *api.Assignment {
	ref := api.RefOf(pr.in)
	next := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: pr.in.Name, Tenant: pr.in.Tenant, UID: pr.in.UID,
		Owner: &ref, CreatedAt: &pr.Decision.At}}, Spec: api.AssignmentSpec{InstanceUID: pr.in.UID, Node: pr.Node, Generation: 1, Address: pr.address, Interfaces: wires(pr.interfaces), Decision: &pr.Decision}}
	pr.Alloc.Write(&next.Spec)
	if pr.Node == "" {
		policy.Alloc{}.Write(&next.Spec)
		next.Spec.Since = &pr.Decision.At
	}
	if a := pr.old; a != nil {
		if pr.Node == "" && a.Spec.Since != nil {
			next.Spec.Since = a.Spec.Since
		}
		next.Revision, next.Spec.Generation, next.CreatedAt = a.Revision, a.Spec.Generation, a.CreatedAt
		if pr.Node != "" {
			next.Spec.Generation++
		} else if sameRefusal(a.Spec.Decision, &pr.Decision) {
			return nil
		}
	}
	return next
}

// ops commit an assignment if its instance still is what was looked at.
func (p *Placement) ops(pr *proposal, next *api.Assignment) []store.Op {
	ops := []store.Op{{Verb: store.Put, Object: next, Rev: next.Revision}, store.Expect(api.RefOf(pr.in), pr.in.Revision)}
	if len(pr.interfaces) > 0 {
		ops = append(ops, p.plug(pr.in, pr.Node, pr.interfaces))
	}
	return ops
}

// commit makes proposals so, all or none.
func (p *Placement) commit(ctx context.Context, s store.Store, prs ...*proposal) (reconcile.Result, error) {
	var ops []store.Op
	for _, pr := range prs {
		if next := pr.assignment(); next != nil {
			ops = append(ops, p.ops(pr, next)...)
		}
	}
	var err error
	if len(ops) > 0 {
		_, err = s.Commit(ctx, ops...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var res reconcile.Result
	for _, pr := range prs {
		ref := api.RefOf(pr.in)
		switch {
		case err != nil:
			p.takeBack(pr)
			res.Also = append(res.Also, ref)
		case pr.Node == "":
			p.pend(pr.item)
			res.Again, res.Poll = retryPending, true
			if p.nominated[pr.in.UID] != nil {
				res.Again, res.Poll = retryNominated, false
			}
		default:
			p.unpend(ref, pr.in.UID)
			if len(p.social) > 0 { // who wants to be near, or even, may fit now
				res.Also = append(res.Also, sweepRef)
			}
		}
	}
	if err == nil || errors.Is(err, errs.NotFound) || errors.Is(err, errs.Exists) {
		return res, nil
	}
	return reconcile.Result{Also: res.Also[min(len(res.Also), 1):]}, fmt.Errorf("assign %s: %w", api.RefOf(prs[0].in), err)
}

// takeBack undoes what propose noted.
func (p *Placement) takeBack(pr *proposal) {
	if p.nominated[pr.in.UID] == nil {
		p.view.Unplace(pr.in.UID)
	}
	p.pool.free(pr.in.UID)
	if pr.interfaces != nil {
		p.nets.Take(pr.in.Tenant, pr.in.UID, pr.in.Labels, pr.had)
	}
}

// evict tells the agents of the victims to stop them.
func (p *Placement) evict(ctx context.Context, s store.Store, pr *proposal) error {
	why := fmt.Sprintf("makes room for %s/%s of a higher priority", pr.in.Tenant, pr.in.Name)
	if !sameTop(pr) {
		why = "makes room for an instance of a higher priority"
	}
	for _, x := range pr.Victims {
		ref := api.Ref{Kind: api.KindAssignment, Tenant: x.Ref.Tenant, Name: x.Ref.Name}
		if err := markEvicted(ctx, s, ref, x.UID, api.Eviction{At: pr.Decision.At, Reason: why}); err != nil {
			return err
		}
	}
	return nil
}

// sameTop: names of another tenant's instances are not told.
func sameTop(pr *proposal) bool {
	for _, x := range pr.Victims {
		if x.Ref.Tenant != pr.in.Tenant {
			return false
		}
	}
	return true
}

// markEvicted asks for an instance to leave its node. Nothing happens when it is gone or leaves already.
func markEvicted(ctx context.Context, s store.Store, ref api.Ref, uid string, e api.Eviction) error {
	for {
		a, err := store.Get[*api.Assignment](ctx, s, ref)
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", ref, err)
		}
		if a.Spec.InstanceUID != uid || a.Spec.Node == "" || a.Spec.Evict != nil {
			return nil
		}
		next := api.Clone(a)
		next.Spec.Evict = &e
		if _, err = s.Commit(ctx, store.Update(next)); err == nil || errors.Is(err, errs.NotFound) {
			return nil
		}
		if !errors.Is(err, errs.Conflict) {
			return fmt.Errorf("evict %s: %w", ref, err)
		}
	}
}

// hasLeft reports whether the agent has stopped what was to leave, or it had ended by itself.
func hasLeft(in *api.Instance, a *api.Assignment) bool {
	st := in.Status.State
	return in.Status.Assigned == a.Spec.Generation && in.Status.Node == a.Spec.Node && (st == api.StateStopped || st == api.StateFailed)
}

// unassign takes the node from an instance that has left it, so that it is placed anew.
func (p *Placement) unassign(ctx context.Context, s store.Store, in *api.Instance, a *api.Assignment) (reconcile.Result, error) {
	next := api.Clone(a)
	now := p.clock.Now().UTC().Truncate(time.Millisecond)
	next.Spec.Node, next.Spec.Address, next.Spec.Interfaces, next.Spec.Evict, next.Spec.Since = "", "", nil, nil, &now
	policy.Alloc{}.Write(&next.Spec)
	next.Spec.Decision = &api.Decision{At: now, Refusals: []api.Refusal{{Policy: "eviction", Reason: a.Spec.Evict.Reason, Nodes: 1, Best: a.Spec.Node}}}
	ops := []store.Op{store.Update(next)}
	if has := p.interfaces(in.UID); len(has) > 0 {
		ops = append(ops, p.plug(in, "", has)) // what it has there it keeps
	}
	if _, err := s.Commit(ctx, ops...); err != nil {
		if errors.Is(err, errs.NotFound) {
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("take %s off %s: %w", api.RefOf(in), a.Spec.Node, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, in.UID)
	p.view.Unplace(in.UID)
	p.pool.free(in.UID)
	it := p.item(in)
	p.pend(it)
	p.direct(it, a.Spec.Evict)
	// Who it made room for comes before itself.
	return reconcile.Result{Also: append(p.heirs(in.UID), api.RefOf(in), sweepRef)}, nil
}

// sameRefusal spares a write when nothing new is to be said.
func sameRefusal(a, b *api.Decision) bool {
	if a == nil || a.Of != b.Of || len(a.Refusals) != len(b.Refusals) || a.Chosen != "" {
		return false
	}
	for i := range a.Refusals {
		if a.Refusals[i] != b.Refusals[i] {
			return false
		}
	}
	return true
}

// usable reports whether a nomination for a node still makes sense.
func (p *Placement) usable(node string) bool {
	n := p.view.Node(node)
	return n != nil && n.Takes()
}

// direct keeps the node an eviction names for what left, if it admits it now.
func (p *Placement) direct(it *policy.Item, e *api.Eviction) {
	n := p.view.Node(e.To)
	if n == nil || !p.usable(e.To) {
		return
	}
	p.view.Arrange()
	for _, c := range checks(p.view, p.planner.Chain, it) {
		if c.refusal(n) != "" {
			return
		}
	}
	p.nominated[it.UID] = &nomination{ref: it.Ref, node: e.To, hint: e.Reason}
	p.view.Place(it, e.To, p.planner.Chain.Pick(n, it))
}
