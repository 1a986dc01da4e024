package segment

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/driver"
)

// hamlet is a network with a db, which one group is about, and web, both here.
func hamlet() (*Compiler, netip.Addr) {
	c := New(NewIDs(1), Network{Net: mainNet, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}})
	db := netip.MustParseAddr("10.7.0.3")
	c.SetIdentity(256, &Identity{"acme", mainNet, map[string]string{"app": "db"}})
	c.SetIdentity(257, &Identity{"acme", mainNet, map[string]string{"app": "web", "v": "1"}})
	c.SetInstance(db, 256)
	c.SetInstance(netip.MustParseAddr("10.7.0.2"), 257)
	c.SetGroup(GroupRef{"acme", "db"}, fromWeb("tcp/5432"))
	return c, db
}

func fromWeb(ports ...string) *api.SecurityGroupSpec {
	return &api.SecurityGroupSpec{Select: map[string]string{"app": "db"}, Ingress: []api.SecurityRule{{From: []api.SecurityPeer{{Labels: map[string]string{"app": "web"}}}, Ports: ports}}}
}

func TestANewIdentityIsAddedInPlace(t *testing.T) {
	c, db := hamlet()
	before := c.Table()
	c.SetIdentity(300, &Identity{"acme", mainNet, map[string]string{"app": "web", "v": "2"}})
	ch := c.Change()
	key := driver.PairKey{Set: before.Ports[db].Ingress, Peer: 300}
	if len(ch.Pairs) != 1 || ch.Pairs[key] != before.Pairs[driver.PairKey{Set: key.Set, Peer: 257}] || len(ch.Ports)+len(ch.DropPairs)+len(ch.Lists) != 0 {
		t.Fatalf("%+v", ch)
	}
	c.SetIdentity(300, nil)
	if ch = c.Change(); len(ch.DropPairs) != 1 || ch.DropPairs[0] != key || len(ch.Ports)+len(ch.Pairs) != 0 {
		t.Fatalf("%+v", ch)
	}
	// The number of web comes to mean somebody else: what the set said of it is not true any more.
	c.SetIdentity(257, &Identity{"acme", mainNet, map[string]string{"app": "cron"}})
	if ch = c.Change(); len(ch.Ports) != 1 || ch.Ports[db].Ingress == before.Ports[db].Ingress {
		t.Fatalf("%+v", ch)
	}
}

func TestAChangedGroupIsANewSetAndNothingOfTheOldStays(t *testing.T) {
	c, db := hamlet()
	before := c.Table()
	c.SetGroup(GroupRef{"acme", "db"}, fromWeb("tcp/5433"))
	ch := c.Change()
	if now := ch.Ports[db].Ingress; len(ch.Ports) != 1 || now == 0 || now == before.Ports[db].Ingress {
		t.Fatalf("%+v", ch)
	}
	if len(ch.DropPairs) != len(before.Pairs) || len(ch.DropLists) != len(before.Lists) {
		t.Fatalf("%+v after %+v", ch, before)
	}
	// The rule that is dropped is still known to whoever reads a log of a moment ago.
	for _, r := range before.Lists {
		if rule, ok := c.Rule(r); !ok || rule.Text() != "from app=web, tcp 5432" {
			t.Fatal(rule, ok)
		}
	}
	c.Change()
	for _, r := range before.Lists {
		if rule, ok := c.Rule(r); ok {
			t.Fatal(rule)
		}
	}
}

