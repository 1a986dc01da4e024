package server

import (
	"crypto/rand"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/quota"
)

// adoptive is a server with admission, and a host that has a pool of its own.
func adoptive(t *testing.T) *fixture {
	f := newFixture(t, Config{Pool: api.PoolSettings{Subnet: "10.88.0.0/16"}})
	f.Server = New(Deps{Store: quota.New(f.mem), Auth: auth.New(clock.Real{}, auth.Config{}), CA: f.CA, Hub: f.hub, Clock: clock.Real{}, Rand: rand.Reader, Audit: f.audit.add}, f.cfg)
	if err := f.LoadAuth(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle1")}, Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: 1000, api.Memory: 1 << 30}}})
	return f
}

func ownPool(t *testing.T, m machine, change ...func(*api.AdoptRequest)) api.AdoptRequest {
	t.Helper()
	tn := tenantObj("shop")
	tn.Status.UIDBase, tn.Status.UIDCount = 1<<22, 65536
	in := instance("shop", "web")
	in.UID, in.Status.Node, in.Status.State = strings.Repeat("ab", 16), "isle9", api.StateRunning
	in.Spec.Requests = api.Resources{api.Memory: 2 << 30} // more than this pool has, less than with the host
	as := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: "web", Tenant: "shop"}}, Spec: api.AssignmentSpec{Node: "isle9", InstanceUID: in.UID, Generation: 1, Address: "10.88.0.2"}}
	node := &api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle9")}, Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: 4000, api.Memory: 4 << 30}}}
	req := api.AdoptRequest{CSR: m.csr, Node: "isle9", Was: "isle9", Tenant: "acme", Subnet: "10.88.0.0/16"}
	for _, o := range []api.Object{tn, in, as, node} {
		b, err := api.Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		req.Objects = append(req.Objects, b)
	}
	for _, c := range change {
		c(&req)
	}
	return req
}

