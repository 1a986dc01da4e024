package nft

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Doors are the cables by which networks of tenants go out beside the host's own bridge: translated, for IPv6,
// or by their own addresses. Their rules are a table of their own.
type Doors struct {
	Prefix  string       // starts the name of every cable's end on the host
	Inner   netip.Prefix // IPv6 addresses of cables whose networks are translated
	Private []string     // prefixes of names of interfaces that nothing is forwarded to
	All     []Door
}

// Door is the way of one network.
type Door struct {
	Cable     string
	Direct    []netip.Prefix // it has these addresses; none: it is translated to Inner
	Inner     netip.Addr
	Published []Entrance // of the host's addresses: of IPv6 To Inner, with Direct of both families To their owners
}

const doorsTable = "atoll_networks"

// SetDoors makes these the rules, in one transaction; without doors there are none. Connections that are there go on.
func SetDoors(d Doors) error {
	c, err := nftables.New()
	if err != nil {
		return kernelError("open nftables socket", err)
	}
	t := &nftables.Table{Name: doorsTable, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	if len(d.All) > 0 {
		if err := addDoors(c, t, d); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return kernelError("write the rules of networks' ways out", err)
	}
	return nil
}

func addDoors(c *nftables.Conn, t *nftables.Table, d Doors) error {
	c.AddTable(t)
	var all []Entrance
	for _, x := range d.All {
		all = append(all, x.Published...)
	}
	pub, pub6, err := addPublished(c, t, all)
	if err != nil {
		return err
	}
	for _, ch := range doorChains(d, t, pub, pub6) {
		c.AddChain(ch.Chain)
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch.Chain, Exprs: r.exprs, UserData: comment(r.why)})
		}
	}
	return nil
}

func doorChains(d Doors, t *nftables.Table, pub, pub6 *nftables.Set) []*chain {
	base := func(name string, typ nftables.ChainType, h *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Table: t, Name: name, Type: typ, Hooknum: h, Priority: &prio, Policy: accepting()}
	}
	from, to := ifPrefix(unix.NFT_META_IIFNAME, d.Prefix), ifPrefix(unix.NFT_META_OIFNAME, d.Prefix)
	accept, drop := verdict(expr.VerdictAccept, ""), join(count(), verdict(expr.VerdictDrop, ""))
	nat, filter := nftables.ChainTypeNAT, nftables.ChainTypeFilter
	published := []rule{{"published", join(ip4(), localAddr(), dnat(pub, l4proto(reg1), dport(w(1))))}, {"published", join(ip6(), localAddr(), dnat6(pub6, l4proto(reg1), dport(w(1))))}}
	for _, p := range []string{"127.0.0.0/8", "::1/128"} {
		published = slices.Insert(published, 0, rule{"loopback stays here", join(destinationIn(netip.MustParsePrefix(p)), verdict(expr.VerdictReturn, ""))})
	}
	var out, in []rule
	for _, x := range d.All {
		by, toIt := ifName(unix.NFT_META_IIFNAME, x.Cable), ifName(unix.NFT_META_OIFNAME, x.Cable)
		for _, p := range x.sources() {
			out = append(out, rule{"to the outside", join(by, sourceIn(p), verdict(expr.VerdictReturn, ""))})
		}
		for _, p := range x.Direct {
			in = append(in, rule{"from outside: the wall decides", join(toIt, destinationIn(p), accept)})
		}
	}
	private := []rule{}
	for _, p := range d.Private {
		private = append(private, rule{"not into a neighbour's private network", join(ifPrefix(unix.NFT_META_OIFNAME, p), reject())})
	}
	neighbours := []rule{{"answers", join(ctEstablished(), accept)}}
	for _, typ := range []byte{echo6, ndNeighbourSolicit, ndNeighbourAdvert} {
		neighbours = append(neighbours, rule{"ping and neighbours", join(equal(l4proto(reg1), reg1, []byte{unix.IPPROTO_ICMPV6}),
			equal(one(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}), reg1, []byte{typ}), accept)})
	}
	neighbours = append(neighbours, rule{"ping", join(ip4(), icmpType(8), accept)}, rule{"the host's own services are not for instances", drop})
	return []*chain{
		{Chain: base("arriving", nat, nftables.ChainHookPrerouting, -100), rules: published},
		{Chain: base("local", nat, nftables.ChainHookOutput, -100), rules: published},
		{Chain: base("leaving", nat, nftables.ChainHookPostrouting, 100), rules: []rule{
			{"to the outside under the host's address", join(sourceIn(d.Inner), ifNotPrefix(unix.NFT_META_OIFNAME, d.Prefix), masquerade())},
			{"back by the way it came: from a network to a published port", join(sourceIn(d.Inner), to, masquerade())}}},
		{Chain: &nftables.Chain{Table: t, Name: "addresses"}, rules: append(out, rule{"nobody else's", drop})},
		{Chain: &nftables.Chain{Table: t, Name: "from_network"}, rules: slices.Concat([]rule{
			{"none but their own addresses", verdict(expr.VerdictJump, "addresses")}, {"answers", join(ctEstablished(), accept)}}, private)},
		{Chain: &nftables.Chain{Table: t, Name: "to_network"}, rules: slices.Concat([]rule{{"answers", join(ctEstablished(), accept)}, {"published", join(ctStatusDNAT(), accept)}}, in, []rule{{"nothing else comes in", drop}})},
		{Chain: &nftables.Chain{Table: t, Name: "host"}, rules: neighbours},
		{Chain: base("through", filter, nftables.ChainHookForward, 0), rules: []rule{
			{"from a network", join(from, verdict(expr.VerdictJump, "from_network"))}, {"to a network", join(to, verdict(expr.VerdictGoto, "to_network"))}}},
		{Chain: base("to_host", filter, nftables.ChainHookInput, 0), rules: []rule{{"from a network", join(from, verdict(expr.VerdictGoto, "host"))}}},
	}
}

func (x Door) sources() []netip.Prefix {
	if len(x.Direct) > 0 {
		return x.Direct
	}
	return []netip.Prefix{netip.PrefixFrom(x.Inner, 128)}
}

// reject says that it may not be, rather than nothing.
func reject() []expr.Any {
	return one(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
}

func ifNotPrefix(key expr.MetaKey, prefix string) []expr.Any {
	return notEqual(iface(key, reg1), reg1, []byte(prefix))
}
