package agent

import (
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
)

func tenant(name string, cpu, mem, weight int64, limit api.Resources) *api.Tenant {
	return &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: name}},
		Spec: api.TenantSpec{Guarantee: api.Resources{api.CPU: cpu, api.Memory: mem}, Weight: weight, Limit: limit}}
}

func TestWeightsFollowWhatIsDeserved(t *testing.T) {
	got := shares(api.Resources{api.CPU: 2000, api.Memory: 10 << 30}, []*api.Tenant{
		tenant("a", 1000, 2<<30, 100, nil), tenant("b", 0, 0, 100, api.Resources{api.Memory: 1 << 30}), tenant("a/x", 500, 1<<30, 0, nil),
	})
	if got["a"].Weight != 7500 || got["b"].Weight != 2500 {
		t.Fatalf("a %d b %d", got["a"].Weight, got["b"].Weight)
	}
	if got["a"].MemoryMax != 10<<30 || got["b"].MemoryMax != 1<<30 {
		t.Fatalf("memory a %d b %d", got["a"].MemoryMax, got["b"].MemoryMax)
	}
	if got["a/x"].MemoryMin != 1<<30 || got["a/x"].Weight != 10000 {
		t.Fatalf("nested %+v", got["a/x"])
	}
}

// What is promised to one tenant can never be taken by the others, whatever they use.
func TestCeilingsKeepGuaranteesFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.Int64Range(1, 1<<40).Draw(t, "total")
		n := rapid.IntRange(1, 6).Draw(t, "n")
		left := total
		var list []*api.Tenant
		for i := range n {
			g := rapid.Int64Range(0, left).Draw(t, "g")
			left -= g
			list = append(list, tenant(string(rune('a'+i)), 0, g, 100, nil))
		}
		got := shares(api.Resources{api.CPU: 4000, api.Memory: total}, list)
		for _, me := range list {
			others := int64(0)
			for _, o := range list {
				if o != me {
					others += o.Spec.Guarantee[api.Memory]
				}
			}
			if got[me.Name].MemoryMax > total-others && got[me.Name].MemoryMax > me.Spec.Guarantee[api.Memory] {
				t.Fatalf("%s may use %d of %d, others are promised %d", me.Name, got[me.Name].MemoryMax, total, others)
			}
			if got[me.Name].MemoryMax < me.Spec.Guarantee[api.Memory] {
				t.Fatalf("%s cannot reach its guarantee", me.Name)
			}
		}
	})
}
