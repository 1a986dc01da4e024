package announce

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
)

func node(name, tunnel string, labels map[string]string, addrs ...string) *api.Node {
	return &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name, Labels: labels}}, Status: api.NodeStatus{Addresses: addrs,
		Drivers: []api.Capability{{Type: "network", Name: api.DriverOverlay, Features: map[string]string{"tunnel": tunnel}}}}}
}

func peerObj(name string, spec api.BGPPeerSpec) *api.BGPPeer {
	if spec.LocalASN == 0 {
		spec.LocalASN = 64512
	}
	spec.Address, spec.ASN = "192.0.2.1", 65001
	return &api.BGPPeer{Head: api.Head{K: api.KindBGPPeer, Meta: api.Meta{Name: name}}, Spec: spec}
}

func net4(tenant, name, cidr string, vni uint32) *api.Network {
	return &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Tenant: tenant, Name: name}}, Spec: api.NetworkSpec{CIDR: cidr}, Status: api.NetworkStatus{VNI: vni}}
}

func endpoint(tenant, name, node string, ifs ...api.Interface) *api.Endpoint {
	return &api.Endpoint{Head: api.Head{K: api.KindEndpoint, Meta: api.Meta{Tenant: tenant, Name: name}}, Spec: api.EndpointSpec{Node: node, Interfaces: ifs}}
}

func iface(network string, vni uint32, addr, mac string) api.Interface {
	return api.Interface{Network: network, VNI: vni, Address: addr, MAC: mac}
}

// lines writes routes down.
func lines(rs []driver.Announcement) string {
	var b strings.Builder
	for _, r := range rs {
		switch r.Kind {
		case driver.RouteUnicast:
			fmt.Fprintf(&b, "%s by %s\n", r.Prefix, r.NextHop)
		case driver.RouteMember:
			fmt.Fprintf(&b, "2 %d:%d %s %x by %s for %d:%d\n", r.VNI, r.Number, r.Addr, r.MAC, r.NextHop, r.Target.ASN, r.Target.Number)
		case driver.RouteMulticast:
			fmt.Fprintf(&b, "3 %d:%d by %s for %d:%d\n", r.VNI, r.Number, r.NextHop, r.Target.ASN, r.Target.Number)
		case driver.RoutePrefix:
			fmt.Fprintf(&b, "5 %d:%d %s %x by %s for %d:%d\n", r.VNI, r.Number, r.Prefix, r.MAC, r.NextHop, r.Target.ASN, r.Target.Number)
		}
	}
	return b.String()
}

func world() World {
	direct := net4("acme", "open", "198.51.100.0/24", 5001)
	direct.Spec.Egress, direct.Spec.CIDR6 = string(driver.EgressDirect), "2001:db8:9::/64"
	return World{
		Node:     node("n1", "192.0.2.7", map[string]string{"rack": "r1"}, "192.0.2.7", "2001:db8::7"),
		Peers:    []*api.BGPPeer{peerObj("tor", api.BGPPeerSpec{Families: []string{"ipv4", "ipv6", "evpn"}})},
		Networks: []*api.Network{net4("acme", "main", "10.1.0.0/16", 70001), direct, net4("beta", "main", "10.1.0.0/16", 70002), net4("acme", "elsewhere", "10.9.0.0/16", 70003)},
		Endpoints: []*api.Endpoint{
			endpoint("acme", "web", "n1", iface("main", 70001, "10.1.0.5/16", "0a:58:0a:01:00:05"), iface("open", 5001, "198.51.100.9/24", "0a:58:c6:33:64:09")),
			endpoint("beta", "db", "n1", iface("main", 70002, "10.1.0.5/16", "0a:58:0a:01:00:05")),
			endpoint("acme", "far", "n2", iface("elsewhere", 70003, "10.9.0.5/16", "0a:58:0a:09:00:05")),
			endpoint("acme", "nowhere", "", iface("main", 70001, "10.1.0.6/16", "0a:58:0a:01:00:06")),
		},
		Floating: []Floating{{netip.MustParseAddr("203.0.113.7"), "n1"}, {netip.MustParseAddr("203.0.113.8"), "n2"}, {netip.MustParseAddr("2001:db8:5::7"), "n1"}},
	}
}

