package fabric

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// told is a driver.Fabric that remembers what it is told.
type told struct {
	driver.Network
	nets    map[uint32]*state
	wired   map[uint32]bool // networks that cannot be forgotten
	settled int
	fail    int // so many calls fail first
}

type state struct {
	net     driver.Net
	members map[netip.Addr]driver.Member
	table   driver.Table
}

func (d *told) failing() error {
	if d.fail > 0 {
		d.fail--
		return errs.New(errs.Unavailable, "not now")
	}
	return nil
}

func (d *told) Known(context.Context) (api.Capability, bool) { return api.Capability{}, true }

func (d *told) Replace(_ context.Context, n driver.Net, ms []driver.Member, t driver.Table) error {
	if err := d.failing(); err != nil {
		return err
	}
	s := &state{n, map[netip.Addr]driver.Member{}, driver.Table{Ports: maps.Clone(t.Ports), Pairs: maps.Clone(t.Pairs), Lists: maps.Clone(t.Lists), Prefixes: maps.Clone(t.Prefixes)}}
	for _, m := range ms {
		s.members[m.Addr] = m
	}
	d.nets[n.VNI] = s
	return nil
}

func (d *told) Change(_ context.Context, vni uint32, c driver.Change) error {
	if err := d.failing(); err != nil {
		return err
	}
	s := d.nets[vni]
	if s == nil {
		return errs.New(errs.Unavailable, "network %d is not here", vni)
	}
	if c.Net != nil {
		s.net = *c.Net
	}
	for _, a := range c.Drop {
		delete(s.members, a)
	}
	for _, m := range c.Put {
		s.members[m.Addr] = m
	}
	for _, a := range c.DropPorts {
		delete(s.table.Ports, a)
	}
	maps.Copy(s.table.Ports, c.Ports)
	for _, k := range c.DropPairs {
		delete(s.table.Pairs, k)
	}
	maps.Copy(s.table.Pairs, c.Pairs)
	return nil
}

func (d *told) Forget(_ context.Context, vni uint32) error {
	if d.wired[vni] {
		return errs.New(errs.Conflict, "it has a wire")
	}
	delete(d.nets, vni)
	return nil
}

func (d *told) Nets(context.Context) ([]uint32, error) {
	return slices.Sorted(maps.Keys(d.nets)), nil
}
func (d *told) NextID(context.Context) (uint32, error) { return 100, nil }
func (d *told) Settle(context.Context) error           { d.settled++; return nil }

type world struct {
	t   *testing.T
	mem *store.Mem
	d   *told
	f   *Fabric
	clk *clock.Manual
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, mem: store.NewMem(), d: &told{nets: map[uint32]*state{}, wired: map[uint32]bool{}}, clk: clock.NewManual(time.Unix(1000, 0))}
	w.again()
	return w
}

// again is a new life of the daemon.
func (w *world) again() {
	w.f = New(Deps{Node: "n1", Store: w.mem, Clock: w.clk, Log: slog.New(slog.DiscardHandler), Driver: w.d})
}

