package resolve

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"atoll/api"
)

// root is what all names of the pool are below.
const root = api.NetworkDomain + "."

// namer is a source of names below the domain of a network: its instances, and whatever is to
// be found there beside them.
type namer interface {
	// addrs are those of a label below the domain; false when there is no such name.
	addrs(label string) ([]netip.Addr, bool)
	// label is the name of an address.
	label(a netip.Addr) (string, bool)
}

// instances is the namer of what runs on a network. A name without addresses is that of an instance that
// is nowhere now.
type instances struct {
	byName map[string][]netip.Addr
	byAddr map[netip.Addr]string
}

func newInstances() *instances {
	return &instances{byName: map[string][]netip.Addr{}, byAddr: map[netip.Addr]string{}}
}

func (i *instances) addrs(label string) ([]netip.Addr, bool) {
	a, ok := i.byName[label]
	return a, ok
}

func (i *instances) label(a netip.Addr) (string, bool) {
	l, ok := i.byAddr[a]
	return l, ok
}

func (i *instances) set(name string, addrs []netip.Addr) {
	i.drop(name)
	i.byName[name] = addrs
	for _, a := range addrs {
		i.byAddr[a] = name
	}
}

func (i *instances) drop(name string) {
	for _, a := range i.byName[name] {
		if i.byAddr[a] == name { // it may be another's already
			delete(i.byAddr, a)
		}
	}
	delete(i.byName, name)
}

// network is one of a tenant, as its names go.
type network struct {
	name     string
	domains  []string // absolute, in lower case; the one that addresses are named by first
	prefixes []netip.Prefix
	gateways []netip.Addr
	outside  bool // its instances may ask for names of others
	on       *instances
	namers   []namer // on, and whatever else has names here
}

func newNetwork(o *api.Network, on *instances) *network {
	n := &network{name: o.Name, prefixes: o.Spec.Prefixes(), outside: o.Spec.Egress != "none", on: on, namers: []namer{on}}
	for _, p := range n.prefixes {
		n.gateways = append(n.gateways, api.Gateway(p))
	}
	bare := api.Network{Head: o.Head} // also without a domain of its own it is found
	for _, d := range []string{o.EffectiveDomain(), bare.EffectiveDomain()} {
		if d = dns.CanonicalName(d); !slices.Contains(n.domains, d) {
			n.domains = append(n.domains, d)
		}
	}
	return n
}

// tenant is what instances of one tenant see.
type tenant struct {
	nets  map[string]*network
	lost  map[string]*instances // of networks that are not known (yet)
	zones map[string][]*network // by domain
	above map[string]bool       // names that only have others below them
}

func newTenant() *tenant {
	t := &tenant{nets: map[string]*network{}, lost: map[string]*instances{}}
	t.index()
	return t
}

// set takes in a network, or what changed of it.
func (t *tenant) set(o *api.Network) {
	t.nets[o.Name] = newNetwork(o, t.instancesOf(o.Name))
	delete(t.lost, o.Name)
	t.index()
}

// unset forgets a network, but not who is on it.
func (t *tenant) unset(name string) {
	if n := t.nets[name]; n != nil {
		t.lost[name] = n.on
		delete(t.nets, name)
		t.index()
	}
}

func (t *tenant) instancesOf(network string) *instances {
	if n := t.nets[network]; n != nil {
		return n.on
	}
	if t.lost[network] == nil {
		t.lost[network] = newInstances()
	}
	return t.lost[network]
}

// place takes in where an instance is; nil: it is gone.
func (t *tenant) place(name string, e *api.Endpoint) {
	on := map[string]bool{}
	if e != nil {
		for _, i := range e.Spec.Interfaces {
			on[i.Network] = true
			var addrs []netip.Addr
			for _, s := range i.Addresses() {
				if a, err := netip.ParseAddr(s); err == nil && e.Spec.Node != "" {
					addrs = append(addrs, a)
				}
			}
			t.instancesOf(i.Network).set(name, addrs)
		}
	}
	for net, n := range t.nets {
		if !on[net] {
			n.on.drop(name)
		}
	}
	for net, l := range t.lost {
		if !on[net] {
			l.drop(name)
		}
		if len(l.byName) == 0 {
			delete(t.lost, net)
		}
	}
}

