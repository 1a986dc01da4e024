package control

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

func (w *world) spanning(name string) {
	w.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}, Status: api.NodeStatus{
		Allocatable: api.Resources{api.CPU: 1000, api.Memory: 1 << 40}, Drivers: []api.Capability{{Type: "runtime", Name: "container"}, {Type: "network", Name: api.DriverOverlay, Features: map[string]string{"tunnel": "192.0.2." + name[1:]}}},
		Conditions: []api.Condition{{Type: "Ready", Status: true}}}})
}

func (w *world) network(name string, edit func(*api.Network)) {
	n := &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: name, Tenant: "t", UID: name, Finalizers: []string{api.FinalizerNetwork}}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/24", CIDR6: "fd00:1::/64"}}
	if edit != nil {
		edit(n)
	}
	w.put(n)
}

func of[T api.Object](w *world, k api.Kind, name string) (o T) {
	w.t.Helper()
	o, err := store.Get[T](context.Background(), w.mem, api.Ref{Kind: k, Tenant: "t", Name: name})
	if err != nil && !errors.Is(err, errs.NotFound) {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) endpoint(name string) *api.Endpoint {
	return of[*api.Endpoint](w, api.KindEndpoint, name)
}

func onMain(in *api.Instance) { in.Spec.Networks = []api.Attach{{Name: "main"}} }

func TestAnInstanceGetsWhatItIsOnItsNetwork(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.node("plain", 1000)
	w.instance("db", 100, onMain)
	w.settle()
	a := w.assignment("db")
	if a.Spec.Node != "" || a.Spec.Decision.Refusals[0].Reason != "host takes no part in networks of tenants" || w.endpoint("db") != nil {
		t.Fatalf("%+v", a.Spec.Decision)
	}
	w.spanning("n1")
	w.settle()
	if a = w.assignment("db"); a.Spec.Node != "" || !strings.Contains(a.Spec.Decision.Refusals[0].Reason, "there is no network main in tenant t") || !strings.Contains(a.Spec.Decision.Hints[0], "atoll network create main") {
		t.Fatalf("without the network: %+v", a.Spec)
	}
	w.network("main", nil)
	w.settle()
	n := of[*api.Network](w, api.KindNetwork, "main")
	if n.Status.VNI != api.FirstVNI || !n.Ready() {
		t.Fatalf("network: %+v", n.Status)
	}
	a, e := w.assignment("db"), w.endpoint("db")
	if a.Spec.Node != "n1" || len(a.Spec.Interfaces) != 1 || a.Spec.Interfaces[0].Address != "10.1.0.2/24" || a.Spec.Interfaces[0].Address6 != "fd00:1::2/64" || a.Spec.Interfaces[0].Identity != 0 {
		t.Fatalf("assignment: %+v", a.Spec)
	}
	if e == nil || e.Spec.Node != "n1" || e.Spec.Interfaces[0].Identity != 256 || !maps.Equal(e.Labels, map[string]string{"network/main": ""}) {
		t.Fatalf("endpoint: %+v", e)
	}
}

func TestAnEndpointStaysWhenItsInstanceMovesAndFollowsItsLabels(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.spanning("n1")
	w.network("main", nil)
	w.instance("db", 100, onMain)
	w.settle()
	was := w.endpoint("db").Spec.Interfaces
	w.spanning("n2")
	a := api.Clone(w.assignment("db"))
	a.Spec.Evict = &api.Eviction{Reason: "test", To: "n2"}
	w.put(a)
	in := api.Clone(of[*api.Instance](w, api.KindInstance, "db"))
	in.Status = api.InstanceStatus{State: api.StateStopped, Reason: api.ReasonEvicted, Node: "n1", Assigned: a.Spec.Generation}
	w.put(in)
	w.settle()
	if a, e := w.assignment("db"), w.endpoint("db"); a.Spec.Node != "n2" || e.Spec.Tunnel != "192.0.2.2" || e.Spec.Node != "n2" || e.Spec.Interfaces[0] != was[0] || a.Spec.Interfaces[0].Address != was[0].Address {
		t.Fatalf("assignment %+v\nendpoint %+v", a.Spec, e.Spec)
	}
	in = api.Clone(of[*api.Instance](w, api.KindInstance, "db"))
	in.Labels = map[string]string{"app": "db"}
	w.put(in)
	w.settle()
	if e := w.endpoint("db"); e.Spec.Interfaces[0].Identity == was[0].Identity || e.Spec.Interfaces[0].Address != was[0].Address || e.Spec.Labels["app"] != "db" {
		t.Fatalf("endpoint %+v", e.Spec)
	}
}

func TestEndpointsFollowTheAddressOfTheirHost(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.spanning("n1")
	w.network("main", nil)
	w.instance("db", 100, onMain)
	w.settle()
	n, err := store.Get[*api.Node](context.Background(), w.mem, api.Ref{Kind: api.KindNode, Name: "n1"})
	if err != nil || w.endpoint("db").Spec.Tunnel != "192.0.2.1" {
		t.Fatal(err, w.endpoint("db").Spec)
	}
	// A new version of its daemon finds out what the host can do; until then it says nothing.
	silent := api.Clone(n)
	silent.Status.Drivers = silent.Status.Drivers[:1]
	w.put(silent)
	w.settle()
	if e := w.endpoint("db"); e.Spec.Tunnel != "192.0.2.1" {
		t.Fatalf("%+v", e.Spec)
	}
	n = api.Clone(n)
	n.Status.Drivers[1].Features["tunnel"] = "192.0.2.99"
	w.put(n)
	w.settle()
	if e := w.endpoint("db"); e.Spec.Tunnel != "192.0.2.99" || e.Spec.Interfaces[0].Address != "10.1.0.2/24" {
		t.Fatalf("%+v", e.Spec)
	}
}

func TestANetworkGoesWhenNothingIsOnIt(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.spanning("n1")
	w.network("main", nil)
	w.instance("db", 100, onMain)
	w.settle()
	n := api.Clone(of[*api.Network](w, api.KindNetwork, "main"))
	now := w.clk.Now()
	n.DeletedAt = &now
	w.put(n)
	w.settle()
	n = of[*api.Network](w, api.KindNetwork, "main")
	if n == nil || n.Ready() || !strings.Contains(n.Status.Conditions[0].Message, "it goes when nothing is on it: db") {
		t.Fatalf("%+v", n)
	}
	w.instance("late", 100, onMain)
	w.settle()
	if a := w.assignment("late"); a.Spec.Node != "" || w.endpoint("late") != nil {
		t.Fatalf("on a network that is to go: %+v", a.Spec)
	}
	for _, name := range []string{"db", "late"} {
		if _, err := w.mem.Commit(context.Background(), store.Remove(api.Ref{Kind: api.KindInstance, Tenant: "t", Name: name}, store.Any)); err != nil {
			t.Fatal(err)
		}
	}
	w.settle()
	if w.endpoint("db") != nil || of[*api.Network](w, api.KindNetwork, "main") != nil {
		t.Fatal("something is left")
	}
}

func TestNumbersOfNetworksAreGivenOnce(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.network("one", func(n *api.Network) { n.Spec.VNI = 7 })
	w.settle()
	w.network("two", func(n *api.Network) { n.Spec.VNI = 7 })
	w.network("three", nil)
	w.network("four", nil)
	w.settle()
	seen := map[uint32]string{}
	for _, name := range []string{"one", "three", "four"} {
		n := of[*api.Network](w, api.KindNetwork, name)
		if !n.Ready() || seen[n.Status.VNI] != "" {
			t.Errorf("%s: %+v", name, n.Status)
		}
		seen[n.Status.VNI] = name
	}
	if two := of[*api.Network](w, api.KindNetwork, "two"); two.Ready() || two.Status.VNI != 0 || !strings.Contains(two.Status.Conditions[0].Message, "spec.vni 7") {
		t.Errorf("two: %+v", two.Status)
	}
}
