package segment

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/driver"
)

// town is a small world of which everything is small enough to meet everything else: two
// tenants, three networks, few labels, prefixes inside of prefixes.
type town struct {
	World
	net        Net
	identities map[uint32]*Identity
	here       map[netip.Addr]uint32
}

var (
	mainNet, backNet, labNet = Net{"acme", "main"}, Net{"acme", "back"}, Net{"lab", "main"}

	townCIDRs = []string{"0.0.0.0/0", "::/0", "10.0.0.0/8", "10.7.0.0/16", "10.7.1.0/24", "192.168.0.0/16", "192.168.1.0/24", "192.168.1.128/25", "2001:db8::/32", "2001:db8:1::/48", "fd07::/64"}
	townPorts = []string{"tcp/80", "tcp/80-90", "tcp/1-65535", "tcp", "udp/53", "icmp", "icmp/8", "icmp/3/4", "47", "tcp/82-83", "sctp/1", "icmpv6/128", "udp/1000-3000"}
	townAddrs = []string{"8.8.8.8", "192.168.1.1", "192.168.1.200", "192.168.9.9", "10.1.1.1", "2001:db8::1", "2001:db8:1::1", "2a00::1"}
	townAsks  = []Ask{{Proto: 6, Port: 80}, {Proto: 6, Port: 82}, {Proto: 6, Port: 84}, {Proto: 6, Port: 91}, {Proto: 17, Port: 53}, {Proto: 1, Port: 0x800}, {Proto: 1, Port: 0x304}, {Proto: 47}, {Proto: 132, Port: 1}, {Proto: 58, Port: 0x8000}, {Proto: 17, Port: 2999}}
	townHosts = []string{"10.7.0.2", "10.7.0.3", "10.7.0.4", "fd07::2", "10.7.1.5"}
)

// trial is one run of a test with its own chance, told by its seed when it fails.
type trial struct {
	*testing.T
	*rand.Rand
	seed uint64
}

func (t *trial) Fatalf(format string, args ...any) {
	t.Helper()
	t.T.Fatalf("seed %d: "+format, append([]any{t.seed}, args...)...)
}

func (t *trial) between(a, b int) int { return a + t.IntN(b-a+1) }

var (
	runs  = flag.Int("trials", 100, "how many random histories the properties are tested on")
	first = flag.Uint64("seed", 1, "the first history")
)

func trials(t *testing.T, fn func(t *trial)) {
	for seed := *first; seed < *first+uint64(*runs); seed++ {
		fn(&trial{t, rand.New(rand.NewPCG(seed, 9)), seed})
	}
}

func pick[T any](t *trial, from []T) T {
	return from[t.IntN(len(from))]
}

func chance(t *trial, percent int) bool {
	return t.IntN(100) < percent
}

func someLabels(t *trial, least int) map[string]string {
	out := map[string]string{}
	if least > 0 || chance(t, 70) {
		out["app"] = pick(t, []string{"a", "b", "c"})
	}
	if chance(t, 40) {
		out["tier"] = pick(t, []string{"x", "y"})
	}
	return out
}

func somePeer(t *trial) api.SecurityPeer {
	switch t.between(0, 9) {
	case 0:
		return api.SecurityPeer{Labels: someLabels(t, 1), Network: pick(t, []string{"main", "back", "lab/main"})}
	case 1:
		return api.SecurityPeer{Group: pick(t, []string{"g0", "g1", "g2", "none"})}
	case 2:
		return api.SecurityPeer{Network: pick(t, []string{"main", "back", "lab/main", "none"})}
	case 3, 4, 5:
		p := api.SecurityPeer{CIDR: pick(t, townCIDRs)}
		for _, e := range townCIDRs {
			a, b := netip.MustParsePrefix(p.CIDR), netip.MustParsePrefix(e)
			if a != b && within(b, a) && chance(t, 20) {
				p.Except = append(p.Except, e)
			}
		}
		return p
	case 6:
		return api.SecurityPeer{DNS: pick(t, []string{"one.test", "two.test"})}
	case 7:
		return api.SecurityPeer{Service: "svc"}
	case 8:
		return api.SecurityPeer{Where: pick(t, []string{"host", "outside"})}
	}
	return api.SecurityPeer{Labels: someLabels(t, 1)}
}

