package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/segment"
	"atoll/internal/store"
)

// A network that is peered with one that has instances here is here, too, with or without
// instances of its own: what goes there leaves this host by its tunnel. Those on it are guests
// in the tables of the other network, under numbers that mean something on this host only.

// guest is an endpoint on a peered network.
type guest struct{ network, endpoint api.Ref }

// labels are those that an identity of a peered network stands for.
type labels struct {
	network  api.Ref
	identity uint16
}

// number is what such labels are known by.
type number struct {
	is    uint32
	users map[api.Ref]bool
}

// peerings follows which networks are joined. One that is cut is so before anything new is joined.
func (f *Fabric) peerings(ctx context.Context, s store.Store) error {
	all, _, err := store.List[*api.Peering](ctx, s, api.Selector{Kind: api.KindPeering})
	if err != nil {
		return fmt.Errorf("list peerings: %w", err)
	}
	f.peered = api.Peered(all)
	return f.join(ctx, s)
}

// join brings here the networks of instances that are here, and those peered with them, tells each
// whom it is joined with, and has the others forgotten.
func (f *Fabric) join(ctx context.Context, s store.Store) error {
	used, need := map[api.Ref]bool{}, map[api.Ref]bool{}
	for _, on := range f.here {
		for _, ref := range on {
			used[ref], need[ref] = true, true
			for _, p := range f.peered[ref] {
				need[p] = true
			}
		}
	}
	f.shut(need)
	for _, ref := range inOrder(need) {
		if f.nets[ref] == nil {
			if err := f.open(ctx, s, ref); err != nil {
				return err
			}
		}
	}
	for _, parting := range []bool{true, false} {
		for _, ref := range inOrder(f.nets) {
			n, with := f.nets[ref], f.joined(ref, used)
			if parting == slices.ContainsFunc(n.with, func(o api.Ref) bool { return !slices.Contains(with, o) }) {
				if err := f.meet(ctx, s, n, with, used[ref]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func inOrder[V any](m map[api.Ref]V) []api.Ref {
	return slices.SortedFunc(maps.Keys(m), func(a, b api.Ref) int { return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name)) })
}

// joined lists the networks that one is joined with on this host: where neither has
// instances, there is nothing to join.
func (f *Fabric) joined(ref api.Ref, used map[api.Ref]bool) []api.Ref {
	var out []api.Ref
	for _, p := range f.peered[ref] {
		if f.nets[p] != nil && (used[ref] || used[p]) {
			out = append(out, p)
		}
	}
	return out
}

// meet brings a network up to date about those it is joined with, and about itself.
func (f *Fabric) meet(ctx context.Context, s store.Store, n *network, with []api.Ref, used bool) error {
	c := driver.Change{}
	if !slices.Equal(n.with, with) || n.used != used {
		guests, err := f.guestsOf(ctx, s, n, with, used)
		if err != nil {
			return err
		}
		for g := range n.guests {
			if _, stays := guests[g]; !stays {
				f.greet(n, g, nil, &c)
			}
		}
		for g, e := range guests {
			f.greet(n, g, e, &c)
		}
	}
	n.with, n.used = with, used
	var known []segment.Network
	now := netOf(n.object)
	if !used {
		now.Egress = driver.EgressNone // nobody here goes out
	}
	for _, p := range with {
		o := f.nets[p]
		known = append(known, segmentNetwork(o.object, nil))
		now.Peers = append(now.Peers, driver.Peer{VNI: o.net.VNI, Prefixes: o.object.Spec.Prefixes()})
	}
	now.Routes = f.routesOf(n)
	n.compiler.SetNetwork(segmentNetwork(n.object, with), known)
	if !same(n.net, now) {
		c.Net, n.net = &now, now
	}
	return f.tell(ctx, n, n.merge(c))
}

// guestsOf finds the endpoints on peered networks. Where a network has no instances, nobody asks who they are.
func (f *Fabric) guestsOf(ctx context.Context, s store.Store, n *network, with []api.Ref, used bool) (map[guest]*api.Endpoint, error) {
	out := map[guest]*api.Endpoint{}
	if !used {
		return out, nil
	}
	for _, p := range with {
		ends, _, err := store.List[*api.Endpoint](ctx, s, api.Selector{Kind: api.KindEndpoint, Tenant: p.Tenant, Labels: []api.LabelTerm{{Key: api.NetworkLabel(p.Name)}}})
		if err != nil {
			return nil, fmt.Errorf("list endpoints on %s for %s: %w", p, api.RefOf(n.object), err)
		}
		for _, e := range ends {
			out[guest{p, api.RefOf(e)}] = e
		}
	}
	return out, nil
}

// visit follows an endpoint for the networks that know it as a guest.
func (f *Fabric) visit(ctx context.Context, s store.Store, ref api.Ref) error {
	e, err := store.Get[*api.Endpoint](ctx, s, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	for _, at := range inOrder(f.nets) {
		n := f.nets[at]
		c := driver.Change{}
		if now := f.routesOf(n); at.Tenant == ref.Tenant && !slices.Equal(now, n.net.Routes) { // a next hop has come, or gone
			next := n.net
			next.Routes = now
			c.Net, n.net = &next, next
		}
		for _, p := range n.with {
			if n.used && p.Tenant == ref.Tenant {
				f.greet(n, guest{p, ref}, e, &c)
			}
		}
		if err := f.tell(ctx, n, n.merge(c)); err != nil {
			return err
		}
	}
	return nil
}

// greet notes who a guest is, and adds what is new by it. nil: it is gone.
func (f *Fabric) greet(n *network, g guest, e *api.Endpoint, c *driver.Change) {
	was := n.guests[g]
	var now []driver.Member
	var means labels
	if e != nil {
		for _, i := range e.Spec.Interfaces {
			if i.Network == g.network.Name {
				now, means = membersOf(e, i), labels{g.network, i.Identity}
			}
		}
	}
	if len(now) > 0 {
		is := f.number(n, means, g, e)
		for i := range now {
			now[i] = driver.Member{Addr: now[i].Addr, Identity: is}
		}
	}
	for l, num := range n.numbers {
		if num.users[g.endpoint] && l.network == g.network && (l != means || len(now) == 0) {
			if delete(num.users, g.endpoint); len(num.users) == 0 {
				n.compiler.SetIdentity(num.is, nil)
				f.ids.FreePeer(num.is)
				delete(n.numbers, l)
			}
		}
	}
	if n.guests[g] = now; len(now) == 0 {
		delete(n.guests, g)
	}
	if slices.Equal(was, now) {
		return
	}
	c.Put = append(c.Put, now...)
	for _, m := range was {
		if !hasAddr(now, m.Addr) {
			c.Drop = append(c.Drop, m.Addr)
		}
	}
}

func hasAddr(ms []driver.Member, a netip.Addr) bool {
	return slices.ContainsFunc(ms, func(m driver.Member) bool { return m.Addr == a })
}

// number is what labels are known by in n, with one more user.
func (f *Fabric) number(n *network, l labels, g guest, e *api.Endpoint) uint32 {
	num := n.numbers[l]
	if num == nil {
		num = &number{is: f.ids.Peer(g.network.Tenant != n.object.Tenant), users: map[api.Ref]bool{}}
		n.numbers[l] = num
	}
	num.users[g.endpoint] = true
	n.compiler.SetIdentity(num.is, &segment.Identity{Tenant: e.Tenant, Network: segment.Net{Tenant: g.network.Tenant, Name: g.network.Name}, Labels: e.Spec.Labels})
	return num.is
}

// merge adds what the compiler makes of what it was told. Who is dropped and put again stays.
func (n *network) merge(c driver.Change) driver.Change {
	out := n.compiler.Change()
	out.Net, out.Put = c.Net, c.Put
	for _, a := range c.Drop {
		if !hasAddr(c.Put, a) {
			out.Drop = append(out.Drop, a)
		}
	}
	return out
}
