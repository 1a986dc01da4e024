package sched

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/affinity"
	"atoll/internal/policy/binpack"
	"atoll/internal/policy/host"
	"atoll/internal/policy/policytest"
	"atoll/internal/policy/port"
	"atoll/internal/policy/resource"
	"atoll/internal/policy/spread"
)

// These tests look at the engine with real policies.

func real() policy.Chain {
	return policy.Chain{
		Filters: []policy.Filter{host.New(), resource.New(), port.New(), spread.New(), affinity.New()},
		Scorers: []policy.Weighted{{Scorer: host.New(), Weight: 1}, {Scorer: binpack.New(), Weight: 1}, {Scorer: spread.New(), Weight: 1}, {Scorer: affinity.New(), Weight: 1}},
	}
}

// exhaustive judges every node by itself.
func exhaustive(v *policy.View, c policy.Chain, it *policy.Item) (best float64, admitted map[string]float64) {
	v.Arrange()
	admitted, best = map[string]float64{}, math.Inf(-1)
	for _, n := range v.Nodes {
		ok := true
		for _, f := range c.Filters {
			ok = ok && policytest.Admit(f, v, n, it) == ""
		}
		if !ok {
			continue
		}
		sum, weights := 0.0, 0.0
		for _, s := range c.Scorers {
			if s.Grade(v, it) != nil {
				sum += s.Weight * policytest.Score(s, v, n, it)
				weights += s.Weight
			}
		}
		admitted[n.Name] = sum / max(weights, 1)
		best = max(best, admitted[n.Name])
	}
	return best, admitted
}

// Whatever happened before: the planner that remembers finds what looking at every node finds.
func TestRememberingChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, c := policy.NewView(), real()
		p := NewPlanner(v, c, rapid.Uint64().Draw(t, "seed"))
		p.Terse = rapid.Bool().Draw(t, "terse")
		for i := range rapid.IntRange(1, 30).Draw(t, "nodes") {
			v.SetNode(policytest.Node(t, fmt.Sprintf("n%02d", i)))
		}
		shapes := make([]*policy.Item, rapid.IntRange(1, 4).Draw(t, "shapes"))
		for i := range shapes {
			shapes[i] = policytest.Item(t, fmt.Sprint("shape", i))
		}
		for step := range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				v.SetNode(policytest.Node(t, fmt.Sprintf("n%02d", rapid.IntRange(0, 32).Draw(t, "node"))))
			case 1:
				v.RemoveNode(fmt.Sprintf("n%02d", rapid.IntRange(0, 32).Draw(t, "node")))
			case 2:
				v.Unplace(fmt.Sprint("u", rapid.IntRange(0, step).Draw(t, "uid")))
			default:
				it := *rapid.SampledFrom(shapes).Draw(t, "shape")
				it.UID = fmt.Sprint("u", step)
				best, admitted := exhaustive(v, c, &it)
				pl := p.Decide(&it)
				if score, ok := admitted[pl.Node]; (pl.Node == "") != (len(admitted) == 0) || pl.Node != "" && (!ok || math.Abs(score-best) > 1e-9) {
					t.Fatalf("step %d: chose %q, possible are %v", step, pl.Node, admitted)
				}
				if pl.Node == "" || !p.Terse {
					checkCounts(t, v, pl, admitted)
				}
				p.Take(pl)
			}
		}
	})
}

func checkCounts(t *rapid.T, v *policy.View, pl Placement, admitted map[string]float64) {
	refused := 0
	for _, r := range pl.Decision.Refusals {
		if r.Nodes <= 0 || r.Policy == "" || r.Reason == "" {
			t.Fatalf("%+v", r)
		}
		refused += r.Nodes
	}
	if refused+len(admitted) != len(v.Nodes) {
		t.Fatalf("%d refused and %d admitted of %d nodes: %+v", refused, len(admitted), len(v.Nodes), pl.Decision.Refusals)
	}
	for i, n := range pl.Decision.Nodes {
		if n.Reason == "" && math.Abs(admitted[n.Node]-n.Score) > 1e-9 {
			t.Fatalf("%s is told to be worth %v, is %v", n.Node, n.Score, admitted[n.Node])
		}
		if i == 0 && pl.Node != "" && n.Node != pl.Node {
			t.Fatalf("the chosen node is not the first that is told of: %+v", pl.Decision.Nodes)
		}
	}
}

