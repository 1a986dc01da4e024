package gather

import (
	"sort"

	"atoll/api"
)

// merge adds up tenants that are on several nodes. It is pure.
func merge(reports []*api.UsageReport) api.UsageReport {
	out := api.UsageReport{Nodes: []api.NodeUsage{}, Tenants: []api.TenantUsage{}, Instances: []api.InstanceUsage{}}
	tenants := map[string]*api.TenantUsage{}
	for _, r := range reports {
		if r == nil {
			continue
		}
		out.Nodes = append(out.Nodes, r.Nodes...)
		out.Instances = append(out.Instances, r.Instances...)
		for _, t := range r.Tenants {
			sum, ok := tenants[t.Tenant]
			if !ok {
				tenants[t.Tenant] = &t
				continue
			}
			sum.Requested = sum.Requested.Add(t.Requested)
			sum.CPUMilli += t.CPUMilli
			sum.Memory += t.Memory
			sum.Instances += t.Instances
			sum.Usage = add(sum.Usage, t.Usage)
		}
	}
	for _, t := range tenants {
		out.Tenants = append(out.Tenants, *t)
	}
	sort.Slice(out.Tenants, func(i, j int) bool { return out.Tenants[i].Tenant < out.Tenants[j].Tenant })
	sort.Slice(out.Instances, func(i, j int) bool {
		return api.SortKey(out.Instances[i].Ref) < api.SortKey(out.Instances[j].Ref)
	})
	return out
}

// add sums amounts; of pressure the worst counts.
func add(a, b api.Usage) api.Usage {
	if b.At.After(a.At) {
		a.At = b.At
	}
	a.CPU += b.CPU
	a.Throttled += b.Throttled
	a.Memory += b.Memory
	a.MemoryPeak += b.MemoryPeak
	a.ReadBytes += b.ReadBytes
	a.WrittenBytes += b.WrittenBytes
	a.ReadOps += b.ReadOps
	a.WriteOps += b.WriteOps
	a.ReceivedBytes += b.ReceivedBytes
	a.SentBytes += b.SentBytes
	a.Pids += b.Pids
	a.OOMKills += b.OOMKills
	a.PressureCPU = max(a.PressureCPU, b.PressureCPU)
	a.PressureMemory = max(a.PressureMemory, b.PressureMemory)
	a.PressureIO = max(a.PressureIO, b.PressureIO)
	return a
}
