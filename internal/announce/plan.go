package announce

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"atoll/api"
	"atoll/internal/driver"
)

// Floating is an address of the outside that is on a host for an instance there.
type Floating struct {
	Addr netip.Addr
	Node string
}

// World is what a host that announces knows of the pool.
type World struct {
	Node      *api.Node
	Peers     []*api.BGPPeer
	Networks  []*api.Network
	Endpoints []*api.Endpoint
	Floating  []Floating
	// Lost says that the host does not hold its lease: what is for one instance may be on another host already.
	Lost bool
}

// Plan says what the host tells, and to whom; refused are peers with which it cannot speak,
// and why. It is a function of the world alone, whatever the order of its parts is.
func Plan(w World) (a driver.Announcing, refused map[string]string) {
	refused = map[string]string{}
	peers := slices.Clone(w.Peers)
	slices.SortFunc(peers, func(x, y *api.BGPPeer) int { return cmp.Compare(x.Name, y.Name) })
	tunnel := tunnelOf(w.Node)
	evpn := false
	for _, p := range peers {
		if !p.Wants(w.Node) {
			continue
		}
		if a.ASN != 0 && p.Spec.LocalASN != a.ASN {
			refused[p.Name] = fmt.Sprintf("spec.localAsn is %d, but this host speaks as AS %d with %s; a host has one number", p.Spec.LocalASN, a.ASN, a.Peers[0].Name)
			continue
		}
		a.ASN = p.Spec.LocalASN
		a.Peers = append(a.Peers, peerOf(p))
		evpn = evpn || p.Spec.Speaks(api.BGPEVPN)
	}
	if len(a.Peers) == 0 {
		return driver.Announcing{}, refused
	}
	a.RouterID = routerID(w.Node, tunnel)
	here := networksHere(w)
	if w.Lost {
		w.Floating, w.Endpoints = nil, nil
	}
	a.Routes = append(floating(w), direct(w.Node, here)...)
	if evpn && tunnel.IsValid() {
		a.Routes = append(a.Routes, members(w, here, tunnel, a.ASN)...)
	}
	return a, refused
}

func peerOf(p *api.BGPPeer) driver.Router {
	s := &p.Spec
	d := driver.Router{Name: p.Name, At: s.At(), ASN: s.ASN, Secret: s.Password, Hold: s.Hold(), Multihop: s.Multihop, Restart: s.RestartTime()}
	for _, f := range []driver.Family{driver.FamilyIPv4, driver.FamilyIPv6, driver.FamilyEVPN} {
		if s.Speaks(string(f)) {
			d.Families = append(d.Families, f)
		}
	}
	return d
}

// tunnelOf is where other hosts and routers send what is for networks of this one; invalid
// when that is nowhere, or only on the host itself.
func tunnelOf(n *api.Node) netip.Addr {
	a, err := netip.ParseAddr(n.Tunnel())
	if err != nil || !a.IsGlobalUnicast() {
		return netip.Addr{}
	}
	return a.Unmap()
}

// nextHop is the host's address of a family: that of its tunnel, or the first it has.
func nextHop(n *api.Node, six bool) netip.Addr {
	if t := tunnelOf(n); t.IsValid() && t.Is6() == six {
		return t
	}
	for _, s := range n.Status.Addresses {
		if a, err := netip.ParseAddr(s); err == nil && a.Unmap().Is6() == six && a.IsGlobalUnicast() {
			return a.Unmap()
		}
	}
	return netip.Addr{}
}

// routerID is the host's own among speakers: an IPv4 address of it, and where there is none, a
// number made of its name.
func routerID(n *api.Node, tunnel netip.Addr) netip.Addr {
	if tunnel.Is4() {
		return tunnel
	}
	if a := nextHop(n, false); a.IsValid() {
		return a
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(n.Name)) // never fails
	v := h.Sum32()
	return netip.AddrFrom4([4]byte{byte(v>>24) | 1, byte(v >> 16), byte(v >> 8), byte(v)})
}

// network is one that has instances on this host.
type network struct {
	*api.Network
	number uint16 // with the router's number, its route distinguisher
}

// networksHere are in the order of their VNIs, so that the same networks have the same numbers. A number is the
// last 16 bits of the VNI: all of it for one that an administrator chose, and without clashes for the first 65,536
// that the pool gives. Where two on one host would have the same, the larger VNI takes the next that is free.
func networksHere(w World) []network {
	used := map[api.Ref]bool{}
	for _, e := range w.Endpoints {
		for _, i := range e.Spec.Interfaces {
			if e.Spec.Node == w.Node.Name {
				used[api.Ref{Kind: api.KindNetwork, Tenant: e.Tenant, Name: i.Network}] = true
			}
		}
	}
	var out []network
	for _, n := range w.Networks {
		if used[api.RefOf(n)] && n.Status.VNI != 0 {
			out = append(out, network{Network: n})
		}
	}
	slices.SortFunc(out, func(x, y network) int {
		return cmp.Or(cmp.Compare(x.Status.VNI, y.Status.VNI), cmp.Compare(x.Tenant, y.Tenant), cmp.Compare(x.Name, y.Name))
	})
	taken := map[uint16]bool{}
	for i := range out {
		n := uint16(out[i].Status.VNI & 0xffff)
		for taken[n] && len(taken) < 1<<16 {
			n++
		}
		taken[n], out[i].number = true, n
	}
	return out
}

