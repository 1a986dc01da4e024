package auth

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

func meta(name string) api.Meta { return api.Meta{Name: name, Revision: 1} }

func person(name, host string) *api.User {
	return &api.User{Head: api.Head{K: api.KindUser, Meta: meta(name)}, Spec: api.UserSpec{HostUser: host}}
}

func binding(name, role, tenant string, users ...string) *api.RoleBinding {
	return &api.RoleBinding{Head: api.Head{K: api.KindRoleBinding, Meta: meta(name)}, Spec: api.RoleBindingSpec{Role: role, Users: users, Tenant: tenant}}
}

func custom(name string, rules ...api.RoleRule) *api.Role {
	return &api.Role{Head: api.Head{K: api.KindRole, Meta: meta(name)}, Spec: api.RoleSpec{Rules: rules}}
}

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// newPool knows ann (developer in acme), vera (viewer in acme/research), otto
// (operator), adam (admin) and nora (nothing).
func newPool(t testing.TB, extra ...api.Object) (*Authority, *clock.Manual) {
	t.Helper()
	c := clock.NewManual(start())
	a := New(c, Config{Account: func(uid uint32) (string, error) {
		names := map[uint32]string{1000: "ann", 1001: "veras-account", 1002: "stranger", 1003: "both"}
		if n, ok := names[uid]; ok {
			return n, nil
		}
		return "", errors.New("no such account")
	}})
	objs := []api.Object{person("ann", ""), person("vera", "veras-account"), person("otto", ""), person("adam", ""), person("nora", ""),
		binding("ann", "developer", "acme", "ann"), binding("vera", "viewer", "acme/research", "vera"),
		binding("otto", "operator", "", "otto"), binding("adam", "admin", "", "adam"), binding("lost", "missing-role", "", "nora")}
	for _, r := range BuiltinRoles() {
		if err := api.Check(r); err != nil {
			t.Fatal(err)
		}
		objs = append(objs, r)
	}
	a.Reset(append(objs, extra...))
	return a, c
}

func id(name string) Identity { return Identity{User: name, Via: "socket"} }

func TestAuthorize(t *testing.T) {
	a, _ := newPool(t, custom("narrow", api.RoleRule{Verbs: []api.Verb{"get"}, Kinds: []string{"instances"}}), binding("narrow", "narrow", "demo", "nora", "ann"))
	for _, c := range []struct {
		who    string
		verb   api.Verb
		kind   api.Kind
		tenant string
		want   bool
	}{
		{"ann", "create", api.KindInstance, "acme", true},
		{"ann", "exec", api.KindInstance, "acme/research/deep", true},
		{"ann", "get", api.KindInstance, "", false},
		{"ann", "get", api.KindInstance, "acme-two", false},
		{"ann", "get", api.KindInstance, "demo", true},
		{"ann", "list", api.KindInstance, "demo", false},
		{"ann", "get", api.KindInstance, "demo/x", true},
		{"ann", "update", api.KindTenant, "acme", false},
		{"ann", "get", api.KindTenant, "acme", true},
		{"ann", "get", api.KindAssignment, "acme", true},
		{"ann", "create", api.KindAssignment, "acme", false},
		{"ann", "get", api.KindNode, "", false},
		{"ann", "create", api.KindRoleBinding, "acme", false},
		{"ann", "backup", AnyKind, "", false},
		{"vera", "get", api.KindInstance, "acme/research", true},
		{"vera", "logs", api.KindInstance, "acme/research", true},
		{"vera", "exec", api.KindInstance, "acme/research", false},
		{"vera", "get", api.KindInstance, "acme", false},
		{"otto", "create", api.KindTenant, "", true},
		{"otto", "delete", api.KindNode, "", true},
		{"otto", "get", api.KindUser, "", false},
		{"otto", "create", api.KindRoleBinding, "acme", false},
		{"otto", "backup", AnyKind, "", false},
		{"otto", "watch", AnyKind, "", false},
		{"adam", "backup", AnyKind, "", true},
		{"adam", "create", api.KindToken, "demo", true},
		{"nora", "get", api.KindInstance, "demo", true},
		{"nora", "get", api.KindInstance, "acme", false},
		{"nora", "get", api.KindNode, "", false},
		{"ghost", "get", api.KindInstance, "demo", false},
		{"", "get", api.KindInstance, "demo", false},
	} {
		for range 2 { // the second answer comes from memory
			err := a.Authorize(id(c.who), c.verb, c.kind, c.tenant)
			if (err == nil) != c.want || a.Allowed(id(c.who), c.verb, c.kind, c.tenant) != c.want {
				t.Errorf("%s %s %s in %q: %v, want %v", c.who, c.verb, c.kind, c.tenant, err, c.want)
			}
		}
	}
	if !a.Allowed(Identity{Admin: true}, "backup", AnyKind, "") {
		t.Error("an administrator is not")
	}
}

