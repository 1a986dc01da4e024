// Package segment is the engine of security groups. A World says which networks, groups
// and names there are. A Compiler makes of one network's part of it the tables that the
// wall of a host looks up (driver.Table), and keeps up with changes (driver.Change).
// World.Explain judges by the groups themselves, without tables, and says why in plain
// words; tests hold the two against each other. The package is pure: it does no I/O,
// knows no clock and starts no goroutine. A Compiler is used by one goroutine at a time.
package segment

import (
	"net/netip"
	"slices"
	"strings"

	"atoll/api"
)

// Net names a network of a tenant.
type Net struct{ Tenant, Name string }

// String is acme/main.
func (n Net) String() string { return n.Tenant + "/" + n.Name }

// GroupRef names a security group of a tenant.
type GroupRef struct{ Tenant, Name string }

// String is acme/db-clients.
func (g GroupRef) String() string { return g.Tenant + "/" + g.Name }

func (g GroupRef) compare(o GroupRef) int {
	if c := strings.Compare(g.Tenant, o.Tenant); c != 0 {
		return c
	}
	return strings.Compare(g.Name, o.Name)
}

// Network is what decides about a network's traffic beside groups.
type Network struct {
	Net      Net
	Prefixes []netip.Prefix
	Closed   bool  // isolation: closed
	Direct   bool  // its addresses are known outside: what comes from there needs a rule, or a published port
	Peers    []Net // networks it may talk with
}

func (n *Network) peers(with Net) bool { return n.Net == with || slices.Contains(n.Peers, with) }

// Identity is all that rules may know of an instance. What a number of an identity means
// is not to change: other labels are another number.
type Identity struct {
	Tenant  string // of the instance
	Network Net    // it is on
	Labels  map[string]string
}

func (i Identity) equal(o Identity) bool {
	return i.Tenant == o.Tenant && i.Network == o.Network && has(i.Labels, o.Labels) && len(i.Labels) == len(o.Labels)
}

// has reports whether labels has all of want.
func has(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Name is what rules name and somebody else resolves: a DNS name, or a service of a tenant.
type Name struct{ Tenant, Service, DNS string }

// Resolved is who answers to a Name.
type Resolved struct {
	Prefixes []netip.Prefix    // outside of the network
	Select   map[string]string // of a service: its instances, by their labels; nil: none
}

// World is everything that decides about traffic, as it is said, not as it is compiled.
type World struct {
	Networks map[Net]*Network
	Groups   map[GroupRef]*api.SecurityGroupSpec
	Names    map[Name]Resolved
}

// nameOf is the name that a peer of a group of tenant means; false: it means none.
func nameOf(tenant string, p *api.SecurityPeer) (Name, bool) {
	switch {
	case p.DNS != "":
		return Name{DNS: p.DNS}, true
	case p.Service != "":
		return Name{Tenant: tenant, Service: p.Service}, true
	}
	return Name{}, false
}

// netOf is the network that a group of tenant means by name or tenant/name.
func netOf(tenant, s string) Net {
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		return Net{Tenant: s[:i], Name: s[i+1:]}
	}
	return Net{Tenant: tenant, Name: s}
}

// names reports whether the CIDRs of a rule name every address of a network. CIDR rules
// speak about what is outside: of the members with one set of labels some may be inside a
// prefix and others not, and members are known by their labels alone. But where a rule
// names all addresses of a network there is no doubt, so it means its instances, too.
func names(r *api.SecurityRule, n *Network) bool {
	for _, p := range n.Prefixes {
		if !slices.ContainsFunc(r.Peers(), func(peer api.SecurityPeer) bool { return namesAll(&peer, p) }) {
			return false
		}
	}
	return len(n.Prefixes) > 0
}

func namesAll(peer *api.SecurityPeer, p netip.Prefix) bool {
	c, err := api.ParseCIDR(peer.CIDR)
	return err == nil && within(p, c) && !slices.ContainsFunc(peer.Except, func(s string) bool {
		e, err := api.ParseCIDR(s)
		return err != nil || e.Overlaps(p)
	})
}

// within reports whether p is c or a part of it.
func within(p, c netip.Prefix) bool { return p.Bits() >= c.Bits() && c.Contains(p.Addr()) }

// badRule reports whether a rule has a part that cannot be read, which validation keeps
// out: it allows nothing rather than something else.
func badRule(r *api.SecurityRule) bool {
	for _, s := range r.Ports {
		if _, err := api.ParsePorts(s); err != nil {
			return true
		}
	}
	for _, p := range r.Peers() {
		for _, s := range append([]string{p.CIDR}, p.Except...) {
			if _, err := api.ParseCIDR(s); err != nil && p.CIDR != "" {
				return true
			}
		}
	}
	return false
}
