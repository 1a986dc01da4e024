package plan

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
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

func chain() policy.Chain {
	return policy.Chain{Filters: []policy.Filter{host.New(), resource.New(), port.New(), spread.New(), affinity.New()},
		Scorers: []policy.Weighted{{Scorer: binpack.New(), Weight: 1}, {Scorer: spread.New(), Weight: 1}, {Scorer: affinity.New(), Weight: 1}}}
}

func config() Config { return Config{Chain: chain(), Seed: 1, Keep: policy.Keep{Buffer: 10}} }

// drawPool makes a pool whose instances stand where the policies put them.
func drawPool(t *rapid.T, plain bool) Pool {
	var pool Pool
	for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
		n := policytest.Node(t, fmt.Sprintf("n%d", i))
		if plain {
			n.Spec.Taints, n.Spec.Cordoned = nil, false
			n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
		}
		pool.Nodes = append(pool.Nodes, n)
	}
	for i, v := range []int64{0, 1, 2, 3} {
		pool.Classes = append(pool.Classes, &api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: fmt.Sprintf("c%d", i)}}, Spec: api.PriorityClassSpec{Value: v, Preempt: v > 1}})
	}
	for _, tn := range []string{"s", "t"} {
		g := api.Resources{api.CPU: rapid.Int64Range(0, 4000).Draw(t, "guarantee")}
		pool.Tenants = append(pool.Tenants, &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: tn, Revision: 1}}, Spec: api.TenantSpec{Guarantee: g}})
		if m := rapid.IntRange(0, 2).Draw(t, "budget"); m > 0 {
			m--
			pool.Budgets = append(pool.Budgets, &api.DisruptionBudget{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: "b", Tenant: tn}},
				Spec: api.DisruptionBudgetSpec{Labels: map[string]string{"app": "web"}, MaxUnavailable: &m}})
		}
	}
	p := New(pool, config())
	for i := range rapid.IntRange(0, 14).Draw(t, "instances") {
		in := drawInstance(t, fmt.Sprintf("i%d", i), plain)
		pool.Instances = append(pool.Instances, in)
		it := policy.ItemAt(in, p.ranks.of(in).Value)
		if pl := p.planner.Decide(it); pl.Node != "" {
			p.planner.Take(pl)
			a := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: in.Name, Tenant: in.Tenant}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: pl.Node, Generation: 1}}
			pl.Alloc.Write(&a.Spec)
			pool.Assignments = append(pool.Assignments, a)
		}
	}
	return pool
}

func drawInstance(t *rapid.T, name string, plain bool) *api.Instance {
	it := policytest.Item(t, name)
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: it.Ref.Tenant, UID: "uid-" + name, Labels: it.Labels, Revision: 1}}, Spec: *it.Spec}
	in.Spec.Priority = fmt.Sprintf("c%d", it.Priority)
	switch rapid.IntRange(0, 12).Draw(t, "state") {
	case 0:
		in.Spec.Stopped = true
	case 1:
		in.Status.State = api.StateFailed
	}
	if plain {
		in.Spec.Placement, in.Spec.Ports, in.Spec.Stopped, in.Status.State = nil, nil, false, ""
		in.Spec.Requests = api.Resources{api.CPU: max(in.Spec.Requests[api.CPU], 1), api.Memory: max(in.Spec.Requests[api.Memory], 1)}
		in.Spec.Limits = nil
	}
	return in
}

func drawHosts(t *rapid.T, pool Pool) api.PlanHosts {
	if rapid.Bool().Draw(t, "zone") {
		return api.PlanHosts{Zone: rapid.SampledFrom(pool.Nodes).Draw(t, "of").Spec.Zone}
	}
	h := api.PlanHosts{}
	for range rapid.IntRange(1, 3).Draw(t, "hosts") {
		h.Nodes = append(h.Nodes, rapid.SampledFrom(pool.Nodes).Draw(t, "host").Name)
	}
	return h
}