func TestDenialSaysWhatIsMissing(t *testing.T) {
	a, _ := newPool(t)
	err := a.Authorize(id("vera"), "exec", api.KindInstance, "acme/research")
	if !errors.Is(err, errs.Denied) {
		t.Fatal(err)
	}
	for _, want := range []string{"vera", "exec", "instance", "acme/research"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if h := errs.HintOf(err); !strings.Contains(h, "developer") || !strings.Contains(h, "exec") || !strings.Contains(h, "acme/research") {
		t.Errorf("hint %q", h)
	}
	if h := errs.HintOf(a.Authorize(id("ann"), "backup", AnyKind, "")); !strings.Contains(h, "admin") {
		t.Errorf("hint %q", h)
	}
}

// Nobody is known before the picture is loaded.
func TestBeforeReset(t *testing.T) {
	a := New(clock.NewManual(start()), Config{Account: func(uint32) (string, error) { return "ann", nil }})
	if _, err := a.Host(1000); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	if err := a.Authorize(id("ann"), "get", api.KindInstance, "acme"); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	if who, err := a.Host(0); err != nil || !who.Admin {
		t.Errorf("root is locked out: %v", err)
	}
}

func TestHost(t *testing.T) {
	a, c := newPool(t, person("one", "both"), person("two", "both"))
	if who, err := a.Host(1000); err != nil || who.User != "ann" || who.Admin {
		t.Errorf("%+v %v", who, err)
	}
	if who, err := a.Host(1001); err != nil || who.User != "vera" {
		t.Errorf("%+v %v", who, err)
	}
	for uid, what := range map[uint32]string{1002: "stranger", 1003: "2 users", 4000: "no name"} {
		_, err := a.Host(uid)
		if !errors.Is(err, errs.Unauthenticated) || errs.HintOf(err) == "" || !strings.Contains(err.Error(), what) {
			t.Errorf("%d: %v", uid, err)
		}
	}
	// A user whose hostUser is somebody else is no longer the account of their own name.
	moved := person("ann", "annes-other-account")
	moved.Revision = 2
	a.Put(moved)
	if _, err := a.Host(1000); !errors.Is(err, errs.Unauthenticated) {
		t.Error(err)
	}
	c.Advance(time.Hour)
	sus := person("ann", "")
	sus.Revision, sus.Spec.Suspended = 3, true
	a.Put(sus)
	if _, err := a.Host(1000); !errors.Is(err, errs.Denied) {
		t.Error(err)
	}
	if err := a.Authorize(id("ann"), "get", api.KindInstance, "acme"); !errors.Is(err, errs.Denied) || !strings.Contains(err.Error(), "suspended") {
		t.Error(err)
	}
}

func mint(t *testing.T, a *Authority, name, user string, change func(*api.Token)) string {
	t.Helper()
	text, hash, err := Mint(name, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	e := start().Add(time.Hour)
	tok := &api.Token{Head: api.Head{K: api.KindToken, Meta: meta(name)}, Spec: api.TokenSpec{User: user, ExpiresAt: &e}, Status: api.TokenStatus{Hash: hash}}
	if change != nil {
		change(tok)
	}
	a.Put(tok)
	return text
}

func TestTokens(t *testing.T) {
	a, c := newPool(t)
	good := mint(t, a, "good", "ann", nil)
	who, err := a.Bearer(good, "here")
	if err != nil || who.User != "ann" || who.Token.Name != "good" {
		t.Fatalf("%+v %v", who, err)
	}
	narrow, err := a.Bearer(mint(t, a, "narrow", "ann", func(t *api.Token) {
		t.Spec.Tenant, t.Spec.Verbs = "acme/research", []api.Verb{"get", "create"}
	}), "here")
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct {
		verb   api.Verb
		tenant string
		want   bool
	}{{"get", "acme/research", true}, {"create", "acme/research/x", true}, {"list", "acme/research", false}, {"get", "acme", false}, {"get", "demo", false}} {
		if got := a.Allowed(narrow, q.verb, api.KindInstance, q.tenant); got != q.want {
			t.Errorf("%+v: %v", q, got)
		}
	}
	wide, err := a.Bearer(mint(t, a, "wide", "vera", func(t *api.Token) { t.Spec.Verbs = []api.Verb{"*"} }), "here")
	if err != nil || a.Allowed(wide, "exec", api.KindInstance, "acme/research") {
		t.Errorf("a token gives more than its user has: %v", err)
	}
	name, secret, _ := strings.Cut(strings.TrimPrefix(good, tokenPrefix), "_")
	for _, bad := range []string{"", "atoll_", "atoll_good", "atoll_good_", good + "A", good[:len(good)-1], tokenPrefix + "other_" + secret, tokenPrefix + "narrow_" + secret,
		name + "_" + secret, "Atoll_" + name + "_" + secret, strings.Repeat("x", 1<<16), "atoll_../x_" + secret} {
		if _, err := a.Bearer(bad, "there"); !errors.Is(err, errs.Unauthenticated) && !errors.Is(err, errs.Unavailable) {
			t.Errorf("%.40q: %v", bad, err)
		} else if len(secret) > 0 && strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	empty := mint(t, a, "empty", "ann", func(t *api.Token) { t.Status.Hash = "" })
	if _, err := a.Bearer(empty, "here"); !errors.Is(err, errs.Unauthenticated) {
		t.Errorf("a token without a hash works: %v", err)
	}
	c.Advance(time.Hour)
	if _, err := a.Bearer(good, "here"); !errors.Is(err, errs.Unauthenticated) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after its time: %v", err)
	}
	if err := a.Check(who); !errors.Is(err, errs.Unauthenticated) {
		t.Errorf("a stream goes on after the token's time: %v", err)
	}
	a.Delete(api.Ref{Kind: api.KindToken, Name: "good"}, 9)
	if err := a.Check(who); !errors.Is(err, errs.Unauthenticated) {
		t.Errorf("a stream goes on after the token was removed: %v", err)
	}
}

func TestFailuresAreSlowedDown(t *testing.T) {
	a, c := newPool(t)
	good := mint(t, a, "good", "ann", nil)
	refused := 0
	for range failBurst + 5 {
		if _, err := a.Bearer("atoll_x_y", "10.0.0.1"); errors.Is(err, errs.Unavailable) {
			refused++
		}
	}
	if refused != 5 {
		t.Fatalf("%d refused", refused)
	}
	if _, err := a.Bearer(good, "10.0.0.1"); err != nil {
		t.Fatalf("a good token from the same address: %v", err)
	}
	if _, err := a.Bearer("atoll_x_y", "10.0.0.2"); !errors.Is(err, errs.Unauthenticated) {
		t.Fatal(err)
	}
	c.Advance(2 * time.Second)
	if _, err := a.Bearer("atoll_x_y", "10.0.0.1"); !errors.Is(err, errs.Unauthenticated) {
		t.Fatal(err)
	}
	for i := range 3 * failSources {
		a.fails.allow(fmt.Sprint(i))
	}
	if len(a.fails.m) > failSources {
		t.Fatalf("%d sources remembered", len(a.fails.m))
	}
}

// News that comes late does not undo what is known already.
func TestOldNews(t *testing.T) {
	a, _ := newPool(t)
	b := binding("ann", "developer", "acme", "ann")
	a.Delete(api.RefOf(b), 5)
	b.Revision = 4
	a.Put(b)
	if a.Allowed(id("ann"), "get", api.KindInstance, "acme") {
		t.Error("a removed binding came back")
	}
	b.Revision = 6
	a.Put(b)
	if !a.Allowed(id("ann"), "get", api.KindInstance, "acme") {
		t.Error("a binding made anew does not count")
	}
	older := api.Clone(b)
	older.Revision, older.Spec.Tenant = 5, "demo"
	a.Put(older)
	a.Delete(api.RefOf(b), 5)
	if !a.Allowed(id("ann"), "get", api.KindInstance, "acme") || a.Allowed(id("ann"), "get", api.KindInstance, "demo") {
		t.Error("an older state won")
	}
}

func TestRoots(t *testing.T) {
	a, _ := newPool(t, binding("ann2", "viewer", "acme/research", "ann"), binding("ann3", "viewer", "demo", "ann"), binding("ann4", "developer", "acme-two", "ann"))
	for _, c := range []struct {
		who  Identity
		verb api.Verb
		kind api.Kind
		all  bool
		want string
	}{
		{id("ann"), "list", api.KindInstance, false, "acme acme-two demo"},
		{id("ann"), "exec", api.KindInstance, false, "acme acme-two"},
		{id("ann"), "list", api.KindImage, false, "acme acme-two demo shared"},
		{id("ann"), "delete", api.KindImage, false, "acme acme-two"},
		{id("nora"), "list", api.KindImage, false, ""},
		{id("ann"), "list", api.KindUser, false, ""},
		{id("otto"), "list", api.KindInstance, true, ""},
		{id("nora"), "list", api.KindInstance, false, ""},
		{Identity{Admin: true}, "list", api.KindUser, true, ""},
		{Identity{Node: "isle1", Via: ViaProcess}, "list", api.KindInstance, true, ""},
		{Identity{Node: "isle1", Via: ViaProcess}, "list", api.KindUser, false, ""},
	} {
		all, roots := a.Roots(c.who, c.verb, c.kind)
		if all != c.all || strings.Join(roots, " ") != c.want {
			t.Errorf("%s %s %s: %v %v", c.who, c.verb, c.kind, all, roots)
		}
	}
	who, err := a.Bearer(mint(t, a, "t", "otto", func(t *api.Token) { t.Spec.Tenant = "acme" }), "")
	if err != nil {
		t.Fatal(err)
	}
	if all, roots := a.Roots(who, "list", api.KindInstance); all || strings.Join(roots, " ") != "acme" {
		t.Errorf("an operator's token for acme: %v %v", all, roots)
	}
	for verb, want := range map[api.Verb]bool{"get": true, "list": true, "watch": true, "create": false, "delete": false} {
		if err := a.Authorize(who, verb, api.KindImage, api.SharedTenant); (err == nil) != want {
			t.Errorf("%s shared images with a token for one tenant: %v", verb, err)
		}
	}
	if a.Allowed(who, "list", api.KindInstance, api.SharedTenant) {
		t.Error("only images are shared")
	}
}

func TestGrants(t *testing.T) {
	a, _ := newPool(t, custom("g", api.RoleRule{Verbs: []api.Verb{"*"}, Kinds: []string{"*"}, Grants: []string{"capability:NET_ADMIN", "hostpath:/srv/data/", "hostpath:/opt/*"}}), binding("g", "g", "acme", "ann"))
	for g, want := range map[string]bool{
		"capability:NET_ADMIN": true, "capability:SYS_ADMIN": false, "network:host": false,
		"hostpath:/srv/data": true, "hostpath:/srv/data/x": true, "hostpath:/srv/database": false, "hostpath:/srv": false, "hostpath:/": false,
		"hostpath:/srv/data/../../etc": false, "hostpath:/srv//data/./x": true, "hostpath:srv/data": true,
		"hostpath:/opt/a": false, "hostpath:/opt/*": true, "hostpath:/opt/*/x": true, "capability:*": false,
	} {
		if err := a.Grants(id("ann"), "acme/x", []string{g}); (err == nil) != want {
			t.Errorf("%s: %v", g, err)
		}
	}
	err := a.Grants(id("ann"), "acme", []string{"capability:NET_ADMIN", "network:host", "hostpath:/etc"})
	if !errors.Is(err, errs.Denied) || !strings.Contains(err.Error(), "network:host, hostpath:/etc") || strings.Contains(err.Error(), "NET_ADMIN") || !strings.Contains(errs.HintOf(err), "network:host") {
		t.Errorf("%v (%s)", err, errs.HintOf(err))
	}
	if a.Grants(id("ann"), "demo", []string{"capability:NET_ADMIN"}) == nil {
		t.Error("a grant reaches into another tenant")
	}
	for _, g := range []string{"capability:SYS_ADMIN", "hostpath:/etc", "network:host"} {
		if err := a.Grants(id("adam"), "demo", []string{g}); err != nil {
			t.Error(err)
		}
		if a.Grants(id("otto"), "demo", []string{g}) == nil {
			t.Errorf("an operator has %s", g)
		}
	}
	who, err := a.Bearer(mint(t, a, "t", "ann", func(t *api.Token) { t.Spec.Tenant = "demo" }), "")
	if err != nil || a.Grants(who, "acme", []string{"capability:NET_ADMIN"}) == nil {
		t.Errorf("a token for demo reaches a grant in acme: %v", err)
	}
}

func TestCovers(t *testing.T) {
	a, _ := newPool(t, binding("chief", "admin", "acme", "vera"))
	roles := map[string]*api.Role{}
	for _, r := range BuiltinRoles() {
		roles[r.Name] = r
	}
	for _, c := range []struct {
		who, role, tenant string
		want              bool
	}{
		{"vera", "admin", "acme", true}, {"vera", "admin", "acme/x", true}, {"vera", "viewer", "", false}, {"vera", "viewer", "demo", false},
		{"otto", "viewer", "", true}, {"otto", "developer", "acme", false}, {"otto", "admin", "acme", false}, {"adam", "admin", "", true}, {"ann", "developer", "acme", true}, {"ann", "viewer", "acme", false},
	} {
		if err := a.Covers(id(c.who), roles[c.role], c.tenant); (err == nil) != c.want {
			t.Errorf("%s gives %s in %q: %v", c.who, c.role, c.tenant, err)
		}
	}
}

func TestScopeOf(t *testing.T) {
	tn := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "acme/research"}}}
	if ScopeOf("get", tn) != "acme/research" || ScopeOf("update", tn) != "acme" || ScopeOf("create", tn) != "acme" || ScopeOf("delete", tn) != "acme" {
		t.Error("a tenant is changed by its parent")
	}
	if ScopeOf("get", binding("b", "viewer", "acme", "x")) != "acme" {
		t.Error("a binding belongs where it holds")
	}
}

