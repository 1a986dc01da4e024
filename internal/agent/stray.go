package agent

import (
	"path"
	"strings"

	"atoll/api"
	"atoll/internal/driver"
)

// What runs stays in the resource group it was started in, also when its tenant got
// another name since (a host that came into another pool with its instances): processes
// cannot take their memory along into another group, and no kernel lets a group change
// its place. Such a group is a stray. It counts for its tenant, by whose share it is
// bounded, and goes with the last instance in it.

// findStrays lists groups of tenants that are not where their name says, and whose they are.
func (a *Agent) findStrays() map[string]string {
	type held struct {
		id, tenant string
		rt         driver.Runtime
	}
	var all []held
	a.mu.Lock()
	for id, l := range a.lives {
		if l.runtime != nil && l.ref.Tenant != "" {
			all = append(all, held{id, l.ref.Tenant, l.runtime})
		}
	}
	a.mu.Unlock()
	out := map[string]string{}
	for _, h := range all {
		g, ok := h.rt.(driver.Grouper)
		if !ok {
			continue
		}
		for _, group := range g.Groups(h.id) {
			group, tenant := path.Dir(group), h.tenant
			for a.tenantOfGroup(group) != "" && tenant != "" && group != a.tenantGroup(tenant) {
				out[group] = tenant
				group, tenant = path.Dir(group), api.ParentTenant(tenant)
			}
		}
	}
	return out
}

// leftStray has the groups looked at when one of them may have become empty.
func (a *Agent) leftStray() {
	a.groupMu.Lock()
	some := len(a.strays) > 0
	a.groupMu.Unlock()
	if some {
		a.engine.Enqueue("tenants", api.Ref{Kind: api.KindTenant, Name: "*"})
	}
}

// shareOf is what a group may use: its tenant's share, and as a stray that of the tenant
// whose instances it still holds. A tenant's group is inside those of the tenants it is
// in, and a stray is not, so their ceilings are its own; ok is false for what is nobody's.
func (a *Agent) shareOf(group string, want map[string]Share) (sh Share, ok bool) {
	sh, ok = want[a.tenantOfGroup(group)]
	tenant, stray := a.strays[group]
	if !stray {
		return sh, ok
	}
	own, known := want[tenant]
	if !known {
		return sh, ok
	}
	if !strings.Contains(strings.TrimPrefix(group, a.Root+"/"), "/") { // those below it are bounded by it
		for up := api.ParentTenant(tenant); up != ""; up = api.ParentTenant(up) {
			own = inside(own, want[up])
		}
	}
	if !ok {
		return own, true
	}
	return both(sh, own), true
}

// inside is a share as it is from the outside of the one around it.
func inside(sh, around Share) Share {
	sh.Weight = clampWeight(sh.Weight * around.Weight / weightMost)
	sh.IOWeight = clampWeight(sh.IOWeight * around.IOWeight / weightMost)
	for _, c := range []struct {
		own    *int64
		around int64
	}{{&sh.CPUMax, around.CPUMax}, {&sh.MemoryMax, around.MemoryMax}, {&sh.PidsMax, around.PidsMax}, {&sh.IOPS, around.IOPS}, {&sh.IOBytes, around.IOBytes}} {
		if c.around != 0 && (*c.own == 0 || c.around < *c.own) {
			*c.own = c.around
		}
	}
	return sh
}

// both is the share of a group that holds instances of two tenants.
func both(x, y Share) Share {
	sum := func(a, b int64) int64 {
		if a == 0 || b == 0 {
			return 0 // no ceiling
		}
		return a + b
	}
	return Share{Weight: clampWeight(x.Weight + y.Weight), CPUMax: sum(x.CPUMax, y.CPUMax), MemoryMax: sum(x.MemoryMax, y.MemoryMax), MemoryMin: x.MemoryMin + y.MemoryMin,
		PidsMax: sum(x.PidsMax, y.PidsMax), IOWeight: clampWeight(x.IOWeight + y.IOWeight), IOPS: sum(x.IOPS, y.IOPS), IOBytes: sum(x.IOBytes, y.IOBytes)}
}

// groupUsage reads what a tenant uses, in its own group and in strays.
func (a *Agent) groupUsage(tenant string, strays map[string]string) (api.Usage, error) {
	u, err := a.Groups.Usage(a.tenantGroup(tenant))
	for g, t := range strays {
		if !api.WithinTenant(t, tenant) || api.WithinTenant(strays[path.Dir(g)], tenant) && strays[path.Dir(g)] != "" {
			continue // another's, or counted with the one it is in
		}
		s, serr := a.Groups.Usage(g)
		if serr != nil {
			continue // it has just gone
		}
		if err != nil {
			u, err = s, nil
			continue
		}
		u.CPU += s.CPU
		u.Throttled += s.Throttled
		u.Memory += s.Memory
		u.MemoryPeak += s.MemoryPeak
		u.ReadBytes += s.ReadBytes
		u.WrittenBytes += s.WrittenBytes
		u.ReadOps += s.ReadOps
		u.WriteOps += s.WriteOps
		u.Pids += s.Pids
		u.OOMKills += s.OOMKills
	}
	return u, err
}
