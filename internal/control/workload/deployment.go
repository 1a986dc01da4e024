package workload

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Deployments keeps the instances of deployments as their specs say.
type Deployments struct {
	clock  clock.Clock
	owners *owners

	mu sync.Mutex // guards below
	// ready is since when instances are seen to be ready, by deployment and UID: by our
	// clock, as those of the hosts may be ahead or behind. A deployment that is not in it
	// was not looked at since we took over: what is ready then counts from its own start,
	// so that a new leader changes nothing.
	ready map[api.Ref]map[string]seen
}

// seen is since when a run of an instance is seen to be ready.
type seen struct {
	since   time.Time
	started time.Time // which run, by its host's clock
}

// NewDeployments makes the controller.
func NewDeployments(c clock.Clock) *Deployments {
	return &Deployments{clock: c, owners: newOwners(), ready: map[api.Ref]map[string]seen{}}
}

// Name is "deployment".
func (*Deployments) Name() string { return "deployment" }

// Workers is how many deployments are looked at at once.
func (*Deployments) Workers() int { return 4 }

// anyNode stands for every node: a deployment looks at them all.
var anyNode = api.Ref{Kind: api.KindNode, Name: "*"}

// Key makes all nodes one name, and a budget that of the deployment it may belong to.
func (*Deployments) Key(ref api.Ref) api.Ref {
	switch ref.Kind {
	case api.KindNode:
		return anyNode
	case api.KindDisruptionBudget:
		ref.Kind = api.KindDeployment
	}
	return ref
}

// Watches deployments, what they made, and what decides whether more may be made.
func (*Deployments) Watches() []api.Selector {
	made := []api.LabelTerm{{Key: api.LabelDeployment}}
	return []api.Selector{{Kind: api.KindNode}, {Kind: api.KindTenant}, {Kind: api.KindDisruptionBudget, Labels: made},
		{Kind: api.KindInstance, Labels: made}, {Kind: api.KindDeployment}}
}

// Owns deployments, for their status and their end, and what they make.
func (*Deployments) Owns() []api.Kind {
	return []api.Kind{api.KindDeployment, api.KindInstance, api.KindRevision, api.KindDisruptionBudget}
}

// Reconcile looks at one deployment, or finds those that a change concerns.
func (c *Deployments) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	switch ref.Kind {
	case api.KindInstance:
		return c.owners.wake(ctx, s, ref, api.KindDeployment, api.LabelDeployment)
	case api.KindTenant:
		return blocked(ctx, s, api.KindDeployment, ref.Name)
	case api.KindNode:
		return perNode(ctx, s)
	}
	d, err := store.Get[*api.Deployment](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.ready, ref)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	v := &visit{Store: s, c: c, d: d, now: c.clock.Now()}
	if err := v.read(ctx); err != nil {
		return reconcile.Result{}, err
	}
	if d.DeletedAt != nil {
		return reconcile.Result{}, v.end(ctx)
	}
	return v.step(ctx)
}

// perNode lists the deployments that look at nodes.
func perNode(ctx context.Context, s store.Store) (reconcile.Result, error) {
	list, _, err := store.List[*api.Deployment](ctx, s, api.Selector{Kind: api.KindDeployment})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list deployments: %w", err)
	}
	var res reconcile.Result
	for _, d := range list {
		if d.Spec.PerNode {
			res.Also = append(res.Also, api.RefOf(d))
		}
	}
	return res, nil
}

// visit is one look at a deployment.
type visit struct {
	store.Store
	c         *Deployments
	d         *api.Deployment
	now       time.Time
	family    *family
	instances []*api.Instance
	revisions []*api.Revision // by number
	nodes     []*api.Node
	again     time.Duration
	why       error // of what was refused
}

