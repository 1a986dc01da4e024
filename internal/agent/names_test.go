package agent

import (
	"fmt"
	"net/netip"
	"testing"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/store"
)

// Instances on networks of their tenant ask their first network's gateways, and find each other by bare names.
func TestWhomInstancesAskForNames(t *testing.T) {
	a := &Agent{Deps: Deps{Store: store.NewMem(), DNS: []string{"192.0.2.53"}}}
	own := func(name, domain string) store.Op {
		return store.Create(&api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Tenant: "acme/dev", Name: name}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/16", Domain: domain}})
	}
	if _, err := a.Store.Commit(t.Context(), own("main", ""), own("corp", "corp.example")); err != nil {
		t.Fatal(err)
	}
	four, six := netip.MustParsePrefix("10.1.2.5/16"), netip.MustParsePrefix("fd00:1::5/64")
	for _, c := range []struct {
		network string
		addrs   []netip.Prefix
		want    string
	}{
		{"main", []netip.Prefix{four, six}, "[10.1.0.1 fd00:1::1] [main.dev.acme.atoll.internal]"},
		{"main", []netip.Prefix{six}, "[fd00:1::1] [main.dev.acme.atoll.internal]"},
		{"corp", []netip.Prefix{four}, "[10.1.0.1] [corp.example]"},
		{"gone", []netip.Prefix{four}, "[10.1.0.1] []"},
	} {
		as := &api.Assignment{Head: api.Head{Meta: api.Meta{Tenant: "acme/dev", Name: "db"}}, Spec: api.AssignmentSpec{Interfaces: []api.Interface{{Network: c.network}, {Network: "main"}}}}
		s := driver.NetworkSpec{DNS: a.DNS, Interfaces: []driver.Interface{{Addrs: c.addrs}, {Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.5/16")}}}}
		if err := a.names(t.Context(), as, &s); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(s.DNS, s.Search); got != c.want {
			t.Errorf("%s: %s, want %s", c.network, got, c.want)
		}
	}
}
