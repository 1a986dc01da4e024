package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
	"atoll/internal/sched"
	"atoll/internal/store"
)

// Placement writes an Assignment for every instance: where it runs, or why
// nowhere. It keeps a view of the pool that follows the store piece by piece: the
// engine names what changed, Placement reads that one thing. It must run with one
// worker; the view has no lock.
type Placement struct {
	clock   clock.Clock
	planner *sched.Planner
	view    *policy.View
	pool    *addresses
	pending map[api.Ref]bool // without a node; looked at again when the pool changes
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
	return &Placement{clock: d.Clock, planner: sched.NewPlanner(v, d.Chain, d.Seed), view: v, pool: pool, pending: map[api.Ref]bool{}}, nil
}

// Name is "placement".
func (p *Placement) Name() string { return "placement" }

// Watches nodes before assignments before instances, so that a start does not place on an empty view.
func (p *Placement) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNode}, {Kind: api.KindAssignment}, {Kind: api.KindInstance}}
}

// Owns assignments, and instances only to take away those that never had a node.
func (p *Placement) Owns() []api.Kind { return []api.Kind{api.KindAssignment, api.KindInstance} }

// Reconcile follows one change.
func (p *Placement) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	switch ref.Kind {
	case api.KindNode:
		return p.node(ctx, s, ref)
	case api.KindAssignment:
		ref.Kind = api.KindInstance // the same work, seen from the other side
	}
	return p.instance(ctx, s, ref)
}

func (p *Placement) node(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	n, err := store.Get[*api.Node](ctx, s, ref)
	switch {
	case errors.Is(err, errs.NotFound):
		p.view.RemoveNode(ref.Name)
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	default:
		p.view.SetNode(n)
	}
	return reconcile.Result{Also: p.waiting()}, nil
}

// waiting lists what has no node, in a fixed order.
func (p *Placement) waiting() []api.Ref {
	out := make([]api.Ref, 0, len(p.pending))
	for r := range p.pending {
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool { return api.SortKey(out[i]) < api.SortKey(out[j]) })
	return out
}

func (p *Placement) instance(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	aref := api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name}
	a, err := store.Get[*api.Assignment](ctx, s, aref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", aref, err)
	}
	if errors.Is(err, errs.NotFound) {
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
	case in.DeletedAt != nil:
		return reconcile.Result{}, nil // its agent takes it down and removes it
	case a != nil && a.Spec.Node != "":
		p.settle(in, a)
		return reconcile.Result{}, nil
	}
	return p.place(ctx, s, in, a)
}

// settle notes what is placed.
func (p *Placement) settle(in *api.Instance, a *api.Assignment) {
	it := policy.ItemOf(in)
	if in.Spec.Stopped {
		it = it.Idle()
	}
	delete(p.pending, api.RefOf(in))
	p.view.Place(it, a.Spec.Node, policy.AllocOf(&a.Spec))
	p.pool.take(a.Spec.Address, in.UID)
}

func (p *Placement) forget(ref api.Ref, uid string) {
	delete(p.pending, ref)
	p.view.Unplace(uid)
	p.pool.free(uid)
}

// gone removes the assignment of an instance that is no more.
func (p *Placement) gone(ctx context.Context, s store.Store, ref api.Ref, a *api.Assignment) (reconcile.Result, error) {
	delete(p.pending, ref)
	if a == nil {
		return reconcile.Result{}, nil
	}
	p.forget(ref, a.Spec.InstanceUID)
	_, err := s.Commit(ctx, store.Remove(api.RefOf(a), a.Revision))
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("remove %s: %w", api.RefOf(a), err)
	}
	return reconcile.Result{Also: append(p.waiting(), ref)}, nil // room was made, and the name may be in use again
}

// dropUnplaced removes an instance that no agent knows of.
func (p *Placement) dropUnplaced(ctx context.Context, s store.Store, in *api.Instance, a *api.Assignment) (reconcile.Result, error) {
	p.forget(api.RefOf(in), in.UID)
	ops := []store.Op{store.Remove(api.RefOf(in), in.Revision)}
	if a != nil {
		ops = append(ops, store.Remove(api.RefOf(a), a.Revision))
	} else {
		ops = append(ops, store.Expect(api.Ref{Kind: api.KindAssignment, Tenant: in.Tenant, Name: in.Name}, 0))
	}
	if _, err := s.Commit(ctx, ops...); err != nil {
		return reconcile.Result{}, fmt.Errorf("remove %s: %w", api.RefOf(in), err)
	}
	return reconcile.Result{}, nil
}

