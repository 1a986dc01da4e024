package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// tenants is the controller of the node's resource groups: one subtree per tenant,
// with the ceilings and weights of share.go.
type tenants struct{ *Agent }

func (*tenants) Name() string { return "tenants" }

func (*tenants) Watches() []api.Selector { return []api.Selector{{Kind: api.KindTenant}} }

func (*tenants) Owns() []api.Kind { return nil }

// Reconcile divides the node anew: every tenant's share depends on all the others.
func (t *tenants) Reconcile(ctx context.Context, s store.Store, _ api.Ref) (reconcile.Result, error) {
	return reconcile.Result{}, t.divideNode(ctx, s)
}

// divideNode writes the limits of every group that exists or is about to, and
// removes the groups of tenants that are gone.
func (a *Agent) divideNode(ctx context.Context, s store.Store) error {
	if a.Groups == nil {
		return nil
	}
	list, _, err := store.List[*api.Tenant](ctx, s, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return fmt.Errorf("list tenants: %w", err)
	}
	strays := a.findStrays()
	a.groupMu.Lock()
	defer a.groupMu.Unlock()
	a.tenantList, a.strays = list, strays
	want := shares(a.capacity, list)
	have, err := a.Groups.List(a.Root)
	if err != nil {
		return fmt.Errorf("list groups: %w", err)
	}
	// Also the groups an earlier agent made: what runs in them must follow changed limits.
	sort.Strings(have)
	for _, g := range have {
		if err := a.writeGroup(g, want); err != nil {
			return err
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(have))) // nested ones first
	for _, g := range have {
		name := a.tenantOfGroup(g)
		if _, ok := want[name]; name == "" || ok || strays[g] != "" {
			continue
		}
		if err := a.Groups.Remove(g); err != nil {
			a.Log.Warn("a group of a removed tenant is still in use", "group", g, "error", err)
			continue
		}
		delete(a.groups, name)
		delete(a.written, g)
	}
	return nil
}

// ensureGroup makes a tenant's group and those it is nested in, the first time something of it runs here.
func (a *Agent) ensureGroup(ctx context.Context, tenant string) error {
	if a.Groups == nil {
		return nil
	}
	a.groupMu.Lock()
	_, ok := a.groups[tenant]
	a.groupMu.Unlock()
	if ok {
		return nil
	}
	list, _, err := store.List[*api.Tenant](ctx, a.Store, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return fmt.Errorf("list tenants: %w", err)
	}
	a.groupMu.Lock()
	defer a.groupMu.Unlock()
	want := shares(a.capacity, list)
	chain := api.TenantChain(tenant)
	for i := len(chain) - 1; i >= 0; i-- {
		g := a.tenantGroup(chain[i])
		delete(a.written, g) // nobody knows who removed it since
		if err := a.writeGroup(g, want); err != nil {
			return err
		}
	}
	return nil
}

// writeGroup brings a group in line. It is called with groupMu held.
func (a *Agent) writeGroup(group string, want map[string]Share) error {
	sh, ok := a.shareOf(group, want)
	if !ok {
		return nil
	}
	tenant := a.tenantOfGroup(group)
	if a.written[group] != sh {
		warn, err := a.Groups.Ensure(group, sh)
		if err != nil {
			return fmt.Errorf("group of tenant %s: %w", tenant, err)
		}
		for _, w := range warn {
			a.warnings[w] = true
		}
		a.written[group] = sh
	}
	if own, ok := want[tenant]; ok {
		a.groups[tenant] = own
	}
	return nil
}

// rootShare bounds Atoll's whole tree: the reserve stays the host's. Processes of the
// host compete with the tree by the kernel's default weight, so the tree's is as much
// larger as its part of the host is; one busy process of the host gets the reserve.
func (a *Agent) rootShare(st api.NodeStatus) Share {
	reserve := max(st.Capacity[api.CPU]-st.Allocatable[api.CPU], 1)
	w := clampWeight(defaultKernelWeight * st.Allocatable[api.CPU] / reserve)
	return Share{Weight: w, IOWeight: w, MemoryMax: st.Allocatable[api.Memory]}
}

// defaultKernelWeight is what a process outside of all groups has, as a cgroup v2 weight.
const defaultKernelWeight = 100

// upkeep is the controller of what must be done from time to time.
type upkeep struct {
	*Agent
	cleaned time.Time
}

// upkeepRef is its only name.
var upkeepRef = api.Ref{Kind: api.KindNode, Name: "upkeep"}

const (
	publishEvery = 10 * time.Second
	cleanEvery   = time.Minute
)

func (*upkeep) Name() string { return "upkeep" }

func (u *upkeep) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNode, Name: u.Node}}
}

func (*upkeep) Owns() []api.Kind { return []api.Kind{api.KindNode} }