func (f *fixture) adopt(token string, req api.AdoptRequest) reply {
	f.t.Helper()
	b, err := json.Marshal(req)
	if err != nil {
		f.t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/v1/join/adopt", strings.NewReader(string(b)))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, r)
	return reply{w, f.t}
}

func TestAdopt(t *testing.T) {
	f, m := adoptive(t), newMachine(t)
	word := f.joinToken("t", `{"uses":1,"adopt":"acme"}`)
	before, rev, err := f.mem.List(t.Context(), api.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	var ans api.AdoptAnswer
	f.adopt(word, ownPool(t, m, func(r *api.AdoptRequest) { r.DryRun = true })).want(200).json(&ans)
	if ans.Join != nil || len(ans.Plan.Clashes) > 0 || ans.Plan.Tenants["shop"] != "acme/shop" {
		t.Fatalf("%+v", ans)
	}
	if after, now, err := f.mem.List(t.Context(), api.Selector{}); err != nil || now != rev || len(after) != len(before) {
		t.Fatalf("a dry run wrote: %d, %d, %v", rev, now, err)
	}
	f.adopt(word, ownPool(t, m)).want(200).json(&ans)
	if ans.Join == nil || ans.Join.Node != "isle9" || ans.Join.Certificate == "" {
		t.Fatalf("%+v", ans)
	}
	in, err := store.Get[*api.Instance](t.Context(), f.mem, api.Ref{Kind: api.KindInstance, Tenant: "acme/shop", Name: "web"})
	if err != nil || in.UID != strings.Repeat("ab", 16) || in.Status.State != api.StateRunning {
		t.Fatalf("%+v %v", in, err)
	}
	tn, err := store.Get[*api.Tenant](t.Context(), f.mem, api.Ref{Kind: api.KindTenant, Name: "acme/shop"})
	if err != nil || tn.Status.UIDBase != 1<<22 {
		t.Fatalf("it has other user IDs: %+v %v", tn, err)
	}
	led, err := store.Get[*api.Ledger](t.Context(), f.mem, api.Ref{Kind: api.KindLedger, Tenant: "acme", Name: api.LedgerName})
	if err != nil || led.Spec.Requested[api.Memory] != 2<<30 {
		t.Fatalf("%+v %v", led, err)
	}
	if n, err := store.Get[*api.Node](t.Context(), f.mem, api.Ref{Kind: api.KindNode, Name: "isle9"}); err != nil || n.Ready() {
		t.Fatalf("something may be placed there before its agent is: %+v %v", n, err)
	}
	// The answer was lost: the same again, though the token is used up, and nothing changes.
	_, rev, err = f.mem.List(t.Context(), api.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	var again api.AdoptAnswer
	f.adopt(word, ownPool(t, m)).want(200).json(&again)
	if again.Join == nil || again.Plan.Tenants["shop"] != "acme/shop" || len(again.Plan.Clashes) > 0 {
		t.Fatalf("%+v", again)
	}
	if _, now, err := f.mem.List(t.Context(), api.Selector{}); err != nil || now != rev {
		t.Fatalf("it was made twice: %d %d %v", rev, now, err)
	}
	// Another host with the same names: told, and nothing is made. The name of the host is taken as well.
	word = f.joinToken("u", `{"adopt":"acme"}`)
	var clash api.AdoptAnswer
	f.adopt(word, ownPool(t, newMachine(t))).want(200).json(&clash)
	text, _ := json.Marshal(clash.Plan.Clashes)
	for _, want := range []string{"acme/shop", "user IDs", `"field":"node"`} {
		if clash.Join != nil || !strings.Contains(string(text), want) {
			t.Errorf("%q is missing: %s", want, text)
		}
	}
	if _, now, err := f.mem.List(t.Context(), api.Selector{}); err != nil || now != rev+1 { // the token
		t.Fatalf("a clash wrote: %d %d %v", rev, now, err)
	}
}

// What only admission knows is a clash, too.
func TestAdoptIsAdmitted(t *testing.T) {
	f := adoptive(t)
	req := ownPool(t, newMachine(t), func(r *api.AdoptRequest) { r.Objects = r.Objects[:3] }) // its host has nothing to give
	var ans api.AdoptAnswer
	f.adopt(f.joinToken("t", `{"adopt":"acme"}`), req).want(200).json(&ans)
	if ans.Join != nil || len(ans.Plan.Clashes) != 1 || ans.Plan.Clashes[0].Field != "admission" || !strings.Contains(ans.Plan.Clashes[0].Rule, "no room") {
		t.Fatalf("%+v", ans)
	}
}

func TestAdoptAtOnce(t *testing.T) {
	f, m := adoptive(t), newMachine(t)
	word := f.joinToken("t", `{"uses":1,"adopt":"acme"}`)
	var wg sync.WaitGroup
	for range 4 { // the same host, whose earlier calls it did not hear the end of
		wg.Go(func() {
			var ans api.AdoptAnswer
			if f.adopt(word, ownPool(t, m)).want(200).json(&ans); ans.Join == nil {
				t.Errorf("%+v", ans)
			}
		})
	}
	wg.Wait()
}

// Nothing comes by who may not let it in.
func TestAdoptRights(t *testing.T) {
	f, m := adoptive(t), newMachine(t)
	f.adopt("", ownPool(t, m)).problem(errs.Unauthenticated)
	f.adopt("atoll_x_y", ownPool(t, m)).problem(errs.Unauthenticated)
	plain := f.joinToken("plain", `{}`)
	if p := f.adopt(plain, ownPool(t, m)).problem(errs.Denied); !strings.Contains(p.Hint, "--adopt acme") {
		t.Errorf("%+v", p)
	}
	demo := f.joinToken("demo", `{"adopt":"demo"}`)
	f.adopt(demo, ownPool(t, m)).problem(errs.Denied)
	wrong := strings.Replace(demo, "atoll-join_demo_", "atoll-join_plain_", 1)
	f.adopt(wrong, ownPool(t, m)).problem(errs.Unauthenticated)
	// What is dangerous needs the token's word.
	mounts := func(r *api.AdoptRequest) {
		var in api.Instance
		if err := json.Unmarshal(r.Objects[1], &in); err != nil {
			t.Fatal(err)
		}
		in.Spec.Volumes = []api.Mount{{Path: "/x", HostPath: "/srv/x"}}
		r.Objects[1], _ = api.Encode(&in)
	}
	var ans api.AdoptAnswer
	f.adopt(f.joinToken("a", `{"adopt":"acme"}`), ownPool(t, m, mounts)).want(200).json(&ans)
	if ans.Join != nil || len(ans.Plan.Clashes) != 1 || ans.Plan.Clashes[0].Value != "hostpath:/srv/x" {
		t.Fatalf("%+v", ans.Plan)
	}
	f.adopt(f.joinToken("b", `{"adopt":"acme","grants":["hostpath:/srv"]}`), ownPool(t, m, mounts)).want(200).json(&ans)
	if ans.Join == nil {
		t.Fatalf("%+v", ans.Plan)
	}
}

// Who makes such a token must be allowed to make what can come by it.
func TestAdoptTokenRights(t *testing.T) {
	f := adoptive(t)
	tokens := &api.Role{Head: api.Head{K: api.KindRole, Meta: meta("porter")}, Spec: api.RoleSpec{Rules: []api.RoleRule{{Verbs: []api.Verb{api.VerbAny}, Kinds: []string{"jointoken"}}}}}
	f.put(tokens, binding("porter", "porter", "", "ann"))
	body := func(name, spec string) string { return `{"metadata":{"name":"` + name + `"},"spec":` + spec + `}` }
	f.do(as("ann"), "POST", "/v1/jointokens", body("p", `{}`)).want(201) // she may let hosts in,
	p := f.do(as("ann"), "POST", "/v1/jointokens", body("q", `{"adopt":"demo"}`)).problem(errs.Denied)
	if !strings.Contains(p.Detail, "demo") || p.Hint == "" {
		t.Errorf("%+v", p)
	}
	f.do(as("ann"), "PATCH", "/v1/jointokens/p", `{"spec":{"adopt":"demo"}}`).problem(errs.Denied) // but not make one more of it
	f.do(as("nora"), "POST", "/v1/jointokens", body("r", `{"adopt":"acme"}`)).problem(errs.Denied)
	f.do(root(), "POST", "/v1/jointokens", body("s", `{"adopt":"nowhere"}`)).problem(errs.NotFound)
	f.put(binding("chief", "operator", "acme", "ann"))
	f.do(as("ann"), "POST", "/v1/jointokens", body("t", `{"adopt":"acme","grants":["hostpath:/"]}`)).problem(errs.Denied)
	for _, bad := range []string{`{"adopt":"A"}`, `{"grants":["network:host"]}`, `{"adopt":"acme","grants":["root"]}`, `{"adopt":"acme","role":"witness"}`} {
		f.do(root(), "POST", "/v1/jointokens", body("x", bad)).problem(errs.Invalid)
	}
}

// What a host sends is not believed: odd bodies get an answer, and nothing is made.
func TestAdoptOddBodies(t *testing.T) {
	f, m := adoptive(t), newMachine(t)
	word := f.joinToken("t", `{"adopt":"acme"}`)
	for name, change := range map[string]func(*api.AdoptRequest){
		"no key":     func(r *api.AdoptRequest) { r.CSR = "x" },
		"bad node":   func(r *api.AdoptRequest) { r.Node = "../x" },
		"bad was":    func(r *api.AdoptRequest) { r.Was = "" },
		"twice":      func(r *api.AdoptRequest) { r.Objects = append(r.Objects, r.Objects[0]) },
		"bad tenant": func(r *api.AdoptRequest) { r.Tenant = "acme/" },
	} {
		if r := f.adopt(word, ownPool(t, m, change)); r.Code != 422 {
			t.Errorf("%s: %d %s", name, r.Code, r.Body)
		}
	}
	for name, object := range map[string]string{
		"kind":  `{"kind":"Gizmo","metadata":{"name":"g","tenant":"shop"}}`,
		"field": `{"kind":"Instance","metadata":{"name":"g","tenant":"shop"},"spec":{"image":"busybox","newer":1}}`,
		"name":  `{"kind":"Assignment","metadata":{"name":"../g","tenant":"shop"},"spec":{}}`,
		"null":  `null`,
	} {
		var ans api.AdoptAnswer
		f.adopt(word, ownPool(t, m, func(r *api.AdoptRequest) { r.Objects = append(r.Objects, json.RawMessage(object)) })).want(200).json(&ans)
		if ans.Join != nil || len(ans.Plan.Clashes) == 0 {
			t.Errorf("%s: %+v", name, ans)
		}
	}
	// A user's tenant gets the range the pool gives it, whatever it says.
	f.do(root(), "POST", "/v1/tenants", `{"metadata":{"name":"own"},"status":{"uidBase":4194304,"uidCount":65536}}`).want(201)
	if tn, err := store.Get[*api.Tenant](t.Context(), f.mem, api.Ref{Kind: api.KindTenant, Name: "own"}); err != nil || tn.Status.UIDBase == 1<<22 {
		t.Fatalf("%+v %v", tn, err)
	}
}
