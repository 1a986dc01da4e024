package agent

import (
	"sort"
	"strings"

	"atoll/api"
)

// Share is what a group of the node's tree may use. The zero value of a ceiling means none.
type Share struct {
	Weight    int64 // 1..10000, against the groups beside it
	CPUMax    int64 // thousandths of a core
	MemoryMax int64 // bytes: a hard ceiling
	MemoryMin int64 // bytes: kept from reclaim where the host can do that
	PidsMax   int64
	IOWeight  int64 // 1..10000
	IOPS      int64 // operations per second on the node's disk
	IOBytes   int64 // bytes per second on the node's disk
}

const weightMost = 10000

// shares divides a node between its tenants. The rule, on every level of the tree:
// a tenant deserves its guarantee and a part of what nobody was promised, by
// weight; its weight in the kernel is that sum, so under full contention each gets
// just what it deserves, and what one does not use flows to the others in the same
// proportion. Memory cannot be given back as fast as CPU, so a ceiling keeps each
// tenant out of what the others were guaranteed.
//
// The keys are the tenants' paths. Tenants without anything on this node are
// included: it is cheap, and their guarantee counts.
func shares(allocatable api.Resources, tenants []*api.Tenant) map[string]Share {
	out := make(map[string]Share, len(tenants))
	children := map[string][]*api.Tenant{}
	for _, t := range tenants {
		children[api.ParentTenant(t.Name)] = append(children[api.ParentTenant(t.Name)], t)
	}
	for _, list := range children {
		sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	}
	divide(allocatable, children[""], children, out)
	return out
}

func divide(have api.Resources, level []*api.Tenant, children map[string][]*api.Tenant, out map[string]Share) {
	var promisedCPU, promisedMem, weights int64
	for _, t := range level {
		promisedCPU += t.Spec.Guarantee[api.CPU]
		promisedMem += t.Spec.Guarantee[api.Memory]
		weights += t.Spec.EffectiveWeight()
	}
	idle := max(have[api.CPU]-promisedCPU, 0)
	for _, t := range level {
		s := Share{CPUMax: t.Spec.Limit[api.CPU], PidsMax: t.Spec.Limit[api.Pids],
			IOPS: t.Spec.Limit[api.IOPS], IOBytes: t.Spec.Limit[api.DiskBandwidth], MemoryMin: t.Spec.Guarantee[api.Memory]}
		deserved := t.Spec.Guarantee[api.CPU] + idle*t.Spec.EffectiveWeight()/max(weights, 1)
		s.Weight = clampWeight(deserved * weightMost / max(have[api.CPU], 1))
		s.IOWeight = s.Weight
		if total := have[api.Memory]; total > 0 {
			s.MemoryMax = max(total-(promisedMem-t.Spec.Guarantee[api.Memory]), t.Spec.Guarantee[api.Memory])
		}
		if l, ok := t.Spec.Limit[api.Memory]; ok {
			s.MemoryMax = min(s.MemoryMax, l)
		}
		out[t.Name] = s
		if kids := children[t.Name]; len(kids) > 0 {
			divide(api.Resources{api.CPU: max(deserved, 1), api.Memory: s.MemoryMax}, kids, children, out)
		}
	}
}

func clampWeight(w int64) int64 { return min(max(w, 1), weightMost) }

// DefaultRoot is the name of Atoll's tree in every cgroup hierarchy.
const DefaultRoot = "atoll"

// tenantGroup is a tenant's path in the tree: atoll/acme.t/research.t. The suffix
// keeps tenants and instances apart, whose names meet in one directory.
func (a *Agent) tenantGroup(tenant string) string {
	return a.Root + "/" + strings.ReplaceAll(tenant, "/", ".t/") + ".t"
}

// tenantOfGroup is its inverse; "" for what is not a tenant's group.
func (a *Agent) tenantOfGroup(path string) string {
	rest, ok := strings.CutPrefix(path, a.Root+"/")
	if !ok || !strings.HasSuffix(rest, ".t") {
		return ""
	}
	return strings.ReplaceAll(strings.TrimSuffix(rest, ".t"), ".t/", "/")
}

// oomScore says who dies first when memory is short: best-effort first, guaranteed
// last. It never goes below 0, which needs a capability the daemon may not have.
func oomScore(c api.Class) int {
	switch c {
	case api.ClassGuaranteed:
		return 0
	case api.ClassBurstable:
		return 500
	}
	return 1000
}