func drawQuestion(t *rapid.T, pool Pool) Question {
	h := drawHosts(t, pool)
	spec := drawInstance(t, "asked", false).Spec
	switch rapid.IntRange(0, 5).Draw(t, "question") {
	case 0:
		return Question{Lose: &h}
	case 1:
		return Question{Drain: &h}
	case 2:
		return Question{Add: &api.PlanAdd{Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30, api.Instances: 110}, Count: rapid.IntRange(0, 3).Draw(t, "count"), Zone: "za"}}
	case 3:
		spec.Requests = api.Resources{api.CPU: max(spec.Requests[api.CPU], 50)} // a hundred at most on a node
		spec.Limits = nil
		return Question{Fit: &api.PlanFit{Tenant: "t", Spec: spec, Labels: map[string]string{"app": "web"}, Count: rapid.IntRange(0, 20).Draw(t, "count")}}
	case 4:
		return Question{Quota: &api.PlanQuota{Tenant: rapid.SampledFrom([]string{"s", "t", "fresh"}).Draw(t, "tenant"), Guarantee: api.Resources{api.CPU: rapid.Int64Range(0, 9000).Draw(t, "guarantee")}}}
	}
	var q Question
	for i := range rapid.IntRange(1, 5).Draw(t, "objects") {
		in := drawInstance(t, fmt.Sprintf("o%d", i), false)
		if len(pool.Instances) > 0 && rapid.IntRange(0, 2).Draw(t, "known") == 0 {
			old := rapid.SampledFrom(pool.Instances).Draw(t, "old")
			in.Name, in.Tenant = old.Name, old.Tenant
		}
		if !slices.ContainsFunc(q.Objects, func(o api.Object) bool { return api.RefOf(o) == api.RefOf(in) }) {
			q.Objects = append(q.Objects, in)
		}
	}
	return q
}

// picture is all that a view shows.
func picture(v *policy.View) string {
	var b strings.Builder
	for _, n := range v.Nodes {
		o, err := json.Marshal(n.Object)
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&b, "%s %s %v %v %v %v %v\n", n.Name, o, n.Used, n.Guaranteed, n.Published, n.Devices, n.Cells)
		for _, it := range n.Items {
			spare, by, bounded := v.Spare(it)
			fmt.Fprintf(&b, "  %s %v %d %s %v\n", it.UID, v.Alloc(it.UID), spare, by, bounded)
		}
	}
	for _, t := range []string{"s", "t"} {
		fmt.Fprintln(&b, v.UsedBy(t))
	}
	return b.String()
}

// Whatever is asked: the view is as before, the objects are untouched, and the same
// question has the same answer.
func TestQuestionsChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := drawPool(t, false)
		p := New(pool, config())
		objects, err := json.Marshal(pool)
		if err != nil {
			t.Fatal(err)
		}
		before := picture(p.view)
		for range rapid.IntRange(1, 3).Draw(t, "questions") {
			q := drawQuestion(t, pool)
			first, err := p.Answer(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			if now := picture(p.view); now != before {
				t.Fatalf("the view changed\nfrom %s\nto   %s", before, now)
			}
			cfg := config()
			if rapid.Bool().Draw(t, "known") {
				cfg.Items = p.Items()
			}
			again, err := New(pool, cfg).Answer(t.Context(), q)
			if err != nil || !reflect.DeepEqual(first, again) {
				x, _ := json.Marshal(first)
				y, _ := json.Marshal(again)
				t.Fatalf("%v\nfirst %s\nagain %s", err, x, y)
			}
		}
		if after, err := json.Marshal(pool); err != nil || string(after) != string(objects) {
			t.Fatal("the objects were changed")
		}
	})
}

// No plan puts more on a host than it has, nor anything on one that is lost, closed or not there.
func TestPlansNeverOvercommit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := drawPool(t, false)
		q := drawQuestion(t, pool)
		p := New(pool, config())
		a, err := p.Answer(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		used, on := map[string]policy.Vector{}, map[string]string{}
		request := map[string]policy.Vector{}
		for _, n := range p.view.Nodes {
			used[n.Name] = n.Used
			for _, it := range n.Items {
				on[it.Ref.Tenant+"/"+it.Ref.Name], request[it.Ref.Tenant+"/"+it.Ref.Name] = n.Name, it.Request
			}
		}
		move := func(pp api.PlanPlace) {
			k := pp.Instance.Tenant + "/" + pp.Instance.Name
			r, known := request[k]
			if from := on[k]; from != "" && pp.Stays == "" {
				u := used[from]
				u.Sub(&r)
				used[from] = u
			}
			if pp.To == "" || pp.Stays != "" {
				return
			}
			if !known || q.Objects != nil {
				r = policy.VectorOf(pp.Requests)
				r[policy.Instances] = 1
			}
			u := used[pp.To]
			u.Add(&r)
			used[pp.To] = u
			if slices.Contains(a.Nodes, pp.To) && a.Question != "add" {
				t.Fatalf("%s goes to %s, which is to be empty", k, pp.To)
			}
			if n := p.view.Node(pp.To); n != nil && pp.From == "" && !open(n) {
				t.Fatalf("%s goes to %s, which is closed", k, pp.To)
			}
		}
		// Those of a file that are there already keep their place whatever they become.
		changed := false
		for _, pp := range slices.Concat(a.Places, a.Evicted) {
			move(pp)
		}
		for _, pp := range a.Places {
			for _, in := range pool.Instances { // a stopped one takes nothing
				changed = changed || q.Objects != nil && api.RefOf(in) == pp.Instance
			}
		}
		for _, n := range p.view.Nodes {
			u := used[n.Name]
			for i, x := range u {
				if x > n.Allocatable[i] && x > n.Used[i] && !changed && (i == policy.CPU || i == policy.Memory) {
					t.Fatalf("%s: %d of %s, it has %d", n.Name, x, api.ResourceNames()[i], n.Allocatable[i])
				}
			}
		}
		if a.Fit != nil {
			for _, rn := range a.Fit.Nodes {
				n := p.view.Node(rn.Node)
				if need := int64(rn.Count) * q.Fit.Spec.Requests[api.CPU]; need > n.Free(policy.CPU) {
					t.Fatalf("%d on %s need %d CPU, %d is free", rn.Count, rn.Node, need, n.Free(policy.CPU))
				}
			}
		}
	})
}