func someRules(t *trial, in bool) []api.SecurityRule {
	if chance(t, 35) {
		return nil
	}
	out := []api.SecurityRule{}
	for range t.between(0, 3) {
		var r api.SecurityRule
		if chance(t, 85) {
			var peers []api.SecurityPeer
			for range t.between(1, 2) {
				peers = append(peers, somePeer(t))
			}
			if in {
				r.From = peers
			} else {
				r.To = peers
			}
		}
		if chance(t, 80) {
			for range t.between(1, 3) {
				r.Ports = append(r.Ports, pick(t, townPorts))
			}
		}
		out = append(out, r)
	}
	return out
}

func someSpec(t *trial) *api.SecurityGroupSpec {
	s := &api.SecurityGroupSpec{Select: someLabels(t, 0), Ingress: someRules(t, true), Egress: someRules(t, false), DryRun: chance(t, 20)}
	if chance(t, 20) {
		s.Network = pick(t, []string{"main", "back"})
	}
	return s
}

// numbered is the number of a set of labels on a network, as main knows it.
func numbered(on Net, k int) uint32 {
	switch {
	case on == mainNet:
		return uint32(driver.FirstIdentity + k)
	case on.Tenant == mainNet.Tenant:
		return uint32(driver.FirstPeer + 1<<20 + k)
	}
	return uint32(driver.FirstForeign + 1<<20 + k)
}

func (w *town) setNetworks(t *trial) {
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}
	if chance(t, 50) {
		prefixes = append(prefixes, netip.MustParsePrefix("fd07::/64"))
	}
	own := &Network{Net: mainNet, Prefixes: prefixes, Closed: chance(t, 30)}
	back := &Network{Net: backNet, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}}
	lab := &Network{Net: labNet, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}}
	for _, n := range []*Network{back, lab} {
		if chance(t, 60) {
			own.Peers, n.Peers = append(own.Peers, n.Net), []Net{mainNet}
		}
	}
	w.Networks = map[Net]*Network{mainNet: own, backNet: back, labNet: lab}
}

func (w *town) tellNetworks(c *Compiler) {
	c.SetNetwork(*w.Networks[mainNet], []Network{*w.Networks[backNet], *w.Networks[labNet]})
}

