package nft

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Gate is what passes between a tenant's network and its host: rules in the network's own
// namespace, where there are no others. Who may reach whom inside is not decided here.
type Gate struct {
	Switch    string // bridge of the network
	Uplink    string // cable to the host, by which IPv4 is translated; "" when there is none
	Way       string // cable to the host by which IPv6 is translated, or with Direct nothing; "" when there is none
	Direct    bool   // by Way the network's own addresses go out, and come in
	Tunnel    uint16 // UDP port of tunnels between hosts: nothing from inside goes there
	Published []Entrance
	Prefixes  []netip.Prefix // the network's own
	Peers     []Joined
	Floating  []Floating // To is the instance
}

// Joined is a network that this one is joined with, by a cable.
type Joined struct {
	Cable    string
	Prefixes []netip.Prefix
}

// JoinedMark is what packets are marked with that came by a cable from another network, and from
// its own addresses: its number among identities.
const JoinedMark = 3

// Entrance is a port of the host that leads to an instance. What arrives comes by the same port of the cable.
type Entrance struct {
	Proto uint8 // 6 TCP, 17 UDP
	Port  uint16
	To    netip.AddrPort // of either family
}

// SetGate makes these the rules of the namespace ns, an open file, in one transaction: connections
// that are there go on.
func SetGate(ns int, g Gate) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns))
	if err != nil {
		return kernelError("open nftables socket", err)
	}
	t := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	pub, pub6, err := addPublished(c, t, g.Published)
	if err != nil {
		return err
	}
	in, under, err := gateFloating(c, t, g.Floating)
	if err != nil {
		return err
	}
	for _, ch := range gateChains(g, t, gateSets{pub, pub6, in, under}) {
		c.AddChain(ch.Chain)
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch.Chain, Exprs: r.exprs, UserData: comment(r.why)})
		}
	}
	if err := c.Flush(); err != nil {
		return kernelError("write the rules of a network's gate", err)
	}
	return nil
}

const mapPub6 = "published6"

// addPublished makes the maps of published ports, one for each family.
func addPublished(c *nftables.Conn, t *nftables.Table, all []Entrance) (pub, pub6 *nftables.Set, err error) {
	key := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	pub = &nftables.Set{Table: t, Name: mapPub, IsMap: true, KeyType: key, DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService), Concatenation: true}
	pub6 = &nftables.Set{Table: t, Name: mapPub6, IsMap: true, KeyType: key, DataType: nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService), Concatenation: true}
	els := map[*nftables.Set][]nftables.SetElement{}
	for _, e := range all {
		if e.To.Addr().Is6() {
			els[pub6] = append(els[pub6], e.element())
		} else {
			els[pub] = append(els[pub], e.element())
		}
	}
	for _, s := range []*nftables.Set{pub, pub6} {
		if err := c.AddSet(s, nil); err != nil {
			return nil, nil, errs.New(errs.Internal, "set %s: %w", s.Name, err)
		}
		if err := addAll(c, s, els[s]); err != nil {
			return nil, nil, err
		}
	}
	return pub, pub6, nil
}

func (e Entrance) element() nftables.SetElement {
	return nftables.SetElement{Key: append([]byte{e.Proto, 0, 0, 0}, port4(e.Port)...), Val: append(e.To.Addr().AsSlice(), port4(e.To.Port())...)}
}

func addAll(c *nftables.Conn, s *nftables.Set, els []nftables.SetElement) error {
	for part := range slices.Chunk(els, 200) { // an attribute holds 64 KiB
		if err := c.SetAddElements(s, part); err != nil {
			return errs.New(errs.Internal, "set %s: %w", s.Name, err)
		}
	}
	return nil
}

// gateSets are the maps of a gate: published ports by family, and floating addresses in and out.
type gateSets struct{ pub, pub6, in, under *nftables.Set }

