package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/store"
)

func urlOf(rt *Route, tenant string) string {
	u := strings.ReplaceAll(rt.Path, "{name}", "x")
	if tenant != "" {
		u += "?tenant=" + tenant
	}
	return u
}

// Every route there is turns away who has no right to it, and says which is missing.
func TestEveryRouteNeedsARight(t *testing.T) {
	f := newFixture(t, Config{})
	seen := 0
	for _, rt := range f.routes {
		if n := count(rt.Public, rt.Known, rt.Verb != ""); n != 1 {
			t.Errorf("%s %s: exactly one of Public, Known and Verb must be set", rt.Method, rt.Path)
		}
		if rt.Public {
			switch rt.Path {
			case "/healthz", "/readyz", "/version", "/openapi.json":
			case "/v1/join", "/v1/join/adopt", "/v1/join/renew", "/install", "/install/{os}/{arch}/{binary}": // join_test.go holds them to their own checks
			default:
				t.Errorf("%s is public", rt.Path)
			}
			continue
		}
		// Nobody in particular.
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, httptest.NewRequest(rt.Method, urlOf(rt, "acme"), nil))
		reply{w, t}.problem(errs.Unauthenticated)
		if rt.Known {
			continue
		}
		seen++
		for _, tenant := range []string{"", "acme"} {
			p := f.do(as("nora"), rt.Method, urlOf(rt, tenant), "{}").problem(errs.Denied)
			if !strings.Contains(p.Detail, string(rt.Verb)) || p.Hint == "" {
				t.Errorf("%s %s: %+v does not say what is missing", rt.Method, rt.Path, p)
			}
			if r := f.audit.last(); r.Kind != errs.Denied || r.Who.User != "nora" || r.Status != 403 {
				t.Errorf("%s %s: the denial is not in the audit log: %+v", rt.Method, rt.Path, r)
			}
		}
		// A right in another tenant does not help.
		if rt.Def != nil && rt.Def.Tenanted || rt.Path == "/v1/usage" {
			f.do(as("ann"), rt.Method, urlOf(rt, "demo"), "{}").problem(errs.Denied)
		}
	}
	if seen < 60 {
		t.Fatalf("only %d routes were looked at", seen)
	}
	f.do(as("nora"), "GET", "/v1/whoami", "").want(200)
	body := `{"ops":[{"verb":"put","rev":0,"object":` + encode(t, instance("acme", "a")) + `}]}`
	f.do(as("nora"), "POST", "/v1/commit", body).problem(errs.Denied)
	f.do(as("nora"), "POST", "/v1/commit", `{"full":true,"ops":[]}`).problem(errs.Denied)
}

func count(list ...bool) (n int) {
	for _, b := range list {
		if b {
			n++
		}
	}
	return n
}

// What is not in the table is not there, and says so as a problem.
func TestUnknownRoutes(t *testing.T) {
	f := newFixture(t, Config{})
	f.do(root(), "GET", "/v2/nothing", "").problem(errs.NotFound)
	r := f.do(root(), "POST", "/v1/nodes/x", "{}")
	if r.Code != http.StatusMethodNotAllowed || r.Header().Get("Allow") != "DELETE, GET, PATCH, PUT" {
		t.Fatalf("%d %v", r.Code, r.Header())
	}
	if r := f.do(root(), "DELETE", "/v1/ledgers/quota", ""); r.Code != http.StatusMethodNotAllowed {
		t.Fatalf("a kind nobody may write can be deleted: %d", r.Code)
	}
}

