package gobgp

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"atoll/internal/driver"
)

// path is a route in the library's words, with a key by which routes are told apart that
// replace each other.
func path(r driver.Announcement, router netip.Addr) (*apiutil.Path, string, error) {
	nlri, family, err := nlriOf(r, router)
	if err != nil {
		return nil, "", err
	}
	next, err := bgp.NewPathAttributeNextHop(r.NextHop)
	if err != nil {
		return nil, "", err
	}
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), next}
	if r.Kind == driver.RouteUnicast {
		return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs}, family.String() + " " + nlri.String(), nil
	}
	communities := []bgp.ExtendedCommunityInterface{
		bgp.NewTwoOctetAsSpecificExtended(bgp.EC_SUBTYPE_ROUTE_TARGET, r.Target.ASN, r.Target.Number, true),
		bgp.NewEncapExtended(bgp.TUNNEL_TYPE_VXLAN),
	}
	switch r.Kind {
	case driver.RoutePrefix:
		communities = append(communities, bgp.NewRoutersMacExtended(net.HardwareAddr(r.MAC[:]).String()))
	case driver.RouteMulticast:
		id, err := bgp.NewIngressReplTunnelID(r.NextHop)
		if err != nil {
			return nil, "", err
		}
		attrs = append(attrs, bgp.NewPathAttributePmsiTunnel(bgp.PMSI_TUNNEL_TYPE_INGRESS_REPL, false, r.VNI, id))
	}
	attrs = append(attrs, bgp.NewPathAttributeExtendedCommunities(communities))
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs}, nlri.String(), nil
}

func nlriOf(r driver.Announcement, router netip.Addr) (bgp.NLRI, bgp.Family, error) {
	if r.Kind == driver.RouteUnicast {
		family := bgp.RF_IPv4_UC
		if r.Prefix.Addr().Is6() {
			family = bgp.RF_IPv6_UC
		}
		n, err := bgp.NewIPAddrPrefix(r.Prefix)
		return n, family, err
	}
	rd, err := bgp.NewRouteDistinguisherIPAddressAS(router, r.Number)
	if err != nil {
		return nil, 0, err
	}
	var n bgp.NLRI
	switch r.Kind {
	case driver.RouteMember:
		n, err = bgp.NewEVPNMacIPAdvertisementRoute(rd, bgp.EthernetSegmentIdentifier{}, 0, net.HardwareAddr(r.MAC[:]).String(), r.Addr, []uint32{r.VNI})
	case driver.RouteMulticast:
		n, err = bgp.NewEVPNMulticastEthernetTagRoute(rd, 0, r.NextHop)
	case driver.RoutePrefix:
		none := netip.IPv4Unspecified()
		if r.Prefix.Addr().Is6() {
			none = netip.IPv6Unspecified()
		}
		n, err = bgp.NewEVPNIPPrefixRoute(rd, bgp.EthernetSegmentIdentifier{}, 0, uint8(r.Prefix.Bits()), r.Prefix.Addr(), none, r.VNI) //nolint:gosec // at most 128
	default:
		return nil, 0, fmt.Errorf("no kind of route has the number %d", r.Kind)
	}
	return n, bgp.RF_EVPN, err
}

// place is an address of a network.
type place struct {
	vni  uint32
	addr netip.Addr
}

// best chooses, of all that routers tell of an address, what is the newest.
type best struct {
	own   uint32 // number of this host's autonomous system: what went through it comes from the pool
	found map[place]offer
}

type offer struct {
	driver.Learned
	moves uint32 // how often the address has moved, says who tells (RFC 7432, section 15)
}

func newBest(own uint32) *best { return &best{own: own, found: map[place]offer{}} }

// offer takes one route into account. What a router may tell is not trusted: what makes no
// sense as a place of an instance is passed over.
func (b *best) offer(peer string, p *apiutil.Path) {
	o, ok := read(p, b.own)
	if !ok {
		return
	}
	o.Peer = peer
	at := place{o.VNI, o.Addr}
	if have, ok := b.found[at]; !ok || better(o, have) {
		b.found[at] = o
	}
}

// better is the same whichever is asked about first: hosts that hear the same choose the same.
func better(a, b offer) bool {
	if c := cmp.Compare(a.moves, b.moves); c != 0 {
		return c > 0
	}
	if c := a.Host.Compare(b.Host); c != 0 {
		return c < 0
	}
	if c := bytes.Compare(a.MAC[:], b.MAC[:]); c != 0 {
		return c < 0
	}
	return a.Peer < b.Peer
}

func (b *best) list() []driver.Learned {
	out := make([]driver.Learned, 0, len(b.found))
	for _, o := range b.found {
		out = append(out, o.Learned)
	}
	slices.SortFunc(out, func(x, y driver.Learned) int {
		return cmp.Or(cmp.Compare(x.VNI, y.VNI), x.Addr.Compare(y.Addr))
	})
	return out
}

// read takes a route of type 2 apart; false when it is another one, or no place of an instance.
func read(p *apiutil.Path, own uint32) (o offer, ok bool) {
	n, evpn := p.Nlri.(*bgp.EVPNNLRI)
	if !evpn || p.Withdrawal {
		return o, false
	}
	r, member := n.RouteTypeData.(*bgp.EVPNMacIPAdvertisementRoute)
	if !member || r.IPAddressLength == 0 || !r.IPAddress.IsValid() || len(r.Labels) == 0 || r.Labels[0] == 0 || r.ETag != 0 || len(r.MacAddress) != 6 {
		return o, false
	}
	o.VNI, o.Addr, o.MAC = r.Labels[0], r.IPAddress.Unmap(), [6]byte(r.MacAddress)
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeMpReachNLRI:
			o.Host = a.Nexthop.Unmap()
		case *bgp.PathAttributeAsPath:
			for _, s := range a.Value {
				if slices.Contains(s.GetAS(), own) {
					return o, false
				}
			}
		case *bgp.PathAttributeExtendedCommunities:
			for _, c := range a.Value {
				switch c := c.(type) {
				case *bgp.EncapExtended:
					if c.TunnelType != bgp.TUNNEL_TYPE_VXLAN {
						return o, false
					}
				case *bgp.MacMobilityExtended:
					o.moves = c.Sequence
				}
			}
		}
	}
	h := o.Host
	good := h.IsValid() && !h.IsUnspecified() && !h.IsMulticast() && !h.IsLoopback() && !h.IsLinkLocalUnicast()
	return o, good && o.MAC != [6]byte{} && o.MAC[0]&1 == 0
}
