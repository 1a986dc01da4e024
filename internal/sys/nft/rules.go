package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Names of what we make. Everything lives in two tables of this name.
const (
	TableName = "atoll"
	setPorts  = "ports"
	setTenant = "tenants"
	setMember = "members"
	mapPub    = "published"
	mapPubAt  = "published_at"
	setFloat  = "floating"
	mapFloat  = "floating_to"
	mapUnder  = "floating_under"
)

// Registers: reg 1..4 are 16 bytes wide, w(n) is the n-th 4-byte word of the same space.
const reg1 = unix.NFT_REG_1

func w(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// ruleset is what our tables must contain, apart from elements.
type ruleset struct {
	tables []*nftables.Table
	chains []*chain
	sets   map[string]*nftables.Set
	print  string // changes with any rule; kept in the kernel as the name of an empty chain
}

type chain struct {
	*nftables.Chain
	rules []rule
}

type rule struct {
	why   string // shown by "nft list ruleset" as the rule's comment
	exprs []expr.Any
}

// build turns a configuration into the rules that stand for it.
func build(c Config) (*ruleset, error) {
	inet := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	br := &nftables.Table{Name: TableName, Family: nftables.TableFamilyBridge}
	r := &ruleset{tables: []*nftables.Table{inet, br}, sets: sets(inet, br)}
	r.chains = append(bridgeChains(c, br, r.sets), inetChains(c, inet, r.sets)...)
	var err error
	r.print, err = fingerprint(r.chains)
	return r, err
}

func sets(inet, br *nftables.Table) map[string]*nftables.Set {
	concat := nftables.MustConcatSetType
	target := concat(nftables.TypeIPAddr, nftables.TypeInetService)
	all := []*nftables.Set{
		{Table: br, Name: setPorts, Comment: "what an instance's port may send: name, hardware address, address",
			KeyType: concat(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr), Concatenation: true},
		{Table: br, Name: setTenant, Comment: "address -> number of the tenant", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeMark},
		{Table: br, Name: setMember, Comment: "number of a tenant, address of an instance of it",
			KeyType: concat(nftables.TypeMark, nftables.TypeIPAddr), Concatenation: true},
		{Table: inet, Name: mapPub, Comment: "published on every address", IsMap: true,
			KeyType: concat(nftables.TypeInetProto, nftables.TypeInetService), DataType: target, Concatenation: true},
		{Table: inet, Name: mapPubAt, Comment: "published on one address", IsMap: true,
			KeyType: concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService), DataType: target, Concatenation: true},
	}
	all = append(all, floatingSets(inet)...)
	out := map[string]*nftables.Set{}
	for _, s := range all {
		out[s.Name] = s
	}
	return out
}

// bridgeChains is the wall between instances. It works on the bridge's ports, so it
// holds without br_netfilter and whatever other rules say.
func bridgeChains(c Config, t *nftables.Table, s map[string]*nftables.Set) []*chain {
	accept := func(h *nftables.ChainHook, prio nftables.ChainPriority, name string) *nftables.Chain {
		pol := nftables.ChainPolicyAccept
		return &nftables.Chain{Table: t, Name: name, Type: nftables.ChainTypeFilter, Hooknum: h, Priority: &prio, Policy: &pol}
	}
	port := &chain{Chain: &nftables.Chain{Table: t, Name: "port"}, rules: []rule{
		{"an ARP message must tell the truth", join(etherType(unix.ETH_P_ARP), iface(unix.NFT_META_IIFNAME, reg1), etherSource(w(4)), net(14, 4, w(6)), in(s[setPorts], reg1),
			net(8, 6, w(4)), in(s[setPorts], reg1), verdict(expr.VerdictAccept, ""))},
		{"a packet must come from its port's own address", join(etherType(unix.ETH_P_IP), iface(unix.NFT_META_IIFNAME, reg1), etherSource(w(4)), net(12, 4, w(6)), in(s[setPorts], reg1), verdict(expr.VerdictAccept, ""))},
		{"nothing else leaves an instance", join(count(), verdict(expr.VerdictDrop, ""))},
	}}
	// peers decides between two instances: is the second one of the first one's tenant?
	peers := &chain{Chain: &nftables.Chain{Table: t, Name: "peers"}}
	if c.Isolate {
		for _, kind := range []struct {
			typ      uint16
			src, dst uint32 // where the two addresses stand
			why      string
		}{{unix.ETH_P_IP, 12, 16, "to"}, {unix.ETH_P_ARP, 14, 24, "ask for"}} {
			// The mark carries the number from one rule to the next and is wiped again.
			peers.rules = append(peers.rules,
				rule{"whose is it", join(etherType(kind.typ), net(kind.src, 4, reg1), get(s[setTenant], reg1, reg1), setMark(reg1))},
				rule{kind.why + " an instance of the same tenant", join(etherType(kind.typ), meta(expr.MetaKeyMARK, reg1), net(kind.dst, 4, w(1)), in(s[setMember], reg1),
					zeroMark(), verdict(expr.VerdictAccept, ""))})
		}
		peers.rules = append(peers.rules, rule{"tenants do not see each other", join(count(), verdict(expr.VerdictDrop, ""))})
	} else {
		peers.rules = append(peers.rules, rule{"isolation is switched off", join(verdict(expr.VerdictAccept, ""))})
	}
	ours := ifPrefix(unix.NFT_META_IIFNAME, c.PortPrefix)
	// Before br_netfilter (-1 and 0), so that nothing is decided elsewhere first.
	return []*chain{port, peers,
		{Chain: accept(nftables.ChainHookPrerouting, -300, "from_port"), rules: []rule{
			{"from an instance", join(ours, verdict(expr.VerdictJump, "port"))}}},
		{Chain: accept(nftables.ChainHookForward, -300, "between_ports"), rules: []rule{
			{"to a published port, or back", join(ours, isPublished(), zeroMark(), verdict(expr.VerdictAccept, ""))},
			{"between instances", join(ours, zeroMark(), verdict(expr.VerdictGoto, "peers"))},
			{"nothing else on the bridge reaches an instance", join(ifPrefix(unix.NFT_META_OIFNAME, c.PortPrefix), count(), verdict(expr.VerdictDrop, ""))}}},
		{Chain: accept(nftables.ChainHookInput, -300, "to_host"), rules: []rule{
			{"no way round the wall through the host", join(ours, etherType(unix.ETH_P_IP), notEqual(net(16, 4, reg1), reg1, c.Gateway.AsSlice()),
				within(16, c.Subnet), count(), verdict(expr.VerdictDrop, ""))}}},
	}
}

