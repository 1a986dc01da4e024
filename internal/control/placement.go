package control

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/ipam"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
	"atoll/internal/sched"
	"atoll/internal/store"
)

// Placement writes an Assignment for every instance: where it runs, or why
// nowhere. It keeps a view of the pool that follows the store piece by piece: the
// engine names what changed, Placement reads that one thing.
//
// Several names may be looked at at once. Decisions are made one after the other,
// and each is in the view before it is committed, so that the next one sees it;
// the commits run side by side. A commit that fails takes its decision back.
type Placement struct {
	clock clock.Clock
	keep  policy.Keep

	loading sync.Mutex // guards loaded; taken before mu
	loaded  bool       // the view has everything that had a node at the start

	mu        sync.Mutex // guards all below
	view      *policy.View
	planner   *sched.Planner
	pool      *addresses        // of the hosts' own bridges
	nets      *ipam.Book        // of tenants' networks
	plugs     map[string]socket // by UID: where endpoints say instances are
	classes   map[string]*api.PriorityClass
	weights   map[string]int64            // of tenants
	pending   map[api.Ref]*policy.Item    // without a node; looked at again when room is made
	nominated map[string]*nomination      // by UID: have a node as soon as others have left it
	gangs     map[gangKey]map[string]bool // UIDs of the members there are
	ganged    map[string]gangKey          // by UID
	busy      map[gangKey]bool            // somebody places all of it right now
	held      map[string]bool             // UIDs of those that keep their node, stopped, as long as it is in maintenance
	social    map[string]bool             // UIDs of those in pending whose chances depend on where others are
}

// nomination is a node that an instance gets when its victims have gone.
type nomination struct {
	ref     api.Ref
	node    string
	victims map[string]bool // UIDs
	hint    string          // how it came to this node
}

// retryPending is how often what has no node is tried again even if nothing was seen to change.
const retryPending = 30 * time.Second

// NewPlacement makes the controller.
func NewPlacement(d Deps) (*Placement, error) {
	pool, err := newAddresses(d.Subnet)
	if err != nil {
		return nil, err
	}
	v := policy.NewView()
	return &Placement{clock: d.Clock, keep: d.Keep, planner: sched.NewPlanner(v, d.Chain, d.Seed), view: v, pool: pool, nets: ipam.New(), plugs: map[string]socket{}, classes: map[string]*api.PriorityClass{},
		weights: map[string]int64{}, pending: map[api.Ref]*policy.Item{}, nominated: map[string]*nomination{}, gangs: map[gangKey]map[string]bool{}, ganged: map[string]gangKey{}, busy: map[gangKey]bool{}, social: map[string]bool{}, held: map[string]bool{}}, nil
}

// Name is "placement".
func (p *Placement) Name() string { return "placement" }

// Workers is how many names it may be called for at once: the store takes many commits in one write.
func (p *Placement) Workers() int { return 64 }

// Key makes an instance and its assignment one name: two calls at once would decide twice.
func (p *Placement) Key(ref api.Ref) api.Ref {
	if ref.Kind == api.KindAssignment && ref != sweepRef {
		ref.Kind = api.KindInstance
	}
	return ref
}

// Watches what decides before what is decided, so that a start does not place on an empty view.
func (p *Placement) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindPriorityClass}, {Kind: api.KindTenant}, {Kind: api.KindDisruptionBudget}, {Kind: api.KindNetwork}, {Kind: api.KindNode}, {Kind: api.KindAssignment}, {Kind: api.KindInstance}}
}

// Owns assignments and endpoints, and instances only to take away those that never had a node, and to fail a gang.
func (p *Placement) Owns() []api.Kind {
	return []api.Kind{api.KindAssignment, api.KindEndpoint, api.KindInstance}
}