func (t *tenant) index() {
	t.zones, t.above = map[string][]*network{}, map[string]bool{root: true}
	for _, name := range sorted(t.nets) {
		n := t.nets[name]
		for _, d := range n.domains {
			t.zones[d] = append(t.zones[d], n)
			for up, ok := parent(d); ok; up, ok = parent(up) {
				t.above[up] = true
			}
		}
	}
}

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// parent is a name without its first label; false for the root of all names.
func parent(name string) (string, bool) {
	i, end := dns.NextLabel(name, 0)
	if end {
		return ".", name != "."
	}
	return name[i:], true
}

// found is what a view knows of a name.
type found struct {
	zone    string // the apex of what it is in; "": none of the view's
	exists  bool   // with these records, or others, or with names below it
	addrs   []netip.Addr
	names   []string // what an address is called
	servers []netip.Addr
}

// nsLabels is the name server's name in every zone: no instance has a name of two labels.
const nsLabels = "ns.dns"

// find looks a name up in the view of somebody on network asker; name is absolute and in lower case.
func (t *tenant) find(asker, name string) found {
	if p, exact, ok := reverse(name); ok {
		return t.address(asker, name, p, exact)
	}
	for zone, ok := name, true; ok; zone, ok = parent(zone) {
		if nets := t.zones[zone]; nets != nil {
			return t.inZone(asker, name, zone, nets)
		}
	}
	if !dns.IsSubDomain(root, name) {
		return found{}
	}
	f := found{zone: root, exists: t.above[name], servers: t.serversFor(asker)}
	return f.server(name)
}

// serversFor are the addresses at which somebody on a network asks.
func (t *tenant) serversFor(asker string) []netip.Addr {
	if n := t.nets[asker]; n != nil {
		return n.gateways
	}
	return nil
}

// server adds the name of the server of the zone.
func (f found) server(name string) found {
	switch name {
	case nsLabels + "." + f.zone:
		f.exists, f.addrs = true, f.servers
	case "dns." + f.zone, f.zone:
		f.exists = true
	}
	return f
}

func (t *tenant) inZone(asker, name, zone string, nets []*network) found {
	f := found{zone: zone, servers: t.serversFor(asker), exists: t.above[name]}
	label := strings.TrimSuffix(strings.TrimSuffix(name, zone), ".")
	if label == "" || strings.Contains(label, ".") {
		return f.server(name)
	}
	for own := range 2 { // the asker's own network first
		for _, n := range nets {
			if (n.name == asker) != (own == 0) {
				continue
			}
			for _, s := range n.namers {
				if a, ok := s.addrs(label); ok {
					f.exists, f.addrs = true, append(f.addrs, a...)
				}
			}
		}
	}
	return f.server(name)
}

// address looks up what addresses are called: those that the name stands for or, where it is not
// exact, that a name above it stands for.
func (t *tenant) address(asker, name string, p netip.Prefix, exact bool) found {
	f := found{zone: private(name, p), servers: t.serversFor(asker)}
	for own := range 2 {
		for _, net := range sorted(t.nets) {
			n := t.nets[net]
			if (net == asker) != (own == 0) {
				continue
			}
			for _, q := range n.prefixes {
				if !p.Overlaps(q) || f.zone == "" && p.Bits() < q.Bits() {
					continue // a network in public addresses does not make us speak for those around it
				}
				if f.zone == "" {
					f.zone = apex(name, p, q.Bits())
				}
				switch {
				case exact && p.IsSingleIP():
					f.names = append(f.names, n.called(p.Addr())...)
				case exact:
					f.exists = true // there may be names below it, and nobody counts them
				}
			}
		}
		if len(f.names) > 0 {
			break // another network of the tenant may have the same address
		}
	}
	if f.zone == "" {
		return found{}
	}
	f.exists = f.exists || len(f.names) > 0
	return f.server(name)
}

// called are the names of an address.
func (n *network) called(a netip.Addr) []string {
	if slices.Contains(n.gateways, a) {
		return []string{nsLabels + "." + n.domains[0]}
	}
	var out []string
	for _, s := range n.namers {
		if l, ok := s.label(a); ok {
			out = append(out, l+"."+n.domains[0])
		}
	}
	return out
}
