package sched

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/policy"
)

// The engine is tested with two policies of its own; the real ones have their own tests.

type fits struct{}

func (fits) Name() string { return "resources" }
func (fits) Check(_ *policy.View, it *policy.Item) *policy.Check {
	return &policy.Check{
		Node: func(n *policy.Node) string {
			if n.Used[0]+it.Request[0] > n.Allocatable[0] {
				return "not enough CPU"
			}
			return ""
		},
		Short: func(n *policy.Node) float64 {
			return float64(it.Request[0]-n.Allocatable[0]+n.Used[0]) / float64(it.Request[0])
		},
		Tell: func(n *policy.Node) string { return fmt.Sprint(n.Allocatable[0] - n.Used[0]) },
	}
}

type fullest struct{}

func (fullest) Name() string { return "full" }
func (fullest) Grade(*policy.View, *policy.Item) *policy.Grade {
	return &policy.Grade{Node: func(n *policy.Node) float64 { return float64(n.Used[0]) / float64(n.Allocatable[0]+1) }}
}

func chain() policy.Chain {
	return policy.Chain{Filters: []policy.Filter{fits{}}, Scorers: []policy.Weighted{{Scorer: fullest{}, Weight: 1}}}
}

func pool(caps ...int64) *policy.View {
	v := policy.NewView()
	for i, c := range caps {
		v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: fmt.Sprintf("n%02d", i)}},
			Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: c}, Conditions: []api.Condition{{Type: "Ready", Status: true}}}})
	}
	return v
}

func items(cpus ...int64) []*policy.Item {
	var out []*policy.Item
	for i, c := range cpus {
		out = append(out, policy.ItemOf(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprintf("i%d", i), Tenant: "t", UID: fmt.Sprintf("u%d", i)}},
			Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: c}}}))
	}
	return out
}

func TestReasonsAreCountedAndTheClosestIsNamed(t *testing.T) {
	p := Plan(pool(1000, 3000, 2000), items(4000), chain(), 1)[0]
	if p.Node != "" || len(p.Decision.Refusals) != 1 {
		t.Fatalf("%+v", p)
	}
	r := p.Decision.Refusals[0]
	if r.Nodes != 3 || r.Reason != "not enough CPU" || r.Best != "n01: 3000" || p.Decision.Of != 3 {
		t.Fatalf("%+v", r)
	}
	if h := strings.Join(p.Decision.Hints, " "); !strings.Contains(h, "cpu=3") {
		t.Fatalf("no hint about the largest that fits: %q", h)
	}
}

func TestAnEmptyPoolSaysSo(t *testing.T) {
	p := Plan(policy.NewView(), items(1), chain(), 1)[0]
	if p.Node != "" || len(p.Decision.Hints) == 0 {
		t.Fatalf("%+v", p)
	}
}

func draw(t *rapid.T) (*policy.View, []*policy.Item) {
	caps := rapid.SliceOfN(rapid.Int64Range(0, 8000), 1, 12).Draw(t, "nodes")
	cpus := rapid.SliceOfN(rapid.Int64Range(0, 4000), 0, 20).Draw(t, "items")
	return pool(caps...), items(cpus...)
}

func TestPlansNeverOvercommitAndLeaveTheViewAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, its := draw(t)
		plan := Plan(v, its, chain(), rapid.Uint64().Draw(t, "seed"))
		if v.Placed() != 0 {
			t.Fatalf("%d items are left on the view", v.Placed())
		}
		used := map[string]int64{}
		for i, p := range plan {
			if p.Item != its[i] {
				t.Fatal("order changed")
			}
			if p.Node != "" {
				used[p.Node] += p.Item.Request[0]
			}
		}
		for _, n := range v.Nodes {
			if used[n.Name] > n.Allocatable[0] || n.Used[0] != 0 {
				t.Fatalf("%s: %d of %d", n.Name, used[n.Name], n.Allocatable[0])
			}
		}
	})
}

func TestTheSameInputGivesTheSamePlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, its := draw(t)
		seed := rapid.Uint64().Draw(t, "seed")
		if a, b := Plan(v, its, chain(), seed), Plan(v, its, chain(), seed); !reflect.DeepEqual(a, b) {
			t.Fatal("two plans differ")
		}
	})
}

// One item at a time: if it found a node, it still does with one node more.
func TestMoreNodesNeverRefuseWhatFitted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		caps := rapid.SliceOfN(rapid.Int64Range(0, 8000), 1, 12).Draw(t, "nodes")
		it := items(rapid.Int64Range(0, 9000).Draw(t, "cpu"))
		before := Plan(pool(caps...), it, chain(), 1)[0].Node != ""
		after := Plan(pool(append(caps, rapid.Int64Range(0, 8000).Draw(t, "new"))...), it, chain(), 1)[0].Node != ""
		if before && !after {
			t.Fatal("refused with a node more")
		}
	})
}

func TestEqualNodesShareTheLoad(t *testing.T) {
	v := pool(8000, 8000, 8000, 8000)
	hit := map[string]int{}
	for i := range 200 {
		it := policy.ItemOf(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "x", Tenant: "t", UID: fmt.Sprint("u", i)}}})
		hit[Plan(v, []*policy.Item{it}, chain(), 1)[0].Node]++
	}
	for _, n := range v.Nodes {
		if hit[n.Name] < 20 {
			t.Fatalf("%v", hit)
		}
	}
}

func BenchmarkPlanOne(b *testing.B) {
	caps := make([]int64, 1000)
	for i := range caps {
		caps[i] = 8000
	}
	v, it := pool(caps...), items(100)
	for b.Loop() {
		Plan(v, it, chain(), 1)
	}
}