// Reconcile follows one change.
func (p *Placement) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	switch {
	case ref == sweepRef:
		return p.lookAtWaiting(), nil
	case ref.Kind == api.KindNode:
		var moved []api.Ref
		res, err := follow(ctx, s, ref, func(n *api.Node) {
			if n == nil {
				p.view.RemoveNode(ref.Name)
			} else {
				p.view.SetNode(n)
				moved = p.retunnelled(n)
			}
		}, &p.mu)
		res.Also = append(res.Also, moved...)
		return res, err
	case ref.Kind == api.KindPriorityClass:
		return follow(ctx, s, ref, func(c *api.PriorityClass) {
			if delete(p.classes, ref.Name); c != nil {
				p.classes[ref.Name] = c
			}
		}, &p.mu)
	case ref.Kind == api.KindTenant:
		return follow(ctx, s, ref, func(t *api.Tenant) {
			delete(p.weights, ref.Name)
			p.view.RemoveTenant(ref.Name)
			if t != nil {
				p.weights[ref.Name] = int64(t.Spec.Weight)
				p.view.SetTenant(t)
			}
		}, &p.mu)
	case ref.Kind == api.KindNetwork:
		return follow(ctx, s, ref, func(n *api.Network) {
			if n == nil {
				p.nets.RemoveNetwork(ref.Tenant, ref.Name)
			} else {
				p.nets.SetNetwork(n)
			}
		}, &p.mu)
	case ref.Kind == api.KindDisruptionBudget:
		return follow(ctx, s, ref, func(b *api.DisruptionBudget) {
			if b == nil {
				p.view.RemoveBudget(ref)
			} else {
				p.view.SetBudget(b)
			}
		}, &p.mu)
	}
	if err := p.load(ctx, s); err != nil {
		return reconcile.Result{}, err
	}
	ref.Kind = api.KindInstance // an assignment is the same work, seen from the other side
	return p.instance(ctx, s, ref)
}

// load notes, once, everything that has a node already: nothing may be decided on a
// view that is only half there.
func (p *Placement) load(ctx context.Context, s store.Store) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	if p.loaded {
		return nil
	}
	if err := p.loadNetworks(ctx, s); err != nil {
		return err
	}
	assignments, _, err := store.List[*api.Assignment](ctx, s, api.Selector{Kind: api.KindAssignment})
	if err != nil {
		return fmt.Errorf("list assignments: %w", err)
	}
	for _, a := range assignments {
		if a.Spec.Node == "" {
			continue
		}
		in, err := store.Get[*api.Instance](ctx, s, api.Ref{Kind: api.KindInstance, Tenant: a.Tenant, Name: a.Name})
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read instance of %s: %w", api.RefOf(a), err)
		}
		if in.UID == a.Spec.InstanceUID {
			p.settle(in, a)
		}
	}
	p.loaded = true
	return nil
}

// follow reads an object, nil when it is gone, and notes it under the lock.
func follow[T api.Object](ctx context.Context, s store.Store, ref api.Ref, note func(T), mu *sync.Mutex) (reconcile.Result, error) {
	o, err := store.Get[T](ctx, s, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	mu.Lock()
	defer mu.Unlock()
	note(o)
	return reconcile.Result{Also: []api.Ref{sweepRef}}, nil
}

// sweepRef stands for "room was made: look at what waits".
var sweepRef = api.Ref{Kind: api.KindAssignment, Name: "*"}

// sweepMost bounds what one sweep wakes; it goes on with another.
const sweepMost = 1000

// lookAtWaiting wakes what waits and would fit now, in fair order. Of a kind that does not
// fit, the first is asked only.
func (p *Placement) lookAtWaiting() reconcile.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	items := make([]*policy.Item, 0, len(p.pending))
	for _, it := range p.pending {
		items = append(items, it)
	}
	sort.Slice(items, func(i, j int) bool { return api.SortKey(items[i].Ref) < api.SortKey(items[j].Ref) })
	sw := &sweep{Placement: p, done: map[string]bool{}, gangs: map[gangKey]bool{}}
	for _, it := range sched.Order(p.view, items, func(t string) int64 { return p.weights[t] }) {
		sw.look(it)
		if len(sw.wake) >= sweepMost {
			if len(sw.tried) > 0 { // else the same would be woken again
				sw.wake = append(sw.wake, sweepRef)
			}
			break
		}
	}
	for _, uid := range sw.tried {
		p.view.Unplace(uid)
	}
	return reconcile.Result{Also: sw.wake}
}

// sweep is one look at all that waits.
type sweep struct {
	*Placement
	wake  []api.Ref
	tried []string        // UIDs that were given a place for the time of the sweep
	done  map[string]bool // kinds that need no further look
	gangs map[gangKey]bool
}

