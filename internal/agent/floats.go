package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/fence"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// floats is the controller of the floating addresses that this host answers for. An address must not be
// answered for by two hosts, as an instance of which there is one must not run twice: it is guarded alike.
type floats struct {
	*Agent
	guarded map[netip.Addr]bool
	term    int64 // the lease under which they are
}

// lateFloat is how soon an address is tried again whose network is not on the host yet.
const lateFloat = 200 * time.Millisecond

// floatsRef stands for all of them: they are brought in line together.
var floatsRef = api.Ref{Kind: api.KindAddress, Name: "all"}

func (*floats) Name() string { return "floats" }

func (c *floats) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindAddress, Fields: map[string]string{"status.node": c.Node}}}
}

func (*floats) Owns() []api.Kind { return nil }

func (*floats) Key(api.Ref) api.Ref { return floatsRef }

// Reconcile brings all in line. While the lease is not held nothing is changed: who lost it has let go.
func (c *floats) Reconcile(ctx context.Context, s store.Store, _ api.Ref) (reconcile.Result, error) {
	f, ok := c.Network.(driver.Floater)
	if !ok {
		return reconcile.Result{}, nil
	}
	list, _, err := store.List[*api.Address](ctx, s, api.Selector{Kind: api.KindAddress, Fields: map[string]string{"status.node": c.Node}})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list floating addresses: %w", err)
	}
	if !c.mayRun() {
		return reconcile.Result{Again: fencePause}, nil
	}
	want, err := c.guardFloats(ctx, wanted(list))
	if err != nil {
		return reconcile.Result{}, err
	}
	err = f.Float(ctx, want)
	if err != nil && errs.KindOf(err) != errs.Unavailable {
		return reconcile.Result{}, err
	}
	for a := range c.guarded {
		if !slices.ContainsFunc(want, func(x driver.Floating) bool { return x.Addr == a }) {
			c.unguard(guardID(a))
			delete(c.guarded, a)
		}
	}
	if err != nil {
		return reconcile.Result{Again: lateFloat}, nil
	}
	return reconcile.Result{}, nil
}

// wanted is what drivers are told, in the order of the addresses' names.
func wanted(list []*api.Address) []driver.Floating {
	sort.Slice(list, func(i, j int) bool { return api.RefOf(list[i]).String() < api.RefOf(list[j]).String() })
	var out []driver.Floating
	for _, a := range list {
		addr, err := netip.ParseAddr(a.Status.Address)
		if err != nil {
			continue
		}
		inside, err := netip.ParseAddr(a.Status.Inside)
		if err != nil {
			continue
		}
		out = append(out, driver.Floating{Addr: addr, Inside: inside, VNI: a.Status.VNI})
	}
	return out
}

func guardID(a netip.Addr) string { return "address-" + a.String() }

// guardFloats has the watchdog let go of addresses when the lease ends, before the host answers for them.
func (c *floats) guardFloats(ctx context.Context, want []driver.Floating) ([]driver.Floating, error) {
	if c.Guard == nil {
		return want, nil
	}
	// With the lease that ended, the watchdog has let go of everything it guarded.
	if term := c.Seen(); c.guarded == nil || c.term != term {
		c.guarded, c.term = map[netip.Addr]bool{}, term
	}
	for _, f := range want {
		if c.guarded[f.Addr] {
			continue
		}
		if err := c.Guard.Guard(ctx, guardID(f.Addr), []string{fence.AddressGroup(c.Root, f.Addr)}); err != nil {
			return nil, fmt.Errorf("floating address %s: %w", f.Addr, err)
		}
		c.guarded[f.Addr] = true
	}
	return want, nil
}

// letGo answers for no floating address any more: the lease has ended.
func (a *Agent) letGo(ctx context.Context) {
	f, ok := a.Network.(driver.Floater)
	if !ok {
		return
	}
	if err := f.Float(ctx, nil); err != nil {
		a.Log.Error("may still answer for floating addresses", "error", err)
	}
}
