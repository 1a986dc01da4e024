package plan

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"atoll/api"
	"atoll/cmd/atolld/builtin"
	engine "atoll/internal/plan"
	"atoll/internal/policy"
	"atoll/internal/store"
	admission "atoll/internal/store/quota"
)

var update = flag.Bool("update", false, "rewrite testdata")

// small is a pool of a small company: three hosts in two rooms.
func small(t *testing.T) engine.Pool {
	p := engine.Pool{}
	for i, zone := range []string{"room-a", "room-a", "room-b"} {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: fmt.Sprintf("isle%d", i+1)}}, Spec: api.NodeSpec{Zone: zone, Rack: "r1"}}
		n.Status.Allocatable = api.Resources{api.CPU: 8000, api.Memory: 32 << 30, api.Instances: 250}
		n.Status.Capacity = n.Status.Allocatable
		n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
		n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
		p.Nodes = append(p.Nodes, n)
	}
	p.Classes = []*api.PriorityClass{{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: "high"}}, Spec: api.PriorityClassSpec{Value: 1000, Preempt: true}}}
	one, none := 1, 0
	for name, m := range map[string]*int{"web": &one, "render": &none} {
		p.Budgets = append(p.Budgets, &api.DisruptionBudget{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: name, Tenant: "acme"}},
			Spec: api.DisruptionBudgetSpec{Labels: map[string]string{"app": name}, MaxUnavailable: m}})
	}
	for _, x := range []struct {
		name, app, node string
		cpu, gib        int64
		edit            func(*api.InstanceSpec)
	}{
		{"web-1", "web", "isle1", 1000, 1, nil}, {"web-2", "web", "isle2", 1000, 1, nil}, {"web-3", "web", "isle2", 1000, 1, nil},
		{"db", "db", "isle2", 2000, 6, func(s *api.InstanceSpec) { s.Volumes = []api.Mount{{Name: "data", Path: "/data"}} }},
		{"render", "render", "isle2", 2000, 2, nil}, {"old", "old", "isle2", 500, 1, func(s *api.InstanceSpec) { s.Stopped = true }},
		{"cache", "cache", "isle1", 3000, 4, nil}, {"batch", "batch", "isle3", 6000, 8, nil},
		{"huge", "huge", "", 1000, 40, nil},
	} {
		in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: x.name, Tenant: "acme", UID: "uid-" + x.name, Labels: map[string]string{"app": x.app}}}}
		in.Spec = api.InstanceSpec{Image: "busybox", Requests: api.Resources{api.CPU: x.cpu, api.Memory: x.gib << 30}}
		if x.edit != nil {
			x.edit(&in.Spec)
		}
		p.Instances = append(p.Instances, in)
		p.Assignments = append(p.Assignments, &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: x.name, Tenant: "acme"}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: x.node, Generation: 1}})
	}
	acme := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "acme"}}, Spec: api.TenantSpec{Guarantee: api.Resources{api.CPU: 12000, api.Memory: 16 << 30}, Limit: api.Resources{api.CPU: 40000, api.Instances: 14}}}
	books(t, &p, acme, &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "demo"}}})
	return p
}

// books lets admission itself count the pool.
func books(t *testing.T, p *engine.Pool, tenants ...*api.Tenant) {
	ctx := context.Background()
	mem := store.NewMem()
	q := admission.New(mem)
	for _, n := range p.Nodes {
		big := api.Clone(n) // all of it is admitted, also what does not fit
		big.Status.Allocatable = api.Resources{api.CPU: 1e6, api.Memory: 1 << 50}
		commit(t, mem, store.Create(big))
	}
	for _, tn := range tenants {
		commit(t, q, store.Create(tn))
	}
	for _, in := range p.Instances {
		commit(t, q, store.Create(in))
	}
	var err error
	if p.Tenants, _, err = store.List[*api.Tenant](ctx, mem, api.Selector{Kind: api.KindTenant}); err != nil {
		t.Fatal(err)
	}
	if p.Ledgers, _, err = store.List[*api.Ledger](ctx, mem, api.Selector{Kind: api.KindLedger}); err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, s store.Store, op store.Op) {
	t.Helper()
	if _, err := s.Commit(context.Background(), op); err != nil {
		t.Fatal(err)
	}
}

func newInstance(name string, cpu, gib int64, edit func(*api.InstanceSpec)) *api.Instance {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: "acme"}}, Spec: api.InstanceSpec{Image: "busybox", Requests: api.Resources{api.CPU: cpu, api.Memory: gib << 30}}}
	if edit != nil {
		edit(&in.Spec)
	}
	return in
}