// inetChains is the way in and out: addresses are translated, and what may pass between
// the bridge and the rest of the host is decided.
func inetChains(c Config, t *nftables.Table, s map[string]*nftables.Set) []*chain {
	base := func(name string, typ nftables.ChainType, h *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		pol := nftables.ChainPolicyAccept
		return &nftables.Chain{Table: t, Name: name, Type: typ, Hooknum: h, Priority: &prio, Policy: &pol}
	}
	from, to := ifName(unix.NFT_META_IIFNAME, c.Bridge), ifName(unix.NFT_META_OIFNAME, c.Bridge)
	notTo := ifNotName(unix.NFT_META_OIFNAME, c.Bridge)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	nat, filter := nftables.ChainTypeNAT, nftables.ChainTypeFilter
	pub := func(guard []expr.Any) []rule {
		return []rule{
			{"published on this address", join(guard, dnat(s[mapPubAt], net(16, 4, reg1), l4proto(w(1)), dport(w(2))))},
			{"published on every address", join(guard, dnat(s[mapPub], l4proto(reg1), dport(w(1))))},
		}
	}
	local := join(ip4(), localAddr())
	// Tunnels have no connections, and every packet of every flow between hosts is theirs.
	var early []rule
	for _, p := range c.Untracked {
		early = append(early, rule{"tunnels between hosts are not tracked", join(equal(l4proto(reg1), reg1, []byte{unix.IPPROTO_UDP}),
			equal(dport(reg1), reg1, binaryutil.BigEndian.PutUint16(p)), one(&expr.Notrack{}))})
	}
	prerouting := []rule{{"loopback is reached from the host alone", join(ifNotName(unix.NFT_META_IIFNAME, "lo"), ip4(), within(16, loopback), verdict(expr.VerdictReturn, ""))}}
	return []*chain{
		{Chain: base("sending", filter, nftables.ChainHookOutput, -300), rules: early},
		{Chain: base("early", filter, nftables.ChainHookPrerouting, -300), rules: append(early[:len(early):len(early)], []rule{
			{"route_localnet is on for the bridge: no loopback from there", join(from, ip4(), within(16, loopback), count(), verdict(expr.VerdictDrop, ""))},
			{"nor forged loopback", join(from, ip4(), within(12, loopback), count(), verdict(expr.VerdictDrop, ""))},
		}...)},
		{Chain: base("arriving", nat, nftables.ChainHookPrerouting, -100), rules: append(append(prerouting, floatingIn(s[mapFloat])), pub(local)...)},
		// With br_netfilter on, a packet to a published port whose instance is on the same
		// bridge is not routed but bridged on, past the wall that only knows addresses.
		// The mark tells the wall that the port is published; it is wiped there, or below.
		{Chain: base("arrived", filter, nftables.ChainHookPrerouting, -50), rules: []rule{
			{"to a published port, or back", join(from, ctStatusDNAT(), ip4(), within(16, c.Subnet), markPublished())},
		}},
		{Chain: base("local", nat, nftables.ChainHookOutput, -100), rules: append(pub(local), floatingIn(s[mapFloat]))},
		{Chain: base("leaving", nat, nftables.ChainHookPostrouting, 100), rules: []rule{
			{"to the outside under a floating address", join(ip4(), within(12, c.Subnet), notTo, snatTo(s[mapUnder]))},
			{"back by the way it came: from an instance to a floating address", join(ip4(), within(12, c.Subnet), to, net(16, 4, reg1), in(s[setFloat], reg1), masquerade())},
			{"to the outside under the host's address", join(ip4(), within(12, c.Subnet), notTo, masquerade())},
			{"back by the way it came: from an instance to a published port", join(ip4(), within(12, c.Subnet), to, ctStatusDNAT(), masquerade())},
			{"back by the way it came: from the host's loopback", join(to, ip4(), within(12, loopback), masquerade())},
		}},
		{Chain: base("through", filter, nftables.ChainHookForward, 0), rules: []rule{
			{"the mark has done its duty", join(from, isPublished(), zeroMark())},
			{"from an instance", join(from, verdict(expr.VerdictGoto, "from_instance"))},
			{"to an instance", join(to, verdict(expr.VerdictGoto, "to_instance"))},
		}},
		{Chain: &nftables.Chain{Table: t, Name: "from_instance"}, rules: fromInstance(c)},
		{Chain: &nftables.Chain{Table: t, Name: "to_instance"}, rules: []rule{
			{"answers", join(ctEstablished(), verdict(expr.VerdictAccept, ""))},
			{"published ports", join(ctStatusDNAT(), verdict(expr.VerdictAccept, ""))},
			{"floating addresses", join(ip4(), net(16, 4, reg1), in(s[setFloat], reg1), verdict(expr.VerdictAccept, ""))},
			{"nothing else comes in", join(count(), verdict(expr.VerdictDrop, ""))},
		}},
		{Chain: base("to_host", filter, nftables.ChainHookInput, 0), rules: []rule{
			{"from an instance", join(from, verdict(expr.VerdictGoto, "host"))},
		}},
		{Chain: &nftables.Chain{Table: t, Name: "host"}, rules: hostRules(c)},
		{Chain: base("redirects", filter, nftables.ChainHookOutput, 0), rules: []rule{
			{"never tell an instance of a shorter way", join(to, ip4(), icmpType(5), verdict(expr.VerdictDrop, ""))},
		}},
	}
}

