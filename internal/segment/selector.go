package segment

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/driver"
)

// meaning is whom a peer of a rule means.
type meaning struct {
	instances bool              // some of them: those that are as the next three say
	tenant    string            // "": of any
	network   Net               // zero: on any
	labels    map[string]string // all of these
	host      bool
	outside   bool // all of it
	cidrs     []netip.Prefix
	excepts   []netip.Prefix
}

func (m *meaning) identity(i *Identity) bool {
	return m.instances && (m.tenant == "" || m.tenant == i.Tenant) && (m.network == Net{} || m.network == i.Network) && has(i.Labels, m.labels)
}

// prefix reports whether what is in p, and in no prefix inside p that rules name, is meant.
func (m *meaning) prefix(p netip.Prefix) bool {
	return m.outside || slices.ContainsFunc(m.cidrs, func(c netip.Prefix) bool { return within(p, c) }) &&
		!slices.ContainsFunc(m.excepts, func(e netip.Prefix) bool { return within(p, e) })
}

// selector is a meaning that rules share, and the numbers of those who are meant now.
type selector struct {
	meaning
	key     string
	means   func() meaning // anew, after a group or name it refers to changed
	refs    int            // blocks
	users   map[*group]int // groups with blocks of it
	members map[uint32]struct{}
}

var everybody = meaning{instances: true, host: true, outside: true}

// selectorOf finds or makes the selector of a peer in a group of tenant.
func (c *Compiler) selectorOf(tenant string, p *api.SecurityPeer) *selector {
	switch {
	case p.Labels != nil:
		m := meaning{instances: true, labels: p.Labels, tenant: tenant}
		if p.Network != "" {
			m.tenant, m.network = "", netOf(tenant, p.Network)
		}
		return c.selector("l|"+m.tenant+"|"+m.network.String()+"|"+api.FormatLabels(p.Labels), m)
	case p.Network != "":
		return c.networkSelector(netOf(tenant, p.Network))
	case p.Group != "":
		ref := GroupRef{tenant, p.Group}
		return c.living("g|"+ref.String(), func() meaning {
			g, ok := c.groups[ref]
			if !ok {
				return meaning{}
			}
			return meaning{instances: true, tenant: ref.Tenant, network: g.network(), labels: g.spec.Select}
		})
	case p.CIDR != "":
		m := meaning{}
		for i, s := range append([]string{p.CIDR}, p.Except...) {
			x, err := api.ParseCIDR(s)
			if err != nil {
				return nil
			}
			if i == 0 {
				m.cidrs = append(m.cidrs, x)
			} else {
				m.excepts = append(m.excepts, x)
			}
		}
		return c.selector("c|"+p.CIDR+"|"+strings.Join(p.Except, ","), m)
	case p.Where == api.WhereHost:
		return c.selector("h", meaning{host: true})
	case p.Where == api.WhereOutside:
		return c.selector("o", meaning{outside: true})
	}
	n, ok := nameOf(tenant, p)
	if !ok {
		return nil
	}
	return c.living(n.key(), func() meaning {
		r := c.names[n]
		m := meaning{instances: r.Select != nil && n.Service != "", tenant: n.Tenant, labels: r.Select}
		for _, p := range r.Prefixes {
			if p.IsValid() && !p.Addr().Is4In6() && p.Addr().Zone() == "" {
				m.cidrs = append(m.cidrs, p.Masked())
			}
		}
		return m
	})
}

func (n Name) key() string { return "n|" + n.Tenant + "|" + n.Service + "|" + n.DNS }

func (c *Compiler) networkSelector(n Net) *selector {
	return c.selector("w|"+n.String(), meaning{instances: true, network: n})
}

func (c *Compiler) living(key string, means func() meaning) *selector {
	if s, ok := c.selectors[key]; ok {
		return s
	}
	s := c.selector(key, means())
	s.means = means
	return s
}

func (c *Compiler) selector(key string, m meaning) *selector {
	if s, ok := c.selectors[key]; ok {
		return s
	}
	s := &selector{meaning: m, key: key, users: map[*group]int{}, members: map[uint32]struct{}{}}
	c.selectors[key] = s
	c.unused[s] = struct{}{} // until a block refers to it
	c.fresh = append(c.fresh, s)
	c.index(s, 1)
	return s
}