func gateChains(g Gate, t *nftables.Table, s gateSets) []*chain {
	base := func(name string, typ nftables.ChainType, h *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		pol := nftables.ChainPolicyDrop
		if typ == nftables.ChainTypeNAT {
			pol = nftables.ChainPolicyAccept // a NAT chain sees first packets only, and refuses nothing
		}
		return &nftables.Chain{Table: t, Name: name, Type: typ, Hooknum: h, Priority: &prio, Policy: &pol}
	}
	inside := ifName(unix.NFT_META_IIFNAME, g.Switch)
	accept := verdict(expr.VerdictAccept, "")
	nat, filter := nftables.ChainTypeNAT, nftables.ChainTypeFilter
	through := []rule{{"answers", join(ctEstablished(), accept)}}
	out := []*chain{}
	arriving, leaving := []rule{}, []rule{}
	if g.Uplink != "" || g.Way != "" {
		through = append(through, rule{"no tunnel in a tunnel", join(inside, equal(l4proto(reg1), reg1, []byte{unix.IPPROTO_UDP}), equal(dport(reg1), reg1, binaryutil.BigEndian.PutUint16(g.Tunnel)), count(), verdict(expr.VerdictDrop, ""))})
	}
	if g.Uplink != "" {
		up, toUp := ifName(unix.NFT_META_IIFNAME, g.Uplink), ifName(unix.NFT_META_OIFNAME, g.Uplink)
		arriving = append(arriving, rule{"to a floating address", join(up, floatingIn(s.in).exprs)}, rule{"published", join(up, ip4(), dnat(s.pub, l4proto(reg1), dport(w(1))))})
		leaving = append(leaving, rule{"to the outside under a floating address", join(toUp, ip4(), snatTo(s.under))}, rule{"to the outside under the address of the cable", join(toUp, masquerade())})
		through = append(through,
			rule{"to the outside", join(inside, toUp, accept)},
			rule{"published", join(up, ctStatusDNAT(), accept)})
	}
	if g.Way != "" {
		way, toWay := ifName(unix.NFT_META_IIFNAME, g.Way), ifName(unix.NFT_META_OIFNAME, g.Way)
		if g.Direct {
			through = append(through, ownAddresses(g, inside, accept)...)
		} else {
			arriving = append(arriving, rule{"published", join(way, ip6(), dnat6(s.pub6, l4proto(reg1), dport(w(1))))})
			leaving = append(leaving, rule{"to the outside under the address of the cable", join(toWay, masquerade())})
			through = append(through, rule{"to the outside", join(inside, toWay, accept)}, rule{"published", join(way, ctStatusDNAT(), accept)})
		}
	}
	if len(arriving) > 0 {
		out = append(out, &chain{Chain: base("arriving", nat, nftables.ChainHookPrerouting, -100), rules: arriving},
			&chain{Chain: base("leaving", nat, nftables.ChainHookPostrouting, 100), rules: leaving})
	}
	through = append(through, betweenNetworks(g, inside, accept)...)
	through = append(through, rule{"by the gateway to another network of the switch", join(inside, ifName(unix.NFT_META_OIFNAME, g.Switch), accept)})
	host := []rule{
		{"answers", join(ctEstablished(), accept)},
		{"ping", join(inside, ip4(), icmpType(8), accept)},
	}
	for _, typ := range []byte{echo6, ndRouterSolicit, ndNeighbourSolicit, ndNeighbourAdvert} {
		host = append(host, rule{"ping and neighbours", join(inside, equal(l4proto(reg1), reg1, []byte{unix.IPPROTO_ICMPV6}),
			equal(one(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}), reg1, []byte{typ}), accept)})
	}
	for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		host = append(host, rule{"names", join(inside, equal(l4proto(reg1), reg1, []byte{p}), equal(dport(reg1), reg1, binaryutil.BigEndian.PutUint16(53)), accept)})
	}
	if len(g.Peers) > 0 {
		out = append(out, &chain{Chain: base("joined", filter, nftables.ChainHookPrerouting, -150), rules: fromNetworks(g)})
		out[len(out)-1].Policy = accepting()
	}
	return append(out,
		&chain{Chain: base("through", filter, nftables.ChainHookForward, 0), rules: append(through, rule{"nothing else", join(count(), verdict(expr.VerdictDrop, ""))})},
		&chain{Chain: base("to_host", filter, nftables.ChainHookInput, 0), rules: append(host, rule{"nothing else of the host is for instances", join(count(), verdict(expr.VerdictDrop, ""))})})
}