// What people read, and what the exit code says, for every question.
func TestText(t *testing.T) {
	gang := func(s *api.InstanceSpec) {
		s.Placement = &api.Placement{Gang: &api.Gang{Name: "train", Size: 4}}
		s.Ports = []api.Port{{Port: 80, Publish: 8080}} // one on a host
	}
	for name, c := range map[string]struct {
		q     engine.Question
		holds bool
		wide  bool
		title string
	}{
		"lose":        {q: engine.Question{Lose: &api.PlanHosts{Nodes: []string{"isle1"}}}, wide: true},
		"lose-more":   {q: engine.Question{Lose: &api.PlanHosts{Nodes: []string{"isle2"}}}, holds: true},
		"lose-zone":   {q: engine.Question{Lose: &api.PlanHosts{Zone: "room-a"}}},
		"drain":       {q: engine.Question{Drain: &api.PlanHosts{Nodes: []string{"isle2"}}}},
		"drain-leave": {q: engine.Question{Drain: &api.PlanHosts{Nodes: []string{"isle2"}, Leave: true}}},
		"evacuate":    {q: engine.Question{Drain: &api.PlanHosts{Nodes: []string{"isle2"}, Evacuate: true}}},
		"add":         {q: engine.Question{Add: &api.PlanAdd{Capacity: api.Resources{api.CPU: 16000, api.Memory: 64 << 30}, Count: 2}}, holds: true},
		"add-small":   {q: engine.Question{Add: &api.PlanAdd{Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30}}}},
		"fit":         {q: engine.Question{Fit: &api.PlanFit{Tenant: "acme", Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: 2000, api.Memory: 1 << 30}}}}, holds: true},
		"fit-none":    {q: engine.Question{Fit: &api.PlanFit{Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: 64000}}}}},
		"fit-count":   {q: engine.Question{Fit: &api.PlanFit{Count: 30, Tenant: "demo", Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: 500, api.Memory: 2 << 30}}}}},
		"quota":       {q: engine.Question{Quota: &api.PlanQuota{Tenant: "acme", Guarantee: api.Resources{api.CPU: 8000}, Limit: api.Resources{api.CPU: 20000}}}, holds: true, title: "acme with guarantee cpu=8 and limit cpu=20"},
		"quota-much":  {q: engine.Question{Quota: &api.PlanQuota{Tenant: "demo", Guarantee: api.Resources{api.CPU: 8000}}}, title: "demo with guarantee cpu=8 and limit -"},
		"quota-fresh": {q: engine.Question{Quota: &api.PlanQuota{Tenant: "fresh", Guarantee: api.Resources{api.CPU: 1000}}}, holds: true, title: "fresh with guarantee cpu=1 and limit -"},
		"file":        {q: engine.Question{Objects: []api.Object{newInstance("new", 1000, 1, nil), newInstance("web-1", 1000, 1, nil), newInstance("off", 1000, 1, func(s *api.InstanceSpec) { s.Stopped = true })}}, holds: true},
		"file-evicts": {q: engine.Question{Objects: []api.Object{newInstance("vip", 5000, 4, func(s *api.InstanceSpec) { s.Priority = "high" })}}},
		"file-large":  {q: engine.Question{Objects: []api.Object{newInstance("batch", 9000, 8, nil), newInstance("x", 1000, 64, nil)}}},
		"file-limit":  {q: engine.Question{Objects: []api.Object{newInstance("a", 100, 1, nil), newInstance("b", 100, 1, nil), newInstance("c", 100, 1, nil), newInstance("d", 100, 1, nil), newInstance("e", 100, 1, nil), newInstance("f", 100, 1, nil)}}},
		"file-gang":   {q: engine.Question{Objects: []api.Object{newInstance("g1", 100, 1, gang), newInstance("g2", 100, 1, gang), newInstance("g3", 100, 1, gang), newInstance("g4", 100, 1, gang)}}},
		"file-gang2":  {q: engine.Question{Objects: []api.Object{newInstance("g1", 100, 1, gang), newInstance("g2", 100, 1, gang)}}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := engine.New(small(t), engine.Config{Chain: builtin.Policies(), Seed: 1, Keep: policy.Keep{Buffer: 10}}).Answer(t.Context(), c.q)
			if err != nil {
				t.Fatal(err)
			}
			if a.Holds != c.holds {
				t.Errorf("holds: %v", a.Holds)
			}
			head := c.title
			if head == "" {
				head = title(api.PlanRequest{Add: c.q.Add, Fit: c.q.Fit})
			}
			got := text(a, head, c.wide)
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || string(want) != got {
				t.Errorf("got\n%s\nwant\n%s%v", got, want, err)
			}
		})
	}
}