func (p *Placement) place(ctx context.Context, s store.Store, in *api.Instance, a *api.Assignment) (reconcile.Result, error) {
	ref := api.RefOf(in)
	if in.Spec.Stopped && a == nil {
		return reconcile.Result{}, nil // never started: takes no room until it is
	}
	it := policy.ItemOf(in)
	d, addr := p.decide(in, it)
	next := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: in.Name, Tenant: in.Tenant, UID: in.UID,
		Owner: &ref, CreatedAt: &d.Decision.At}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: d.Node, Generation: 1, Address: addr, Decision: &d.Decision}}
	d.Alloc.Write(&next.Spec)
	var rev int64
	if a != nil {
		rev, next.Spec.Generation, next.CreatedAt = a.Revision, a.Spec.Generation, a.CreatedAt
		if d.Node != "" {
			next.Spec.Generation++
		} else if sameRefusal(a.Spec.Decision, &d.Decision) {
			p.pending[ref] = true
			return reconcile.Result{Again: retryPending, Poll: true}, nil
		}
	}
	// The instance must still be what was looked at: not changed, not removed.
	_, err := s.Commit(ctx, store.Op{Verb: store.Put, Object: next, Rev: rev}, store.Expect(ref, in.Revision))
	if err != nil {
		p.pool.free(in.UID)
		if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Exists) {
			return reconcile.Result{Also: []api.Ref{ref}}, nil
		}
		return reconcile.Result{}, fmt.Errorf("assign %s: %w", ref, err)
	}
	if d.Node == "" {
		p.pending[ref] = true
		return reconcile.Result{Again: retryPending, Poll: true}, nil
	}
	delete(p.pending, ref)
	p.view.Place(it, d.Node, d.Alloc)
	return reconcile.Result{}, nil
}

// decide finds a node and an address.
func (p *Placement) decide(in *api.Instance, it *policy.Item) (d sched.Placement, addr string) {
	start := p.clock.Now()
	d = p.planner.Decide(it)
	d.Decision.At = start
	d.Decision.TookUS = p.clock.Now().Sub(start).Microseconds()
	if n := in.Spec.Network(); d.Node == "" || n == api.NetworkNone || n == api.NetworkHost {
		return d, ""
	}
	addr, err := p.pool.give(in.UID, fixedAddress(&in.Spec))
	if err != nil {
		d.Node, d.Decision.Chosen = "", ""
		d.Decision.Refusals = []api.Refusal{{Policy: "addresses", Reason: err.Error(), Nodes: d.Decision.Of}}
		d.Decision.Hints = []string{"run it without a network (--network none), or free an address"}
	}
	return d, addr
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

func fixedAddress(s *api.InstanceSpec) string {
	if len(s.Networks) == 0 {
		return ""
	}
	return s.Networks[0].Address
}

// addresses hands out host addresses of one IPv4 subnet. It goes round, so that an
// address is not used again right after it was given back.
type addresses struct {
	prefix netip.Prefix
	next   netip.Addr
	byAddr map[netip.Addr]string // -> instance UID
	byUID  map[string]netip.Addr
}

func newAddresses(subnet string) (*addresses, error) {
	p, err := netip.ParsePrefix(subnet)
	if err != nil || !p.Addr().Is4() || p.Bits() > 29 {
		return nil, errs.New(errs.Invalid, "subnet %q: must be an IPv4 network of at least 8 addresses (example: 10.88.0.0/16)", subnet)
	}
	p = p.Masked()
	first := p.Addr().Next().Next() // .0 is the network, .1 the gateway
	return &addresses{prefix: p, next: first, byAddr: map[netip.Addr]string{}, byUID: map[string]netip.Addr{}}, nil
}

func (a *addresses) take(addr, uid string) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return
	}
	if old, ok := a.byUID[uid]; ok && old != ip {
		delete(a.byAddr, old)
	}
	a.byAddr[ip], a.byUID[uid] = uid, ip
}

func (a *addresses) free(uid string) {
	if ip, ok := a.byUID[uid]; ok {
		delete(a.byUID, uid)
		delete(a.byAddr, ip)
	}
}

// give finds an address for an instance: the one it has, the one it asks for, or the next free one.
func (a *addresses) give(uid, fixed string) (string, error) {
	if ip, ok := a.byUID[uid]; ok && (fixed == "" || fixed == ip.String()) {
		return ip.String(), nil
	}
	if fixed != "" {
		ip, err := netip.ParseAddr(fixed)
		if err != nil || !a.usable(ip) {
			return "", fmt.Errorf("address %s is not a free host address of %s", fixed, a.prefix)
		}
		if owner := a.byAddr[ip]; owner != "" && owner != uid {
			return "", fmt.Errorf("address %s is in use", fixed)
		}
		a.take(fixed, uid)
		return fixed, nil
	}
	ip := a.next
	for range 1 << min(32-a.prefix.Bits(), 24) {
		if !a.usable(ip) {
			ip = a.prefix.Addr().Next().Next()
		}
		if a.byAddr[ip] == "" {
			a.next = ip.Next()
			a.take(ip.String(), uid)
			return ip.String(), nil
		}
		ip = ip.Next()
	}
	return "", errors.New("no free address in " + a.prefix.String())
}

// usable excludes the network, the gateway, and the broadcast address.
func (a *addresses) usable(ip netip.Addr) bool {
	if !a.prefix.Contains(ip) || ip == a.prefix.Addr() || ip == a.prefix.Addr().Next() {
		return false
	}
	return a.prefix.Contains(ip.Next()) && !strings.HasSuffix(ip.String(), ".255")
}