func TestPlan(t *testing.T) {
	a, refused := Plan(world())
	if len(refused) > 0 || a.ASN != 64512 || a.RouterID.String() != "192.0.2.7" || len(a.Peers) != 1 {
		t.Fatalf("%+v %v", a, refused)
	}
	want := `203.0.113.7/32 by 192.0.2.7
2001:db8:5::7/128 by 2001:db8::7
198.51.100.0/24 by 192.0.2.7
2001:db8:9::/64 by 2001:db8::7
2 5001:5001 198.51.100.9 0a58c6336409 by 192.0.2.7 for 64512:5001
3 5001:5001 by 192.0.2.7 for 64512:5001
5 5001:5001 198.51.100.0/24 0a5800000001 by 192.0.2.7 for 64512:5001
5 5001:5001 2001:db8:9::/64 0a5800000001 by 192.0.2.7 for 64512:5001
2 70001:4465 10.1.0.5 0a580a010005 by 192.0.2.7 for 64512:70001
3 70001:4465 by 192.0.2.7 for 64512:70001
5 70001:4465 10.1.0.0/16 0a5800000001 by 192.0.2.7 for 64512:70001
2 70002:4466 10.1.0.5 0a580a010005 by 192.0.2.7 for 64512:70002
3 70002:4466 by 192.0.2.7 for 64512:70002
5 70002:4466 10.1.0.0/16 0a5800000001 by 192.0.2.7 for 64512:70002
`
	if got := lines(a.Routes); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	want0 := driver.Router{Name: "tor", At: netip.MustParseAddrPort("192.0.2.1:179"), ASN: 65001, Hold: 30 * time.Second, Restart: 15 * time.Second,
		Families: []driver.Family{driver.FamilyIPv4, driver.FamilyIPv6, driver.FamilyEVPN}}
	if !reflect.DeepEqual(a.Peers[0], want0) {
		t.Errorf("%+v", a.Peers[0])
	}
}

func TestWhoIsSpokenWith(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *World)
		check  func(a driver.Announcing, refused map[string]string) bool
	}{
		"other labels": {func(w *World) { w.Peers[0].Spec.Nodes = map[string]string{"rack": "r2"} },
			func(a driver.Announcing, _ map[string]string) bool { return reflect.DeepEqual(a, driver.Announcing{}) }},
		"these labels": {func(w *World) { w.Peers[0].Spec.Nodes = map[string]string{"rack": "r1"} },
			func(a driver.Announcing, _ map[string]string) bool { return len(a.Peers) == 1 }},
		"being removed": {func(w *World) { now := time.Unix(1, 0); w.Peers[0].DeletedAt = &now },
			func(a driver.Announcing, _ map[string]string) bool { return len(a.Peers) == 0 && len(a.Routes) == 0 }},
		"two numbers": {func(w *World) { w.Peers = append(w.Peers, peerObj("a-first", api.BGPPeerSpec{LocalASN: 4200000001})) },
			func(a driver.Announcing, r map[string]string) bool {
				return a.ASN == 4200000001 && len(a.Peers) == 1 && strings.Contains(r["tor"], "spec.localAsn is 64512, but this host speaks as AS 4200000001 with a-first")
			}},
		"a long number": {func(w *World) { w.Peers[0].Spec.LocalASN = 4200000001 },
			func(a driver.Announcing, _ map[string]string) bool {
				return strings.Contains(lines(a.Routes), "for 59905:70001") // 4200000001 & 0xffff
			}},
		"no evpn": {func(w *World) { w.Peers[0].Spec.Families = nil },
			func(a driver.Announcing, _ map[string]string) bool { return len(a.Routes) == 4 }},
		"no other hosts": {func(w *World) { w.Node = node("n1", "127.0.0.1", nil, "192.0.2.9") },
			func(a driver.Announcing, _ map[string]string) bool {
				return lines(a.Routes) == "203.0.113.7/32 by 192.0.2.9\n198.51.100.0/24 by 192.0.2.9\n"
			}},
		"IPv6 between hosts": {func(w *World) { w.Node = node("n1", "2001:db8::7", nil, "2001:db8::7") },
			func(a driver.Announcing, _ map[string]string) bool {
				return a.RouterID.Is4() && a.RouterID != netip.IPv4Unspecified() && strings.Contains(lines(a.Routes), "3 70001:4465 by 2001:db8::7") && !strings.Contains(lines(a.Routes), "203.0.113.7")
			}},
		"without its lease": {func(w *World) { w.Lost = true },
			func(a driver.Announcing, _ map[string]string) bool {
				s := lines(a.Routes)
				return !strings.Contains(s, "203.0.113.7") && !strings.Contains(s, "10.1.0.5") && strings.Contains(s, "3 70001:4465") && strings.Contains(s, "198.51.100.0/24 by")
			}},
		"clash of numbers": {func(w *World) {
			w.Networks = append(w.Networks, net4("acme", "low", "10.8.0.0/16", 4465))
			w.Endpoints = append(w.Endpoints, endpoint("acme", "x", "n1", iface("low", 4465, "10.8.0.5/16", "0a:58:0a:08:00:05")))
		}, func(a driver.Announcing, _ map[string]string) bool {
			s := lines(a.Routes)
			return strings.Contains(s, "3 4465:4465") && strings.Contains(s, "3 70001:4466") && strings.Contains(s, "3 70002:4467")
		}},
	} {
		w := world()
		c.change(&w)
		if a, refused := Plan(w); !c.check(a, refused) {
			t.Errorf("%s: %+v %v\n%s", name, a, refused, lines(a.Routes))
		}
	}
}