// step changes one thing in the town and tells the compiler.
func (w *town) step(t *trial, c *Compiler) {
	switch t.between(0, 9) {
	case 0, 1, 2, 3:
		ref := GroupRef{pick(t, []string{"acme", "acme", "lab"}), pick(t, []string{"g0", "g1", "g2"})}
		if chance(t, 25) {
			delete(w.Groups, ref)
			c.SetGroup(ref, nil)
			return
		}
		w.Groups[ref] = someSpec(t)
		c.SetGroup(ref, w.Groups[ref])
	case 4, 5:
		net := pick(t, []Net{mainNet, mainNet, mainNet, backNet, labNet})
		n := numbered(net, t.between(0, 7))
		if chance(t, 25) {
			delete(w.identities, n)
			c.SetIdentity(n, nil)
			return
		}
		w.identities[n] = &Identity{Tenant: net.Tenant, Network: net, Labels: someLabels(t, 0)}
		c.SetIdentity(n, w.identities[n])
	case 6, 7:
		a := netip.MustParseAddr(pick(t, townHosts))
		if chance(t, 25) {
			delete(w.here, a)
			c.SetInstance(a, 0)
			return
		}
		w.here[a] = uint32(driver.FirstIdentity + t.between(0, 7))
		c.SetInstance(a, w.here[a])
	case 8:
		n := pick(t, []Name{{DNS: "one.test"}, {DNS: "two.test"}, {Tenant: "acme", Service: "svc"}})
		if chance(t, 25) {
			delete(w.Names, n)
			c.SetName(n, nil)
			return
		}
		var r Resolved
		for range t.between(0, 3) {
			if chance(t, 50) {
				r.Prefixes = append(r.Prefixes, netip.MustParsePrefix(pick(t, townCIDRs)))
			} else {
				a := netip.MustParseAddr(pick(t, townAddrs))
				r.Prefixes = append(r.Prefixes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		if n.Service != "" && chance(t, 60) {
			r.Select = someLabels(t, 0)
		}
		w.Names[n] = r
		c.SetName(n, &r)
	case 9:
		if chance(t, 40) {
			w.setNetworks(t)
			w.tellNetworks(c)
		}
	}
}

func newTown(t *trial) *town {
	w := &town{World: World{Groups: map[GroupRef]*api.SecurityGroupSpec{}, Names: map[Name]Resolved{}}, net: mainNet, identities: map[uint32]*Identity{}, here: map[netip.Addr]uint32{}}
	w.setNetworks(t)
	return w
}

// compiled is a fresh compile of all there is.
func (w *town) compiled(ids *IDs) *Compiler {
	c := New(ids, *w.Networks[mainNet])
	w.tellNetworks(c)
	for ref, s := range w.Groups {
		c.SetGroup(ref, s)
	}
	for n, i := range w.identities {
		c.SetIdentity(n, i)
	}
	for n, r := range w.Names {
		c.SetName(n, &r)
	}
	for a, n := range w.here {
		c.SetInstance(a, n)
	}
	return c
}

// others are all on the other side that the network may meet.
func (w *town) others() map[Peer]End {
	out := map[Peer]End{{Identity: driver.IdentityHost}: {Host: true}}
	for n, i := range w.identities {
		if w.mayMeet(mainNet, i.Network) {
			out[Peer{Identity: n}] = End{Identity: *i}
		}
	}
	for _, a := range townAddrs {
		out[Peer{Addr: netip.MustParseAddr(a)}] = End{Addr: netip.MustParseAddr(a)}
	}
	return out
}

// agree holds the table against the groups as they are written, for everybody and everything.
func (w *town) agree(t *trial, c *Compiler, table *driver.Table) {
	others := w.others()
	for a, n := range w.here {
		id := w.identities[n]
		if id == nil || id.Network != mainNet {
			if p := table.Ports[a]; p.Ingress == 0 || p.Egress == 0 {
				t.Fatalf("%s has nobody's identity, and is open: %+v", a, p)
			}
			continue
		}
		self := End{Addr: a, Identity: *id}
		for peer, other := range others {
			for _, ask := range townAsks {
				for _, dir := range []Direction{Ingress, Egress} {
					q := Query{From: self, To: other, Proto: ask.Proto, Port: ask.Port}
					if dir == Ingress {
						q.From, q.To = other, self
					}
					want := w.judge(&q, int(dir))
					got := Lookup(table, a, dir, peer, ask)
					if got.Allowed != want.Allowed {
						t.Fatalf("%s %v %+v %+v: table says %+v, groups say %+v", a, dir, peer, ask, got, want)
					}
					if (got.Rule != 0) != (want.Rule != nil) {
						t.Fatalf("%s %v %+v %+v: table names rule %d, groups %v", a, dir, peer, ask, got.Rule, want.Rule)
					}
					if r, ok := c.Rule(got.Rule); got.Rule != 0 && (!ok || r.String() != want.Rule.String()) {
						t.Fatalf("%s %v %+v %+v: table names %s, groups %s", a, dir, peer, ask, r, want.Rule)
					}
					dry := Lookup(table, a, dir, peer, Ask{ask.Proto, ask.Port, true})
					if differs := want.Dry != ""; differs != (dry.Allowed != got.Allowed) {
						t.Fatalf("%s %v %+v %+v: tried, table says %+v after %+v; groups say %q", a, dir, peer, ask, dry, got, want.Dry)
					}
				}
			}
		}
	}
}

func TestTheTableSaysWhatTheGroupsSay(t *testing.T) {
	trials(t, func(t *trial) {
		w := newTown(t)
		c := New(NewIDs(1), *w.Networks[mainNet])
		for range t.between(10, 60) {
			w.step(t, c)
		}
		fresh := w.compiled(NewIDs(1000))
		table := fresh.Table()
		w.agree(t, fresh, &table)
	})
}

// apply does with a table what a driver does, in its order, and calls between after each step.
func apply(table *driver.Table, c driver.Change, between func(step string)) {
	maps.Copy(table.Lists, c.Lists)
	between("lists")
	maps.Copy(table.Pairs, c.Pairs)
	between("pairs")
	maps.Copy(table.Prefixes, c.Prefixes)
	between("prefixes")
	maps.Copy(table.Ports, c.Ports)
	between("ports")
	for _, a := range c.DropPorts {
		delete(table.Ports, a)
	}
	for _, p := range c.DropPrefixes {
		delete(table.Prefixes, p)
		between("a dropped prefix")
	}
	for _, k := range c.DropPairs {
		delete(table.Pairs, k)
	}
	between("dropped pairs")
	for _, k := range c.DropLists {
		delete(table.Lists, k)
	}
}

// neverBetween applies a change and checks that in the middle of it nobody is judged in
// another way than before or after.
func (w *town) neverBetween(t *trial, table *driver.Table, c driver.Change, was map[uint32]bool) {
	before, after := copyTable(*table), copyTable(*table)
	apply(&after, c, func(string) {})
	peers := []Peer{{Identity: driver.IdentityHost}}
	for n := range was {
		if w.identities[n] != nil {
			peers = append(peers, Peer{Identity: n})
		}
	}
	for _, s := range townAddrs {
		peers = append(peers, Peer{Addr: netip.MustParseAddr(s)})
	}
	apply(table, c, func(step string) {
		for a := range after.Ports {
			if _, was := before.Ports[a]; !was {
				continue
			}
			for _, dir := range []Direction{Ingress, Egress} {
				for _, p := range peers {
					for _, ask := range townAsks {
						x, y, z := Lookup(&before, a, dir, p, ask).Allowed, Lookup(table, a, dir, p, ask).Allowed, Lookup(&after, a, dir, p, ask).Allowed
						if x == z && x != y {
							t.Fatalf("after %s: %s %v %+v %+v was %v, is %v and will be %v", step, a, dir, p, ask, x, y, z)
						}
					}
				}
			}
		}
	})
}

func copyTable(t driver.Table) driver.Table {
	return driver.Table{Ports: maps.Clone(t.Ports), Pairs: maps.Clone(t.Pairs), Lists: maps.Clone(t.Lists), Prefixes: maps.Clone(t.Prefixes)}
}

func sameTable(a, b driver.Table) bool {
	return maps.Equal(a.Ports, b.Ports) && maps.Equal(a.Pairs, b.Pairs) && maps.Equal(a.Lists, b.Lists) && maps.Equal(a.Prefixes, b.Prefixes)
}

// canonical writes a table without the numbers that are only names.
func canonical(c *Compiler, t *driver.Table) string {
	who := map[uint32]string{}
	var out []string
	for p, n := range t.Prefixes {
		who[n] = p.String()
		out = append(out, "prefix "+p.String())
	}
	lists := map[uint32][]string{}
	for k, r := range t.Lists {
		rule, _ := c.Rule(r)
		lists[k.List] = append(lists[k.List], fmt.Sprintf("%d/%d/%d %s", k.Proto, k.Len, k.Port, rule))
	}
	for _, l := range lists {
		sort.Strings(l)
	}
	sets := map[uint32][]string{}
	for k, p := range t.Pairs {
		peer := who[k.Peer]
		if peer == "" {
			peer = fmt.Sprint(k.Peer)
		}
		all, _ := c.Rule(p.All)
		if p.All == 0 {
			all = Rule{base: "-"}
		}
		sets[k.Set] = append(sets[k.Set], fmt.Sprintf("%s: %s, %x %v", peer, all, p.Lens, lists[p.List]))
	}
	for a, p := range t.Ports {
		for i, n := range []uint32{p.Ingress, p.Egress, p.IngressDry, p.EgressDry} {
			sort.Strings(sets[n])
			out = append(out, fmt.Sprintf("%s %d %v: %s", a, i, n != 0, strings.Join(sets[n], "\n  ")))
		}
	}
	sort.Strings(out)
	return fmt.Sprintf("%d sets, %d lists\n%s", len(sets), len(lists), strings.Join(out, "\n"))
}

// said watches that what a number holds never changes.
type said struct {
	pairs map[driver.PairKey]driver.Pair
	lists map[driver.ListKey]uint32
}

func (s *said) watch(t *trial, c driver.Change, before *driver.Table, was map[uint32]bool) {
	known, sets := map[uint32]bool{driver.IdentityHost: true, driver.IdentityOutside: true}, map[uint32]bool{}
	for n := range was {
		known[uint32(n)] = true
	}
	for _, n := range before.Prefixes {
		known[n] = true
	}
	for k := range s.pairs {
		sets[k.Set] = true
	}
	for k, p := range c.Pairs {
		if sets[k.Set] && known[k.Peer] {
			t.Fatalf("set %d was there, and now says something else of %d, which was there, too", k.Set, k.Peer)
		}
		if old, ok := s.pairs[k]; ok && old != p {
			t.Fatalf("pair %+v was %+v and became %+v in place", k, old, p)
		}
		s.pairs[k] = p
	}
	lists := map[uint32]bool{}
	for k := range s.lists {
		lists[k.List] = true
	}
	for k, r := range c.Lists {
		if lists[k.List] {
			t.Fatalf("list %d was there, and got %+v", k.List, k)
		}
		s.lists[k] = r
	}
	for _, k := range c.DropPairs {
		if _, ok := s.pairs[k]; !ok {
			t.Fatalf("pair %+v was dropped, and never was", k)
		}
		delete(s.pairs, k)
	}
	for _, k := range c.DropLists {
		delete(s.lists, k)
	}
}

// flowsEnd checks that no flow outlives its permission: where a verdict turned from yes to
// no, the port has another policy, and so another epoch.
func (w *town) flowsEnd(t *trial, before, after *driver.Table, was map[uint32]bool) {
	for a, now := range after.Ports {
		old, here := before.Ports[a]
		if !here {
			continue
		}
		for _, dir := range []Direction{Ingress, Egress} {
			x, y := old.Ingress, now.Ingress
			if dir == Egress {
				x, y = old.Egress, now.Egress
			}
			if x != y {
				continue
			}
			var peers []Peer
			for n := range was {
				if w.identities[n] != nil {
					peers = append(peers, Peer{Identity: n})
				}
			}
			for _, s := range townAddrs {
				peers = append(peers, Peer{Addr: netip.MustParseAddr(s)})
			}
			for _, p := range peers {
				for _, ask := range townAsks {
					if Lookup(before, a, dir, p, ask).Allowed && !Lookup(after, a, dir, p, ask).Allowed {
						t.Fatalf("%s %v %+v %+v is not allowed any more, and its flows go on in set %d", a, dir, p, ask, x)
					}
				}
			}
		}
	}
}

func TestChangesLeadWhereAFreshCompileIs(t *testing.T) {
	trials(t, func(t *trial) {
		w := newTown(t)
		ids := NewIDs(pick(t, []uint32{1, 77, lastID - 40}))
		c := w.compiled(ids)
		for range t.between(5, 40) {
			w.step(t, c)
		}
		table := c.Table()
		if again := c.Change(); !Empty(again) {
			t.Fatalf("nothing changed, and the change is %+v", again)
		}
		seen := &said{maps.Clone(table.Pairs), maps.Clone(table.Lists)}
		for range t.between(1, 12) {
			was := map[uint32]bool{}
			for n := range w.identities {
				was[n] = true
			}
			for range t.between(1, 4) {
				w.step(t, c)
			}
			before := copyTable(table)
			change := c.Change()
			seen.watch(t, change, &before, was)
			w.neverBetween(t, &table, change, was)
			if whole := c.Table(); !sameTable(whole, table) {
				t.Fatalf("changes led to\n%+v\nthe table is\n%+v", table, whole)
			}
			w.flowsEnd(t, &before, &table, was)
			fresh := w.compiled(NewIDs(1))
			want := fresh.Table()
			if got, want := canonical(c, &table), canonical(fresh, &want); got != want {
				t.Fatalf("after changes:\n%s\n\nfresh:\n%s", got, want)
			}
			w.agree(t, c, &table)
			if extra := c.leftovers(); extra != "" {
				t.Fatalf("%s", extra)
			}
		}
	})
}

// leftovers names what a compiler keeps and does not need.
func (c *Compiler) leftovers() string {
	live := len(c.sets) + len(c.lists.byID) + len(c.rules) + len(c.prefixes.number)
	used := map[*selector]bool{}
	for _, g := range append(slices.Collect(maps.Values(c.groups)), c.own) {
		for _, s := range g.sides {
			for _, b := range s.blocks {
				used[b.sel] = true
			}
		}
	}
	switch {
	case len(c.ids.live) != live:
		return fmt.Sprintf("%d numbers are in use, and %d are needed", len(c.ids.live), live)
	case len(used) != len(c.selectors):
		return fmt.Sprintf("%d selectors, and %d are needed", len(c.selectors), len(used))
	case len(c.prefixes.uses) != len(c.prefixes.number) || len(c.prefixes.sorted) != len(c.prefixes.number):
		return fmt.Sprintf("%d prefixes in use, %d numbered, %d sorted", len(c.prefixes.uses), len(c.prefixes.number), len(c.prefixes.sorted))
	}
	return ""
}
