package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Peerings says which peerings are in force. Hosts act on what it says, and on a peering's
// removal at once, without it.
type Peerings struct{ clock clock.Clock }

// NewPeerings makes the controller.
func NewPeerings(d Deps) *Peerings { return &Peerings{clock: d.Clock} }

// Name is "peerings".
func (c *Peerings) Name() string { return "peerings" }

// Watches peerings and networks: whether one is in force may depend on every other.
func (c *Peerings) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindPeering}, {Kind: api.KindNetwork}}
}

// Owns the status of peerings.
func (c *Peerings) Owns() []api.Kind { return []api.Kind{api.KindPeering} }

// Reconcile looks at all peerings: there are few, and they change rarely.
func (c *Peerings) Reconcile(ctx context.Context, s store.Store, _ api.Ref) (reconcile.Result, error) {
	all, _, err := store.List[*api.Peering](ctx, s, api.Selector{Kind: api.KindPeering})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list peerings: %w", err)
	}
	if len(all) == 0 {
		return reconcile.Result{}, nil
	}
	networks, _, err := store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list networks: %w", err)
	}
	for p, now := range agree(all, networks) {
		if i := slices.IndexFunc(p.Status.Conditions, func(c api.Condition) bool { return c.Type == now.Type }); i >= 0 {
			if was := p.Status.Conditions[i]; was.Status == now.Status && was.Reason == now.Reason && was.Message == now.Message {
				continue
			}
		}
		next := api.Clone(p)
		now.Since = c.clock.Now().UTC()
		next.Status.Conditions = api.SetCondition(p.Status.Conditions, now)
		if _, err := s.Commit(ctx, store.Update(next)); err != nil && !errors.Is(err, errs.NotFound) {
			return reconcile.Result{}, fmt.Errorf("say how %s is: %w", api.RefOf(p), err)
		}
	}
	return reconcile.Result{}, nil
}

// treaty is all peerings while they are looked at.
type treaty struct {
	said     map[[2]api.Ref]bool // ends of every peering
	networks map[api.Ref]*api.Network
	joined   map[api.Ref][]api.Ref // in force, as far as looked at
}

// agree says of every peering whether it is in force. Those that are stay so rather than give
// way to new ones, and among new ones the oldest is first.
func agree(all []*api.Peering, networks []*api.Network) map[*api.Peering]api.Condition {
	t := treaty{said: map[[2]api.Ref]bool{}, networks: map[api.Ref]*api.Network{}, joined: map[api.Ref][]api.Ref{}}
	for _, n := range networks {
		if n.DeletedAt == nil {
			t.networks[api.RefOf(n)] = n
		}
	}
	for _, p := range all {
		if own, peer := p.Ends(); p.DeletedAt == nil {
			t.said[[2]api.Ref{own, peer}] = true
		}
	}
	first := func(p *api.Peering) int {
		if p.Ready() {
			return 0
		}
		return 1
	}
	all = slices.SortedFunc(slices.Values(all), func(a, b *api.Peering) int {
		return cmp.Or(cmp.Compare(first(a), first(b)), madeAt(a).Compare(madeAt(b)), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name))
	})
	out := map[*api.Peering]api.Condition{}
	for _, p := range all {
		out[p] = t.condition(p)
		if own, peer := p.Ends(); out[p].Status {
			t.joined[own] = append(t.joined[own], peer)
			t.joined[peer] = append(t.joined[peer], own)
		}
	}
	return out
}

func (t *treaty) condition(p *api.Peering) api.Condition {
	no := func(reason, format string, a ...any) api.Condition {
		return api.Condition{Type: api.ConditionReady, Reason: reason, Message: fmt.Sprintf(format, a...)}
	}
	own, peer := p.Ends()
	a, b := t.networks[own], t.networks[peer]
	if a == nil {
		return no(api.PeeringNo, "tenant %s has no network %s; make it: atoll network create %s --tenant %s", own.Tenant, own.Name, own.Name, own.Tenant)
	}
	// Before the other side has agreed, nothing is said about it, not even whether it exists.
	if own.Tenant != peer.Tenant && !t.said[[2]api.Ref{peer, own}] {
		return no(api.PeeringWaits, "waiting for the other side; whoever may change tenant %s agrees by: atoll network peer %s %s/%s --tenant %s", peer.Tenant, peer.Name, own.Tenant, own.Name, peer.Tenant)
	}
	if b == nil {
		return no(api.PeeringNo, "tenant %s has no network %s", peer.Tenant, peer.Name)
	}
	if a.Status.VNI == 0 || b.Status.VNI == 0 {
		return no("NotReady", "waiting for networks %s and %s to be ready", netName(own), netName(peer))
	}
	if x, y, is := overlap(a, b); is {
		return no(api.PeeringOverlaps, "%s of %s and %s of %s overlap: an address would have two owners; make one of the networks anew with other addresses", x, netName(own), y, netName(peer))
	}
	for _, o := range t.joined[own] {
		if x, y, is := overlap(b, t.networks[o]); is && o != peer {
			return no(api.PeeringOverlaps, "%s of %s overlaps %s of %s, with which %s is peered: an address would have two owners; take one of the two peerings away", x, netName(peer), y, netName(o), own.Name)
		}
	}
	for _, o := range t.joined[peer] {
		if x, y, is := overlap(a, t.networks[o]); is && o != own {
			if o.Tenant == own.Tenant || peer.Tenant == own.Tenant {
				return no(api.PeeringOverlaps, "%s of %s overlaps %s of %s, with which %s is peered: an address would have two owners; take one of the two peerings away", x, netName(own), y, netName(o), netName(peer))
			}
			// Whom another tenant is peered with is its own business.
			return no(api.PeeringOverlaps, "%s of %s overlaps another network with which %s is peered: an address would have two owners", x, netName(own), netName(peer))
		}
	}
	return api.Condition{Type: api.ConditionReady, Status: true}
}

func madeAt(o api.Object) time.Time {
	if at := o.Metadata().CreatedAt; at != nil {
		return *at
	}
	return time.Time{}
}

func netName(r api.Ref) string { return r.Tenant + "/" + r.Name }

// overlap finds prefixes of two networks that have addresses in common.
func overlap(a, b *api.Network) (x, y netip.Prefix, is bool) {
	if a == nil || b == nil {
		return x, y, false
	}
	for _, x = range a.Spec.Prefixes() {
		for _, y = range b.Spec.Prefixes() {
			if x.Overlaps(y) {
				return x, y, true
			}
		}
	}
	return x, y, false
}