func TestWhatChangesNothingIsNoChange(t *testing.T) {
	c, db := hamlet()
	c.Table()
	described := fromWeb("tcp/5432")
	described.Description, described.Log, described.Ingress[0].Description = "who asks the db", true, "web"
	for what, do := range map[string]func(){
		"a description":  func() { c.SetGroup(GroupRef{"acme", "db"}, described) },
		"the same again": func() { c.SetGroup(GroupRef{"acme", "db"}, fromWeb("tcp/5432")) },
		"there and back": func() {
			c.SetGroup(GroupRef{"acme", "db"}, nil)
			c.SetGroup(GroupRef{"acme", "db"}, fromWeb("tcp/5432"))
		},
		"an instance there and back": func() { c.SetInstance(db, 0); c.SetInstance(db, 256) },
		"a group of somebody else":   func() { c.SetGroup(GroupRef{"lab", "db"}, fromWeb()) },
		"a group that selects nobody": func() {
			c.SetGroup(GroupRef{"acme", "no"}, &api.SecurityGroupSpec{Select: map[string]string{"app": "no"}, Ingress: []api.SecurityRule{{From: []api.SecurityPeer{{CIDR: "10.0.0.0/8"}}}}})
		},
		"an identity nobody is about": func() { c.SetIdentity(400, &Identity{"acme", mainNet, map[string]string{"app": "x"}}) },
		"a name no rule names": func() {
			c.SetName(Name{DNS: "example.org"}, &Resolved{Prefixes: []netip.Prefix{netip.MustParsePrefix("8.8.8.8/32")}})
		},
		"a reserved identity's number": func() {
			c.SetIdentity(driver.IdentityHost, &Identity{"acme", mainNet, map[string]string{"app": "web"}})
		},
	} {
		do()
		if ch := c.Change(); !Empty(ch) {
			t.Errorf("%s: %+v", what, ch)
		}
	}
	if got := c.Groups(); !slices.Equal(got, []GroupRef{{"acme", "db"}}) {
		t.Error(got)
	}
}

func TestARuleKnowsWhetherItsGroupLogs(t *testing.T) {
	c, _ := hamlet()
	spec := fromWeb()
	spec.Log, spec.DryRun = true, true
	c.SetGroup(GroupRef{"acme", "db"}, spec)
	table := c.Table()
	n := 0
	for _, p := range table.Pairs {
		if r, _ := c.Rule(p.All); r.Log && r.DryRun && r.Group.Name == "db" && r.Number == 1 && r.Ingress {
			n++
		}
	}
	if n != 1 {
		t.Fatalf("%d pairs of the rule in %+v", n, table)
	}
}

// What validation would have refused is never more than what was said.
func TestARuleThatCannotBeReadAllowsNothing(t *testing.T) {
	for _, r := range []api.SecurityRule{
		{Ports: []string{"tcp/80", "tcp/x"}}, {From: []api.SecurityPeer{{CIDR: "10.0.0.0/40"}}}, {From: []api.SecurityPeer{{CIDR: "0.0.0.0/0", Except: []string{"x"}}}},
		{From: []api.SecurityPeer{}}, {From: []api.SecurityPeer{{}}}, {Ports: []string{}},
	} {
		c, db := hamlet()
		spec := &api.SecurityGroupSpec{Select: map[string]string{"app": "db"}, Ingress: []api.SecurityRule{r}}
		c.SetGroup(GroupRef{"acme", "db"}, spec)
		table := c.Table()
		w := World{Networks: map[Net]*Network{mainNet: {Net: mainNet}}, Groups: map[GroupRef]*api.SecurityGroupSpec{{"acme", "db"}: spec}}
		for _, p := range []Peer{{Identity: 257}, {Addr: netip.MustParseAddr("10.1.1.1")}} {
			for _, q := range townAsks {
				if a := Lookup(&table, db, Ingress, p, q); a.Allowed {
					t.Errorf("%+v lets %+v in for %+v", r, p, q)
				}
			}
		}
		v := w.Explain(Query{From: End{Addr: netip.MustParseAddr("10.1.1.1")}, To: End{Identity: Identity{"acme", mainNet, map[string]string{"app": "db"}}}, Proto: 6, Port: 80})
		if v.Allowed {
			t.Errorf("%+v: %s", r, v.Reason)
		}
	}
}

