package control

import (
	"context"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

type peerWorld struct {
	t   *testing.T
	mem *store.Mem
	c   *Peerings
	clk *clock.Manual
}

func newPeerWorld(t *testing.T) *peerWorld {
	clk := clock.NewManual(time.Unix(1000, 0))
	return &peerWorld{t, store.NewMem(), NewPeerings(Deps{Clock: clk}), clk}
}

func (w *peerWorld) network(tenant, name, four string, vni uint32) {
	w.t.Helper()
	n := &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: name, Tenant: tenant}}, Spec: api.NetworkSpec{CIDR: four}, Status: api.NetworkStatus{VNI: vni}}
	if _, err := w.mem.Commit(context.Background(), store.Set(n)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *peerWorld) peer(tenant, name, network, other string) {
	w.t.Helper()
	w.clk.Advance(time.Second)
	at := w.clk.Now()
	p := &api.Peering{Head: api.Head{K: api.KindPeering, Meta: api.Meta{Name: name, Tenant: tenant, CreatedAt: &at}}, Spec: api.PeeringSpec{Network: network, Peer: other}}
	if _, err := w.mem.Commit(context.Background(), store.Set(p)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *peerWorld) unpeer(tenant, name string) {
	w.t.Helper()
	if _, err := w.mem.Commit(context.Background(), store.Remove(api.Ref{Kind: api.KindPeering, Tenant: tenant, Name: name}, store.Any)); err != nil {
		w.t.Fatal(err)
	}
}

// is checks what is said of a peering: its reason, "" when it is in force, and parts of the message.
func (w *peerWorld) is(tenant, name, reason string, says ...string) {
	w.t.Helper()
	if _, err := w.c.Reconcile(context.Background(), w.mem, api.Ref{}); err != nil {
		w.t.Fatal(err)
	}
	p, err := store.Get[*api.Peering](context.Background(), w.mem, api.Ref{Kind: api.KindPeering, Tenant: tenant, Name: name})
	if err != nil || len(p.Status.Conditions) != 1 {
		w.t.Fatalf("%+v %v", p, err)
	}
	c := p.Status.Conditions[0]
	if c.Type != api.ConditionReady || c.Reason != reason || c.Status != (reason == "") {
		w.t.Errorf("%s/%s: %+v, want %q", tenant, name, c, reason)
	}
	for _, s := range says {
		if no, not := strings.CutPrefix(s, "!"); strings.Contains(c.Message, no) == not {
			w.t.Errorf("%s/%s says %q: %q", tenant, name, c.Message, s)
		}
	}
}

func (w *peerWorld) joined(tenant, name string) int {
	w.t.Helper()
	all, _, err := store.List[*api.Peering](context.Background(), w.mem, api.Selector{Kind: api.KindPeering})
	if err != nil {
		w.t.Fatal(err)
	}
	return len(api.Peered(all)[api.Ref{Kind: api.KindNetwork, Tenant: tenant, Name: name}])
}

func TestTwoTenantsHaveToAgree(t *testing.T) {
	w := newPeerWorld(t)
	w.network("lab", "main", "10.1.0.0/16", 7)
	w.peer("lab", "p", "main", "acme/main")
	w.is("lab", "p", api.PeeringWaits, "atoll network peer main lab/main --tenant acme")
	said, err := store.Get[*api.Peering](t.Context(), w.mem, api.Ref{Kind: api.KindPeering, Tenant: "lab", Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	// Whether the other network exists makes no difference, nor what addresses it has.
	w.network("acme", "main", "10.1.0.0/24", 8)
	w.is("lab", "p", api.PeeringWaits)
	now, err := store.Get[*api.Peering](t.Context(), w.mem, api.Ref{Kind: api.KindPeering, Tenant: "lab", Name: "p"})
	if err != nil || now.Status.Conditions[0].Message != said.Status.Conditions[0].Message || now.Revision != said.Revision {
		t.Errorf("it learned something: %+v, %v", now.Status, err)
	}
	// Nor does a peering of that network with another one, or of another network.
	w.network("acme", "back", "10.3.0.0/24", 9)
	w.peer("acme", "other", "back", "lab/main")
	w.is("lab", "p", api.PeeringWaits)
	w.is("acme", "other", api.PeeringWaits)
	w.peer("acme", "p", "main", "lab/main")
	w.is("lab", "p", api.PeeringOverlaps, "10.1.0.0/16 of lab/main", "10.1.0.0/24 of acme/main")
	w.is("acme", "p", api.PeeringOverlaps, "10.1.0.0/16 of lab/main", "10.1.0.0/24 of acme/main")
	w.network("acme", "main", "10.2.0.0/16", 8)
	w.is("lab", "p", "")
	w.is("acme", "p", "")
	if w.joined("lab", "main") != 1 || w.joined("acme", "main") != 1 {
		t.Error("they are not joined")
	}
	w.unpeer("acme", "p")
	if w.joined("lab", "main") != 0 { // before anything is written
		t.Error("one side's word keeps them joined")
	}
	w.is("lab", "p", api.PeeringWaits)
}

func TestOneTenantAgreesWithItself(t *testing.T) {
	w := newPeerWorld(t)
	w.peer("acme", "p", "main", "back")
	w.is("acme", "p", api.PeeringNo, "no network main")
	w.network("acme", "main", "10.1.0.0/16", 7)
	w.is("acme", "p", api.PeeringNo, "no network back")
	w.network("acme", "back", "10.2.0.0/16", 0)
	w.is("acme", "p", "NotReady")
	w.network("acme", "back", "10.2.0.0/16", 8)
	w.is("acme", "p", "")
	// The same the other way round is no other peering, and its end not the end of the first.
	w.peer("acme", "q", "back", "acme/main")
	w.is("acme", "q", "")
	if w.joined("acme", "main") != 1 {
		t.Error("joined twice")
	}
	w.unpeer("acme", "p")
	w.is("acme", "q", "")
}

func TestNoAddressHasTwoOwners(t *testing.T) {
	w := newPeerWorld(t)
	w.network("acme", "main", "10.1.0.0/16", 7)
	w.network("acme", "a", "10.2.0.0/16", 8)
	w.network("acme", "b", "10.2.3.0/24", 9)
	w.network("lab", "c", "10.2.0.0/20", 10)
	w.peer("acme", "late", "main", "b")
	w.is("acme", "late", "")
	w.peer("acme", "early", "main", "a")
	w.is("acme", "early", api.PeeringOverlaps, "10.2.0.0/16 of acme/a", "10.2.3.0/24 of acme/b", "main")
	w.is("acme", "late", "")
	w.peer("acme", "to-c", "main", "lab/c")
	w.peer("lab", "c", "c", "acme/main")
	w.is("acme", "to-c", api.PeeringOverlaps, "10.2.3.0/24 of acme/b")
	w.is("lab", "c", api.PeeringOverlaps, "10.2.0.0/20 of lab/c", "!acme/b", "!10.2.3")
	w.unpeer("acme", "late")
	w.is("acme", "early", "")
}

// Addresses that go out as they are have one owner.
func TestDirectNetworksDoNotOverlap(t *testing.T) {
	w := newPeerWorld(t)
	c := NewNetworks(Deps{Clock: w.clk, Subnet: "10.88.0.0/16"})
	made := func(tenant, name, egress, four string) (*api.Network, reconcile.Result) {
		t.Helper()
		n := &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: name, Tenant: tenant}}, Spec: api.NetworkSpec{CIDR: four, Egress: egress}}
		if _, err := w.mem.Commit(t.Context(), store.Set(n)); err != nil {
			t.Fatal(err)
		}
		res, err := c.Reconcile(t.Context(), w.mem, api.RefOf(n))
		if err != nil {
			t.Fatal(err)
		}
		if n, err = store.Get[*api.Network](t.Context(), w.mem, api.RefOf(n)); err != nil {
			t.Fatal(err)
		}
		return n, res
	}
	node := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle1"}}, Status: api.NodeStatus{Addresses: []string{"192.0.2.7"}}}
	if _, err := w.mem.Commit(t.Context(), store.Set(node)); err != nil {
		t.Fatal(err)
	}
	if n, _ := made("acme", "a", "direct", "198.51.100.0/25"); !n.Ready() {
		t.Fatalf("%+v", n.Status)
	}
	if n, _ := made("lab", "same", "nat", "198.51.100.0/25"); !n.Ready() {
		t.Errorf("of a network that is translated nobody is kept: %+v", n.Status)
	}
	for _, c := range []struct{ tenant, name, four, says, not string }{
		{"acme", "b", "198.51.100.64/26", "198.51.100.0/25 of network a", "?"},
		{"lab", "b", "198.51.0.0/16", "another network", "198.51.100"},
		{"acme", "c", "10.88.7.0/24", "10.88.0.0/16", "?"},
		{"acme", "d", "192.0.2.0/24", "192.0.2.7 of host isle1", "?"},
	} {
		n, res := made(c.tenant, c.name, "direct", c.four)
		if n.Ready() || n.Status.VNI != 0 || res.Again == 0 {
			t.Errorf("%s: %+v, %+v", c.four, n.Status, res)
			continue
		}
		if m := n.Status.Conditions[0].Message; !strings.Contains(m, c.says) || strings.Contains(m, c.not) {
			t.Errorf("%s: %s", c.four, m)
		}
	}
}
