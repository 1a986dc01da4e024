package server

import (
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

func (f *fixture) maintenance(name string) *api.Maintenance {
	f.t.Helper()
	n, err := store.Get[*api.Node](f.t.Context(), f.mem, api.Ref{Kind: api.KindNode, Name: name})
	if err != nil {
		f.t.Fatal(err)
	}
	return n.Spec.Maintenance
}

func TestMaintenanceIsTheOperatorsAndItsTimeTheServers(t *testing.T) {
	f := islands(t)
	f.do(as("otto"), "PATCH", "/v1/nodes/isle1", `{"spec":{"maintenance":{"mode":"drain","why":"new memory"}}}`).want(200)
	first := f.maintenance("isle1").Since
	if time.Since(first) > time.Minute || first.After(time.Now().Add(time.Second)) {
		t.Fatalf("since %s", first)
	}
	f.do(as("otto"), "PATCH", "/v1/nodes/isle1", `{"spec":{"maintenance":{"mode":"evacuate","since":null}}}`).want(200)
	if m := f.maintenance("isle1"); !m.Since.Equal(first) || m.Mode != "evacuate" || m.Why != "new memory" {
		t.Fatalf("the same maintenance, done in another way: %+v, it began %s", m, first)
	}
	f.do(as("otto"), "PATCH", "/v1/nodes/isle1", `{"spec":{"maintenance":null}}`).want(200)
	f.do(as("otto"), "PATCH", "/v1/nodes/isle1", `{"spec":{"maintenance":{"mode":"drain","since":"2026-01-02T03:04:05Z"}}}`).want(200)
	if m := f.maintenance("isle1"); !m.Since.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Fatalf("a time that is given stays: %+v", m)
	}
	for _, who := range []string{"ann", "vera", "nora"} {
		f.do(as(who), "PATCH", "/v1/nodes/isle2", `{"spec":{"maintenance":{"mode":"drain"}}}`).problem(errs.Denied)
	}
	for _, bad := range []string{`{"mode":"empty"}`, `{"mode":"drain","patience":"-1s"}`, `{"mode":"drain","patience":"9000h"}`, `{"mode":"drain","leaf":true}`} {
		f.do(as("otto"), "PATCH", "/v1/nodes/isle2", `{"spec":{"maintenance":`+bad+`}}`).problem(errs.Invalid)
	}
	if f.maintenance("isle2") != nil {
		t.Fatal("what was refused was done")
	}
}

func TestDrainsAreReadOnly(t *testing.T) {
	f := islands(t)
	f.put(&api.Drain{Head: api.Head{K: api.KindDrain, Meta: meta("isle1")}, Spec: api.DrainSpec{Mode: "drain", State: api.DrainMoving}})
	f.do(as("otto"), "GET", "/v1/drains/isle1", "").want(200)
	f.do(as("otto"), "POST", "/v1/drains", `{"metadata":{"name":"isle2"},"spec":{"mode":"drain","state":"done"}}`).problem(errs.Unsupported)
	f.do(as("otto"), "PATCH", "/v1/drains/isle1", `{"spec":{"state":"done"}}`).problem(errs.Unsupported)
	for _, who := range []string{"ann", "nora"} { // it names instances of every tenant
		f.do(as(who), "GET", "/v1/drains/isle1", "").problem(errs.Denied)
	}
}

func TestPlanOfADrain(t *testing.T) {
	f := islands(t)
	f.put(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Tenant: "acme", Name: "own", UID: "own", Annotations: map[string]string{api.AnnotationPerNode: "yes"}}}, Spec: api.InstanceSpec{Image: "x"}},
		&api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: "acme", Name: "own"}}, Spec: api.AssignmentSpec{InstanceUID: "own", Node: "isle2", Generation: 1}},
		&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Tenant: "acme", Name: "job", UID: "job"}}, Spec: api.InstanceSpec{Image: "x", Restart: "never"}},
		&api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: "acme", Name: "job"}}, Spec: api.AssignmentSpec{InstanceUID: "job", Node: "isle2", Generation: 1}})
	var a api.PlanAnswer
	ask(f, "otto", "", api.PlanRequest{Drain: &api.PlanHosts{Nodes: []string{"isle2"}}}).want(200).json(&a)
	if !a.Holds || a.Placed != 3 || a.Pending != 0 || len(a.Places) != 4 {
		t.Fatalf("what belongs to the host stands in nobody's way: %+v", a)
	}
	for _, p := range a.Places {
		if p.Instance.Name == "own" && (p.To != "isle2" || p.Stays == "" || p.Halts) || p.Instance.Name == "job" && len(p.Notes) != 1 {
			t.Errorf("%+v", p)
		}
	}
	ask(f, "otto", "", api.PlanRequest{Lose: &api.PlanHosts{Nodes: []string{"isle2"}, Leave: true}}).problem(errs.Invalid)
}