// Ranges are cut into as few prefixes as can be, which have exactly the ports of the range.
func TestRangesAreCut(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		a, b := uint16(rnd.IntN(65536)), uint16(rnd.IntN(65536))
		if i == 0 {
			a, b = 0, 65535
		}
		r := api.PortRange{Proto: 6, First: min(a, b), Last: max(a, b)}
		entries := cut(r, nil)
		got := map[uint16]int{}
		for _, e := range entries {
			for p := uint32(e.port); p < uint32(e.port)+1<<(16-e.len); p++ {
				if head(uint16(p), e.len) != e.port {
					t.Fatalf("%+v does not have %d", e, p)
				}
				got[uint16(p)]++
			}
		}
		if len(got) != int(r.Last-r.First)+1 || slices.Max(slices.Collect(maps.Values(got))) != 1 || got[r.First] != 1 || got[r.Last] != 1 {
			t.Fatalf("%s: %v", r, entries)
		}
		for j := 1; j < len(entries); j++ { // two halves of one prefix would be one entry
			x, y := entries[j-1], entries[j]
			if x.len == y.len && head(x.port, x.len-1) == head(y.port, y.len-1) {
				t.Fatalf("%s: %v and %v are one", r, x, y)
			}
		}
		if len(entries) > 30 {
			t.Fatalf("%s: %d entries", r, len(entries))
		}
	}
	if got := cut(api.PortRange{Proto: 6, Last: 65535}, nil); len(got) != 1 || got[0] != (entry{6, 0, 0}) {
		t.Fatal(got)
	}
}

func TestNumbersDoNotComeAgainSoon(t *testing.T) {
	ids := NewIDs(lastID - 1)
	if a, b, c := ids.take(), ids.take(), ids.take(); a != lastID-1 || b != lastID || c != 1 || ids.Next() != 2 {
		t.Fatal(a, b, c)
	}
	if uint64(driver.FirstPrefix)+lastID > 1<<32-1 {
		t.Fatal("a prefix's number does not fit")
	}
	// Around once: what is still in use is passed over.
	ids.last = lastID - 2
	if a := ids.take(); a != 2 {
		t.Fatal(a)
	}
	ids.free(1)
	ids.last = lastID
	if a := ids.take(); a != 1 {
		t.Fatal(a)
	}
	if zero := NewIDs(0).take(); zero != 1 {
		t.Fatal(zero)
	}
}

// A daemon's second life does not say anything with a number of its first.
func TestASecondLifeBeginsAfterTheFirst(t *testing.T) {
	c, _ := hamlet()
	first := c.Table()
	c.SetGroup(GroupRef{"acme", "db"}, fromWeb("tcp/1-1023"))
	first = c.Table()
	again, _ := hamlet()
	again = New(NewIDs(c.ids.Next()), again.net)
	again.SetIdentity(256, &Identity{"acme", mainNet, map[string]string{"app": "db"}})
	again.SetInstance(netip.MustParseAddr("10.7.0.3"), 256)
	again.SetGroup(GroupRef{"acme", "db"}, fromWeb("tcp/1-1023"))
	second := again.Table()
	for k := range second.Pairs {
		for o := range first.Pairs {
			if k.Set == o.Set {
				t.Fatalf("set %d was there in both", k.Set)
			}
		}
	}
}

func TestManyAreNamedByTheFirstFew(t *testing.T) {
	var r api.SecurityRule
	for i := range 9 {
		r.From = append(r.From, api.SecurityPeer{Group: fmt.Sprint("g", i)})
	}
	if s := peersText(&r, true); !strings.HasSuffix(s, "group g3 or 5 more") {
		t.Fatal(s)
	}
}

// Numbers of a network that is gone from the host may be given out again.
func TestAForgottenNetworkKeepsNoNumbers(t *testing.T) {
	ids := NewIDs(1)
	c, other := New(ids, Network{Net: mainNet}), New(ids, Network{Net: backNet})
	own := len(ids.live)
	c.SetIdentity(256, &Identity{"acme", mainNet, map[string]string{"app": "db"}})
	c.SetInstance(netip.MustParseAddr("10.7.0.3"), 256)
	spec := fromWeb("tcp/5432", "udp/1-99")
	spec.Ingress[0].From = append(spec.Ingress[0].From, api.SecurityPeer{CIDR: "10.0.0.0/8"}, api.SecurityPeer{Where: "outside"})
	c.SetGroup(GroupRef{"acme", "db"}, spec)
	c.Table()
	c.SetGroup(GroupRef{"acme", "db"}, nil)
	c.Change() // what it dropped is still known for one more change
	other.Table()
	if len(ids.live) <= own {
		t.Fatal("nothing was numbered")
	}
	c.Close()
	if len(ids.live) != own/2 {
		t.Fatalf("%d numbers in use, %d are the other network's", len(ids.live), own/2)
	}
}

