package segment

import (
	"fmt"
	"net/netip"
	"testing"

	"atoll/api"
	"atoll/internal/driver"
)

// city is a network of 1,000 sets of labels, all with an instance here, and 1,000 groups of 100 rules:
// each group selects one set of labels, and its rules name others, prefixes, ports and ranges.
const cityGroups, cityRules, cityIdentities = 1000, 100, 1000

func cityGroup(g, variant int) *api.SecurityGroupSpec {
	s := &api.SecurityGroupSpec{Select: map[string]string{"app": fmt.Sprint("a", g)}}
	for i := range cityRules {
		r := api.SecurityRule{Ports: []string{fmt.Sprintf("tcp/%d", 1000+(i+variant)%5000)}}
		switch i % 10 {
		case 0:
			r.From = []api.SecurityPeer{{CIDR: fmt.Sprintf("203.%d.%d.0/24", g%10, i)}}
		case 1:
			r.From = []api.SecurityPeer{{Group: fmt.Sprint("g", (g+i)%cityGroups)}}
		case 2:
			r.From, r.Ports = []api.SecurityPeer{{Labels: map[string]string{"tier": fmt.Sprint("t", i%10)}}}, []string{"udp/8000-8100", "tcp/443"}
		default:
			r.From = []api.SecurityPeer{{Labels: map[string]string{"app": fmt.Sprint("a", (g*7+i)%cityIdentities)}}}
		}
		s.Ingress = append(s.Ingress, r)
	}
	return s
}

func city() *Compiler {
	c := New(NewIDs(1), Network{Net: mainNet, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	for i := range cityIdentities {
		n := uint32(driver.FirstIdentity + i)
		c.SetIdentity(n, &Identity{Tenant: "acme", Network: mainNet, Labels: map[string]string{"app": fmt.Sprint("a", i), "tier": fmt.Sprint("t", i%20)}})
		c.SetInstance(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), n)
	}
	for g := range cityGroups {
		c.SetGroup(GroupRef{"acme", fmt.Sprint("g", g)}, cityGroup(g, 0))
	}
	return c
}

func BenchmarkCompileAll(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		c := city()
		b.StartTimer()
		t := c.Table()
		b.ReportMetric(float64(len(t.Pairs)), "pairs")
		b.ReportMetric(float64(len(t.Lists)), "list-entries")
	}
}

// One group of a thousand says something else: it has other ports in all of its rules.
func BenchmarkChangeOfAGroup(b *testing.B) {
	c := city()
	c.Table()
	i := 0
	for b.Loop() {
		i++
		g := i % cityGroups
		c.SetGroup(GroupRef{"acme", fmt.Sprint("g", g)}, cityGroup(g, i))
		if ch := c.Change(); len(ch.Ports) != 1 {
			b.Fatalf("%d ports", len(ch.Ports))
		}
	}
}

// A group that selects everybody changes, so every port here gets another set.
func BenchmarkChangeOfAGroupOfAll(b *testing.B) {
	c := city()
	spec := func(i int) *api.SecurityGroupSpec {
		return &api.SecurityGroupSpec{Ingress: []api.SecurityRule{{From: []api.SecurityPeer{{Labels: map[string]string{"tier": "t1"}}}, Ports: []string{fmt.Sprintf("tcp/%d", i)}}}}
	}
	c.SetGroup(GroupRef{"acme", "all"}, spec(1))
	c.Table()
	i := 1
	for b.Loop() {
		i = i%60000 + 1
		c.SetGroup(GroupRef{"acme", "all"}, spec(i+1))
		if ch := c.Change(); len(ch.Ports) != cityIdentities {
			b.Fatalf("%d ports", len(ch.Ports))
		}
	}
}

// A deployment with labels of its own comes and goes; fifty groups have rules about its tier.
func BenchmarkNewIdentity(b *testing.B) {
	c := city()
	c.Table()
	for b.Loop() {
		c.SetIdentity(9000, &Identity{Tenant: "acme", Network: mainNet, Labels: map[string]string{"app": "new", "tier": "t2"}})
		if ch := c.Change(); len(ch.Ports) != 0 || len(ch.Pairs) == 0 {
			b.Fatalf("%d ports, %d pairs", len(ch.Ports), len(ch.Pairs))
		}
		c.SetIdentity(9000, nil)
		c.Change()
	}
}

// An instance of a known identity starts here and stops.
func BenchmarkNewInstance(b *testing.B) {
	c := city()
	c.Table()
	a := netip.MustParseAddr("10.9.9.9")
	for b.Loop() {
		c.SetInstance(a, driver.FirstIdentity+5)
		if ch := c.Change(); len(ch.Ports) != 1 || len(ch.Pairs) != 0 {
			b.Fatalf("%+v", ch)
		}
		c.SetInstance(a, 0)
		c.Change()
	}
}

func BenchmarkExplain(b *testing.B) {
	w := World{Networks: map[Net]*Network{mainNet: {Net: mainNet}}, Groups: map[GroupRef]*api.SecurityGroupSpec{}}
	for g := range cityGroups {
		w.Groups[GroupRef{"acme", fmt.Sprint("g", g)}] = cityGroup(g, 0)
	}
	end := func(i int) End {
		return End{Identity: Identity{Tenant: "acme", Network: mainNet, Labels: map[string]string{"app": fmt.Sprint("a", i)}}}
	}
	for b.Loop() {
		w.Explain(Query{From: end(1), To: end(2), Proto: 6, Port: 1})
	}
}