// A user of acme learns nothing of demo.
func TestTenantIsolation(t *testing.T) {
	f := newFixture(t, Config{})
	for _, in := range []*api.Instance{instance("acme", "a"), instance("acme/research", "r"), instance("demo", "secret")} {
		f.do(root(), "POST", "/v1/instances", encode(t, in)).want(201)
	}
	rev, err := f.mem.Commit(t.Context(), store.Create(&api.Event{Head: api.Head{K: api.KindEvent, Meta: api.Meta{Name: "e", Tenant: "demo"}}}))
	if err != nil || rev == 0 {
		t.Fatal(err)
	}
	ann := as("ann")
	for _, path := range []string{
		"/v1/instances/secret?tenant=demo", "/v1/instances?tenant=demo", "/v1/instances?tenant=demo&watch=true", "/v1/events?tenant=demo",
		"/v1/instances/secret/logs?tenant=demo", "/v1/instances/secret/exec?tenant=demo", "/v1/instances/secret/copy?tenant=demo",
		"/v1/usage?tenant=demo", "/v1/tenants/demo", "/v1/images/pull/stream?tenant=demo", "/v1/all", "/v1/all?watch=true", "/v1/all?tenant=acme",
		"/v1/nodes", "/v1/users", "/v1/backup",
		// the same answer for what is not there
		"/v1/instances/missing?tenant=demo", "/v1/instances/secret?tenant=demo/nested", "/v1/instances/secret?tenant=acme-demo",
	} {
		p := f.do(ann, "GET", path, "").problem(errs.Denied)
		if strings.Contains(p.Detail, "secret") {
			t.Errorf("%s: the denial names an object: %s", path, p.Detail)
		}
	}
	f.do(ann, "GET", "/v1/instances/missing?tenant=acme", "").problem(errs.NotFound)
	for _, c := range []struct{ path, want string }{
		{"/v1/instances", "acme/a acme/research/r"},
		{"/v1/instances?limit=1", "acme/a"},
		{"/v1/instances?tenant=acme", "acme/a"},
		{"/v1/instances?tenant=acme&nested=true", "acme/a acme/research/r"},
		{"/v1/tenants", "/acme /acme/research"},
		{"/v1/events", ""},
	} {
		if got := f.names(ann, c.path); got != c.want {
			t.Errorf("%s: got %q, want %q", c.path, got, c.want)
		}
	}
	if got := f.names(root(), "/v1/instances"); got != "acme/a acme/research/r demo/secret" {
		t.Errorf("root sees %q", got)
	}
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/v1/instances", encode(t, instance("demo", "x"))},
		{"PUT", "/v1/instances/secret?tenant=demo", encode(t, instance("demo", "secret"))},
		{"PATCH", "/v1/instances/secret?tenant=demo", `{"spec":{"stopped":true}}`},
		{"DELETE", "/v1/instances/secret?tenant=demo", ""},
		{"PUT", "/v1/instances/secret/status?tenant=demo", encode(t, instance("demo", "secret"))},
		{"PUT", "/v1/instances/a/status?tenant=acme", encode(t, instance("acme", "a"))},
		{"POST", "/v1/tenants", encode(t, tenantObj("acme/x"))},
		{"PATCH", "/v1/tenants/acme", `{"spec":{"weight":10000}}`},
		{"POST", "/v1/commit", `{"ops":[{"verb":"delete","rev":-1,"ref":{"kind":"Instance","tenant":"demo","name":"secret"}}]}`},
		{"POST", "/v1/commit", `{"ops":[{"verb":"delete","rev":-1,"ref":{"kind":"Instance","tenant":"demo","name":"missing"}}]}`},
		{"POST", "/v1/commit", `{"ops":[{"verb":"check","rev":0,"ref":{"kind":"Instance","tenant":"demo","name":"secret"}}]}`},
		{"POST", "/v1/commit", `{"ops":[{"verb":"put","rev":-1,"object":` + encode(t, instance("demo", "secret")) + `}]}`},
		{"POST", "/v1/commit", `{"ops":[{"verb":"put","rev":-1,"object":` + encode(t, instance("demo", "missing")) + `}]}`},
	} {
		f.do(ann, c.method, c.path, c.body).problem(errs.Denied)
	}
}

// names lists as "tenant/name …".
func (f *fixture) names(who auth.Identity, path string) string {
	f.t.Helper()
	var l struct {
		Items []api.Head `json:"items"`
	}
	f.do(who, "GET", path, "").want(200).json(&l)
	var out []string
	for _, h := range l.Items {
		out = append(out, h.Tenant+"/"+h.Name)
	}
	return strings.Join(out, " ")
}

