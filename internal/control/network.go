package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Networks gives every network of a tenant the number by which hosts tell it from others,
// and keeps one that is to go until nothing is on it any more.
type Networks struct {
	clock  clock.Clock
	loaded bool
	next   uint32
	taken  map[uint32]api.Ref
	has    map[api.Ref]uint32
	subnet string
}

// retryDirect is how often a network is looked at whose addresses are somebody else's outside.
const retryDirect = 15 * time.Second

// NewNetworks makes the controller.
func NewNetworks(d Deps) *Networks {
	return &Networks{clock: d.Clock, next: api.FirstVNI, taken: map[uint32]api.Ref{}, has: map[api.Ref]uint32{}, subnet: d.Subnet}
}

// Name is "networks".
func (c *Networks) Name() string { return "networks" }

// Watches networks, and endpoints for the sake of networks that are to go.
func (c *Networks) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNetwork}, {Kind: api.KindEndpoint}}
}

// Owns networks: their status, and their end.
func (c *Networks) Owns() []api.Kind { return []api.Kind{api.KindNetwork} }

// Reconcile looks at one network, or wakes those that wait for an endpoint to go.
func (c *Networks) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if ref.Kind == api.KindEndpoint {
		return c.wake(ctx, s, ref)
	}
	if err := c.load(ctx, s); err != nil {
		return reconcile.Result{}, err
	}
	n, err := store.Get[*api.Network](ctx, s, ref)
	switch {
	case errors.Is(err, errs.NotFound):
		c.note(ref, 0)
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	case n.DeletedAt != nil:
		return c.remove(ctx, s, n)
	}
	return c.settle(ctx, s, n)
}

// wake names the networks of a tenant that are to go, once the endpoint is gone.
func (c *Networks) wake(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if _, err := s.Get(ctx, ref); !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, err
	}
	networks, _, err := store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork, Tenant: ref.Tenant})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list networks of %s: %w", ref.Tenant, err)
	}
	var res reconcile.Result
	for _, n := range networks {
		if n.DeletedAt != nil {
			res.Also = append(res.Also, api.RefOf(n))
		}
	}
	return res, nil
}

// load notes, once, which numbers are given: none may be given twice.
func (c *Networks) load(ctx context.Context, s store.Store) error {
	if c.loaded {
		return nil
	}
	networks, _, err := store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork})
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	for _, n := range networks {
		c.note(api.RefOf(n), n.Status.VNI)
	}
	c.loaded = true
	return nil
}

func (c *Networks) note(ref api.Ref, vni uint32) {
	if was := c.has[ref]; was != 0 && c.taken[was] == ref {
		delete(c.taken, was)
	}
	delete(c.has, ref)
	if vni == 0 {
		return
	}
	c.has[ref] = vni
	if _, ok := c.taken[vni]; !ok {
		c.taken[vni] = ref
	}
	if vni >= c.next {
		c.next = vni + 1
	}
}

// settle gives the network its number. A number stays what it is: hosts have it.
func (c *Networks) settle(ctx context.Context, s store.Store, n *api.Network) (reconcile.Result, error) {
	ref := api.RefOf(n)
	if n.Status.VNI != 0 {
		c.note(ref, n.Status.VNI)
		return reconcile.Result{}, nil
	}
	next := api.Clone(n)
	ready := api.Condition{Type: api.ConditionReady, Status: true, Since: c.clock.Now().UTC()}
	var vni uint32
	var res reconcile.Result
	why, err := c.known(ctx, s, n)
	if err != nil {
		return res, err
	}
	if why != "" {
		ready.Status, ready.Reason, ready.Message, res.Again = false, "Overlap", why, retryDirect
	} else if vni, why = c.number(ref, n.Spec.VNI); why != "" {
		ready.Status, ready.Reason, ready.Message = false, "NoNumber", why
	}
	next.Status.VNI = vni
	next.Status.Conditions = api.SetCondition(n.Status.Conditions, ready)
	if slices.EqualFunc(next.Status.Conditions, n.Status.Conditions, func(a, b api.Condition) bool { return a.Status == b.Status && a.Message == b.Message }) && vni == 0 {
		return res, nil
	}
	c.note(ref, vni)
	if _, err := s.Commit(ctx, store.Update(next)); err != nil {
		c.note(ref, 0)
		if errors.Is(err, errs.NotFound) {
			return reconcile.Result{}, nil
		}
		return res, fmt.Errorf("number %s: %w", ref, err)
	}
	return res, nil
}