func (sw *sweep) look(it *policy.Item) {
	if n := sw.nominated[it.UID]; n != nil {
		if len(n.victims) == 0 || !sw.usable(n.node) {
			sw.wake = append(sw.wake, it.Ref)
		}
		return
	}
	if g := gangOf(it.Spec); g != nil {
		sw.gang(it, gangKey{it.Ref.Tenant, g.Name}, g.Size)
		return
	}
	if sw.done[it.Key()] || sw.view.Where(it.UID) != "" { // decided already, its commit is under way
		return
	}
	switch pl := sw.planner.Fits(it); {
	case pl.Node != "" && sw.view.Keeps(it, sw.keep) == "":
		sw.planner.Take(pl)
		sw.tried = append(sw.tried, it.UID)
		sw.wake = append(sw.wake, it.Ref)
	case pl.Node == "" && sw.mayPreempt(it) && sw.view.Lower(it.Priority):
		sw.wake = append(sw.wake, it.Ref)
		sw.done[it.Key()] = true // one at a time makes room
	default:
		sw.done[it.Key()] = true
	}
}

// gang wakes one member, who places all, when all are there and fit.
func (sw *sweep) gang(it *policy.Item, k gangKey, size int) {
	if sw.gangs[k] || len(sw.Placement.gangs[k]) < size {
		return
	}
	sw.gangs[k] = true
	before := len(sw.tried)
	for _, m := range sw.waitingGang(k) {
		if sw.view.Where(m.UID) != "" {
			return
		}
		pl := sw.planner.Fits(m)
		if pl.Node == "" || sw.view.Keeps(m, sw.keep) != "" {
			for _, uid := range sw.tried[before:] {
				sw.view.Unplace(uid)
			}
			sw.tried = sw.tried[:before]
			return
		}
		sw.planner.Take(pl)
		sw.tried = append(sw.tried, m.UID)
	}
	sw.wake = append(sw.wake, it.Ref)
}

// class is the priority class of an instance; nil when there is none.
func (p *Placement) class(spec *api.InstanceSpec) *api.PriorityClass {
	if c := p.classes[spec.Priority]; c != nil || spec.Priority != "" {
		return c
	}
	var def *api.PriorityClass // of several, always the same
	for _, c := range p.classes {
		if c.Spec.Default && (def == nil || c.Name < def.Name) {
			def = c
		}
	}
	return def
}

func (p *Placement) item(in *api.Instance) *policy.Item {
	if c := p.class(&in.Spec); c != nil {
		return policy.ItemAt(in, c.Spec.Value)
	}
	return policy.ItemOf(in)
}

func (p *Placement) mayPreempt(it *policy.Item) bool {
	c := p.class(it.Spec)
	return c != nil && c.Spec.Preempt
}

func (p *Placement) instance(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	aref := api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name}
	a, err := store.Get[*api.Assignment](ctx, s, aref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", aref, err)
	}
	if err != nil {
		a = nil
	}
	in, err := store.Get[*api.Instance](ctx, s, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	switch {
	case err != nil:
		return p.gone(ctx, s, ref, a)
	case a != nil && a.Spec.InstanceUID != in.UID:
		// An older instance of this name had it.
		return p.gone(ctx, s, ref, a)
	case in.DeletedAt != nil && (a == nil || a.Spec.Node == ""):
		return p.dropUnplaced(ctx, s, in, a)
	case a != nil && a.Spec.Node != "":
		why, freed := p.settle(in, a)
		if why != "" && a.Spec.Evict == nil && in.DeletedAt == nil {
			return reconcile.Result{}, markEvicted(ctx, s, aref, in.UID, api.Eviction{At: p.clock.Now().UTC(), Reason: why})
		}
		if e := a.Spec.Evict; e != nil && !e.Stay && in.DeletedAt == nil && (e.Lost || hasLeft(in, a)) {
			return p.unassign(ctx, s, in, a)
		}
		if err := p.rewire(ctx, s, in, a); err != nil {
			return reconcile.Result{}, err
		}
		if freed {
			return reconcile.Result{Also: []api.Ref{sweepRef}}, nil
		}
		return reconcile.Result{}, nil // its agent does the rest
	}
	return p.place(ctx, s, in, a)
}