// read gathers all that is decided from.
func (v *visit) read(ctx context.Context) error {
	ref := api.RefOf(v.d)
	var err error
	v.family, err = familyOf(ctx, v, v.d, api.KindInstance, api.LabelDeployment, func(o api.Object) bool {
		for k, want := range v.d.Spec.Selector.Labels {
			if o.Metadata().Labels[k] != want {
				return false
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	for _, o := range v.family.mine {
		v.instances = append(v.instances, o.(*api.Instance))
	}
	all, _, err := store.List[*api.Revision](ctx, v, api.Selector{Kind: api.KindRevision, Tenant: ref.Tenant, Fields: map[string]string{"spec.deployment": ref.Name}})
	if err != nil {
		return fmt.Errorf("list revisions of %s: %w", ref, err)
	}
	v.revisions = all
	slices.SortFunc(v.revisions, func(a, b *api.Revision) int { return int(a.Spec.Number - b.Spec.Number) })
	v.nodes, _, err = store.List[*api.Node](ctx, v, api.Selector{Kind: api.KindNode})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	return nil
}

// end removes a deployment whose removal was asked for, when what it made is gone.
func (v *visit) end(ctx context.Context) error {
	left, err := retire(ctx, v, v.d, v.family.mine, v.now)
	if err != nil || left > 0 {
		return err // the instances' going wakes us
	}
	var with []store.Op
	for _, r := range v.revisions {
		with = append(with, store.Remove(api.RefOf(r), store.Any))
	}
	b, err := v.ownBudget(ctx)
	if err != nil {
		return err
	}
	if b != nil {
		with = append(with, store.Remove(api.RefOf(b), b.Revision))
	}
	return letGo(ctx, v, v.d, with...)
}

// step takes one step of the rollout, and says how far it is.
func (v *visit) step(ctx context.Context) (reconcile.Result, error) {
	sit := v.situation()
	plan := next(sit)
	if !v.d.Spec.Paused {
		if err := v.revise(ctx, sit.hash); err != nil {
			return reconcile.Result{}, err
		}
	}
	if err := v.act(ctx, plan); err != nil {
		return reconcile.Result{}, err
	}
	if err := v.budget(ctx, plan.status.Desired); err != nil {
		return reconcile.Result{}, err
	}
	if err := v.prune(ctx, sit.hash, plan.status.Complete); err != nil {
		return reconcile.Result{}, err
	}
	if err := v.report(ctx, plan); err != nil {
		return reconcile.Result{}, err
	}
	res := reconcile.Result{Again: soonest(v.again, plan.again)}
	if v.why != nil {
		res.Again = soonest(res.Again, retryRefused)
	}
	return res, nil
}

func soonest(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// situation is what the store says, as the rollout sees it.
func (v *visit) situation() situation {
	spec := &v.d.Spec
	s := situation{now: v.now, wants: spec.Wants(), recreate: spec.Strategy.Type == "recreate", paused: spec.Paused,
		deadline: spec.ProgressDeadline(), hash: spec.Template.Hash(), last: v.d.Status, perNode: spec.PerNode}
	if c := api.FindCondition(v.d.Status.Conditions, api.ConditionProgressing); c != nil && c.Reason == api.ReasonPaused {
		s.last.ProgressAt = nil // time stood still
	}
	count := s.wants
	if spec.PerNode {
		count = 0
		for _, n := range v.nodes {
			p := placeOf(n, spec.Template.Spec.Placement)
			s.nodes = append(s.nodes, p)
			if p.admits {
				count++
			}
		}
	}
	s.surge, s.unavailable = spec.Bounds(count)
	s.ones = v.ones()
	return s
}

// ones are the instances, and since when they are ready.
func (v *visit) ones() []one {
	c, ref := v.c, api.RefOf(v.d)
	c.mu.Lock()
	defer c.mu.Unlock()
	was, known := c.ready[ref]
	is := make(map[string]seen, len(v.instances))
	c.ready[ref] = is
	out := make([]one, 0, len(v.instances))
	for _, in := range v.instances {
		o := one{name: in.Name, hash: in.Labels[api.LabelHash], leaving: in.DeletedAt != nil, ready: ready(in)}
		if in.CreatedAt != nil {
			o.created = *in.CreatedAt
		}
		if p := in.Spec.Placement; v.d.Spec.PerNode && p != nil {
			o.node = p.Node
		}
		if o.ready {
			r := seen{since: v.now}
			if at := in.Status.StartedAt; at != nil {
				r.started = *at
			}
			if old, ok := was[in.UID]; ok && old.started.Equal(r.started) {
				r = old
			} else if !known && !r.started.IsZero() && r.started.Before(v.now) {
				r.since = r.started
			}
			is[in.UID] = r
			left := r.since.Add(v.d.Spec.MinReady.D()).Sub(v.now)
			if o.available = left <= 0; !o.available && !o.leaving {
				v.again = soonest(v.again, left)
			}
		}
		out = append(out, o)
	}
	return out
}

// ready: it runs, and is healthy where there is a check.
func ready(in *api.Instance) bool {
	return in.StateOf() == api.StateRunning && (in.Spec.Health == nil || in.Status.Healthy != nil && *in.Status.Healthy)
}

// placeOf says whether a node is one that the template's instances belong on. What it asks
// of a node beside that, such as room, is left to placement, which says why it waits.
func placeOf(n *api.Node, p *api.Placement) place {
	if p == nil {
		p = &api.Placement{}
	}
	out := place{name: n.Name, closed: n.Spec.Cordoned, takes: n.Ready() && !n.Spec.Cordoned}
	out.admits = n.DeletedAt == nil && (p.Node == "" || p.Node == n.Name) && (p.Zone == "" || p.Zone == n.Spec.Zone)
	for k, v := range p.NodeLabels {
		out.admits = out.admits && n.Labels[k] == v
	}
	for _, t := range p.Nodes {
		out.admits = out.admits && (t.Weight > 0 || t.Holds(n.Labels))
	}
	for _, t := range n.Spec.Taints {
		ok := slices.ContainsFunc(p.Tolerate, func(x api.Taint) bool {
			return x.Key == t.Key && (x.Value == "" || x.Value == t.Value) && (x.Effect == "" || x.Effect == t.Effect)
		})
		if !ok && t.Effect == "NoExecute" {
			out.admits = false
		}
		out.takes = out.takes && ok
		out.closed = out.closed || !ok
	}
	return out
}

// act removes and makes what was decided.
func (v *visit) act(ctx context.Context, plan decision) error {
	byName := make(map[string]*api.Instance, len(v.instances))
	for _, in := range v.instances {
		byName[in.Name] = in
	}
	for _, name := range plan.remove {
		if err := remove(ctx, v, v.d, byName[name], v.now); err != nil {
			return err
		}
	}
	var objs []api.Object
	for _, o := range plan.create {
		in, err := v.instance(o)
		if err != nil {
			return err
		}
		objs = append(objs, in)
	}
	_, why, err := create(ctx, v, v.d, objs)
	v.why = why
	return err
}

// instance makes an instance of a revision, under the first free name.
func (v *visit) instance(o order) (*api.Instance, error) {
	i := slices.IndexFunc(v.revisions, func(r *api.Revision) bool { return r.Spec.Hash == o.hash })
	if i < 0 {
		return nil, errs.New(errs.Internal, "%s has no revision %s", api.RefOf(v.d), o.hash)
	}
	t := &v.revisions[i].Spec.Template
	base := v.d.Name + "-" + o.hash
	name := base + "-" + o.node
	if o.node == "" || len(name) > 63 || v.family.names[name] {
		for n := 0; n == 0 || v.family.names[name]; n++ {
			name = base + "-" + strconv.Itoa(n)
		}
	}
	v.family.names[name] = true
	in := instanceOf(t, t.Spec, v.d.Tenant, name)
	in.Labels[api.LabelDeployment], in.Labels[api.LabelHash] = v.d.Name, o.hash
	in.Spec.Restart = ""
	v.place(in, o.node)
	born(in, v.d, v.now)
	return in, nil
}

// place adds to the template's placement what the deployment knows: the node an instance
// is for, or the wish to be apart from its siblings.
func (v *visit) place(in *api.Instance, node string) {
	p := in.Spec.Placement
	if p == nil {
		p = &api.Placement{}
		in.Spec.Placement = p
	}
	if node != "" {
		p.Node = node
		return
	}
	if len(p.Spread) > 0 {
		return
	}
	p.Spread = []api.SpreadTerm{{Topology: "host"}}
	if slices.ContainsFunc(v.nodes, func(n *api.Node) bool { return n.Spec.Zone != "" }) {
		p.Spread = append(p.Spread, api.SpreadTerm{Topology: "zone"})
	}
}

// report writes the status, when there is something new to say.
func (v *visit) report(ctx context.Context, plan decision) error {
	st := plan.status
	st.Observed = v.d.Generation
	if n := len(v.revisions); n > 0 && v.revisions[n-1].Spec.Hash == st.Hash {
		st.Revision = v.revisions[n-1].Spec.Number
	}
	st.Conditions = v.conditions(plan, v.trouble(ctx, st.Hash))
	for _, c := range st.Conditions {
		if c.Type == api.ConditionProgressing {
			st.Message = c.Message
		}
	}
	if c := st.Conditions[len(st.Conditions)-1]; !c.Status {
		st.Message = c.Message
	}
	if reflect.DeepEqual(st, v.d.Status) {
		return nil
	}
	n := api.Clone(v.d)
	n.Status = st
	if _, err := v.Commit(ctx, store.Update(n)); err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("report on %s: %w", api.RefOf(v.d), err)
	}
	return nil
}

// trouble is what keeps the first of the new instances from being ready.
func (v *visit) trouble(ctx context.Context, hash string) string {
	for _, in := range v.instances {
		if in.DeletedAt == nil && in.Labels[api.LabelHash] == hash && !ready(in) {
			if why := trouble(ctx, v, in); why != "" {
				return why
			}
		}
	}
	return ""
}

// conditions says in words what the numbers come to; Admitted is the last.
func (v *visit) conditions(plan decision, trouble string) []api.Condition {
	st, list := &plan.status, v.d.Status.Conditions
	c := api.Condition{Type: api.ConditionAvailable, Status: st.Available >= plan.least && (st.Available > 0 || st.Desired == 0), Reason: "Enough", Since: v.now,
		Message: fmt.Sprintf("%d of %d instances are available", st.Available, st.Desired)}
	if !c.Status {
		c.Reason = "TooFew"
		if trouble != "" {
			c.Message += "; " + trouble
		}
	}
	list = api.SetCondition(list, c)
	c = api.Condition{Type: api.ConditionProgressing, Status: true, Since: v.now}
	updated := fmt.Sprintf("%d of %d instances are of the present template, %d of all are available", st.Updated, st.Desired, st.Available)
	if trouble != "" {
		updated += "; " + trouble
	}
	switch {
	case !plan.rolling && st.Available >= st.Desired:
		c.Reason, c.Message = api.ReasonRolledOut, fmt.Sprintf("all %d instances are of the present template and available", st.Desired)
	case !plan.rolling:
		c.Reason, c.Message = api.ReasonRolledOut, updated
	case v.d.Spec.Paused:
		c.Status, c.Reason, c.Message = false, api.ReasonPaused, "paused: "+updated+"; atoll rollout resume goes on"
	case plan.stalled:
		c.Status, c.Reason = false, api.ReasonDeadline
		c.Message = fmt.Sprintf("got no further for %s and goes no further: %s; mend the template, or go back: atoll rollout undo deployment/%s", v.d.Spec.ProgressDeadline(), updated, v.d.Name)
	default:
		c.Reason, c.Message = "Rolling", updated
	}
	list = api.SetCondition(list, c)
	return api.SetCondition(list, admitted(v.why, v.now))
}
