package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sort"
	"strings"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Floats gives floating addresses to those who ask for one, and says which host answers for
// each: the one that the instance it leads to is placed on.
type Floats struct {
	clock  clock.Clock
	loaded bool
	owner  map[netip.Addr]api.Ref         // who has an address
	has    map[api.Ref]netip.Addr         //
	leads  map[api.Ref]api.Ref            // an Address -> the instance
	to     map[api.Ref]map[api.Ref]bool   // an instance -> addresses that lead to it
	hosts  map[string]map[netip.Addr]bool // addresses of a host: nobody else's
}

// NewFloats makes the controller.
func NewFloats(d Deps) *Floats {
	return &Floats{clock: d.Clock, owner: map[netip.Addr]api.Ref{}, has: map[api.Ref]netip.Addr{}, leads: map[api.Ref]api.Ref{},
		to: map[api.Ref]map[api.Ref]bool{}, hosts: map[string]map[netip.Addr]bool{}}
}

// Name is "floats".
func (c *Floats) Name() string { return "floats" }

// Watches addresses, what they come from, where instances are placed, and hosts for their own addresses.
func (c *Floats) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindAddress}, {Kind: api.KindAddressPool}, {Kind: api.KindAssignment}, {Kind: api.KindNode}}
}

// Owns addresses: their status.
func (c *Floats) Owns() []api.Kind { return []api.Kind{api.KindAddress} }

// Reconcile looks at one address, or wakes those that something else is about.
func (c *Floats) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if err := c.load(ctx, s); err != nil {
		return reconcile.Result{}, err
	}
	var res reconcile.Result
	switch ref.Kind {
	case api.KindNode:
		return res, c.host(ctx, s, ref)
	case api.KindAddressPool:
		var err error
		res.Also, err = waiting(ctx, s)
		return res, err
	case api.KindAssignment:
		ref.Kind = api.KindInstance
		for a := range c.to[ref] {
			res.Also = append(res.Also, a)
		}
		return res, nil
	}
	a, err := store.Get[*api.Address](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		if c.forget(ref) {
			res.Also, err = waiting(ctx, s)
			return res, err
		}
		return res, nil
	}
	if err != nil {
		return res, fmt.Errorf("read %s: %w", ref, err)
	}
	return res, c.settle(ctx, s, a)
}

func (c *Floats) load(ctx context.Context, s store.Store) error {
	if c.loaded {
		return nil
	}
	nodes, _, err := store.List[*api.Node](ctx, s, api.Selector{Kind: api.KindNode})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes {
		c.noteHost(n.Name, n)
	}
	all, _, err := store.List[*api.Address](ctx, s, api.Selector{Kind: api.KindAddress})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range all {
		c.note(a, a.Status.Address)
	}
	c.loaded = true
	return nil
}

