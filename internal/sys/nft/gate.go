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
	Uplink    string // cable to the host; "" when there is no way out
	Tunnel    uint16 // UDP port of tunnels between hosts: nothing from inside goes there
	Published []Entrance
	Floating  []Floating // To is the instance
}

// Entrance is a port of the host that leads to an instance. What arrives comes by the same port of the cable.
type Entrance struct {
	Proto uint8 // 6 TCP, 17 UDP
	Port  uint16
	To    netip.AddrPort
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
	pub := &nftables.Set{Table: t, Name: mapPub, IsMap: true, KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService), Concatenation: true}
	if err := c.AddSet(pub, nil); err != nil {
		return errs.New(errs.Internal, "set %s: %w", pub.Name, err)
	}
	var els []nftables.SetElement
	for _, e := range g.Published {
		els = append(els, nftables.SetElement{Key: append([]byte{e.Proto, 0, 0, 0}, port4(e.Port)...), Val: append(e.To.Addr().AsSlice(), port4(e.To.Port())...)})
	}
	for part := range slices.Chunk(els, 200) {
		if err := c.SetAddElements(pub, part); err != nil {
			return errs.New(errs.Internal, "set %s: %w", pub.Name, err)
		}
	}
	in, under, err := gateFloating(c, t, g.Floating)
	if err != nil {
		return err
	}
	for _, ch := range gateChains(g, t, pub, in, under) {
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

func gateChains(g Gate, t *nftables.Table, pub, in, under *nftables.Set) []*chain {
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
	if g.Uplink != "" {
		up, toUp := ifName(unix.NFT_META_IIFNAME, g.Uplink), ifName(unix.NFT_META_OIFNAME, g.Uplink)
		out = append(out,
			&chain{Chain: base("arriving", nat, nftables.ChainHookPrerouting, -100), rules: []rule{
				{"to a floating address", join(up, floatingIn(in).exprs)},
				{"published", join(up, ip4(), dnat(pub, l4proto(reg1), dport(w(1))))}}},
			&chain{Chain: base("leaving", nat, nftables.ChainHookPostrouting, 100), rules: []rule{
				{"to the outside under a floating address", join(toUp, ip4(), snatTo(under))},
				{"to the outside under the address of the cable", join(toUp, masquerade())}}})
		through = append(through,
			rule{"no tunnel in a tunnel", join(inside, equal(l4proto(reg1), reg1, []byte{unix.IPPROTO_UDP}), equal(dport(reg1), reg1, binaryutil.BigEndian.PutUint16(g.Tunnel)), count(), verdict(expr.VerdictDrop, ""))},
			rule{"to the outside", join(inside, toUp, accept)},
			rule{"published", join(up, ctStatusDNAT(), accept)})
	}
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
	return append(out,
		&chain{Chain: base("through", filter, nftables.ChainHookForward, 0), rules: append(through, rule{"nothing else", join(count(), verdict(expr.VerdictDrop, ""))})},
		&chain{Chain: base("to_host", filter, nftables.ChainHookInput, 0), rules: append(host, rule{"nothing else of the host is for instances", join(count(), verdict(expr.VerdictDrop, ""))})})
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
