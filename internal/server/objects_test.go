package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/remote"
)

func readInstance(t testing.TB, r reply) *api.Instance {
	t.Helper()
	o, err := api.DecodeAs(api.KindInstance, r.Body.Bytes())
	if err != nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	return o.(*api.Instance)
}

// What only the server says is set by it, whatever the caller sends.
func TestCreateSetsMetadata(t *testing.T) {
	f := newFixture(t, Config{})
	in := instance("acme", "web")
	now := time.Unix(1, 0)
	in.UID, in.Revision, in.Generation, in.Finalizers, in.DeletedAt, in.CreatedAt = "mine", 7, 9, []string{"mine"}, &now, &now
	in.Owner = &api.Ref{Kind: api.KindNode, Name: "x"}
	in.Annotations = map[string]string{keyAnnotation: "forged", "note": "x"}
	in.Status = api.InstanceStatus{State: api.StateRunning, Node: "evil"}
	r := f.do(as("ann"), "POST", "/v1/instances", encode(t, in)).want(201)
	got := readInstance(t, r)
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(got.UID) || got.Generation != 1 || got.DeletedAt != nil || got.Owner != nil ||
		len(got.Finalizers) != 1 || got.Finalizers[0] != "node" || got.Status.State != "" || got.CreatedAt == nil || got.CreatedAt.Year() < 2000 {
		t.Fatalf("%+v", got)
	}
	if len(got.Annotations) != 1 || got.Annotations["note"] != "x" {
		t.Fatalf("annotations %v", got.Annotations)
	}
	if r.Header().Get("Location") != "/v1/instances/web?tenant=acme" || r.Header().Get("ETag") != etag(got.Revision) {
		t.Fatalf("headers %v", r.Header())
	}
	stored, err := store.Get[*api.Instance](t.Context(), f.mem, api.RefOf(in))
	if err != nil || stored.Revision != got.Revision || stored.UID != got.UID {
		t.Fatalf("%+v %v", stored, err)
	}
	if p := f.do(as("ann"), "POST", "/v1/instances", encode(t, in)).problem(errs.Exists); p.Hint == "" {
		t.Error("no hint")
	}
}

func TestETags(t *testing.T) {
	f := newFixture(t, Config{})
	path := "/v1/instances/web?tenant=acme"
	tag := f.do(as("ann"), "POST", "/v1/instances", encode(t, instance("acme", "web"))).want(201).Header().Get("ETag")
	if r := f.do(as("ann"), "GET", path, "", "If-None-Match: "+tag); r.Code != 304 || r.Body.Len() != 0 {
		t.Fatal(r.Code, r.Body)
	}
	f.do(as("ann"), "GET", path, "", "If-None-Match: \"1\"").want(200)
	r := f.do(as("ann"), "PATCH", path, `{"spec":{"stopped":true}}`, "If-Match: "+tag).want(200)
	if in := readInstance(t, r); !in.Spec.Stopped || in.Generation != 2 || r.Header().Get("ETag") == tag {
		t.Fatalf("%+v", in)
	}
	for _, c := range [][2]string{{"PATCH", `{"spec":{"stopped":false}}`}, {"PUT", encode(t, instance("acme", "web"))}, {"DELETE", ""}} {
		f.do(as("ann"), c[0], path, c[1], "If-Match: "+tag).problem(errs.Conflict)
	}
	p := f.do(as("ann"), "PATCH", path, `{}`, "If-Match: nonsense").problem(errs.Invalid)
	if len(p.Fields) != 1 || p.Fields[0].Field != "If-Match" {
		t.Fatalf("%+v", p)
	}
	// The revision in a body that was read counts like If-Match.
	old := readInstance(t, f.do(as("ann"), "GET", path, ""))
	f.do(as("ann"), "PATCH", path, `{"metadata":{"labels":{"a":"b"}}}`).want(200)
	f.do(as("ann"), "PUT", path, encode(t, old)).problem(errs.Conflict)
}

