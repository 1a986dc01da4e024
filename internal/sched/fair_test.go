package sched

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/policy"
)

func asks(tenant, name string, cpu, mem, priority int64) *policy.Item {
	return policy.ItemAt(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: tenant, UID: tenant + name}},
		Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: cpu, api.Memory: mem}}}, priority)
}

func single(cpu, mem int64) *policy.View {
	v := policy.NewView()
	v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "n"}}, Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: cpu, api.Memory: mem}}})
	return v
}

func even(string) int64 { return 0 }

// The worked example of the paper: 9 CPU and 18 GB, tasks of <1,4> and <3,1>: three and two are placed.
func TestDominantResourceFairness(t *testing.T) {
	v := single(9000, 18)
	var items []*policy.Item
	for i := range 9 {
		items = append(items, asks("a", fmt.Sprint(i), 1000, 4, 0))
	}
	for i := range 9 {
		items = append(items, asks("b", fmt.Sprint(i), 3000, 1, 0))
	}
	c := policy.Chain{Filters: []policy.Filter{both{}}}
	got := map[string]int{}
	for _, pl := range Plan(v, Order(v, items, even), c, 1) {
		if pl.Node != "" {
			got[pl.Item.Ref.Tenant]++
		}
	}
	if got["a"] != 3 || got["b"] != 2 {
		t.Fatalf("%v, want a:3 b:2", got)
	}
}

// both fits CPU and memory.
type both struct{}

func (both) Name() string { return "resources" }
func (both) Check(_ *policy.View, it *policy.Item) *policy.Check {
	return &policy.Check{Node: func(n *policy.Node) string {
		if it.Request[policy.CPU] > n.Free(policy.CPU) || it.Request[policy.Memory] > n.Free(policy.Memory) {
			return "not enough"
		}
		return ""
	}}
}

func order(items []*policy.Item) string {
	var out []string
	for _, it := range items {
		out = append(out, it.UID)
	}
	return strings.Join(out, " ")
}

func TestOrder(t *testing.T) {
	v := single(10_000, 1000)
	v.Place(asks("rich", "old", 5000, 0, 0), "n", policy.Alloc{})
	for _, c := range []struct {
		name   string
		items  []*policy.Item
		weight func(string) int64
		want   string
	}{
		{"who has less comes first", []*policy.Item{asks("rich", "1", 100, 0, 0), asks("poor", "1", 100, 0, 0)}, even, "poor1 rich1"},
		{"priority before fairness", []*policy.Item{asks("poor", "1", 100, 0, 0), asks("rich", "1", 100, 0, 5)}, even, "rich1 poor1"},
		{"in turns", []*policy.Item{asks("a", "1", 100, 0, 0), asks("a", "2", 100, 0, 0), asks("b", "1", 100, 0, 0), asks("b", "2", 100, 0, 0)}, even, "a1 b1 a2 b2"},
		{"weights", []*policy.Item{asks("a", "1", 100, 0, 0), asks("a", "2", 100, 0, 0), asks("a", "3", 100, 0, 0), asks("b", "1", 100, 0, 0), asks("b", "2", 100, 0, 0), asks("b", "3", 100, 0, 0)},
			func(t string) int64 { return map[string]int64{"a": 100, "b": 200}[t] }, "a1 b1 b2 a2 b3 a3"},
		{"a nested tenant waits with its parent", []*policy.Item{asks("rich/child", "1", 100, 0, 0), asks("poor", "1", 100, 0, 0)}, even, "poor1 rich/child1"},
		{"age", []*policy.Item{asks("a", "2", 100, 0, 0), asks("a", "1", 100, 0, 0)}, even, "a2 a1"},
	} {
		if got := order(Order(v, c.items, c.weight)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// Whatever waits: nobody is lost, and while several tenants wait, who comes next has
// no larger share than any other (progressive filling).
func TestNobodyIsPassedOver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := single(100_000, 100_000)
		var items []*policy.Item
		for i := range rapid.IntRange(0, 30).Draw(t, "items") {
			items = append(items, asks(rapid.SampledFrom([]string{"a", "b", "c", "a/x", "a/y"}).Draw(t, "tenant"), fmt.Sprint(i),
				rapid.Int64Range(1, 5000).Draw(t, "cpu"), rapid.Int64Range(1, 5000).Draw(t, "mem"), 0))
		}
		got := Order(v, items, even)
		seen := map[string]bool{}
		share, left := map[string]float64{}, map[string]int{}
		cpu, mem := map[string]int64{}, map[string]int64{}
		top := func(it *policy.Item) string { s, _, _ := strings.Cut(it.Ref.Tenant, "/"); return s }
		for _, it := range items {
			left[top(it)]++
		}
		for _, it := range got {
			for other, n := range left {
				if n > 0 && share[other] < share[top(it)]-1e-12 {
					t.Fatalf("%s with %v before %s with %v", top(it), share[top(it)], other, share[other])
				}
			}
			seen[it.UID] = true
			left[top(it)]--
			cpu[top(it)] += it.Request[policy.CPU]
			mem[top(it)] += it.Request[policy.Memory]
			share[top(it)] = float64(max(cpu[top(it)], mem[top(it)])) / 100_000
		}
		if len(seen) != len(items) || len(got) != len(items) {
			t.Fatalf("%d of %d", len(seen), len(items))
		}
	})
}