func (w *world) settle() {
	w.t.Helper()
	for range 40 {
		if _, err := w.f.engine.Settle(context.Background(), w.mem, 10000); err != nil {
			w.t.Fatal(err)
		}
		if len(w.f.gone) == 0 && w.d.fail == 0 {
			break
		}
		w.clk.Advance(3 * time.Second)
	}
	w.clk.Advance(time.Minute) // what failed last is tried again
	if _, err := w.f.engine.Settle(context.Background(), w.mem, 10000); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(o api.Object) {
	w.t.Helper()
	if _, err := w.mem.Commit(context.Background(), store.Set(o)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(k api.Kind, tenant, name string) {
	w.t.Helper()
	if _, err := w.mem.Commit(context.Background(), store.Remove(api.Ref{Kind: k, Tenant: tenant, Name: name}, store.Any)); err != nil && !errors.Is(err, errs.NotFound) {
		w.t.Fatal(err)
	}
}

func newNetwork(tenant, name string, vni uint32) *api.Network {
	return &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: name, Tenant: tenant}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/16"}, Status: api.NetworkStatus{VNI: vni}}
}

func endpoint(tenant, name, node string, n int, labels map[string]string, nets ...string) *api.Endpoint {
	e := &api.Endpoint{Head: api.Head{K: api.KindEndpoint, Meta: api.Meta{Name: name, Tenant: tenant, Labels: map[string]string{}}}, Spec: api.EndpointSpec{Node: node, Labels: labels}}
	if node != "" {
		e.Spec.Tunnel = "192.0.2." + node[1:]
	}
	for i, net := range nets {
		e.Labels[api.NetworkLabel(net)] = ""
		vni, at := uint32(7), 1
		if net != "main" {
			vni, at = 8, 3
		}
		e.Spec.Interfaces = append(e.Spec.Interfaces, api.Interface{Network: net, VNI: vni, Name: fmt.Sprint("eth", i), MAC: fmt.Sprintf("0a:58:0a:01:00:%02x", n),
			Address: fmt.Sprintf("10.%d.0.%d/16", at, n), Identity: uint16(256 + len(labels["app"]))})
	}
	return e
}

func TestANetworkIsHereAsLongAsAnInstanceIs(t *testing.T) {
	w := newWorld(t)
	w.put(newNetwork("a", "main", 7))
	w.put(endpoint("a", "far", "n2", 2, nil, "main"))
	w.settle()
	if len(w.d.nets) != 0 {
		t.Fatal("a network without instances here")
	}
	in := []driver.Interface{{VNI: 7, Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.3/16")}}}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := w.f.Ready(short, in); errs.KindOf(err) != errs.Unavailable {
		t.Fatal("ready before it is known:", err)
	}
	w.put(endpoint("a", "near", "n1", 3, nil, "main"))
	w.settle()
	s := w.d.nets[7]
	if s == nil || len(s.members) != 2 || s.members[netip.MustParseAddr("10.1.0.2")].Host != netip.MustParseAddr("192.0.2.2") || len(s.table.Ports) != 1 {
		t.Fatalf("%+v", s)
	}
	if err := w.f.Ready(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	w.put(endpoint("a", "near", "n2", 3, nil, "main")) // it moved
	w.d.wired[7] = true
	w.settle()
	if w.d.nets[7] == nil {
		t.Fatal("forgotten while it has a wire")
	}
	if err := w.f.Ready(short, in); err == nil {
		t.Fatal("ready after it has left")
	}
	delete(w.d.wired, 7)
	w.clk.Advance(time.Minute)
	w.settle()
	if len(w.d.nets) != 0 {
		t.Fatal("the network stayed")
	}
}

func TestFailuresAreMadeGood(t *testing.T) {
	w := newWorld(t)
	w.put(newNetwork("a", "main", 7))
	w.put(endpoint("a", "near", "n1", 3, map[string]string{"app": "db"}, "main"))
	w.d.fail = 2
	w.settle()
	w.put(endpoint("a", "far", "n2", 2, map[string]string{"app": "web1"}, "main"))
	w.d.fail = 1
	w.settle()
	if s := w.d.nets[7]; s == nil || len(s.members) != 2 {
		t.Fatalf("%+v", s)
	}
}

// What the driver was told piece by piece, in several lives, is what it would be told at once.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 5))
		w := newWorld(t)
		w.put(newNetwork("a", "main", 7))
		w.put(newNetwork("a", "back", 8))
		w.put(newNetwork("b", "main", 9))
		for range 120 {
			name, n := "i"+fmt.Sprint(r.IntN(9)), 0
			n = int(name[1]-'0') + 10
			labels := map[string]string{"app": []string{"x", "db", "web"}[r.IntN(3)]}
			nets := [][]string{{"main"}, {"back"}, {"main", "back"}}[r.IntN(3)]
			switch x := r.IntN(16); {
			case x >= 14:
				for _, p := range [][]*api.Peering{{peering("a", "p", "main", "back")}, {peering("a", "q", "main", "b/main"), peering("b", "q", "main", "a/main")}, {peering("a", "r", "back", "b/main")}}[r.IntN(3)] {
					if r.IntN(3) == 0 {
						w.remove(api.KindPeering, p.Tenant, p.Name)
					} else {
						w.put(p)
					}
				}
			case x >= 12:
				e := endpoint("b", name, []string{"n1", "n2", "n3", ""}[r.IntN(4)], n, labels, "main")
				e.Spec.Interfaces[0].VNI, e.Spec.Interfaces[0].Address = 9, fmt.Sprintf("10.2.0.%d/16", n)
				w.put(e)
				if r.IntN(3) == 0 {
					w.remove(api.KindEndpoint, "b", name)
				}
			case x < 6:
				w.put(endpoint("a", name, []string{"n1", "n2", "n3", ""}[r.IntN(4)], n, labels, nets...))
			case x < 8:
				w.remove(api.KindEndpoint, "a", name)
			case x == 8:
				w.put(&api.SecurityGroup{Head: api.Head{K: api.KindSecurityGroup, Meta: api.Meta{Name: "g" + fmt.Sprint(r.IntN(2)), Tenant: "a"}},
					Spec: api.SecurityGroupSpec{Select: map[string]string{"app": "db"}, Ingress: []api.SecurityRule{{From: []api.SecurityPeer{{Labels: map[string]string{"app": "web"}}}}}}})
			case x == 9:
				w.remove(api.KindSecurityGroup, "a", "g"+fmt.Sprint(r.IntN(2)))
			case x == 10:
				w.d.fail = r.IntN(3)
			default:
				w.again()
			}
			if r.IntN(3) == 0 {
				w.settle()
			}
		}
		w.settle()
		got := describe(w.d)
		fresh := newWorld(t)
		fresh.mem = w.mem
		fresh.again()
		fresh.settle()
		if want := describe(fresh.d); got != want {
			t.Fatalf("seed %d:\ngot  %s\nwant %s", seed, got, want)
		}
	}
}

// describe is what is true of the tables, whatever their numbers.
func describe(d *told) string {
	out := ""
	for _, vni := range slices.Sorted(maps.Keys(d.nets)) {
		s := d.nets[vni]
		out += fmt.Sprintf("%d %v %s %v:", vni, s.net.Ref, s.net.Egress, s.net.Peers)
		meaning := map[uint32]uint32{} // numbers of guests are those of one life
		for _, a := range slices.SortedFunc(maps.Keys(s.members), netip.Addr.Compare) {
			m := s.members[a]
			id := m.Identity
			if id >= driver.FirstPeer {
				if meaning[id] == 0 {
					meaning[id] = uint32(len(meaning)) + 1
				}
				id = id&driver.FirstForeign + meaning[id]
			}
			out += fmt.Sprintf(" %s=%s,%d", a, m.Host, id)
		}
		for _, a := range slices.SortedFunc(maps.Keys(s.table.Ports), netip.Addr.Compare) {
			var peers []uint32
			for k, p := range s.table.Pairs {
				if set := s.table.Ports[a].Ingress; set != 0 && k.Set == set && p.All != 0 {
					peers = append(peers, k.Peer)
					if k.Peer >= driver.FirstPeer {
						peers[len(peers)-1] = k.Peer&driver.FirstForeign + meaning[k.Peer]
					}
				}
			}
			slices.Sort(peers)
			out += fmt.Sprintf(" %s<-%v", a, peers)
		}
		out += "\n"
	}
	return out
}

func peering(tenant, name, network, other string) *api.Peering {
	return &api.Peering{Head: api.Head{K: api.KindPeering, Meta: api.Meta{Name: name, Tenant: tenant}}, Spec: api.PeeringSpec{Network: network, Peer: other},
		Status: api.PeeringStatus{Conditions: []api.Condition{{Type: api.ConditionReady, Status: true}}}}
}

func TestAPeeredNetworkIsHereWithoutInstances(t *testing.T) {
	w := newWorld(t)
	w.put(newNetwork("a", "main", 7))
	back := newNetwork("b", "back", 8)
	back.Spec.CIDR = "10.2.0.0/16"
	w.put(back)
	w.put(endpoint("a", "near", "n1", 3, nil, "main"))
	far := endpoint("b", "far", "n2", 4, map[string]string{"app": "db"}, "back")
	far.Spec.Interfaces[0].Address = "10.2.0.4/16"
	w.put(far)
	w.put(peering("a", "p", "main", "b/back"))
	w.settle()
	if w.d.nets[8] != nil || len(w.d.nets[7].members) != 1 || len(w.d.nets[7].net.Peers) != 0 {
		t.Fatal("one side's word was enough")
	}
	w.put(peering("b", "p", "back", "a/main"))
	w.settle()
	at := netip.MustParseAddr("10.2.0.4")
	a, b := w.d.nets[7], w.d.nets[8]
	if b == nil || len(b.members) != 1 || b.members[at].Host != netip.MustParseAddr("192.0.2.2") || b.net.Egress != driver.EgressNone || len(b.net.Peers) != 1 || b.net.Peers[0].VNI != 7 {
		t.Fatalf("%+v", b)
	}
	if g := a.members[at]; !driver.Foreign(g.Identity) || g.Host.IsValid() || g.MAC != [6]byte{} || len(a.net.Peers) != 1 || a.net.Peers[0].Prefixes[0].String() != "10.2.0.0/16" {
		t.Fatalf("%+v in %+v", g, a.net)
	}
	was := a.members[at].Identity
	far.Spec.Labels = map[string]string{"app": "web1"}
	far.Spec.Interfaces[0].Identity = 400
	w.put(far)
	w.settle()
	if now := a.members[at].Identity; now == was || now == 0 {
		t.Errorf("other labels are another number: %d, %d", was, now)
	}
	w.remove(api.KindPeering, "b", "p")
	w.settle()
	if w.d.nets[8] != nil || len(w.d.nets[7].members) != 1 || len(w.d.nets[7].net.Peers) != 0 {
		t.Fatalf("%+v after they have parted", w.d.nets)
	}
}

func TestARouteFollowsItsNextHop(t *testing.T) {
	w := newWorld(t)
	w.put(newNetwork("a", "main", 7))
	w.put(endpoint("a", "near", "n1", 3, nil, "main"))
	w.put(&api.Route{Head: api.Head{K: api.KindRoute, Meta: api.Meta{Name: "r", Tenant: "a"}}, Spec: api.RouteSpec{Network: "main", Destination: "192.168.0.0/16", Via: "vpn"},
		Status: api.RouteStatus{Conditions: []api.Condition{{Type: api.ConditionReady, Status: true}}}})
	w.put(&api.Route{Head: api.Head{K: api.KindRoute, Meta: api.Meta{Name: "no", Tenant: "a"}}, Spec: api.RouteSpec{Network: "main", Destination: "172.16.0.0/16", Via: "vpn"}})
	via := func(want string) {
		t.Helper()
		w.settle()
		if got := fmt.Sprint(w.d.nets[7].net.Routes); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	via("[{192.168.0.0/16 invalid IP}]") // nowhere, rather than by the way out
	w.put(endpoint("a", "vpn", "n2", 4, nil, "main"))
	via("[{192.168.0.0/16 10.1.0.4}]")
	w.put(endpoint("a", "vpn", "n1", 4, nil, "main"))
	via("[{192.168.0.0/16 10.1.0.4}]")
	w.again()
	via("[{192.168.0.0/16 10.1.0.4}]")
	w.remove(api.KindEndpoint, "a", "vpn")
	via("[{192.168.0.0/16 invalid IP}]")
	w.remove(api.KindRoute, "a", "r")
	via("[]")
}