// Whatever the pool is like: all that is announced is on this host; a network's distinguisher is its own; the
// order of what is known does not matter; what goes is not announced any more.
func TestPlanProperties(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		w := random(rnd)
		a, _ := Plan(w)
		numbers, own := map[uint16]uint32{}, map[string]bool{}
		for _, e := range w.Endpoints {
			for _, i := range e.Spec.Interfaces {
				if e.Spec.Node == "n1" {
					own[fmt.Sprintf("%d %s", i.VNI, strings.Split(i.Address, "/")[0])], own[fmt.Sprint(i.VNI)] = true, true
				}
			}
		}
		for _, f := range w.Floating {
			own[f.Addr.String()] = own[f.Addr.String()] || f.Node == "n1"
		}
		for _, r := range a.Routes {
			ok := r.NextHop.String() == "192.0.2.7"
			switch r.Kind {
			case driver.RouteUnicast:
				ok = ok && own[r.Prefix.Addr().String()] && r.Prefix.IsSingleIP()
			case driver.RouteMember:
				ok = ok && own[fmt.Sprintf("%d %s", r.VNI, r.Addr)]
			default:
				ok = ok && own[fmt.Sprint(r.VNI)]
			}
			if was, seen := numbers[r.Number]; r.Kind != driver.RouteUnicast && seen && was != r.VNI {
				t.Fatalf("seed %d: networks %d and %d have one distinguisher", seed, was, r.VNI)
			}
			if numbers[r.Number] = r.VNI; !ok {
				t.Fatalf("seed %d: %+v is not of this host", seed, r)
			}
		}
		x := w
		x.Endpoints, x.Networks, x.Floating = slices.Clone(w.Endpoints), slices.Clone(w.Networks), slices.Clone(w.Floating)
		rnd.Shuffle(len(x.Endpoints), func(i, j int) { x.Endpoints[i], x.Endpoints[j] = x.Endpoints[j], x.Endpoints[i] })
		rnd.Shuffle(len(x.Networks), func(i, j int) { x.Networks[i], x.Networks[j] = x.Networks[j], x.Networks[i] })
		rnd.Shuffle(len(x.Floating), func(i, j int) { x.Floating[i], x.Floating[j] = x.Floating[j], x.Floating[i] })
		if b, _ := Plan(x); !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d: the order matters\n%s\n%s", seed, lines(a.Routes), lines(b.Routes))
		}
		if len(w.Endpoints) == 0 {
			continue
		}
		gone := w.Endpoints[0]
		w.Endpoints = w.Endpoints[1:]
		b, _ := Plan(w)
		for _, r := range b.Routes {
			for _, i := range gone.Spec.Interfaces {
				if r.Kind == driver.RouteMember && r.VNI == i.VNI && strings.HasPrefix(i.Address, r.Addr.String()+"/") {
					t.Fatalf("seed %d: %+v is gone", seed, r)
				}
			}
		}
	}
}