func TestReplaceKeepsWhatIsTheServers(t *testing.T) {
	f := newFixture(t, Config{})
	path := "/v1/instances/web?tenant=acme"
	f.do(as("ann"), "POST", "/v1/instances", encode(t, instance("acme", "web"))).want(201)
	cur := readInstance(t, f.do(root(), "GET", path, ""))
	f.do(root(), "PUT", strings.Replace(path, "?", "/status?", 1), `{"metadata":{"name":"web","tenant":"acme"},"spec":{"image":"evil"},"status":{"state":"running","node":"isle1"}}`).want(200)
	got := readInstance(t, f.do(root(), "GET", path, ""))
	if got.Status.State != api.StateRunning || got.Spec.Image != "busybox" || got.Generation != 1 {
		t.Fatalf("a status report changed %+v", got)
	}
	next := instance("acme", "web")
	next.Spec.Image, next.Finalizers, next.Status.State = "debian", nil, api.StateFailed
	after := readInstance(t, f.do(as("ann"), "PUT", path, encode(t, next)).want(200))
	if after.UID != cur.UID || after.Status.State != api.StateRunning || after.Generation != 2 || len(after.Finalizers) != 1 || !after.CreatedAt.Equal(*cur.CreatedAt) {
		t.Fatalf("%+v", after)
	}
	// The same once more changes nothing: no new revision.
	again := readInstance(t, f.do(as("ann"), "PUT", path, encode(t, next)).want(200))
	if again.Revision != after.Revision {
		t.Fatalf("revision %d after %d", again.Revision, after.Revision)
	}
	next.UID = strings.Repeat("0", 32)
	f.do(as("ann"), "PUT", path, encode(t, next)).problem(errs.Conflict)
	next.UID, next.Name = "", "other"
	f.do(as("ann"), "PUT", path, encode(t, next)).problem(errs.Invalid)
	f.do(as("ann"), "PUT", "/v1/instances/none?tenant=acme", encode(t, instance("acme", "none"))).problem(errs.NotFound)
}

func TestDelete(t *testing.T) {
	f := newFixture(t, Config{})
	f.do(as("ann"), "POST", "/v1/instances", encode(t, instance("acme", "web"))).want(201)
	path := "/v1/instances/web?tenant=acme"
	first := readInstance(t, f.do(as("ann"), "DELETE", path, "").want(202))
	if first.DeletedAt == nil {
		t.Fatal("no mark")
	}
	if again := readInstance(t, f.do(as("ann"), "DELETE", path, "").want(202)); again.Revision != first.Revision {
		t.Fatal("the second mark wrote again")
	}
	f.do(as("ann"), "PATCH", path, `{"spec":{"stopped":true}}`).problem(errs.Conflict)
	f.do(root(), "POST", "/v1/priorityclasses", `{"metadata":{"name":"p"},"spec":{"value":1}}`).want(201)
	f.do(root(), "DELETE", "/v1/priorityclasses/p", "").want(200)
	f.do(root(), "GET", "/v1/priorityclasses/p", "").problem(errs.NotFound)
}

func TestNestedTenantInPath(t *testing.T) {
	f := newFixture(t, Config{})
	r := f.do(as("ann"), "GET", "/v1/tenants/acme%2Fresearch", "").want(200)
	if !strings.Contains(r.Body.String(), `"name":"acme/research"`) {
		t.Fatal(r.Body)
	}
	r = f.do(root(), "POST", "/v1/tenants", encode(t, tenantObj("acme/x"))).want(201)
	if l := r.Header().Get("Location"); l != "/v1/tenants/acme%2Fx" {
		t.Fatal(l)
	}
}

