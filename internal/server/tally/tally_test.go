package tally

import (
	"testing"

	"atoll/api"
)

func TestMerge(t *testing.T) {
	a := &api.UsageReport{Nodes: []api.NodeUsage{{}}, Tenants: []api.TenantUsage{{Tenant: "b", CPUMilli: 1, Instances: 1, Usage: api.Usage{Memory: 5, PressureCPU: 0.5}}}}
	b := &api.UsageReport{Nodes: []api.NodeUsage{{}}, Tenants: []api.TenantUsage{{Tenant: "b", CPUMilli: 2, Instances: 1, Usage: api.Usage{Memory: 7, PressureCPU: 0.2}}, {Tenant: "a"}}}
	got := Merge([]*api.UsageReport{a, nil, b})
	if len(got.Nodes) != 2 || len(got.Tenants) != 2 || got.Tenants[0].Tenant != "a" {
		t.Fatalf("%+v", got)
	}
	if s := got.Tenants[1]; s.CPUMilli != 3 || s.Instances != 2 || s.Usage.Memory != 12 || s.Usage.PressureCPU != 0.5 {
		t.Errorf("%+v", s)
	}
	if a.Tenants[0].CPUMilli != 1 {
		t.Error("a report was changed")
	}
}
