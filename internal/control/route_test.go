package control

import (
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/store"
)

func TestRoutes(t *testing.T) {
	w := newPeerWorld(t)
	w.network("acme", "main", "10.1.0.0/16", 7)
	w.network("acme", "back", "10.2.0.0/16", 8)
	w.peer("acme", "p", "main", "back")
	w.is("acme", "p", "")
	c := NewRoutes(Deps{Clock: w.clk, Subnet: "10.88.0.0/16"})
	for i, x := range []struct{ network, to, via, reason, says string }{
		{"main", "192.168.0.0/16", "vpn", "", ""},
		{"main", "192.168.0.0/16", "other", "Twice", "route r0"},
		{"back", "192.168.0.0/16", "vpn", "", ""},
		{"main", "192.168.7.0/24", "10.1.0.9", "", ""},
		{"main", "172.16.0.0/24", "10.1.0.1", "NoHop", "10.1.0.1"},
		{"main", "172.16.0.0/24", "10.9.0.1", "NoHop", "10.9.0.1"},
		{"main", "2001:db8::/32", "vpn", "NoHop", "family"},
		{"main", "10.1.7.0/24", "vpn", "Overlap", "10.1.0.0/16, the network itself"},
		{"main", "10.0.0.0/8", "vpn", "Overlap", "10.1.0.0/16"},
		{"main", "10.2.7.0/24", "vpn", "Overlap", "network acme/back, with which it is peered"},
		{"main", "10.88.3.0/24", "vpn", "Overlap", "10.88.0.0/16, the pool's own"},
		{"none", "192.168.0.0/16", "vpn", "NoNetwork", "no network none"},
	} {
		w.clk.Advance(time.Second)
		at := w.clk.Now()
		r := &api.Route{Head: api.Head{K: api.KindRoute, Meta: api.Meta{Name: "r" + string(rune('0'+i)), Tenant: "acme", CreatedAt: &at}}, Spec: api.RouteSpec{Network: x.network, Destination: x.to, Via: x.via}}
		if bad := r.Validate(); len(bad) > 0 {
			t.Fatalf("%+v", bad)
		}
		if _, err := w.mem.Commit(t.Context(), store.Set(r)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Reconcile(t.Context(), w.mem, api.Ref{}); err != nil {
			t.Fatal(err)
		}
		got, err := store.Get[*api.Route](t.Context(), w.mem, api.RefOf(r))
		if err != nil || len(got.Status.Conditions) != 1 {
			t.Fatalf("%+v %v", got, err)
		}
		if s := got.Status.Conditions[0]; s.Reason != x.reason || got.Ready() != (x.reason == "") || !strings.Contains(s.Message, x.says) {
			t.Errorf("%s to %s via %s: %+v", x.network, x.to, x.via, s)
		}
	}
}

func TestWhatRoutesCannotSay(t *testing.T) {
	for spec, field := range map[api.RouteSpec]string{
		{Network: "main", Destination: "192.168.0.1/16", Via: "vpn"}:                  "spec.destination",
		{Network: "main", Destination: "192.168.0.1", Via: "vpn"}:                     "spec.destination",
		{Network: "main", Destination: "224.0.0.0/8", Via: "vpn"}:                     "spec.destination",
		{Network: "main", Destination: "169.254.7.0/24", Via: "vpn"}:                  "spec.destination",
		{Network: "main", Destination: "fe80::/64", Via: "vpn"}:                       "spec.destination",
		{Network: "main", Destination: "::/0", Via: "vpn"}:                            "spec.destination",
		{Network: "main", Destination: "192.168.0.0/16"}:                              "spec.via",
		{Network: "main", Destination: "192.168.0.0/16", Via: "vpn", Blackhole: true}: "spec.via",
		{Network: "main", Destination: "192.168.0.0/16", Via: "fd00::7"}:              "spec.via",
		{Network: "main", Destination: "192.168.0.0/16", Via: "V P N"}:                "spec.via",
		{Network: "Main", Destination: "192.168.0.0/16", Via: "vpn"}:                  "spec.network",
	} {
		r := &api.Route{Spec: spec}
		if bad := r.Validate(); len(bad) != 1 || bad[0].Field != field || bad[0].Rule == "" || bad[0].Example == "" {
			t.Errorf("%+v: %+v, want %s", spec, bad, field)
		}
	}
}