// Errors name the field, its value and what would be right.
func TestStrictDecoding(t *testing.T) {
	f := newFixture(t, Config{})
	for _, c := range []struct{ body, field, says string }{
		{`{"metadata":{"name":"a","tenant":"acme"},"spec":{"image":"b","limitz":{}}}`, "spec.limitz", "limits"},
		{`{"metadata":{"name":"A!","tenant":"acme"},"spec":{"image":"b"}}`, "metadata.name", "1 to 63"},
		{`{"metadata":{"name":"a"},"spec":{"image":"b"}}`, "metadata.tenant", "?tenant="},
		{`{"metadata":{"name":"a","tenant":"acme"},"spec":{"image":""}}`, "spec.image", "reference"},
		{`{"metadata":{"name":"a","tenant":"acme"},"spec":{"image":"b","restart":"sometimes"}}`, "spec.restart", "always"},
		{`{"kind":"Tenant","metadata":{"name":"a"}}`, "kind", "route"},
		{`{"kind":"Nonsense"}`, "kind", "one of"},
		{`{"metadata":{"name":"a","tenant":"acme"},"spec":{"image":["b"]}}`, "", "text"},
		{`{`, "", "JSON"},
		{`[]`, "", ""},
		{`null`, "kind", ""},
		{``, "", "JSON"},
	} {
		r := f.do(as("ann"), "POST", "/v1/instances", c.body)
		p := r.problem(errs.Invalid)
		if c.field != "" && (len(p.Fields) == 0 || p.Fields[0].Field != c.field) {
			t.Errorf("%s: fields %+v", c.body, p.Fields)
		}
		if !strings.Contains(p.Detail, c.says) {
			t.Errorf("%s: %s", c.body, p.Detail)
		}
	}
	f.do(as("ann"), "POST", "/v1/instances?tenant=demo", `{"metadata":{"name":"a","tenant":"acme"},"spec":{"image":"b"}}`).problem(errs.Denied)
	f.do(as("ann"), "POST", "/v1/instances", "{}", "Content-Type: text/xml").problem(errs.Invalid)
	p := f.do(as("ann"), "GET", "/v1/instances?label=x", "").problem(errs.Invalid)
	if p.Fields[0].Field != "label" {
		t.Fatalf("%+v", p)
	}
	for _, q := range []string{"limit=-1", "limit=x", "after=%25", "labels=%21%21", "fields=nope=1", "watch=true&rev=x"} {
		f.do(as("ann"), "GET", "/v1/instances?"+q, "").problem(errs.Invalid)
	}
}

func TestBodyIsBounded(t *testing.T) {
	f := newFixture(t, Config{MaxBody: 1000, MaxOps: 3})
	f.do(root(), "POST", "/v1/instances", `{"x":"`+strings.Repeat("a", 2000)+`"}`).problem(errs.Invalid)
	f.do(root(), "POST", "/v1/commit", `{"ops":[{},{},{},{}]}`).problem(errs.Invalid)
}

// A revision that is still to come is waited for, but not for ever.
func TestMinRevision(t *testing.T) {
	f := newFixture(t, Config{WriteTimeout: 30 * time.Millisecond})
	f.do(root(), "GET", fmt.Sprintf("/v1/instances?minRevision=%d", f.mem.Revision()), "").want(200)
	f.do(root(), "GET", "/v1/instances?minRevision=99999", "").problem(errs.Timeout)
	for _, name := range []string{"a%2Fb", "a%00", "%0a"} {
		f.do(root(), "GET", "/v1/instances/"+name+"?tenant=acme", "").problem(errs.Invalid)
	}
}

func TestInventedNames(t *testing.T) {
	f := newFixture(t, Config{})
	seen := map[string]bool{}
	for range 200 {
		in := readInstance(t, f.do(as("ann"), "POST", "/v1/instances?tenant=acme", `{"spec":{"image":"b"}}`).want(201))
		if !api.ValidName(in.Name) || seen[in.Name] {
			t.Fatalf("name %q", in.Name)
		}
		seen[in.Name] = true
	}
	f.do(root(), "POST", "/v1/tenants", `{"spec":{}}`).problem(errs.Invalid)
}