// Reconcile publishes the node's state and cleans up.
func (u *upkeep) Reconcile(ctx context.Context, _ store.Store, _ api.Ref) (reconcile.Result, error) {
	if err := u.publish(ctx); err != nil {
		return reconcile.Result{}, err
	}
	if u.unsynced {
		err := u.syncImages(ctx)
		if u.unsynced = errors.Is(err, errs.Unavailable); err != nil && !u.unsynced {
			return reconcile.Result{}, err
		}
	}
	if now := u.Clock.Now(); now.Sub(u.cleaned) >= cleanEvery {
		u.cleaned = now
		if err := u.leftovers(ctx); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{Again: publishEvery, Poll: true}, nil
}

// Publish has the node's status written soon: something it tells has changed.
func (a *Agent) Publish() { a.engine.Enqueue("upkeep", upkeepRef) }

// publish writes the node object: made the first time, its status afterwards, and
// only when something changed.
func (a *Agent) publish(ctx context.Context) error {
	ref := api.Ref{Kind: api.KindNode, Name: a.Node}
	st, err := a.Facts(ctx)
	if err != nil {
		return fmt.Errorf("read facts of the host: %w", err)
	}
	old, err := read[*api.Node](ctx, a.Store, ref)
	if err != nil {
		return err
	}
	now := a.Clock.Now().UTC()
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: a.Node, CreatedAt: &now}}}
	if old != nil {
		n = api.Clone(old)
	}
	st.Drivers = slices.Clone(a.caps)
	a.groupMu.Lock()
	if a.fabric != nil {
		st.Drivers = append(st.Drivers, *a.fabric)
	}
	a.groupMu.Unlock()
	if a.Images != nil {
		st.Images = a.Images.Here()
	}
	if sh, ok := a.Network.(driver.Shaper); ok && sh.Uplink() > 0 && st.Capacity != nil {
		st.Capacity[api.NetBandwidth] = sh.Uplink()
	}
	st.Allocatable = allocatable(st.Capacity, n.Spec.Reserve)
	a.mu.Lock()
	a.cells = st.Cells
	a.mu.Unlock()
	if err := a.adopt(ctx, st); err != nil {
		return err
	}
	st.Conditions = append(st.Conditions, a.conditions(now)...)
	if a.Extend != nil {
		a.Extend(&st)
	}
	conds := st.Conditions
	if c := n.Condition(api.ConditionHeldBack); c != nil {
		conds = append(conds, *c) // the control plane's to say
	}
	for i := range conds {
		conds[i].Since = now
		for _, c := range n.Status.Conditions {
			if c.Type == conds[i].Type && c.Status == conds[i].Status {
				conds[i].Since = c.Since
			}
		}
	}
	st.Conditions = conds
	if old != nil && reflect.DeepEqual(old.Status, st) {
		return nil
	}
	n.Status = st
	op := store.Update(n)
	if old == nil {
		op = store.Create(n)
	}
	if _, err := a.Store.Commit(ctx, op); err != nil {
		return fmt.Errorf("publish node %s: %w", a.Node, err)
	}
	return nil
}

// allocatable is the capacity less the reserve; without one, 200m and 1Gi, but at most a tenth of the host.
func allocatable(capacity, reserve api.Resources) api.Resources {
	if len(reserve) == 0 {
		reserve = api.Resources{api.CPU: min(200, capacity[api.CPU]/10), api.Memory: min(1<<30, capacity[api.Memory]/10)}
	}
	return capacity.Sub(reserve)
}

// adopt takes a changed capacity into the groups.
func (a *Agent) adopt(ctx context.Context, st api.NodeStatus) error {
	if a.Groups == nil {
		return nil
	}
	a.groupMu.Lock()
	same := reflect.DeepEqual(a.capacity, st.Allocatable)
	a.capacity, a.whole = st.Allocatable, st.Capacity
	var err error
	if !same {
		var warn []string
		warn, err = a.Groups.Ensure(a.Root, a.rootShare(st))
		for _, w := range warn {
			a.warnings[w] = true
		}
	}
	a.groupMu.Unlock()
	if err != nil {
		return fmt.Errorf("group %s: %w", a.Root, err)
	}
	if same {
		return nil
	}
	return a.divideNode(ctx, a.Store)
}

// conditions tells that the agent works, and what the host cannot enforce.
func (a *Agent) conditions(now time.Time) []api.Condition {
	out := []api.Condition{{Type: api.ConditionReady, Status: true, Reason: "AgentRuns", Since: now}}
	if a.Lease != nil {
		out = append(out, api.Condition{Type: api.ConditionFences, Status: a.Guard != nil, Reason: "Watchdog", Since: now})
	}
	for _, c := range a.caps {
		if what := c.Features["shaping"]; c.Type == "network" && what != "" {
			msg := ""
			if what == "none" {
				msg = "instances with limits of the network are refused: the kernel lacks sch_htb, ifb, cls_u32 or act_mirred"
			}
			out = append(out, api.Condition{Type: "NetworkLimits", Status: msg == "", Reason: "Driver", Message: msg, Since: now})
		}
	}
	a.groupMu.Lock()
	defer a.groupMu.Unlock()
	if a.Fabric != nil {
		out = append(out, api.Condition{Type: "TenantNetworks", Status: a.noFabric == "", Reason: "Driver", Message: a.noFabric, Since: now})
	}
	msg := ""
	for _, w := range sortedNames(a.warnings) {
		if msg != "" {
			msg += "; "
		}
		msg += w
	}
	return append(out, api.Condition{Type: "LimitsEnforced", Status: msg == "", Reason: "Host", Message: msg, Since: now})
}

// leftovers removes from the network what belongs to no instance, and images nobody needs.
func (a *Agent) leftovers(ctx context.Context) error {
	a.mu.Lock()
	alive := map[string]bool{}
	inUse := map[string]bool{}
	for id, l := range a.lives {
		alive[id] = true
		if l.obs.ImageDigest != "" {
			inUse[l.obs.ImageDigest] = true
		}
	}
	a.mu.Unlock()
	if r, ok := a.Network.(driver.Reconciler); ok {
		if err := r.Reconcile(ctx); err != nil {
			return fmt.Errorf("put the network back in order: %w", err)
		}
	}
	if a.Network != nil {
		ids, err := a.Network.Observe(ctx)
		if err != nil {
			return fmt.Errorf("observe network: %w", err)
		}
		for _, id := range ids {
			if _, known := a.look(id); !alive[id] && !known {
				if err := a.Network.Detach(ctx, id); err != nil {
					return fmt.Errorf("detach %s: %w", id, err)
				}
			}
		}
	}
	if a.Images == nil {
		return nil
	}
	return a.Images.Collect(ctx, inUse)
}