// floating are routes to addresses of the outside that are on this host.
func floating(w World) []driver.Announcement {
	var out []driver.Announcement
	seen := map[netip.Addr]bool{}
	for _, f := range w.Floating {
		a := f.Addr.Unmap()
		if f.Node != w.Node.Name || !a.IsGlobalUnicast() || seen[a] {
			continue
		}
		seen[a] = true
		if next := nextHop(w.Node, a.Is6()); next.IsValid() {
			out = append(out, driver.Announcement{Kind: driver.RouteUnicast, Prefix: netip.PrefixFrom(a, a.BitLen()), NextHop: next})
		}
	}
	slices.SortFunc(out, func(x, y driver.Announcement) int { return x.Prefix.Addr().Compare(y.Prefix.Addr()) })
	return out
}

// direct are routes to networks that use their own addresses outside.
func direct(n *api.Node, here []network) []driver.Announcement {
	var out []driver.Announcement
	seen := map[netip.Prefix]bool{}
	for _, x := range here {
		if driver.Egress(x.Spec.Egress) != driver.EgressDirect {
			continue
		}
		for _, p := range x.Spec.Prefixes() {
			if next := nextHop(n, p.Addr().Is6()); next.IsValid() && !seen[p] {
				seen[p] = true
				out = append(out, driver.Announcement{Kind: driver.RouteUnicast, Prefix: p, NextHop: next})
			}
		}
	}
	return out
}

// target is for whom routes of a network are. Its form with 4 bytes for the network has 2 for the system: of a longer
// number the last ones, as other speakers do that make it by themselves.
func target(asn, vni uint32) driver.RouteTarget {
	return driver.RouteTarget{ASN: uint16(asn & 0xffff), Number: vni}
}

// members are EVPN's routes: that the host takes part in its networks, who is on them here, and their prefixes.
func members(w World, here []network, tunnel netip.Addr, asn uint32) []driver.Announcement {
	var out []driver.Announcement
	by := map[api.Ref]driver.Announcement{}
	for _, n := range here {
		r := driver.Announcement{NextHop: tunnel, VNI: n.Status.VNI, Number: n.number, Target: target(asn, n.Status.VNI)}
		by[api.RefOf(n.Network)] = r
		r.Kind = driver.RouteMulticast
		out = append(out, r)
		r.Kind, r.MAC = driver.RoutePrefix, driver.GatewayMAC
		for _, p := range n.Spec.Prefixes() {
			r.Prefix = p
			out = append(out, r)
		}
	}
	for _, e := range w.Endpoints {
		if e.Spec.Node != w.Node.Name {
			continue
		}
		for _, i := range e.Spec.Interfaces {
			r, ok := by[api.Ref{Kind: api.KindNetwork, Tenant: e.Tenant, Name: i.Network}]
			mac, good := i.HardwareAddr()
			if !ok || !good {
				continue
			}
			for _, s := range i.Addresses() {
				if a, err := netip.ParseAddr(s); err == nil {
					r.Kind, r.MAC, r.Addr = driver.RouteMember, mac, a
					out = append(out, r)
				}
			}
		}
	}
	slices.SortStableFunc(out, func(x, y driver.Announcement) int {
		return cmp.Or(cmp.Compare(x.VNI, y.VNI), cmp.Compare(x.Kind, y.Kind), x.Addr.Compare(y.Addr))
	})
	return out
}

// MaxLearned bounds the members that routers may add to a network.
const MaxLearned = 4096

// Import says which of what routers tell become members of networks, and how many each
// peer gave. Only networks that a peer is allowed to add to, by the operator, get any; whether an
// address is the pool's own is for the fabric to judge, which knows those of the moment.
func Import(w World, learned []driver.Learned) (members map[uint32][]driver.Member, from map[string]int) {
	members, from = map[uint32][]driver.Member{}, map[string]int{}
	type grant struct {
		peer string
		vni  uint32
	}
	granted := map[grant]bool{}
	nets := map[uint32]network{}
	for _, n := range networksHere(w) {
		nets[n.Status.VNI] = n
		for _, p := range w.Peers {
			if p.Wants(w.Node) && slices.Contains(p.Spec.Import, n.Tenant+"/"+n.Name) {
				granted[grant{p.Name, n.Status.VNI}] = true
			}
		}
	}
	self := tunnelOf(w.Node)
	for _, l := range learned {
		n, ok := nets[l.VNI]
		if !ok || !granted[grant{l.Peer, l.VNI}] || l.Host == self || len(members[l.VNI]) >= MaxLearned || !inside(n, l.Addr) {
			continue
		}
		members[l.VNI] = append(members[l.VNI], driver.Member{Addr: l.Addr, MAC: l.MAC, Host: l.Host, Identity: driver.IdentityOutside})
		from[l.Peer]++
	}
	return members, from
}

// inside reports whether an instance could have the address on the network.
func inside(n network, a netip.Addr) bool {
	return slices.ContainsFunc(n.Spec.Prefixes(), func(p netip.Prefix) bool {
		return p.Contains(a) && a != p.Addr() && a != api.Gateway(p)
	})
}
