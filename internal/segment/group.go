package segment

import (
	"maps"
	"slices"

	"atoll/api"
)

// group is a security group. Only those that select an instance that is here are compiled.
type group struct {
	ref      GroupRef
	spec     *api.SecurityGroupSpec // nil: the rules of every network
	sides    [2]side                // ingress, egress
	compiled bool
	stale    bool                // sides are of an older spec, or an older network
	here     map[uint32]struct{} // identities of instances that are here and that it selects
	sets     map[*set]struct{}
}

const (
	ingress = 0
	egress  = 1
)

// side is what a group says about one direction.
type side struct {
	rules  []*rule
	blocks []block
}

// block is what a side says about those whom one selector means.
type block struct {
	sel   *selector
	rules []*rule
}

// rule is a rule of a side that can allow something.
type rule struct {
	id      uint32
	index   int // in the group's list
	all     bool
	entries []entry
	spec    *api.SecurityRule
}

func (g *group) network() Net {
	if g.spec.Network == "" {
		return Net{}
	}
	return Net{g.ref.Tenant, g.spec.Network}
}

// list is the rules of a direction; false: the group does not say.
func (g *group) list(dir int) ([]api.SecurityRule, bool) {
	if dir == ingress {
		return g.spec.Ingress, g.spec.Ingress != nil
	}
	return g.spec.Egress, g.spec.Egress != nil
}

func (g *group) selects(i *Identity) bool { return selects(g.ref, g.spec, i) }

func selects(ref GroupRef, spec *api.SecurityGroupSpec, i *Identity) bool {
	return ref.Tenant == i.Tenant && (spec.Network == "" || i.Network == Net{ref.Tenant, spec.Network}) && has(i.Labels, spec.Select)
}

// compile reads the rules of a group. A rule that is as it was keeps its number.
func (c *Compiler) compile(g *group) {
	was := g.sides
	for dir := range g.sides {
		list, _ := g.list(dir)
		g.sides[dir] = c.compileSide(g, dir, list, was[dir].rules)
		for _, b := range g.sides[dir].blocks {
			c.refer(b.sel, g, 1)
		}
	}
	for dir := range was {
		c.forget(g, was[dir], g.sides[dir].rules)
	}
	g.compiled, g.stale = true, false
	for st := range g.sets {
		st.lookAll(c)
	}
}

// release forgets what was compiled of a group.
func (c *Compiler) release(g *group) {
	for dir := range g.sides {
		c.forget(g, g.sides[dir], nil)
		g.sides[dir] = side{}
	}
	g.compiled = false
}

func (c *Compiler) forget(g *group, was side, now []*rule) {
	for _, b := range was.blocks {
		c.refer(b.sel, g, -1)
	}
	keep := map[uint32]struct{}{}
	for _, r := range now {
		keep[r.id] = struct{}{}
	}
	for _, r := range was.rules {
		if _, ok := keep[r.id]; !ok {
			c.gone = append(c.gone, r.id)
		}
	}
}

func (c *Compiler) compileSide(g *group, dir int, list []api.SecurityRule, was []*rule) side {
	var out side
	at := map[*selector]int{}
	old := map[int]*rule{}
	for _, r := range was {
		old[r.index] = r
	}
	for i := range list {
		r := &rule{index: i, spec: &list[i]}
		if !r.read() {
			continue
		}
		if o := old[i]; o != nil && sameRule(o.spec, r.spec) {
			r.id = o.id
		} else {
			r.id = c.ids.take()
		}
		c.rules[r.id] = &Rule{Group: g.ref, Ingress: dir == ingress, Number: i + 1, Log: g.spec.Log, DryRun: g.spec.DryRun, rule: r.spec}
		out.rules = append(out.rules, r)
		for _, s := range c.selectorsOf(g.ref.Tenant, r.spec) {
			n, ok := at[s]
			if !ok {
				n = len(out.blocks)
				at[s] = n
				out.blocks = append(out.blocks, block{sel: s})
			}
			if b := &out.blocks[n]; len(b.rules) == 0 || b.rules[len(b.rules)-1] != r {
				b.rules = append(b.rules, r)
			}
		}
	}
	return out
}

// read cuts the rule's ports; false: a part cannot be read, so it allows nothing.
func (r *rule) read() bool {
	if badRule(r.spec) {
		return false
	}
	if r.all = r.spec.Ports == nil; r.all {
		return true
	}
	if len(r.spec.Ports) == 0 {
		return false
	}
	for _, s := range r.spec.Ports {
		p, err := api.ParsePorts(s)
		if err != nil {
			return false
		}
		r.entries = cut(p, r.entries)
	}
	if len(r.spec.Ports) > 1 {
		once := merge([]*rule{r})
		r.entries = r.entries[:0]
		for _, e := range once {
			r.entries = append(r.entries, e.entry)
		}
	}
	slices.SortFunc(r.entries, compareEntry)
	return true
}

// selectorsOf are whom a rule means.
func (c *Compiler) selectorsOf(tenant string, r *api.SecurityRule) []*selector {
	peers := r.Peers()
	if peers == nil {
		return []*selector{c.selector("*", everybody)}
	}
	var out []*selector
	cidr := false
	for i := range peers {
		cidr = cidr || peers[i].CIDR != ""
		if s := c.selectorOf(tenant, &peers[i]); s != nil {
			out = append(out, s)
		}
	}
	if cidr {
		for _, n := range c.networks() {
			if names(r, n) {
				out = append(out, c.networkSelector(n.Net))
			}
		}
	}
	return out
}

// sameRule reports whether two rules say the same, whatever their descriptions.
func sameRule(a, b *api.SecurityRule) bool {
	return slices.Equal(a.Ports, b.Ports) && (a.Ports == nil) == (b.Ports == nil) &&
		(a.Peers() == nil) == (b.Peers() == nil) && slices.EqualFunc(a.Peers(), b.Peers(), func(p, q api.SecurityPeer) bool {
		return p.Group == q.Group && p.Network == q.Network && p.CIDR == q.CIDR && p.DNS == q.DNS && p.Service == q.Service && p.Where == q.Where &&
			maps.Equal(p.Labels, q.Labels) && slices.Equal(p.Except, q.Except)
	})
}

// base is what every network allows wherever a direction is closed: the host reaches its
// instances, to know that they work, and they may ask it for names, for addresses, and
// whether it is there. Rules of groups come first where both allow.
func (c *Compiler) base() *group {
	g := &group{sets: map[*set]struct{}{}, compiled: true}
	host := c.selector("h", meaning{host: true})
	for dir, rules := range [2][]baseRule{baseIngress, baseEgress} {
		s := side{blocks: []block{{sel: host}}}
		for i, b := range rules {
			r := &rule{id: c.ids.take(), index: i, spec: &api.SecurityRule{Ports: b.ports}}
			r.read()
			c.rules[r.id] = &Rule{Ingress: dir == ingress, Number: i + 1, base: b.text, rule: r.spec}
			s.rules = append(s.rules, r)
		}
		s.blocks[0].rules = s.rules
		g.sides[dir] = s
		c.refer(host, g, 1)
	}
	return g
}

type baseRule struct {
	text  string
	ports []string
}

var (
	baseIngress = []baseRule{{"from the host: health checks", nil}}
	baseEgress  = []baseRule{
		{"to the gateway: names", []string{"udp/53", "tcp/53"}},
		{"to the gateway: addresses by DHCP", []string{"udp/67", "udp/547"}},
		{"to the gateway: ping", []string{"icmp/8", "icmpv6/128"}},
	}
)