// A drain moves no more at a time than budgets allow, a loss asks no budget.
func TestBudgetsBindDrainsOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := drawPool(t, true)
		h := drawHosts(t, pool)
		p := New(pool, config())
		spare := map[string]int{}
		for _, n := range p.view.Nodes {
			for _, it := range n.Items {
				if s, by, bounded := p.view.Spare(it); bounded {
					spare[it.Ref.Name] = s
					_ = by
				}
			}
		}
		a, err := p.Answer(t.Context(), Question{Drain: &h})
		if err != nil {
			t.Fatal(err)
		}
		rounds := map[string]int{}
		for _, pp := range a.Places {
			s, bounded := spare[pp.Instance.Name]
			if !bounded {
				continue
			}
			if s == 0 && pp.Stays == "" {
				t.Fatalf("%v moves, the budget allows none", pp)
			}
			if pp.Stays == "" {
				k := fmt.Sprint(pp.Instance.Tenant, pp.Round)
				if rounds[k]++; rounds[k] > s {
					t.Fatalf("%d of %s in round %d, %d are allowed", rounds[k], pp.Instance.Tenant, pp.Round, s)
				}
			}
		}
		l, err := p.Answer(t.Context(), Question{Lose: &h})
		if err != nil {
			t.Fatal(err)
		}
		for _, pp := range l.Places {
			if pp.Stays != "" || pp.Round != 0 {
				t.Fatalf("a loss waits for nobody: %+v", pp)
			}
		}
		if len(l.Places) != len(a.Places) {
			t.Fatalf("%d to move by loss, %d by drain", len(l.Places), len(a.Places))
		}
	})
}

// N+1 says what losing each host by itself says.
func TestSpareIsLosingEach(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := drawPool(t, true)
		for _, tn := range pool.Tenants {
			tn.Spec.Guarantee = nil
		}
		p := New(pool, config())
		s, err := p.spare(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(pool.Nodes) == 1 {
			if s.Holds || s.Reason == "" {
				t.Fatalf("one host: %+v", s)
			}
			return
		}
		failing := map[string]int{}
		for _, n := range pool.Nodes {
			a, err := p.Answer(t.Context(), Question{Lose: &api.PlanHosts{Nodes: []string{n.Name}}})
			if err != nil {
				t.Fatal(err)
			}
			if a.Pending > 0 {
				failing[n.Name] = a.Pending
			}
		}
		for _, w := range s.Worst {
			if failing[w.Node] != w.Pending {
				t.Fatalf("without %s %d have no room, losing it says %d", w.Node, w.Pending, failing[w.Node])
			}
		}
		must := 0
		for _, n := range p.view.Nodes {
			need, room := int64(0), int64(0)
			for _, it := range n.Items {
				need += it.Request[policy.CPU]
			}
			for _, o := range p.view.Nodes {
				if o != n {
					room += max(o.Free(policy.CPU), 0)
				}
			}
			if need > room {
				must++
			}
		}
		if s.Failing < must {
			t.Fatalf("%d hosts have more than the others can take, %d are said to", must, s.Failing)
		}
		// The other way round the search may find room that the planner misses.
		if s.Failing > len(failing) || s.Holds != (s.Failing == 0) {
			t.Fatalf("%+v, losing each: %v", s, failing)
		}
	})
}

// As many fit as are then placed.
func TestFitIsWhatApplyPlaces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := drawPool(t, true)
		pool.Instances = slices.DeleteFunc(pool.Instances, func(in *api.Instance) bool {
			return !slices.ContainsFunc(pool.Assignments, func(a *api.Assignment) bool { return a.Spec.InstanceUID == in.UID })
		})
		spec := api.InstanceSpec{Image: "busybox", Requests: api.Resources{api.CPU: rapid.Int64Range(200, 3000).Draw(t, "cpu"), api.Memory: rapid.Int64Range(1, 2<<30).Draw(t, "memory")}}
		fit, err := New(pool, config()).Answer(t.Context(), Question{Fit: &api.PlanFit{Spec: spec}})
		if err != nil {
			t.Fatal(err)
		}
		var q Question
		for i := range fit.Fit.Count + 1 {
			q.Objects = append(q.Objects, &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprintf("x%d", i), Tenant: "t"}}, Spec: spec})
		}
		a, err := New(pool, config()).Answer(t.Context(), q)
		if err != nil || a.Placed != fit.Fit.Count || a.Pending != 1 {
			t.Fatalf("%d fit, %d of %d are placed: %v", fit.Fit.Count, a.Placed, len(q.Objects), err)
		}
		if fit.Fit.Decision == nil || len(fit.Fit.Decision.Refusals) == 0 {
			t.Fatal("no reason why not more")
		}
	})
}

