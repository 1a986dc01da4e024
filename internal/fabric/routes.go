package fabric

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/store"
)

// routes follows which routes are in force.
func (f *Fabric) routes(ctx context.Context, s store.Store) error {
	if err := f.listRoutes(ctx, s); err != nil {
		return err
	}
	return f.join(ctx, s)
}

func (f *Fabric) listRoutes(ctx context.Context, s store.Store) error {
	all, _, err := store.List[*api.Route](ctx, s, api.Selector{Kind: api.KindRoute})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	f.ways = map[api.Ref][]*api.Route{}
	for _, r := range all {
		if ref := (api.Ref{Kind: api.KindNetwork, Tenant: r.Tenant, Name: r.Spec.Network}); r.Ready() {
			f.ways[ref] = append(f.ways[ref], r)
		}
	}
	return nil
}

// routesOf are a network's with the addresses of their next hops. While the instance of one is not on the network, its
// destinations are not reached: they are not to go anywhere else.
func (f *Fabric) routesOf(n *network) []driver.Route {
	var out []driver.Route
	for _, r := range f.ways[api.RefOf(n.object)] {
		to := driver.Route{To: r.Spec.Prefix(), Via: r.Spec.Hop()}
		if !r.Spec.Blackhole && !to.Via.IsValid() {
			for _, m := range n.members[api.Ref{Kind: api.KindEndpoint, Tenant: r.Tenant, Name: r.Spec.Via}] {
				if m.Addr.Is4() == to.To.Addr().Is4() {
					to.Via = m.Addr
				}
			}
		}
		out = append(out, to)
	}
	slices.SortFunc(out, func(a, b driver.Route) int {
		return cmp.Or(a.To.Addr().Compare(b.To.Addr()), cmp.Compare(a.To.Bits(), b.To.Bits()), a.Via.Compare(b.Via))
	})
	return slices.CompactFunc(out, func(a, b driver.Route) bool { return a.To == b.To })
}