func (c *Floats) host(ctx context.Context, s store.Store, ref api.Ref) error {
	n, err := store.Get[*api.Node](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		delete(c.hosts, ref.Name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	c.noteHost(ref.Name, n)
	return nil
}

func (c *Floats) noteHost(name string, n *api.Node) {
	own := map[netip.Addr]bool{}
	for _, x := range n.Status.Addresses {
		x, _, _ = strings.Cut(x, "/")
		if a, err := netip.ParseAddr(x); err == nil {
			own[a.Unmap()] = true
		}
	}
	c.hosts[name] = own
}

// note remembers what an Address has and whom it leads to.
func (c *Floats) note(a *api.Address, addr string) {
	ref := api.RefOf(a)
	if was, ok := c.has[ref]; ok && was.String() != addr {
		delete(c.owner, was)
		delete(c.has, ref)
	}
	if x, err := netip.ParseAddr(addr); err == nil {
		if by, taken := c.owner[x]; !taken || by == ref {
			c.owner[x], c.has[ref] = ref, x
		}
	}
	c.lead(ref, api.Ref{Kind: api.KindInstance, Tenant: a.Tenant, Name: a.Spec.Instance})
}

func (c *Floats) lead(ref, to api.Ref) {
	if was, ok := c.leads[ref]; ok && was != to {
		if delete(c.to[was], ref); len(c.to[was]) == 0 {
			delete(c.to, was)
		}
		delete(c.leads, ref)
	}
	if to.Name == "" {
		return
	}
	c.leads[ref] = to
	if c.to[to] == nil {
		c.to[to] = map[api.Ref]bool{}
	}
	c.to[to][ref] = true
}

// forget drops a removed Address; had: somebody may have waited for what it had.
func (c *Floats) forget(ref api.Ref) (had bool) {
	c.lead(ref, api.Ref{})
	x, had := c.has[ref]
	if had {
		delete(c.has, ref)
		delete(c.owner, x)
	}
	return had
}

// waiting are those that have none.
func waiting(ctx context.Context, s store.Store) ([]api.Ref, error) {
	all, _, err := store.List[*api.Address](ctx, s, api.Selector{Kind: api.KindAddress})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []api.Ref
	for _, a := range all {
		if a.Status.Address == "" {
			out = append(out, api.RefOf(a))
		}
	}
	return out, nil
}

// settle writes what is true of one Address now.
func (c *Floats) settle(ctx context.Context, s store.Store, a *api.Address) error {
	st := api.AddressStatus{Address: a.Status.Address, Pool: a.Status.Pool, Conditions: slices.Clone(a.Status.Conditions)}
	ready := api.Condition{Type: api.ConditionReady, Since: c.clock.Now().UTC()}
	c.note(a, st.Address)
	if st.Address == "" || c.has[api.RefOf(a)].String() != st.Address {
		addr, pool, why, err := c.give(ctx, s, a)
		if err != nil {
			return err
		}
		if st.Address, st.Pool = addr, pool; why != nil {
			ready.Reason, ready.Message = why.Reason, why.Message
		}
	}
	if st.Address != "" {
		c.note(a, st.Address)
		if err := c.place(ctx, s, a, &st, &ready); err != nil {
			return err
		}
	}
	if i := slices.IndexFunc(st.Conditions, func(o api.Condition) bool { return o.Type == ready.Type }); i >= 0 &&
		st.Conditions[i].Status == ready.Status && st.Conditions[i].Reason == ready.Reason && st.Conditions[i].Message == ready.Message {
		ready.Since = st.Conditions[i].Since
	}
	st.Conditions = api.SetCondition(st.Conditions, ready)
	if reflect.DeepEqual(st, a.Status) {
		return nil
	}
	next := api.Clone(a)
	next.Status = st
	if _, err := s.Commit(ctx, store.Update(next)); err != nil {
		c.note(a, a.Status.Address) // what was given is free again
		if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Conflict) {
			return nil // whoever changed it wakes us
		}
		return fmt.Errorf("settle %s: %w", api.RefOf(a), err)
	}
	return nil
}

// give finds an address, or says why there is none.
func (c *Floats) give(ctx context.Context, s store.Store, a *api.Address) (addr, pool string, why *api.Condition, err error) {
	pools, _, err := store.List[*api.AddressPool](ctx, s, api.Selector{Kind: api.KindAddressPool})
	if err != nil {
		return "", "", nil, fmt.Errorf("list address pools: %w", err)
	}
	sort.Slice(pools, func(i, j int) bool { return pools[i].Name < pools[j].Name })
	pools = slices.DeleteFunc(pools, func(p *api.AddressPool) bool {
		return a.Spec.Pool != "" && p.Name != a.Spec.Pool || !p.For(a.Tenant) || p.DeletedAt != nil
	})
	if len(pools) == 0 {
		if a.Spec.Pool != "" {
			return "", "", &api.Condition{Reason: "NoPool", Message: "tenant " + a.Tenant + " has no use of an address pool " + a.Spec.Pool + "; see: atoll get addresspools"}, nil
		}
		return "", "", &api.Condition{Reason: "NoPool", Message: "there is no address pool that tenant " + a.Tenant + " may use; an operator makes one: atoll address pool create NAME PREFIX"}, nil
	}
	if a.Spec.Address != "" {
		return c.wanted(a, pools)
	}
	for _, p := range pools {
		for x := range p.All {
			if _, taken := c.owner[x]; !taken && !c.ofHost(x) {
				return x.String(), p.Name, nil, nil
			}
		}
	}
	return "", "", &api.Condition{Reason: "NoneFree", Message: "all addresses of the pools that tenant " + a.Tenant + " may use are given"}, nil
}

func (c *Floats) wanted(a *api.Address, pools []*api.AddressPool) (addr, pool string, why *api.Condition, err error) {
	x, perr := netip.ParseAddr(a.Spec.Address)
	if perr != nil {
		return "", "", &api.Condition{Reason: "Invalid", Message: perr.Error()}, nil
	}
	i := slices.IndexFunc(pools, func(p *api.AddressPool) bool { return p.Has(x) })
	if i < 0 {
		return "", "", &api.Condition{Reason: "NotInPool", Message: a.Spec.Address + " is in no address pool that tenant " + a.Tenant + " may use"}, nil
	}
	if _, taken := c.owner[x]; taken {
		return "", "", &api.Condition{Reason: "Taken", Message: a.Spec.Address + " is given to somebody else"}, nil
	}
	if c.ofHost(x) {
		return "", "", &api.Condition{Reason: "Taken", Message: a.Spec.Address + " is a host's own"}, nil
	}
	return x.String(), pools[i].Name, nil, nil
}

func (c *Floats) ofHost(x netip.Addr) bool {
	for _, own := range c.hosts {
		if own[x] {
			return true
		}
	}
	return false
}

// place says which host answers and where the address leads there.
func (c *Floats) place(ctx context.Context, s store.Store, a *api.Address, st *api.AddressStatus, ready *api.Condition) error {
	say := func(reason, format string, args ...any) error {
		ready.Reason, ready.Message = reason, fmt.Sprintf(format, args...)
		return nil
	}
	if a.Spec.Instance == "" {
		return say("Unbound", "it leads nowhere; bind it: atoll address attach %s INSTANCE", a.Name)
	}
	as, err := store.Get[*api.Assignment](ctx, s, api.Ref{Kind: api.KindAssignment, Tenant: a.Tenant, Name: a.Spec.Instance})
	if errors.Is(err, errs.NotFound) {
		return say("NoInstance", "there is no instance %s, or it has not been looked at yet", a.Spec.Instance)
	}
	if err != nil {
		return fmt.Errorf("read assignment of %s: %w", a.Spec.Instance, err)
	}
	if as.Spec.Node == "" {
		return say("NotPlaced", "instance %s is on no host", a.Spec.Instance)
	}
	inside, on, why := arrival(&as.Spec, a.Spec.Network)
	if why != "" {
		return say("NotOnNetwork", "instance %s %s", a.Spec.Instance, why)
	}
	if on.VNI != 0 {
		n, err := store.Get[*api.Network](ctx, s, api.Ref{Kind: api.KindNetwork, Tenant: a.Tenant, Name: on.Network})
		if err != nil && !errors.Is(err, errs.NotFound) {
			return fmt.Errorf("read network %s: %w", on.Network, err)
		}
		if err == nil && n.Spec.Egress == "none" {
			return say("NoWay", "network %s has egress none: nothing from outside reaches it; choose another of the instance's networks", on.Network)
		}
	}
	st.Node, st.InstanceUID, st.VNI, st.Inside = as.Spec.Node, as.Spec.InstanceUID, on.VNI, inside
	ready.Status = true
	return nil
}

// arrival is where on an instance an address arrives.
func arrival(as *api.AssignmentSpec, network string) (inside string, on api.Interface, why string) {
	if len(as.Interfaces) == 0 {
		switch {
		case network != "" && network != api.NetworkDefault:
			return "", on, "is not on network " + network
		case as.Address == "":
			return "", on, "has no address of its own: it is on no network, or on its host's"
		}
		return as.Address, on, ""
	}
	i := 0
	if network != "" {
		if i = slices.IndexFunc(as.Interfaces, func(x api.Interface) bool { return x.Network == network }); i < 0 {
			return "", on, "is not on network " + network
		}
	}
	on = as.Interfaces[i]
	inside, _, _ = strings.Cut(on.Address, "/")
	if inside == "" {
		return "", on, "has no IPv4 address on network " + on.Network
	}
	return inside, on, ""
}