// UnbiddenMark is what packets are marked with that came from outside to an address of the network's own: its
// number among identities. Answers are let in by the wall, which knows the flows; other hosts may have seen them begin.
const UnbiddenMark = 4

// ownAddresses lets the network's own addresses out, and in what is for them.
func ownAddresses(g Gate, inside, accept []expr.Any) []rule {
	var out []rule
	for _, e := range g.Published {
		out = append(out, rule{"published", join(ifName(unix.NFT_META_IIFNAME, g.Way), destinationIn(netip.PrefixFrom(e.To.Addr(), e.To.Addr().BitLen())), equal(l4proto(reg1), reg1, []byte{e.Proto}), equal(dport(reg1), reg1, binaryutil.BigEndian.PutUint16(e.To.Port())), accept)})
	}
	for _, p := range g.Prefixes {
		out = append(out, rule{"to the outside by its own address", join(inside, ifName(unix.NFT_META_OIFNAME, g.Way), sourceIn(p), accept)},
			rule{"from outside: the wall decides", join(ifName(unix.NFT_META_IIFNAME, g.Way), ifName(unix.NFT_META_OIFNAME, g.Switch), destinationIn(p), mark(UnbiddenMark), accept)})
	}
	return out
}

func accepting() *nftables.ChainPolicy {
	pol := nftables.ChainPolicyAccept
	return &pol
}

// fromNetworks marks what comes from another network's own addresses by its cable, and lets nothing else come by it.
func fromNetworks(g Gate) []rule {
	var out []rule
	for _, p := range g.Peers {
		by := ifName(unix.NFT_META_IIFNAME, p.Cable)
		for _, x := range p.Prefixes {
			out = append(out, rule{"from a network that is joined", join(by, sourceIn(x), mark(JoinedMark), verdict(expr.VerdictAccept, ""))})
		}
		out = append(out, rule{"nobody else comes by its cable", join(by, count(), verdict(expr.VerdictDrop, ""))})
	}
	return out
}

// betweenNetworks lets pass what goes from the own addresses to those of a network that is joined, and the other way.
func betweenNetworks(g Gate, inside, accept []expr.Any) []rule {
	var out []rule
	for _, p := range g.Peers {
		to := ifName(unix.NFT_META_OIFNAME, p.Cable)
		for _, own := range g.Prefixes {
			for _, x := range p.Prefixes {
				if own.Addr().Is4() == x.Addr().Is4() {
					out = append(out, rule{"to a network that is joined", join(inside, to, sourceIn(own), destinationIn(x), accept)})
				}
			}
			out = append(out, rule{"from a network that is joined", join(ifName(unix.NFT_META_IIFNAME, p.Cable), ifName(unix.NFT_META_OIFNAME, g.Switch), isMarked(JoinedMark), destinationIn(own), accept)})
		}
	}
	return out
}

// Types of ICMPv6, RFC 4861.
const (
	echo6              = 128
	ndRouterSolicit    = 133
	ndNeighbourSolicit = 135
	ndNeighbourAdvert  = 136
)

// gateFloating makes the two maps of floating addresses of a gate.
func gateFloating(c *nftables.Conn, t *nftables.Table, all []Floating) (in, under *nftables.Set, err error) {
	sets := floatingSets(t)
	in, under = sets[1], sets[2]
	entries := floatingEntries(all)
	for _, m := range []*nftables.Set{in, under} {
		var els []nftables.SetElement
		for s, e := range entries {
			if s.set == m.Name {
				els = append(els, nftables.SetElement{Key: []byte(s.key), Val: []byte(e.val)})
			}
		}
		if err := c.AddSet(m, nil); err != nil {
			return nil, nil, errs.New(errs.Internal, "set %s: %w", m.Name, err)
		}
		for part := range slices.Chunk(els, 200) {
			if err := c.SetAddElements(m, part); err != nil {
				return nil, nil, errs.New(errs.Internal, "set %s: %w", m.Name, err)
			}
		}
	}
	return in, under, nil
}