// Preemption takes only what is less important and unprotected, only where that
// helps, never more than needed, and leaves the view as it was.
func TestPreemption(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, c := policy.NewView(), real()
		p := NewPlanner(v, c, 1)
		for i := range rapid.IntRange(1, 8).Draw(t, "nodes") {
			v.SetNode(policytest.Node(t, fmt.Sprintf("n%02d", i)))
		}
		if rapid.Bool().Draw(t, "budget") {
			b := &api.DisruptionBudget{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: "b", Tenant: "t"}}}
			b.Spec.Labels, b.Spec.MinAvailable = map[string]string{"app": "db"}, rapid.IntRange(1, 3).Draw(t, "min")
			v.SetBudget(b)
		}
		for i := range rapid.IntRange(0, 40).Draw(t, "placed") {
			it := policytest.Item(t, fmt.Sprint("u", i))
			p.Take(p.Decide(it))
		}
		for i := range 3 {
			it := policytest.Item(t, fmt.Sprint("vip", i))
			if p.Decide(it).Node != "" {
				continue
			}
			before := print(v)
			pl := p.DecideOrPreempt(it)
			if print(v) != before {
				t.Fatal("the view changed")
			}
			if pl.Node == "" {
				continue
			}
			checkVictims(t, v, c, pl)
			p.Take(pl)
		}
	})
}

func checkVictims(t *rapid.T, v *policy.View, c policy.Chain, pl Placement) {
	if len(pl.Victims) == 0 {
		t.Fatal("nobody has to go, so it fitted before")
	}
	n := v.Node(pl.Node)
	protected := map[string]int{}
	for _, x := range pl.Victims {
		if x.Priority >= pl.Item.Priority || v.Where(x.UID) != pl.Node {
			t.Fatalf("%s of priority %d on %s for %d on %s", x.UID, x.Priority, v.Where(x.UID), pl.Item.Priority, pl.Node)
		}
		if spare, by, bounded := v.Spare(x); bounded && x.Ref.Tenant == pl.Item.Ref.Tenant { // nobody here has a guarantee, so all borrow
			if protected[by.Name]++; protected[by.Name] > spare {
				t.Fatalf("%d victims of a budget that spares %d", protected[by.Name], spare)
			}
		}
	}
	v.Try(n, func() {
		for _, x := range pl.Victims {
			v.Unplace(x.UID)
		}
		if _, ok := exhaust(v, c, pl.Item)[pl.Node]; !ok {
			t.Fatal("it does not fit without its victims")
		}
	})
}

func exhaust(v *policy.View, c policy.Chain, it *policy.Item) map[string]float64 {
	_, admitted := exhaustive(v, c, it)
	return admitted
}

func print(v *policy.View) string {
	s := ""
	for _, n := range v.Nodes {
		s += fmt.Sprint(n.Name, n.Used, n.Guaranteed, n.Published, n.Devices, n.Cells)
		for _, it := range n.Items {
			s += " " + it.UID
		}
	}
	return s
}

func TestTheCheapestVictimGoes(t *testing.T) {
	v, c := policy.NewView(), real()
	node := func(name string) {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}}
		n.Status.Allocatable = api.Resources{api.CPU: 1000, api.Memory: 1 << 30, api.Instances: 100}
		n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
		n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
		v.SetNode(n)
	}
	item := func(uid string, cpu, priority int64) *policy.Item {
		in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, UID: uid, Tenant: "t"}}}
		in.Spec.Requests = api.Resources{api.CPU: cpu}
		return policy.ItemAt(in, priority)
	}
	for _, n := range []string{"n1", "n2", "n3"} {
		node(n)
	}
	v.Place(item("important", 1000, 5), "n1", policy.Alloc{})
	v.Place(item("small-1", 400, 1), "n2", policy.Alloc{})
	v.Place(item("small-2", 400, 1), "n2", policy.Alloc{})
	v.Place(item("large", 900, 1), "n3", policy.Alloc{})
	p := NewPlanner(v, c, 1)
	for _, x := range []struct {
		cpu, priority int64
		node, victims string
	}{
		{500, 10, "n2", "[small-2]"}, // one of two is enough, and it is smaller than the large one
		{1000, 10, "n3", "[large]"},  // one victim rather than two
		{500, 1, "", "[]"},           // never its own priority
		{2000, 10, "", "[]"},         // fits nowhere anyway
	} {
		it := item("vip", x.cpu, x.priority)
		if got := p.Decide(it); got.Node != "" {
			t.Fatalf("fits on %s", got.Node)
		}
		got := p.DecideOrPreempt(it)
		names := []string{}
		for _, w := range got.Victims {
			names = append(names, w.UID)
		}
		if got.Node != x.node || fmt.Sprint(names) != x.victims {
			t.Errorf("cpu %d priority %d: %s %v, want %s %s", x.cpu, x.priority, got.Node, names, x.node, x.victims)
		}
	}
}

func TestGangsAreAllOrNone(t *testing.T) {
	v := pool(1000, 1000)
	p := NewPlanner(v, chain(), 1)
	if plan, all := p.Gang(items(600, 600)); !all || plan[0].Node == plan[1].Node {
		t.Fatalf("%v %+v", all, plan)
	}
	if _, all := p.Gang(items(600, 600, 600)); all || v.Placed() != 0 {
		t.Fatalf("%v, %d are left", all, v.Placed())
	}
}