func random(rnd *rand.Rand) World {
	w := world()
	w.Networks, w.Endpoints, w.Floating = nil, nil, nil
	for i := range 1 + rnd.IntN(6) {
		vni := uint32(1 + rnd.IntN(3) + rnd.IntN(3)<<16) // numbers that clash in their last bits
		for slices.ContainsFunc(w.Networks, func(n *api.Network) bool { return n.Status.VNI == vni }) {
			vni += 1 << 18
		}
		w.Networks = append(w.Networks, net4("acme", fmt.Sprint("net", i), fmt.Sprintf("10.%d.0.0/16", rnd.IntN(3)), vni))
	}
	for i := range rnd.IntN(20) {
		n := w.Networks[rnd.IntN(len(w.Networks))]
		w.Endpoints = append(w.Endpoints, endpoint("acme", fmt.Sprint("e", i), []string{"n1", "n2", ""}[rnd.IntN(3)],
			iface(n.Name, n.Status.VNI, fmt.Sprintf("10.1.0.%d/16", i+2), fmt.Sprintf("0a:58:0a:01:00:%02x", i+2))))
	}
	for i := range rnd.IntN(5) {
		w.Floating = append(w.Floating, Floating{netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), []string{"n1", "n2", ""}[rnd.IntN(3)]})
	}
	return w
}

func TestImport(t *testing.T) {
	w := world()
	w.Peers[0].Spec.Import = []string{"acme/main", "acme/elsewhere"}
	good := driver.Learned{Peer: "tor", VNI: 70001, Addr: netip.MustParseAddr("10.1.200.1"), MAC: [6]byte{2, 0, 0, 0, 0, 1}, Host: netip.MustParseAddr("192.0.2.50")}
	change := func(fn func(l *driver.Learned)) driver.Learned {
		l := good
		fn(&l)
		return l
	}
	for name, l := range map[string]driver.Learned{
		"the gateway":              change(func(l *driver.Learned) { l.Addr = netip.MustParseAddr("10.1.0.1") }),
		"the network's address":    change(func(l *driver.Learned) { l.Addr = netip.MustParseAddr("10.1.0.0") }),
		"outside of the network":   change(func(l *driver.Learned) { l.Addr = netip.MustParseAddr("10.2.0.9") }),
		"another network":          change(func(l *driver.Learned) { l.VNI = 70002 }),
		"a network not here":       change(func(l *driver.Learned) { l.VNI, l.Addr = 70003, netip.MustParseAddr("10.9.0.7") }),
		"a peer without the right": change(func(l *driver.Learned) { l.Peer = "other" }),
		"this host":                change(func(l *driver.Learned) { l.Host = netip.MustParseAddr("192.0.2.7") }),
	} {
		if m, from := Import(w, []driver.Learned{l}); len(m) != 0 || len(from) != 0 {
			t.Errorf("%s became a member: %v %v", name, m, from)
		}
	}
	m, from := Import(w, []driver.Learned{good})
	want := driver.Member{Addr: good.Addr, MAC: good.MAC, Host: good.Host, Identity: driver.IdentityOutside}
	if len(m) != 1 || len(m[70001]) != 1 || m[70001][0] != want || from["tor"] != 1 {
		t.Error(m, from)
	}
	var many []driver.Learned
	for i := range MaxLearned + 10 {
		many = append(many, change(func(l *driver.Learned) { l.Addr = netip.AddrFrom4([4]byte{10, 1, byte(1 + i>>8), byte(i)}) }))
	}
	if m, _ := Import(w, many); len(m[70001]) != MaxLearned {
		t.Error(len(m[70001]))
	}
	w.Peers[0].Spec.Import = nil
	if m, _ := Import(w, []driver.Learned{good}); len(m) != 0 {
		t.Error("nobody allowed it", m)
	}
}
