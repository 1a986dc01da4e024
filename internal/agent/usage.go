package agent

import (
	"context"
	"slices"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/driver"
)

// sample is a reading to compare the next with.
type sample struct {
	at  time.Time
	cpu time.Duration
}

// shortest is the least time between two readings that gives a rate.
const shortest = 100 * time.Millisecond

// Usage reads what this node, its tenants and its instances use now. Rates are
// over the time since the last reading, or over a short pause when there is none
// of the last minute.
func (a *Agent) Usage(ctx context.Context) api.UsageReport {
	if a.stale() {
		a.read(ctx)
		_ = a.Clock.Sleep(ctx, shortest*2) // ends early only with ctx
	}
	return a.read(ctx)
}

func (a *Agent) stale() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.samples[a.Root]
	return !ok || a.Clock.Now().Sub(s.at) > time.Minute
}

// rate gives thousandths of a core since the last reading of key.
func (a *Agent) rate(key string, u api.Usage) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, ok := a.samples[key]
	gap := u.At.Sub(old.at)
	if !ok || u.CPU < old.cpu {
		a.samples[key] = sample{u.At, u.CPU}
		return 0
	}
	if gap < shortest {
		return 0
	}
	a.samples[key] = sample{u.At, u.CPU}
	return int64((u.CPU - old.cpu) * 1000 / gap)
}

func (a *Agent) read(ctx context.Context) api.UsageReport {
	rep := api.UsageReport{At: a.Clock.Now().UTC()}
	a.groupMu.Lock()
	list, groups, capacity, whole, strays := a.tenantList, sortedNames(a.groups), a.capacity, a.whole, a.strays
	a.groupMu.Unlock()
	specs := map[string]*api.Tenant{}
	for _, t := range list {
		specs[t.Name] = t
	}
	counts := map[string]int{}
	a.mu.Lock()
	type item struct {
		id string
		l  life
	}
	items := make([]item, 0, len(a.lives))
	for id, l := range a.lives {
		if l.obs.Phase == driver.PhaseRunning {
			items = append(items, item{id, *l})
		}
	}
	a.mu.Unlock()
	sort.Slice(items, func(i, j int) bool { return api.SortKey(items[i].l.ref) < api.SortKey(items[j].l.ref) })
	for _, it := range items {
		for _, t := range api.TenantChain(it.l.ref.Tenant) {
			counts[t]++
		}
		m, ok := it.l.runtime.(driver.Measurer)
		if !ok {
			continue
		}
		u, err := m.Usage(ctx, it.id)
		if err != nil {
			continue // it ended between the look and the reading
		}
		rep.Instances = append(rep.Instances, api.InstanceUsage{Ref: it.l.ref, Node: a.Node, CPUMilli: a.rate(it.id, u), Usage: u})
	}
	if a.Groups == nil {
		return rep
	}
	for _, t := range strays {
		groups = append(groups, api.TenantChain(t)...)
	}
	slices.Sort(groups)
	for _, name := range slices.Compact(groups) {
		u, err := a.groupUsage(name, strays)
		if err != nil {
			continue
		}
		tu := api.TenantUsage{Tenant: name, CPUMilli: a.rate("t:"+name, u), Memory: u.Memory, Instances: counts[name], Usage: u}
		if t := specs[name]; t != nil {
			tu.Guarantee, tu.Limit = t.Spec.Guarantee, t.Spec.Limit
		}
		rep.Tenants = append(rep.Tenants, tu)
	}
	if u, err := a.Groups.Usage(a.Root); err == nil {
		n := api.NodeUsage{Node: a.Node, Capacity: whole, Allocatable: capacity, CPUMilli: a.rate(a.Root, u), Memory: u.Memory, Usage: u}
		if a.Drops != nil {
			n.Drops = a.Drops(ctx)
		}
		rep.Nodes = append(rep.Nodes, n)
	}
	return rep
}
