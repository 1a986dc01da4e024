package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
)

// islands is a fixture with three hosts of 4 CPU; demo has the first for itself, acme
// two instances on the second, one of them with a port.
func islands(t testing.TB) *fixture {
	f := newFixture(t, Config{})
	for i := range 3 {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: meta(fmt.Sprintf("isle%d", i+1))}, Spec: api.NodeSpec{Zone: []string{"a", "a", "b"}[i]}}
		n.Status.Allocatable = api.Resources{api.CPU: 4000, api.Memory: 8 << 30, api.Instances: 100}
		n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
		n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
		f.put(n)
	}
	f.put(&api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: meta("high")}, Spec: api.PriorityClassSpec{Value: 1000, Preempt: true}})
	on := func(tenant, name, node string, cpu int64, edit func(*api.Instance)) {
		in := instance(tenant, name)
		in.UID, in.Spec.Requests = tenant+"-"+name, api.Resources{api.CPU: cpu, api.Memory: 1 << 30}
		if edit != nil {
			edit(in)
		}
		f.put(in)
		if node != "" {
			f.put(&api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: tenant, Name: name}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: node, Generation: 1}})
		}
	}
	on("demo", "secret-a", "isle1", 2000, nil)
	on("demo", "secret-b", "isle1", 2000, nil)
	on("acme", "web", "isle2", 1000, func(in *api.Instance) { in.Spec.Ports = []api.Port{{Port: 80, Publish: 8080}} })
	on("acme", "db", "isle2", 2000, nil)
	on("demo", "secret-c", "isle3", 1000, func(in *api.Instance) { in.Spec.Ports = []api.Port{{Port: 80, Publish: 8081}} })
	return f
}

func ask(f *fixture, who, tenant string, req api.PlanRequest) reply {
	b, err := json.Marshal(req)
	if err != nil {
		f.t.Fatal(err)
	}
	url := "/v1/plan"
	if tenant != "" {
		url += "?tenant=" + tenant
	}
	return f.do(as(who), "POST", url, string(b))
}

func lose(names ...string) api.PlanRequest {
	return api.PlanRequest{Lose: &api.PlanHosts{Nodes: names}}
}

func TestPlanAnswersAndChangesNothing(t *testing.T) {
	f := islands(t)
	before, rev, err := f.mem.List(t.Context(), api.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	var a api.PlanAnswer
	ask(f, "root", "", lose("isle2")).want(200).json(&a)
	if a.Question != "lose" || a.Placed != 2 || a.Pending != 0 || !a.Holds || a.Of != 3 || a.Places[0].To != "isle3" || a.At.IsZero() {
		t.Fatalf("%+v", a)
	}
	ask(f, "otto", "", api.PlanRequest{Drain: &api.PlanHosts{Zone: "a"}}).want(200).json(&a)
	ask(f, "otto", "", api.PlanRequest{Add: &api.PlanAdd{Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30}}}).want(200).json(&a)
	after, now, err := f.mem.List(t.Context(), api.Selector{})
	if err != nil || now != rev || len(after) != len(before) {
		t.Fatalf("a plan wrote: revision %d after %d", now, rev)
	}
	cl, _ := f.served(root(), false)
	if a, err = cl.Plan(t.Context(), "", lose("isle2")); err != nil || a.Placed != 2 {
		t.Fatalf("%+v %v", a, err)
	}
}

func TestPlanRefusesNonsense(t *testing.T) {
	f := islands(t)
	for _, body := range []string{`{}`, `{"lose":{"nodes":["isle1"]},"drain":{"nodes":["isle1"]}}`, `{"lose":{}}`, `{"lose":{"nodes":["isle1"],"zone":"a"}}`,
		`{"loose":{}}`, `[]`, `nonsense`, `{"objects":[{"kind":"Instance"}]}`, `{"objects":[{"kind":"Nope"}]}`, `{"fit":{"spec":{"requests":{"cpu":"-1"}}}}`,
		`{"add":{"capacity":{"cpu":"4"}}}`, `{"add":{"capacity":{"cpu":"4","memory":"1Gi"},"count":1000000}}`, `{"quota":{"tenant":"Not a name"}}`,
		`{"quota":{"tenant":"acme","guarantee":{"cpu":"4"},"limit":{"cpu":"2"}}}`} {
		if r := f.do(root(), "POST", "/v1/plan", body); r.Code != 422 {
			t.Errorf("%s: %d %s", body, r.Code, r.Body)
		}
	}
	p := f.do(root(), "POST", "/v1/plan", `{"lose":{"nodes":["isle22"]}}`).problem(errs.NotFound)
	if !strings.Contains(p.Hint, "isle2") {
		t.Errorf("no hint: %+v", p)
	}
}