func fromInstance(c Config) []rule {
	out := []rule{
		{"answers", join(ctEstablished(), verdict(expr.VerdictAccept, ""))},
		{"published ports", join(ctStatusDNAT(), verdict(expr.VerdictAccept, ""))},
		// Bridged from instance to instance: decided in the bridge table already, seen here only with br_netfilter.
		{"between instances", join(ifName(unix.NFT_META_OIFNAME, c.Bridge), verdict(expr.VerdictAccept, ""))},
		{"only IPv4 is spoken here", join(notIP4(), count(), verdict(expr.VerdictDrop, ""))},
	}
	for _, u := range c.Uplinks {
		out = append(out, rule{"to the outside", join(ifName(unix.NFT_META_OIFNAME, u), verdict(expr.VerdictAccept, ""))})
	}
	for _, p := range c.Private {
		out = append(out, rule{"not into a neighbour's private network", join(ifPrefix(unix.NFT_META_OIFNAME, p), count(), verdict(expr.VerdictDrop, ""))})
	}
	return out
}

func hostRules(c Config) []rule {
	out := []rule{
		{"answers", join(ctEstablished(), verdict(expr.VerdictAccept, ""))},
		{"ping", join(ip4(), icmpType(8), verdict(expr.VerdictAccept, ""))},
	}
	if c.DNS {
		for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			out = append(out, rule{"names", join(ip4(), equal(net(16, 4, reg1), reg1, c.Gateway.AsSlice()), equal(l4proto(reg1), reg1, []byte{p}),
				equal(dport(reg1), reg1, binaryutil.BigEndian.PutUint16(53)), verdict(expr.VerdictAccept, ""))})
		}
	}
	return append(out, rule{"the host's own services are not for instances", join(count(), verdict(expr.VerdictDrop, ""))})
}

// fingerprint hashes every rule as the kernel will see it.
func fingerprint(chains []*chain) (string, error) {
	h := sha256.New()
	for _, c := range chains {
		fmt.Fprintf(h, "%d %s\n", c.Table.Family, c.Name)
		if c.Hooknum != nil {
			fmt.Fprintf(h, "%s %d %d\n", c.Type, *c.Hooknum, *c.Priority)
		}
		for _, r := range c.rules {
			fmt.Fprintf(h, "%s\n", r.why)
			for _, e := range r.exprs {
				b, err := expr.Marshal(byte(c.Table.Family), e)
				if err != nil {
					return "", errs.New(errs.Internal, "rule %q: %w", r.why, err)
				}
				h.Write(b)
			}
		}
	}
	return "v-" + hex.EncodeToString(h.Sum(nil)[:8]), nil
}