// Nobody can hand out more than they have.
func TestNoEscalation(t *testing.T) {
	f := newFixture(t, Config{})
	f.put(binding("chief", "admin", "acme", "vera")) // vera: everything, but in acme only
	vera := as("vera")
	for what, body := range map[string]string{
		"admin of the pool": encode(t, binding("x", "viewer", "", "vera")),
		"in demo":           encode(t, binding("x", "viewer", "demo", "vera")),
	} {
		f.do(vera, "POST", "/v1/rolebindings", body).problem(errs.Denied)
		t.Log(what, "is refused")
	}
	f.do(vera, "POST", "/v1/rolebindings", encode(t, binding("ok", "developer", "acme/research", "nora"))).want(201)
	f.do(vera, "PATCH", "/v1/rolebindings/ok", `{"spec":{"tenant":"demo"}}`).problem(errs.Denied)
	f.do(vera, "PATCH", "/v1/rolebindings/otto", `{"spec":{"users":["vera"]}}`).problem(errs.Denied)
	f.do(as("nora"), "POST", "/v1/instances", encode(t, instance("acme/research", "n"))).want(201) // in force at once

	// A role manager cannot give themselves more.
	f.put(&api.Role{Head: api.Head{K: api.KindRole, Meta: meta("clerk")}, Spec: api.RoleSpec{Rules: []api.RoleRule{
		{Verbs: []api.Verb{"get", "list", "create", "update", "delete"}, Kinds: []string{"role", "rolebinding", "user", "token"}}}}})
	f.put(user0("cleo"), binding("cleo", "clerk", "", "cleo"))
	cleo := as("cleo")
	more := `{"kind":"Role","metadata":{"name":"clerk"},"spec":{"rules":[{"verbs":["*"],"kinds":["*"]}]}}`
	f.do(cleo, "PUT", "/v1/roles/clerk", more).problem(errs.Denied)
	f.do(cleo, "POST", "/v1/roles", strings.Replace(more, "clerk", "boss", 1)).problem(errs.Denied)
	f.do(cleo, "POST", "/v1/rolebindings", encode(t, binding("y", "admin", "", "cleo"))).problem(errs.Denied)
	f.do(cleo, "PATCH", "/v1/rolebindings/adam", `{"spec":{"users":["adam","cleo"]}}`).problem(errs.Denied)
	f.do(cleo, "PATCH", "/v1/users/adam", `{"spec":{"hostUser":"cleo"}}`).problem(errs.Denied)
	f.do(cleo, "PATCH", "/v1/users/nora", `{"spec":{"fullName":"Nora"}}`).problem(errs.Denied) // nora is a developer by now
	f.do(cleo, "POST", "/v1/users", encode(t, user0("zoe"))).want(201)
	tok := `{"kind":"Token","metadata":{"name":"t"},"spec":{"user":"adam"}}`
	f.do(cleo, "POST", "/v1/tokens", tok).problem(errs.Denied)
	f.do(as("adam"), "POST", "/v1/tokens", tok).want(201)
	if got := f.names(cleo, "/v1/tokens"); got != "" {
		t.Errorf("other people's tokens are shown: %s", got)
	}
	f.do(cleo, "GET", "/v1/tokens/t", "").problem(errs.NotFound)
	f.do(cleo, "DELETE", "/v1/tokens/t", "").problem(errs.NotFound)
	f.do(cleo, "POST", "/v1/commit", `{"ops":[{"verb":"delete","rev":-1,"ref":{"kind":"Token","name":"t"}}]}`).problem(errs.NotFound)
}