func TestMintIsRandom(t *testing.T) {
	if _, _, err := Mint("x", bytes.NewReader(nil)); err == nil {
		t.Error("a token without chance")
	}
	a, h1, _ := Mint("x", rand.Reader)
	b, h2, _ := Mint("x", rand.Reader)
	if a == b || h1 == h2 || len(h1) != 64 {
		t.Error(a, b)
	}
}

func FuzzBearer(f *testing.F) {
	a, _ := newPool(f)
	for _, s := range []string{"", "atoll_", "atoll_a_b", "atoll_a__", "atoll__b", "Bearer x", "atoll_a_b_c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if who, err := a.Bearer(s, "fuzz"); err == nil {
			t.Fatalf("%q is %+v", s, who)
		}
	})
}

func FuzzGrants(f *testing.F) {
	a, _ := newPool(f, custom("g", api.RoleRule{Verbs: []api.Verb{"get"}, Kinds: []string{"instance"}, Grants: []string{"hostpath:/srv/data"}}), binding("g", "g", "acme", "ann"))
	for _, s := range []string{"hostpath:/srv/data/../x", "hostpath:/srv/data\x00", "capability:", ":", "hostpath:/srv/data/a*b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, g string) {
		if a.Grants(id("ann"), "acme", []string{g}) != nil {
			return
		}
		what, path, _ := strings.Cut(g, ":")
		if clean := cleanPath(path); what != "hostpath" || clean != "/srv/data" && !strings.HasPrefix(clean, "/srv/data/") {
			t.Fatalf("%q is allowed", g)
		}
	})
}