func TestIdempotency(t *testing.T) {
	f := newFixture(t, Config{})
	body := `{"spec":{"image":"b"}}`
	post := func(f *fixture, key, body string) reply {
		return f.do(as("ann"), "POST", "/v1/instances?tenant=acme", body, "Idempotency-Key: "+key)
	}
	first := readInstance(t, post(f, "k1", body).want(201))
	if again := readInstance(t, post(f, "k1", body).want(201)); again.UID != first.UID {
		t.Fatal("made twice")
	}
	if other := readInstance(t, post(f, "k2", body).want(201)); other.UID == first.UID {
		t.Fatal("another key, the same object")
	}
	p := post(f, "k1", `{"spec":{"image":"c"}}`).problem(errs.Invalid)
	if len(p.Fields) != 1 || p.Fields[0].Field != "Idempotency-Key" {
		t.Fatalf("%+v", p)
	}
	// Somebody else's key is another key.
	f.do(as("adam"), "POST", "/v1/instances?tenant=acme", body, "Idempotency-Key: k1").want(201)
	// After a restart the object itself remembers, also with an invented name.
	g := &fixture{t: t, mem: f.mem, audit: f.audit, Server: New(Deps{Store: f.mem, Auth: auth.New(clock.Real{}, auth.Config{}), Clock: clock.Real{}, Rand: rand.Reader}, Config{})}
	if err := g.LoadAuth(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := readInstance(t, post(g, "k1", body).want(201)); again.UID != first.UID {
		t.Fatal("made twice over a restart")
	}
	named := `{"metadata":{"name":"fixed"},"spec":{"image":"b"}}`
	one := readInstance(t, post(g, "k3", named).want(201))
	if again := readInstance(t, post(f, "k3", named).want(201)); again.UID != one.UID {
		t.Fatal("made twice over a restart")
	}
	post(f, "k4", named).problem(errs.Exists)
	// Many at once with one key: one object.
	var wg sync.WaitGroup
	uids := make([]string, 20)
	for i := range uids {
		wg.Go(func() {
			w := httptest.NewRecorder()
			req := httptest.NewRequest("POST", "/v1/instances?tenant=acme", strings.NewReader(body))
			req.Header.Set("Idempotency-Key", "race")
			f.As(as("ann")).ServeHTTP(w, req)
			if o, err := api.DecodeAs(api.KindInstance, w.Body.Bytes()); err == nil {
				uids[i] = o.Metadata().UID
			}
		})
	}
	wg.Wait()
	for _, u := range uids {
		if u == "" || u != uids[0] {
			t.Fatalf("%v", uids)
		}
	}
	// A failed attempt does not stick.
	post(f, "k5", `{"metadata":{"name":"NO"},"spec":{"image":"b"}}`).problem(errs.Invalid)
	post(f, "k5", body).want(201)
}

func TestPaging(t *testing.T) {
	f := newFixture(t, Config{})
	for i := range 25 {
		tn := []string{"acme", "demo", "acme/research"}[i%3]
		f.do(root(), "POST", "/v1/instances", encode(t, instance(tn, fmt.Sprintf("i%02d", i)))).want(201)
	}
	f.put(binding("ann2", "viewer", "demo", "ann"), binding("ann3", "viewer", "acme", "otto"))
	for _, who := range []string{"root", "ann", "vera"} {
		whole := f.names(as(who), "/v1/instances")
		for _, limit := range []int{1, 4, 7, 100} {
			var got []string
			after := ""
			for pages := 0; ; pages++ {
				var l struct {
					Items []api.Head `json:"items"`
					After string     `json:"after"`
				}
				f.do(as(who), "GET", fmt.Sprintf("/v1/instances?limit=%d&after=%s", limit, after), "").want(200).json(&l)
				for _, h := range l.Items {
					got = append(got, h.Tenant+"/"+h.Name)
				}
				if after = l.After; after == "" || pages > 30 {
					break
				}
			}
			if strings.Join(got, " ") != whole {
				t.Errorf("%s, pages of %d: %v, whole %s", who, limit, got, whole)
			}
		}
	}
}

func TestTokens(t *testing.T) {
	f := newFixture(t, Config{})
	make := func(who, body string) reply { return f.do(as(who), "POST", "/v1/tokens", body) }
	r := make("root", `{"metadata":{"name":"ci"},"spec":{"user":"ann","tenant":"acme","verbs":["get","list"]}}`).want(201)
	var tok api.Token
	r.json(&tok)
	secret := tok.Status.Secret
	if !strings.HasPrefix(secret, "atoll_ci_") || len(secret) < 50 || tok.Status.Hash != "" || tok.Spec.ExpiresAt == nil {
		t.Fatalf("%+v", tok)
	}
	for _, path := range []string{"/v1/tokens/ci", "/v1/tokens", "/v1/all"} {
		if b := f.do(root(), "GET", path, "").want(200).Body.String(); strings.Contains(b, secret) || strings.Contains(b, `"hash"`) || strings.Contains(b, `"secret"`) {
			t.Errorf("%s shows the secret or its hash: %s", path, b)
		}
	}
	bearer := func(token, method, path, body string) reply {
		req := httptest.NewRequest(method, path, strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, req)
		return reply{w, t}
	}
	bearer(secret, "GET", "/v1/instances?tenant=acme", "").want(200)
	p := bearer(secret, "POST", "/v1/instances?tenant=acme", `{"spec":{"image":"b"}}`).problem(errs.Denied)
	if !strings.Contains(p.Detail, "token ci allows only get, list") {
		t.Error(p.Detail)
	}
	bearer(secret, "GET", "/v1/nodes", "").problem(errs.Denied)
	bearer(secret+"x", "GET", "/v1/instances", "").problem(errs.Unauthenticated)
	bearer("atoll_ci_", "GET", "/v1/instances", "").problem(errs.Unauthenticated)
	bearer("", "GET", "/v1/instances", "").problem(errs.Unauthenticated)
	f.do(root(), "PATCH", "/v1/users/ann", `{"spec":{"suspended":true}}`).want(200)
	bearer(secret, "GET", "/v1/instances?tenant=acme", "").problem(errs.Denied)
	f.do(root(), "PATCH", "/v1/users/ann", `{"spec":{"suspended":false}}`).want(200)
	bearer(secret, "GET", "/v1/whoami", "").want(200)
	f.do(root(), "DELETE", "/v1/tokens/ci", "").want(200)
	bearer(secret, "GET", "/v1/whoami", "").problem(errs.Unauthenticated) // at once
	// Idempotency does not give the secret a second time.
	key := "Idempotency-Key: t"
	body := `{"metadata":{"name":"once"},"spec":{"user":"ann"}}`
	f.do(root(), "POST", "/v1/tokens", body, key).want(201)
	if b := f.do(root(), "POST", "/v1/tokens", body, key).want(201).Body.String(); strings.Contains(b, "secret") {
		t.Error("the secret was shown twice")
	}
	make("root", `{"metadata":{"name":"old"},"spec":{"user":"ann","expiresAt":"2001-01-01T00:00:00Z"}}`).problem(errs.Invalid)
	f.do(root(), "PATCH", "/v1/tokens/once", `{"spec":{"user":"adam"}}`).problem(errs.Invalid)
	if b := f.do(root(), "PATCH", "/v1/tokens/once", `{"metadata":{"labels":{"a":"b"}}}`).want(200); b.Code == 200 {
		stored, err := store.Get[*api.Token](t.Context(), f.mem, api.Ref{Kind: api.KindToken, Name: "once"})
		if err != nil || stored.Status.Hash == "" || stored.Status.Secret != "" {
			t.Fatalf("stored %+v %v", stored.Status, err)
		}
	}
}

func TestCommitSpecs(t *testing.T) {
	f := newFixture(t, Config{})
	s, _ := f.served(as("ann"), false)
	ctx := background(t)
	a, b := instance("acme", "a"), instance("acme/research", "b")
	res, rev, err := s.Apply(ctx, true, store.Set(a), store.Set(b))
	if err != nil || rev != 0 || len(res) != 2 || res[0].Action != "created" {
		t.Fatalf("%+v %d %v", res, rev, err)
	}
	if got := f.names(as("ann"), "/v1/instances"); got != "" {
		t.Fatalf("a dry run made %s", got)
	}
	if _, _, err = s.Apply(ctx, false, store.Set(a), store.Set(b)); err != nil {
		t.Fatal(err)
	}
	b.Spec.Image = "debian"
	res, _, err = s.Apply(ctx, false, store.Set(a), store.Set(b), store.Remove(api.RefOf(a), store.Any))
	if !errors.Is(err, errs.Invalid) {
		t.Fatalf("one object twice: %+v", res)
	}
	res, rev, err = s.Apply(ctx, false, store.Set(a), store.Set(b))
	if err != nil || res[0].Action != "unchanged" || res[1].Action != "updated" || res[1].Object.Metadata().Revision != rev || res[1].Object.Metadata().Generation != 2 {
		t.Fatalf("%+v %v", res, err)
	}
	res, _, err = s.Apply(ctx, false, store.Remove(api.RefOf(a), store.Any))
	if err != nil || res[0].Action != "deleting" || res[0].Object.Metadata().DeletedAt == nil {
		t.Fatalf("%+v %v", res, err)
	}
	// All or none, also when one is not allowed.
	_, _, err = s.Apply(ctx, false, store.Set(instance("acme", "c")), store.Set(instance("demo", "d")))
	if !errors.Is(err, errs.Denied) || !strings.Contains(err.Error(), "ops[1]") {
		t.Fatal(err)
	}
	if got := f.names(as("ann"), "/v1/instances?tenant=acme&name=c"); got != "" {
		t.Fatal(got)
	}
	_, err = s.Commit(ctx, store.Create(instance("acme/research", "b")))
	if !errors.Is(err, errs.Exists) {
		t.Fatal(err)
	}
	old, err := s.Get(ctx, api.RefOf(b))
	if err != nil {
		t.Fatal(err)
	}
	n := api.Clone(old)
	n.(*api.Instance).Spec.Stopped = true
	if _, err := s.Commit(ctx, store.Update(n)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, store.Update(n)); !errors.Is(err, errs.Conflict) {
		t.Fatalf("an old revision: %v", err)
	}
}

// An agent writes what is its own, and nothing else.
func TestNodeIdentity(t *testing.T) {
	f := newFixture(t, Config{})
	for _, n := range []string{"mine", "other"} {
		f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", n))).want(201)
	}
	mine := readInstance(t, f.do(root(), "GET", "/v1/instances/mine?tenant=acme", ""))
	f.put(&api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: "mine", Tenant: "acme"}}, Spec: api.AssignmentSpec{Node: "isle1", InstanceUID: mine.UID}})
	s, _ := f.served(as("node"), true)
	ctx := background(t)
	mine.Status = api.InstanceStatus{State: api.StateRunning, Node: "isle1"}
	mine.Spec.Image = "evil"
	if _, err := s.Commit(ctx, store.Update(mine)); err != nil {
		t.Fatal(err)
	}
	got, err := store.Get[*api.Instance](ctx, f.mem, api.RefOf(mine))
	if err != nil || got.Status.State != api.StateRunning || got.Spec.Image != "busybox" {
		t.Fatalf("%+v %v", got, err)
	}
	other := readInstance(t, f.do(root(), "GET", "/v1/instances/other?tenant=acme", ""))
	for what, op := range map[string]store.Op{
		"another node's instance": store.Update(other),
		"its removal":             store.Remove(api.RefOf(other), store.Any),
		"a new instance":          store.Create(instance("acme", "new")),
		"another node":            store.Set(&api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle2")}}),
		"an assignment":           store.Set(&api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: "other", Tenant: "acme"}}}),
		"a binding":               store.Set(binding("x", "admin", "", "nora")),
		"a user":                  store.Set(user0("x")),
	} {
		if _, err := s.Commit(ctx, op); !errors.Is(err, errs.Denied) && !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.Commit(ctx, store.Set(&api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle1")}}), store.Remove(api.RefOf(mine), store.Any)); err != nil {
		t.Error(err)
	}
	if _, _, err := s.List(ctx, api.Selector{Kind: api.KindToken}); !errors.Is(err, errs.Denied) {
		t.Error(err)
	}
}

func TestRemoteHelpers(t *testing.T) {
	f := newFixture(t, Config{})
	s, _ := f.served(as("ann"), false)
	ctx := background(t)
	o, err := s.Create(ctx, instance("acme", ""), "key")
	if err != nil || o.Metadata().Name == "" {
		t.Fatalf("%v %v", o, err)
	}
	ref := api.RefOf(o)
	if o, err = s.Patch(ctx, ref, map[string]any{"spec": map[string]any{"stopped": true}}, o.Metadata().Revision); err != nil {
		t.Fatal(err)
	}
	if _, err = s.Patch(ctx, ref, map[string]any{}, 1); !errors.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	n := api.Clone(o).(*api.Instance)
	n.Labels = map[string]string{"app": "db"}
	if o, err = s.Replace(ctx, n); err != nil || o.Metadata().Labels["app"] != "db" {
		t.Fatal(err)
	}
	bad := api.Clone(n)
	bad.Spec.Restart = "sometimes"
	_, err = s.Create(ctx, bad, "")
	var e *errs.Error
	if !errors.As(err, &e) || len(e.Fields) == 0 || e.Fields[0].Field != "spec.restart" {
		t.Fatalf("the fields are lost: %v", err)
	}
	if o, err = s.Delete(ctx, ref, 0); err != nil || o.Metadata().DeletedAt == nil {
		t.Fatal(err)
	}
	w, err := s.WhoAmI(ctx)
	if err != nil || w.User != "ann" || len(w.Bindings) != 1 || w.Bindings[0].Role != "developer" {
		t.Fatalf("%+v %v", w, err)
	}
	if v, err := s.Version(ctx); err != nil || v.Version != "test" {
		t.Fatalf("%+v %v", v, err)
	}
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Backup(ctx, nil); !errors.Is(err, errs.Denied) {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, api.Ref{Kind: api.KindInstance, Tenant: "demo", Name: "x"}); !errors.Is(err, errs.Denied) || errs.HintOf(err) == "" {
		t.Fatal(err)
	}
	dead := f.remote(remote.Config{Socket: "/nonexistent/socket"})
	if _, err := dead.WhoAmI(ctx); !errors.Is(err, errs.Unavailable) || errs.HintOf(err) == "" {
		t.Fatal(err)
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.WhoAmI(stopped); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