// index enters a selector where changes of identities and prefixes find it; by -1 takes it out.
func (c *Compiler) index(s *selector, by int) {
	if s.instances {
		k := firstLabel(s.labels)
		if by > 0 {
			enter(c.byLabel, k, s)
		} else {
			leave(c.byLabel, k, s)
		}
	}
	if s.outside {
		if by > 0 {
			c.outside[s] = struct{}{}
		} else {
			delete(c.outside, s)
		}
	}
	for _, p := range s.cidrs {
		if by > 0 {
			enter(c.byPrefix, p, s)
		} else {
			leave(c.byPrefix, p, s)
		}
		c.prefixes.use(p, by)
	}
	for _, p := range s.excepts {
		c.prefixes.use(p, by)
	}
}

// firstLabel is the label that something with these labels is found by.
func firstLabel(labels map[string]string) string {
	if len(labels) == 0 {
		return ""
	}
	k := slices.Min(slices.Collect(maps.Keys(labels)))
	return k + "=" + labels[k]
}

func enter[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]struct{}{}
	}
	m[k][v] = struct{}{}
}

func leave[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if delete(m[k], v); len(m[k]) == 0 {
		delete(m, k)
	}
}

// refer counts a block of g that uses s.
func (c *Compiler) refer(s *selector, g *group, by int) {
	s.refs += by
	if s.users[g] += by; s.users[g] == 0 {
		delete(s.users, g)
	}
	if s.refs == 0 {
		c.unused[s] = struct{}{}
	} else {
		delete(c.unused, s)
	}
}

// put makes a number a member of s or not, and notes which sets have to look at it again.
func (c *Compiler) put(s *selector, peer uint32, is bool) {
	if _, was := s.members[peer]; was == is {
		return
	}
	if is {
		s.members[peer] = struct{}{}
	} else {
		delete(s.members, peer)
	}
	for g := range s.users {
		for st := range g.sets {
			st.look(c, peer)
		}
	}
}

// fill finds all members of s, however many it had.
func (c *Compiler) fill(s *selector) {
	want := map[uint32]struct{}{}
	if s.host {
		want[driver.IdentityHost] = struct{}{}
	}
	if s.outside {
		want[driver.IdentityOutside] = struct{}{}
	}
	if s.instances {
		for n := range c.candidates(s.labels) {
			if i := c.identities[n]; c.net.peers(i.Network) && s.identity(i) {
				want[n] = struct{}{}
			}
		}
	}
	if s.outside {
		for _, n := range c.prefixes.number {
			want[n] = struct{}{}
		}
	} else {
		for _, inside := range s.cidrs {
			for _, p := range c.prefixes.within(inside) {
				if s.prefix(p) {
					want[c.prefixes.number[p]] = struct{}{}
				}
			}
		}
	}
	if len(s.members) == 0 {
		s.members = want
		for g := range s.users {
			for st := range g.sets {
				if st.all {
					continue
				}
				for n := range want {
					st.look(c, n)
				}
			}
		}
		return
	}
	for n := range s.members {
		if _, ok := want[n]; !ok {
			c.put(s, n, false)
		}
	}
	for n := range want {
		c.put(s, n, true)
	}
}

// candidates are the identities that may have all the labels: those with the rarest of them.
func (c *Compiler) candidates(labels map[string]string) map[uint32]struct{} {
	best := c.labelled[""]
	for k, v := range labels {
		if set := c.labelled[k+"="+v]; len(set) < len(best) {
			best = set
		}
	}
	return best
}

// redefine gives a selector another meaning; who is meant is found when prefixes have numbers.
func (c *Compiler) redefine(key string) {
	s, ok := c.selectors[key]
	if !ok {
		return
	}
	was := s.meaning
	// In before out, so that a prefix that is in both keeps its number.
	s.meaning = s.means()
	c.index(s, 1)
	now := s.meaning
	s.meaning = was
	c.index(s, -1)
	s.meaning = now
	for _, p := range now.cidrs { // a prefix in both was taken out just now
		enter(c.byPrefix, p, s)
	}
	if now.instances {
		enter(c.byLabel, firstLabel(now.labels), s)
	}
	c.fresh = append(c.fresh, s)
}