// The search for any host says what filters asked anew say.
func TestSearchIsWhatFiltersSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := New(drawPool(t, false), config())
		r := p.searcher(slices.Clone(p.view.Nodes))
		kinds := []*policy.Item{policytest.Item(t, "a"), policytest.Item(t, "b"), policytest.Item(t, "c")}
		for i := range rapid.IntRange(1, 20).Draw(t, "steps") {
			c := *rapid.SampledFrom(kinds).Draw(t, "kind")
			it := &c
			it.UID = fmt.Sprintf("s%d", i%10)
			if rapid.Bool().Draw(t, "gone") {
				p.view.Unplace(it.UID)
				continue
			}
			p.view.Unplace(it.UID)
			but := rapid.SampledFrom(p.view.Nodes).Draw(t, "but")
			var admit []string
			for _, n := range p.view.Nodes {
				ok := n != but
				for _, f := range p.cfg.Chain.Filters {
					ok = ok && policytest.Admit(f, p.view, n, it) == ""
				}
				if ok {
					admit = append(admit, n.Name)
				}
			}
			n := r.find(it, but)
			if n == nil && len(admit) > 0 || n != nil && !slices.Contains(admit, n.Name) {
				t.Fatalf("found %v, the filters admit %v", n, admit)
			}
			if n != nil {
				p.view.Place(it, n.Name, policy.Alloc{})
			}
		}
	})
}

// A drain goes in rounds that a budget allows.
func TestDrainRounds(t *testing.T) {
	one := 1
	pool := Pool{Budgets: []*api.DisruptionBudget{{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: "web", Tenant: "t"}},
		Spec: api.DisruptionBudgetSpec{Labels: map[string]string{"app": "web"}, MaxUnavailable: &one}}}}
	for i := range 2 {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: fmt.Sprintf("n%d", i)}}}
		n.Status.Allocatable = api.Resources{api.CPU: 4000, api.Memory: 8 << 30, api.Instances: 100}
		n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
		n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
		pool.Nodes = append(pool.Nodes, n)
	}
	for i := range 4 {
		in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprintf("w%d", i), Tenant: "t", UID: fmt.Sprintf("u%d", i), Labels: map[string]string{"app": "web"}}}}
		if i == 3 {
			in.Labels = nil // nobody's budget
		}
		pool.Instances = append(pool.Instances, in)
		pool.Assignments = append(pool.Assignments, &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: in.Name, Tenant: "t"}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: "n0"}})
	}
	a, err := New(pool, config()).Answer(t.Context(), Question{Drain: &api.PlanHosts{Nodes: []string{"n0"}}})
	if err != nil {
		t.Fatal(err)
	}
	var rounds []string
	for _, p := range a.Places {
		rounds = append(rounds, fmt.Sprintf("%s:%d", p.Instance.Name, p.Round))
	}
	if got := strings.Join(rounds, " "); got != "w0:1 w1:2 w2:3 w3:1" || !a.Holds {
		t.Fatalf("%s %+v", got, a)
	}
}

// What a newcomer avoids counts for those that were looked at before it came.
func TestSearchSeesNewAvoiders(t *testing.T) {
	pool := Pool{}
	for i := range 2 {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: fmt.Sprintf("n%d", i)}}}
		n.Status.Allocatable = api.Resources{api.CPU: 4000, api.Memory: 8 << 30, api.Instances: 100}
		n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
		n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
		pool.Nodes = append(pool.Nodes, n)
	}
	p := New(pool, config())
	item := func(name string, placement *api.Placement) *policy.Item {
		return policy.ItemOf(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: "t", UID: name, Labels: map[string]string{"app": name}}}, Spec: api.InstanceSpec{Placement: placement}})
	}
	web := item("web", nil)
	r := p.searcher(slices.Clone(p.view.Nodes))
	first := r.find(web, nil)
	p.view.Place(item("shy", &api.Placement{Avoid: []api.AffinityTerm{{Labels: map[string]string{"app": "web"}}}}), first.Name, policy.Alloc{})
	if next := r.find(web, nil); next == nil || next == first {
		t.Fatalf("web may not be where shy is, found %v", next)
	}
}