// known says whose the addresses of a network are that go out as they are, if they are somebody's already.
func (c *Networks) known(ctx context.Context, s store.Store, n *api.Network) (why string, err error) {
	if !n.Spec.Direct() {
		return "", nil
	}
	networks, _, err := store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork})
	if err != nil {
		return "", fmt.Errorf("list networks: %w", err)
	}
	nodes, _, err := store.List[*api.Node](ctx, s, api.Selector{Kind: api.KindNode})
	if err != nil {
		return "", fmt.Errorf("list nodes: %w", err)
	}
	const say = "its addresses go out as they are, and %s overlaps %s; make the network anew with other addresses, or with egress: nat"
	for _, p := range n.Spec.Prefixes() {
		if pool, err := netip.ParsePrefix(c.subnet); err == nil && pool.Overlaps(p) {
			return fmt.Sprintf(say, p, c.subnet+", the pool's own"), nil
		}
		for _, node := range nodes {
			for _, a := range append(slices.Clone(node.Status.Addresses), node.Tunnel()) {
				if at, err := netip.ParseAddr(a); err == nil && p.Contains(at.Unmap()) {
					return fmt.Sprintf(say, p, a+" of host "+node.Name), nil
				}
			}
		}
		for _, o := range networks {
			for _, q := range o.Spec.Prefixes() {
				if o.Spec.Direct() && o.Status.VNI != 0 && q.Overlaps(p) {
					if o.Tenant != n.Tenant { // whose it is, is not this tenant's business
						return fmt.Sprintf(say, p, "those of another network that do"), nil
					}
					return fmt.Sprintf(say, p, q.String()+" of network "+o.Name), nil
				}
			}
		}
	}
	return "", nil
}

// number finds a free one, or says why there is none.
func (c *Networks) number(ref api.Ref, want uint32) (vni uint32, why string) {
	if want != 0 {
		if by, ok := c.taken[want]; ok && by != ref {
			return 0, fmt.Sprintf("spec.vni %d is the number of another network; make this one anew with another number, or without", want)
		}
		return want, ""
	}
	for range len(c.taken) + 1 {
		if c.next > api.LastVNI || c.next < api.FirstVNI {
			c.next = api.FirstVNI
		}
		vni = c.next
		c.next++
		if _, ok := c.taken[vni]; !ok {
			return vni, ""
		}
	}
	return 0, "the pool has as many networks as there are numbers"
}

// remove lets a network go that nothing is on.
func (c *Networks) remove(ctx context.Context, s store.Store, n *api.Network) (reconcile.Result, error) {
	on, _, err := store.List[*api.Endpoint](ctx, s, api.Selector{Kind: api.KindEndpoint, Tenant: n.Tenant, Labels: []api.LabelTerm{{Key: api.NetworkLabel(n.Name)}}})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list endpoints on %s: %w", api.RefOf(n), err)
	}
	next := api.Clone(n)
	if len(on) == 0 {
		next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == api.FinalizerNetwork })
		op := store.Update(next)
		if len(next.Finalizers) == 0 {
			op = store.Remove(api.RefOf(n), n.Revision)
		}
		if _, err := s.Commit(ctx, op); err != nil && !errors.Is(err, errs.NotFound) {
			return reconcile.Result{}, fmt.Errorf("remove %s: %w", api.RefOf(n), err)
		}
		return reconcile.Result{}, nil
	}
	var names []string
	for _, e := range on[:min(len(on), 5)] {
		names = append(names, e.Name)
	}
	waits := api.Condition{Type: api.ConditionReady, Reason: "Removing", Since: c.clock.Now().UTC(),
		Message: fmt.Sprintf("it goes when nothing is on it: %s%s", strings.Join(names, ", "), map[bool]string{true: " and more"}[len(on) > 5])}
	if i := slices.IndexFunc(n.Status.Conditions, func(c api.Condition) bool { return c.Type == waits.Type }); i >= 0 && n.Status.Conditions[i].Message == waits.Message {
		return reconcile.Result{}, nil
	}
	next.Status.Conditions = api.SetCondition(n.Status.Conditions, waits)
	if _, err := s.Commit(ctx, store.Update(next)); err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("say of %s that it waits: %w", api.RefOf(n), err)
	}
	return reconcile.Result{}, nil
}