func BenchmarkDecision(b *testing.B) {
	var extra []api.Object
	for i := range 200 {
		extra = append(extra, binding(fmt.Sprintf("b%d", i), "developer", fmt.Sprintf("t%d", i), fmt.Sprintf("u%d", i)))
	}
	for i := range 20 { // ann is in many tenants
		extra = append(extra, binding(fmt.Sprintf("a%d", i), "developer", fmt.Sprintf("t%d", i), "ann"))
	}
	a, _ := newPool(b, extra...)
	b.Run("remembered", func(b *testing.B) {
		for b.Loop() {
			if !a.Allowed(id("ann"), "exec", api.KindInstance, "acme/research") {
				b.Fatal("denied")
			}
		}
	})
	b.Run("cedar", func(b *testing.B) {
		p := a.policy.Load()
		for b.Loop() {
			if !p.ask(question{user: "ann", verb: "exec", what: "Instance", tenant: "acme/research"}) {
				b.Fatal("denied")
			}
		}
	})
	b.Run("compile", func(b *testing.B) {
		for b.Loop() {
			a.rebuild()
			a.policy.Load().of("ann")
		}
	})
}

// Whatever a tenant can have, its developers can make, and of the pool's own nothing.
func TestDevelopersMakeWhatTenantsHave(t *testing.T) {
	a, _ := newPool(t)
	for _, d := range api.Definitions() {
		want := d.Tenanted && !d.ReadOnly
		if got := a.Allowed(Identity{User: "ann"}, api.VerbCreate, d.Kind, "acme"); !d.ReadOnly && got != want {
			t.Errorf("%s: a developer may create it: %v", d.Kind, got)
		}
	}
}
