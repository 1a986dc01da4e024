package control

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

func securityGroup(tenant, name string, peers ...api.SecurityPeer) *api.SecurityGroup {
	return &api.SecurityGroup{Head: api.Head{K: api.KindSecurityGroup, Meta: api.Meta{Name: name, Tenant: tenant}}, Spec: api.SecurityGroupSpec{Ingress: []api.SecurityRule{{From: peers}}}}
}

// A group says what it names that does not exist, as long as that is so, and is written only then.
func TestGroupsSayWhatDoesNotExist(t *testing.T) {
	clk := clock.NewManual(time.Unix(1000, 0))
	mem := store.NewMem()
	e := reconcile.New(mem, clk, slog.New(slog.DiscardHandler), reconcile.Events{})
	e.Add(NewGroups(Deps{Clock: clk}), 1)
	settle := func() int64 {
		t.Helper()
		if _, err := e.Settle(context.Background(), mem, 1000); err != nil {
			t.Fatal(err)
		}
		_, rev, err := mem.List(t.Context(), api.Selector{Kind: api.KindSecurityGroup})
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	put := func(o api.Object) {
		t.Helper()
		if _, err := mem.Commit(t.Context(), store.Set(o)); err != nil {
			t.Fatal(err)
		}
	}
	condition := func(name string) api.Condition {
		t.Helper()
		g, err := store.Get[*api.SecurityGroup](t.Context(), mem, api.Ref{Kind: api.KindSecurityGroup, Tenant: "acme", Name: name})
		if err != nil || len(g.Status.Conditions) != 1 {
			t.Fatal(g, err)
		}
		return g.Status.Conditions[0]
	}
	put(securityGroup("acme", "db", api.SecurityPeer{Group: "web"}, api.SecurityPeer{Network: "main"}, api.SecurityPeer{DNS: "example.org"}))
	settle()
	if c := condition("db"); c.Status || !strings.Contains(c.Message, "no group web") || !strings.Contains(c.Message, "no network acme/main") || strings.Contains(c.Message, "example.org") {
		t.Errorf("%+v", c)
	}
	put(securityGroup("acme", "web", api.SecurityPeer{Where: api.WhereOutside}))
	put(securityGroup("other", "web", api.SecurityPeer{Where: api.WhereOutside}))
	settle()
	if c := condition("db"); c.Status || strings.Contains(c.Message, "no group web") {
		t.Errorf("%+v", c)
	}
	put(&api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: "main", Tenant: "acme"}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/16"}})
	before := settle()
	if c := condition("db"); !c.Status || c.Message != "" {
		t.Errorf("%+v", c)
	}
	if now := settle(); now != before {
		t.Errorf("it is written although nothing changed: %d, %d", before, now)
	}
	if _, err := mem.Commit(t.Context(), store.Remove(api.Ref{Kind: api.KindSecurityGroup, Tenant: "acme", Name: "web"}, store.Any)); err != nil {
		t.Fatal(err)
	}
	settle()
	if c := condition("db"); c.Status || !strings.Contains(c.Message, "no group web") {
		t.Errorf("after it was removed: %+v", c)
	}
}