// Somebody of one tenant may ask about it, and learns nothing of others but counts.
func TestPlanForATenant(t *testing.T) {
	f := islands(t)
	add := api.PlanRequest{Add: &api.PlanAdd{Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30}}}
	fit := func(tenant string) api.PlanRequest {
		return api.PlanRequest{Fit: &api.PlanFit{Tenant: tenant, Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: 500}}}}
	}
	quota := func(tenant string) api.PlanRequest { return api.PlanRequest{Quota: &api.PlanQuota{Tenant: tenant}} }
	file := func(objs ...api.Object) (r api.PlanRequest) {
		for _, o := range objs {
			r.Objects = append(r.Objects, json.RawMessage(encode(t, o)))
		}
		return r
	}
	for name, req := range map[string]api.PlanRequest{"lose": lose("isle2"), "drain": {Drain: &api.PlanHosts{Nodes: []string{"isle2"}}}, "add": add,
		"fit": fit(""), "fit demo": fit("demo"), "quota": quota("demo"), "instance": file(instance("demo", "x")), "mixed": file(instance("acme", "x"), instance("demo", "x")),
		"tenant": file(tenantObj("demo")), "class": file(&api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: meta("p")}}),
		"node": file(&api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle1")}})} {
		ask(f, "ann", "", req).problem(errs.Denied)
		t.Log(name, "is refused")
	}
	ask(f, "nora", "", fit("acme")).problem(errs.Denied)
	ask(f, "vera", "", quota("acme")).want(200)
	ask(f, "ann", "", fit("acme")).want(200)
	ask(f, "ann", "acme", fit("")).want(200)

	big := instance("acme", "big") // takes demo's place, and wants a port that demo has
	big.Spec.Placement = &api.Placement{Node: "isle1"}
	big.Spec.Priority, big.Spec.Requests = "high", api.Resources{api.CPU: 4000}
	ports := instance("acme", "ports")
	ports.Spec.Ports = []api.Port{{Port: 80, Publish: 8080}, {Port: 81, Publish: 8081}}
	ports.Spec.Placement = &api.Placement{Zone: "b"}
	r := ask(f, "ann", "", file(big, ports)).want(200)
	var a api.PlanAnswer
	r.json(&a)
	if strings.Contains(r.Body.String(), "secret") || strings.Contains(r.Body.String(), "demo") {
		t.Errorf("the answer tells of another tenant: %s", r.Body)
	}
	if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "priority:high") {
		t.Errorf("ann may not preempt: %v", a.Notes)
	}
	if len(a.Places) != 2 || a.Places[0].EvictsOthers == 0 || a.EvictedOthers != a.Places[0].EvictsOthers || a.Places[1].To != "" {
		t.Errorf("%s", r.Body)
	}
	a = api.PlanAnswer{}
	ask(f, "vera", "", file(ports)).want(200).json(&a)
	if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "may not create instance") {
		t.Errorf("vera only looks: %v", a.Notes)
	}
	a = api.PlanAnswer{}
	ask(f, "root", "", file(big, ports)).want(200).json(&a)
	if a.Notes != nil {
		t.Errorf("root may: %v", a.Notes)
	}
	if a.EvictedOthers != 0 || len(a.Evicted) == 0 || a.Places[0].Evicts[0].Tenant != "demo" {
		t.Errorf("%+v", a)
	}
}

// A server without policies says so.
func TestPlanNeedsPolicies(t *testing.T) {
	f := islands(t)
	f.Chain.Filters = nil
	f.do(root(), "POST", "/v1/plan", `{"lose":{"nodes":["isle2"]}}`).problem(errs.Unsupported)
}

// Whatever is asked, the answer is an answer or a problem of the caller's.
func FuzzPlan(f *testing.F) {
	for _, s := range []string{`{"lose":{"nodes":["isle1"]}}`, `{"drain":{"zone":"a"}}`, `{"add":{"capacity":{"cpu":"16","memory":"64Gi","gpu":"2"},"count":2}}`,
		`{"fit":{"tenant":"acme","spec":{"image":"b","requests":{"cpu":"2","gpu":"500m"},"placement":{"spread":[{"topology":"zone","maxSkew":1}]}},"count":3}}`,
		`{"quota":{"tenant":"acme","guarantee":{"cpu":"9223372036854775"},"limit":{}}}`,
		`{"objects":[{"kind":"Instance","metadata":{"name":"x","tenant":"acme"},"spec":{"image":"b","requests":{"cpu":"9223372036854775","memory":"7Ei"}}},{"kind":"Node","metadata":{"name":"isle1"},"spec":{"cordoned":true}}]}`,
		`{"objects":[{"kind":"Instance","metadata":{"name":"web","tenant":"acme"},"spec":{"image":"b","stopped":true}},{"kind":"Tenant","metadata":{"name":"acme"},"spec":{"suspended":true}}]}`} {
		f.Add([]byte(s))
	}
	fix := islands(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		g := *fix
		g.t = t
		r := g.do(root(), "POST", "/v1/plan", string(body))
		switch r.Code {
		case 200, 404, 422:
		default:
			t.Fatalf("%d %s", r.Code, r.Body)
		}
	})
}