// put writes past the API and lets the server know.
func (f *fixture) put(objs ...api.Object) {
	f.t.Helper()
	for _, o := range objs {
		if _, err := f.mem.Commit(f.t.Context(), store.Set(o)); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := f.LoadAuth(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func TestGrants(t *testing.T) {
	f := newFixture(t, Config{})
	cases := map[string]*api.InstanceSpec{
		"capability:NET_ADMIN": {Image: "b", Capabilities: &api.Capabilities{Add: []string{"net_admin"}}},
		"hostpath:/srv/data/x": {Image: "b", Volumes: []api.Mount{{HostPath: "/srv/data/x", Path: "/d"}}},
		"network:host":         {Image: "b", Networks: []api.Attach{{Name: "host"}}},
	}
	for want, spec := range cases {
		in := instance("acme", "g")
		in.Spec = *spec
		p := f.do(as("ann"), "POST", "/v1/instances", encode(t, in)).problem(errs.Denied)
		if !strings.Contains(p.Detail, want) || !strings.Contains(p.Hint, want) {
			t.Errorf("%s: %+v", want, p)
		}
	}
	f.put(&api.Role{Head: api.Head{K: api.KindRole, Meta: meta("mounts")}, Spec: api.RoleSpec{Rules: []api.RoleRule{
		{Verbs: []api.Verb{"get"}, Kinds: []string{"instance"}, Grants: []string{"hostpath:/srv/data", "capability:NET_ADMIN"}}}}},
		binding("mounts", "mounts", "acme/research", "ann"))
	try := func(tenant, hostPath string) reply {
		in := instance(tenant, "")
		in.Spec.Volumes = []api.Mount{{HostPath: hostPath, Path: "/d"}}
		return f.do(as("ann"), "POST", "/v1/instances", encode(t, in))
	}
	try("acme/research", "/srv/data").want(201)
	try("acme/research", "/srv/data/x/y").want(201)
	try("acme/research", "/srv/database").problem(errs.Denied)
	try("acme/research", "/srv").problem(errs.Denied)
	try("acme", "/srv/data").problem(errs.Denied)
	if r := try("acme/research", "/srv/data/../../etc"); r.Code < 400 {
		t.Fatal("a path that climbs out was accepted")
	}

	// Who has not the right cannot change the program of an instance that has it, but may stop it.
	in := instance("acme", "priv")
	in.Spec.Capabilities = &api.Capabilities{Add: []string{"NET_ADMIN"}}
	f.do(root(), "POST", "/v1/instances", encode(t, in)).want(201)
	f.do(as("ann"), "PATCH", "/v1/instances/priv?tenant=acme", `{"spec":{"command":["sh"]}}`).problem(errs.Denied)
	f.do(as("ann"), "PATCH", "/v1/instances/priv?tenant=acme", `{"spec":{"health":{"exec":["sh"]}}}`).problem(errs.Denied)
	f.do(as("ann"), "PATCH", "/v1/instances/priv?tenant=acme", `{"spec":{"stopped":true,"limits":{"memory":"64Mi"}}}`).want(200)
}

// The document says exactly what the table does.
func TestOpenAPI(t *testing.T) {
	f := newFixture(t, Config{})
	var doc struct {
		OpenAPI    string `json:"openapi"`
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Schemas   map[string]json.RawMessage
			Responses map[string]json.RawMessage
		}
	}
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/openapi.json", nil))
	reply{w, t}.want(200).json(&doc)
	if doc.OpenAPI != "3.1.0" {
		t.Fatal(doc.OpenAPI)
	}
	ids := map[string]bool{}
	n := 0
	for _, rt := range f.routes {
		raw, ok := doc.Paths[rt.Path][strings.ToLower(rt.Method)]
		if !ok {
			t.Errorf("%s %s is not in the document", rt.Method, rt.Path)
			continue
		}
		n++
		var op struct {
			OperationID string `json:"operationId"`
			Summary     string
			Parameters  []struct{ Name, In string }
			RequestBody *json.RawMessage
			Responses   map[string]json.RawMessage
		}
		if err := json.Unmarshal(raw, &op); err != nil {
			t.Fatal(err)
		}
		if op.OperationID == "" || ids[op.OperationID] || op.Summary == "" || op.Responses["default"] == nil {
			t.Errorf("%s %s: %s", rt.Method, rt.Path, raw)
		}
		ids[op.OperationID] = true
		if (rt.Body != "") != (op.RequestBody != nil) {
			t.Errorf("%s %s: request body", rt.Method, rt.Path)
		}
		if !rt.Public && (op.Responses["401"] == nil || op.Responses["403"] == nil) {
			t.Errorf("%s %s: denials are not documented", rt.Method, rt.Path)
		}
		hasName := false
		for _, p := range op.Parameters {
			hasName = hasName || p.Name == "name" && p.In == "path"
		}
		if hasName != strings.Contains(rt.Path, "{name}") {
			t.Errorf("%s %s: path parameter", rt.Method, rt.Path)
		}
	}
	total := 0
	for _, item := range doc.Paths {
		total += len(item)
	}
	if total != n {
		t.Errorf("%d operations in the document, %d routes", total, n)
	}
	for _, d := range api.Definitions() {
		if doc.Components.Schemas[string(d.Kind)] == nil {
			t.Errorf("no schema of %s", d.Kind)
		}
	}
	var all any
	if err := json.Unmarshal(w.Body.Bytes(), &all); err != nil {
		t.Fatal(err)
	}
	checkRefs(t, all, func(ref string) bool {
		kind, name, _ := strings.Cut(strings.TrimPrefix(ref, "#/components/"), "/")
		if kind == "schemas" {
			return doc.Components.Schemas[name] != nil
		}
		return doc.Components.Responses[name] != nil
	})
	if !strings.Contains(string(doc.Components.Schemas["Instance"]), "placed by it, and guaranteed") {
		t.Error("fields are not documented")
	}
}

func checkRefs(t *testing.T, v any, known func(string) bool) {
	switch v := v.(type) {
	case map[string]any:
		if r, ok := v["$ref"].(string); ok && !known(r) {
			t.Errorf("%s leads nowhere", r)
		}
		for _, e := range v {
			checkRefs(t, e, known)
		}
	case []any:
		for _, e := range v {
			checkRefs(t, e, known)
		}
	}
}

// The examples in the document are accepted.
func TestOpenAPIExamples(t *testing.T) {
	f := newFixture(t, Config{})
	f.put(user0("ci"), user0("chen"))
	for _, rt := range f.routes {
		if rt.Method != "POST" || rt.Def == nil || strings.Contains(rt.Path, "{name}") {
			continue
		}
		b, err := json.Marshal(sample(rt))
		if err != nil {
			t.Fatal(err)
		}
		body := strings.Replace(string(b), `"name":"acme"`, `"name":"fresh"`, 1)
		f.do(root(), "POST", rt.Path, body).want(max(rt.Status, 200))
	}
}

func sample(r *Route) any {
	shown := r.shown()
	return shown.Sample()
}