// Any group that may be stored is compiled to what it says.
func FuzzGroup(f *testing.F) {
	for _, s := range []string{`{"ingress":[]}`, `{"select":{"app":"db"},"ingress":[{"from":[{"labels":{"app":"web"}}],"ports":["tcp/5432"]}]}`,
		`{"egress":[{"to":[{"cidr":"0.0.0.0/0","except":["10.0.0.0/8"]}],"ports":["udp/1-1000","icmp/8"]}],"dryRun":true}`,
		`{"egress":[{"to":[{"dns":"example.org"},{"service":"s"},{"group":"g"},{"network":"lab/main"},{"where":"host"}]}]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := api.DecodeStrict([]byte(`{"kind":"SecurityGroup","metadata":{"name":"g","tenant":"acme"},"spec":` + s + `}`))
		if err != nil || api.Check(o) != nil {
			return
		}
		tt := &trial{T: t, Rand: rand.New(rand.NewPCG(1, 1))}
		w := newTown(tt)
		for i := range 4 {
			w.identities[uint32(256+i)] = &Identity{"acme", mainNet, map[string]string{"app": []string{"db", "web", "a", "b"}[i]}}
			w.here[netip.AddrFrom4([4]byte{10, 7, 0, byte(i + 2)})] = uint32(256 + i)
		}
		w.Groups[GroupRef{"acme", "g"}] = &o.(*api.SecurityGroup).Spec
		w.Names[Name{DNS: "example.org"}] = Resolved{Prefixes: []netip.Prefix{netip.MustParsePrefix("8.8.8.8/32")}}
		w.Names[Name{Tenant: "acme", Service: "s"}] = Resolved{Select: map[string]string{"app": "a"}}
		c := w.compiled(NewIDs(1))
		table := c.Table()
		w.agree(tt, c, &table)
		w.Warnings(GroupRef{"acme", "g"})
	})
}

// An address that a name gets is added in place: it was refused before. One that it loses
// makes another set, so that flows with it end; unless it is allowed without the name, too.
func TestAddressesOfANameComeAndGo(t *testing.T) {
	c, db := hamlet()
	name := Name{DNS: "example.org"}
	c.SetGroup(GroupRef{"acme", "out"}, &api.SecurityGroupSpec{Select: map[string]string{"app": "db"}, Egress: []api.SecurityRule{{To: []api.SecurityPeer{{DNS: "example.org"}}}}})
	set := c.Table().Ports[db].Egress
	resolve := func(s ...string) driver.Change {
		var r Resolved
		for _, p := range s {
			r.Prefixes = append(r.Prefixes, netip.MustParsePrefix(p))
		}
		c.SetName(name, &r)
		return c.Change()
	}
	if ch := resolve("203.0.113.7/32", "198.51.100.0/24"); len(ch.Ports) != 0 || len(ch.Pairs) != 2 || len(ch.Prefixes) != 2 {
		t.Fatalf("%+v", ch)
	}
	// Inside of what the name has anyway, so nobody notices, neither when it comes nor when it goes.
	if ch := resolve("203.0.113.7/32", "198.51.100.0/24", "198.51.100.9/32"); len(ch.Ports) != 0 || len(ch.Pairs) != 1 || len(ch.Prefixes) != 1 {
		t.Fatalf("%+v", ch)
	}
	if ch := resolve("203.0.113.7/32", "198.51.100.0/24"); len(ch.Ports) != 0 || len(ch.DropPairs) != 1 || len(ch.DropPrefixes) != 1 {
		t.Fatalf("%+v", ch)
	}
	ch := resolve("198.51.100.0/24")
	if now := ch.Ports[db].Egress; now == 0 || now == set || len(ch.DropPrefixes) != 1 {
		t.Fatalf("%+v", ch)
	}
}