// settle notes what is placed. When it asks for more than before and its node, or the
// pool, has not got that, the answer says so: it has to be placed anew. freed tells
// that it asks for less.
func (p *Placement) settle(in *api.Instance, a *api.Assignment) (tooMuch string, freed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	it := p.item(in)
	if in.Spec.Stopped {
		it = it.Idle()
	}
	p.joinGang(in)
	p.unpend(api.RefOf(in), in.UID)
	if old := p.view.Item(in.UID); old == nil || old.Key() != it.Key() || p.view.Where(in.UID) != a.Spec.Node {
		if old != nil && grows(old, it) && p.view.Where(in.UID) == a.Spec.Node {
			p.view.Unplace(in.UID)
			tooMuch = p.refusesGrowth(it, a.Spec.Node)
		}
		freed = old != nil && grows(it, old)
		p.view.Place(it, a.Spec.Node, policy.AllocOf(&a.Spec))
	}
	if a.Spec.Evict != nil {
		p.view.Leaves(in.UID)
		p.held[in.UID] = a.Spec.Evict.Stay
	} else if p.held[in.UID] { // what was only told in the view, a victim, goes on leaving
		delete(p.held, in.UID)
		p.view.Remains(in.UID)
	}
	p.pool.take(a.Spec.Address, in.UID)
	return tooMuch, freed
}

func grows(old, now *policy.Item) bool {
	for i := range now.Request {
		if now.Request[i] > old.Request[i] {
			return true
		}
	}
	return false
}

// refusesGrowth says why an item that has grown may not stay where it is.
func (p *Placement) refusesGrowth(it *policy.Item, node string) string {
	if why := p.view.Keeps(it, p.keep); why != "" {
		return why
	}
	if n := p.view.Node(node); n != nil {
		for i, want := range it.Request {
			if room := n.Room(i); want > 0 && want > room {
				return "asks for more than " + node + " has left"
			}
		}
	}
	return ""
}

// pend notes what waits.
func (p *Placement) pend(it *policy.Item) {
	p.pending[it.Ref] = it
	p.view.Wait(it)
	if pl := it.Spec.Placement; pl != nil && len(pl.Near)+len(pl.Spread) > 0 {
		p.social[it.UID] = true
	}
}

func (p *Placement) unpend(ref api.Ref, uid string) {
	delete(p.pending, ref)
	delete(p.nominated, uid)
	delete(p.social, uid)
	p.view.Unwait(ref.Tenant, uid)
}

// forget takes an instance out of everything that is known, and names who waited for it to go. What only
// stopped keeps what it has on its networks.
func (p *Placement) forget(ref api.Ref, uid string, gone bool) []api.Ref {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unpend(ref, uid)
	p.leaveGang(uid)
	delete(p.held, uid)
	p.view.Unplace(uid)
	p.pool.free(uid)
	if gone {
		p.nets.Free(uid)
		delete(p.plugs, uid)
	}
	return append(p.heirs(uid), sweepRef)
}

// heirs are those nominated for the place of an instance.
func (p *Placement) heirs(uid string) []api.Ref {
	var out []api.Ref
	for _, n := range p.nominated {
		if n.victims[uid] {
			delete(n.victims, uid)
			out = append(out, n.ref)
		}
	}
	sort.Slice(out, func(i, j int) bool { return api.SortKey(out[i]) < api.SortKey(out[j]) })
	return out
}

// gone removes the assignment of an instance that is no more.
func (p *Placement) gone(ctx context.Context, s store.Store, ref api.Ref, a *api.Assignment) (reconcile.Result, error) {
	if a == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if it := p.pending[ref]; it != nil {
			p.unpend(ref, it.UID)
			p.leaveGang(it.UID)
		}
		return reconcile.Result{}, nil
	}
	ops := p.unplug([]store.Op{store.Remove(api.RefOf(a), a.Revision)}, ref, a.Spec.InstanceUID)
	_, err := s.Commit(ctx, ops...)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("remove %s: %w", api.RefOf(a), err)
	}
	return reconcile.Result{Also: append(p.forget(ref, a.Spec.InstanceUID, true), ref)}, nil // the name may be in use again
}

// dropUnplaced removes an instance that no agent knows of.
func (p *Placement) dropUnplaced(ctx context.Context, s store.Store, in *api.Instance, a *api.Assignment) (reconcile.Result, error) {
	ops := []store.Op{store.Remove(api.RefOf(in), in.Revision)}
	if a != nil {
		ops = append(ops, store.Remove(api.RefOf(a), a.Revision))
	} else {
		ops = append(ops, store.Expect(api.Ref{Kind: api.KindAssignment, Tenant: in.Tenant, Name: in.Name}, 0))
	}
	if _, err := s.Commit(ctx, p.unplug(ops, api.RefOf(in), in.UID)...); err != nil {
		return reconcile.Result{}, fmt.Errorf("remove %s: %w", api.RefOf(in), err)
	}
	return reconcile.Result{Also: p.forget(api.RefOf(in), in.UID, true)}, nil
}
