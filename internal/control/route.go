package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Routes says which routes of tenants' networks are in force. Where the next hop is, is nothing to it:
// hosts know, and follow it.
type Routes struct {
	clock  clock.Clock
	subnet string
}

// NewRoutes makes the controller.
func NewRoutes(d Deps) *Routes { return &Routes{clock: d.Clock, subnet: d.Subnet} }

// Name is "routes".
func (c *Routes) Name() string { return "routes" }

// Watches routes, and what they may not contradict.
func (c *Routes) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindRoute}, {Kind: api.KindNetwork}, {Kind: api.KindPeering}}
}

// Owns the status of routes.
func (c *Routes) Owns() []api.Kind { return []api.Kind{api.KindRoute} }

// Reconcile looks at all routes, as there are few.
func (c *Routes) Reconcile(ctx context.Context, s store.Store, _ api.Ref) (reconcile.Result, error) {
	all, _, err := store.List[*api.Route](ctx, s, api.Selector{Kind: api.KindRoute})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list routes: %w", err)
	}
	if len(all) == 0 {
		return reconcile.Result{}, nil
	}
	peerings, _, err := store.List[*api.Peering](ctx, s, api.Selector{Kind: api.KindPeering})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list peerings: %w", err)
	}
	list, _, err := store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list networks: %w", err)
	}
	networks := map[api.Ref]*api.Network{}
	for _, n := range list {
		networks[api.RefOf(n)] = n
	}
	peered := api.Peered(peerings)
	for _, r := range all {
		now := c.condition(r, all, networks, peered)
		if i := slices.IndexFunc(r.Status.Conditions, func(c api.Condition) bool { return c.Type == now.Type }); i >= 0 {
			if was := r.Status.Conditions[i]; was.Status == now.Status && was.Reason == now.Reason && was.Message == now.Message {
				continue
			}
		}
		next := api.Clone(r)
		now.Since = c.clock.Now().UTC()
		next.Status.Conditions = api.SetCondition(r.Status.Conditions, now)
		if _, err := s.Commit(ctx, store.Update(next)); err != nil && !errors.Is(err, errs.NotFound) {
			return reconcile.Result{}, fmt.Errorf("say how %s is: %w", api.RefOf(r), err)
		}
	}
	return reconcile.Result{}, nil
}

func (c *Routes) condition(r *api.Route, all []*api.Route, networks map[api.Ref]*api.Network, peered map[api.Ref][]api.Ref) api.Condition {
	no := func(reason, format string, a ...any) api.Condition {
		return api.Condition{Type: api.ConditionReady, Reason: reason, Message: fmt.Sprintf(format, a...)}
	}
	ref := api.Ref{Kind: api.KindNetwork, Tenant: r.Tenant, Name: r.Spec.Network}
	n, to := networks[ref], r.Spec.Prefix()
	if n == nil {
		return no("NoNetwork", "tenant %s has no network %s", r.Tenant, r.Spec.Network)
	}
	const instead = "%s and %s, %s, overlap; name a destination that leaves it out"
	hop, inside, family := r.Spec.Hop(), false, false
	for _, p := range n.Spec.Prefixes() {
		if p.Overlaps(to) {
			return no("Overlap", instead, to, p, "the network itself")
		}
		inside = inside || p.Contains(hop) && hop != api.Gateway(p)
		family = family || p.Addr().Is4() == to.Addr().Is4()
	}
	if pool, err := netip.ParsePrefix(c.subnet); err == nil && pool.Overlaps(to) {
		return no("Overlap", instead, to, pool, "the pool's own")
	}
	for _, o := range peered[ref] {
		for _, p := range networks[o].Spec.Prefixes() {
			if p.Overlaps(to) {
				return no("Overlap", instead, to, p, "network "+netName(o)+", with which it is peered")
			}
		}
	}
	if hop.IsValid() && !inside {
		return no("NoHop", "%s is no address of instances on network %s; name the instance, or its address there", hop, r.Spec.Network)
	}
	if !family {
		return no("NoHop", "network %s has no addresses of the family of %s", r.Spec.Network, to)
	}
	for _, o := range all {
		if o.Tenant == r.Tenant && o.Spec.Network == r.Spec.Network && o.Spec.Prefix() == to && older(o, r) {
			return no("Twice", "route %s leads there already; change or remove it", o.Name)
		}
	}
	return api.Condition{Type: api.ConditionReady, Status: true}
}

// older reports whether a comes before b: of two routes to the same addresses the first one holds.
func older(a, b *api.Route) bool {
	x, y := madeAt(a), madeAt(b)
	return x.Before(y) || x.Equal(y) && a.Name < b.Name
}
