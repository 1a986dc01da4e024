package segment

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"atoll/api"
)

// End is one end of a flow.
type End struct {
	Name     string // for words; default: the address
	Addr     netip.Addr
	Identity Identity // of an instance on a tenant's network; else without a network
	Host     bool     // the host itself, as instances see it: the gateway
}

func (e *End) member() bool { return e.Identity.Network != Net{} }

func (e *End) String() string {
	switch {
	case e.Name != "":
		return e.Name
	case e.Host:
		return "the host"
	case e.Addr.IsValid():
		return e.Addr.String()
	}
	return "outside"
}

// Query asks whether From may begin a flow to To. For ICMP the port is type<<8 | code.
type Query struct {
	From, To End
	Proto    uint8
	Port     uint16
}

func (q *Query) asked() string {
	return api.PortRange{Proto: q.Proto, First: q.Port, Last: q.Port}.String()
}

// Verdict is the answer, and why.
type Verdict struct {
	Allowed bool
	Reason  string   // one line, in plain words
	Egress  *Opinion // of the side of From; nil: it is not on a tenant's network
	Ingress *Opinion // of the side of To
}

// Opinion is what one side's groups say.
type Opinion struct {
	Allowed bool
	Rule    *Rule  // that allows it; nil: none is needed, or none does
	Why     string // "default inside network acme/main"
	Dry     string // what groups that are only tried would change; "": nothing
}

// Explain judges by the groups as they are written. It uses no tables: it is slow, and
// what the tables are tested against.
func (w *World) Explain(q Query) Verdict {
	from, to := q.From.Identity.Network, q.To.Identity.Network
	if q.From.member() && q.To.member() && !w.mayMeet(from, to) {
		reason := fmt.Sprintf("denied: no peering between %s and %s", from, to)
		if from.Tenant != to.Tenant {
			reason = fmt.Sprintf("denied: different tenants, and no peering between %s and %s", from, to)
		}
		return Verdict{Reason: reason}
	}
	v := Verdict{Allowed: true}
	if q.From.member() {
		v.Egress = w.judge(&q, egress)
		v.Allowed = v.Egress.Allowed
	}
	if q.To.member() {
		v.Ingress = w.judge(&q, ingress)
		v.Allowed = v.Allowed && v.Ingress.Allowed
	}
	v.Reason = v.reason()
	return v
}

func (v *Verdict) reason() string {
	if v.Egress == nil && v.Ingress == nil {
		return "not judged: neither end is an instance on a tenant's network"
	}
	var by *Opinion
	for _, o := range []*Opinion{v.Egress, v.Ingress} {
		if o != nil && !o.Allowed {
			return "denied: " + o.Why
		}
		if o != nil && (by == nil || o.Rule != nil) {
			by = o
		}
	}
	if by.Rule != nil {
		return "allowed by " + by.Rule.String()
	}
	return "allow (" + by.Why + ")"
}

func (w *World) mayMeet(a, b Net) bool {
	na, nb := w.Networks[a], w.Networks[b]
	return na != nil && nb != nil && na.peers(b) && nb.peers(a)
}

func (w *World) judge(q *Query, dir int) *Opinion {
	self, other := &q.From, &q.To
	if dir == ingress {
		self, other = other, self
	}
	net := w.Networks[self.Identity.Network]
	if net == nil {
		return &Opinion{Why: "there is no network " + self.Identity.Network.String()}
	}
	var enforced, all []GroupRef
	for _, ref := range w.groupsOf(&self.Identity) {
		spec := w.Groups[ref]
		if g := (&group{ref: ref, spec: spec}); says(g, dir) {
			all = append(all, ref)
			if !spec.DryRun {
				enforced = append(enforced, ref)
			}
		}
	}
	// What is open is so to the own tenant and outside: another tenant's instances need a rule.
	stranger := dir == ingress && other.member() && other.Identity.Network.Tenant != net.Net.Tenant
	unbidden := dir == ingress && !other.member() && !other.Host && net.Direct
	open := len(enforced) == 0 && !net.Closed && !stranger && !unbidden
	o := &Opinion{Allowed: open, Why: w.byDefault(net, other)}
	if !open {
		if o.Rule = w.first(enforced, dir, q, other); o.Rule != nil {
			o.Allowed, o.Why = true, o.Rule.String()
		} else {
			o.Why = w.refusal(net, enforced, dir, q)
		}
	}
	if len(all) > len(enforced) {
		switch rule := w.first(all, dir, q, other); {
		case rule == nil && o.Allowed:
			o.Dry = "would be denied: " + w.refusal(net, all, dir, q)
		case rule != nil && !o.Allowed:
			o.Dry = "would be allowed by " + rule.String()
		}
	}
	return o
}

func says(g *group, dir int) bool { _, ok := g.list(dir); return ok }

func (w *World) groupsOf(i *Identity) []GroupRef {
	var out []GroupRef
	for ref, spec := range w.Groups {
		if selects(ref, spec, i) {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, GroupRef.compare)
	return out
}

func (w *World) byDefault(net *Network, other *End) string {
	switch {
	case !other.member():
		return fmt.Sprintf("default of network %s", net.Net)
	case other.Identity.Network == net.Net:
		return fmt.Sprintf("default inside network %s", net.Net)
	}
	return fmt.Sprintf("default between peered networks %s and %s", net.Net, other.Identity.Network)
}

// first finds the rule that allows it: one that allows all ports before others, then by
// tenant and name of the group, then in the group's order, and last those of every network.
func (w *World) first(groups []GroupRef, dir int, q *Query, other *End) *Rule {
	var found *Rule
	consider := func(r Rule, peers bool) bool {
		if !peers || !allowsPort(r.rule, q) {
			return false
		}
		if found == nil || r.rule.Ports == nil {
			found = &r
		}
		return r.rule.Ports == nil
	}
	for _, r := range w.written(groups, dir) {
		if consider(r, w.means(r.Group.Tenant, r.rule, other)) {
			return found
		}
	}
	for i, b := range [2][]baseRule{baseIngress, baseEgress}[dir] {
		if consider(Rule{Ingress: dir == ingress, Number: i + 1, base: b.text, rule: &api.SecurityRule{Ports: b.ports}}, other.Host && !other.member()) {
			return found
		}
	}
	return found
}

// written lists the rules of groups in a direction.
func (w *World) written(groups []GroupRef, dir int) []Rule {
	var out []Rule
	for _, ref := range groups {
		g := &group{ref: ref, spec: w.Groups[ref]}
		list, _ := g.list(dir)
		for i := range list {
			if !badRule(&list[i]) {
				out = append(out, Rule{Group: ref, Ingress: dir == ingress, Number: i + 1, Log: g.spec.Log, DryRun: g.spec.DryRun, rule: &list[i]})
			}
		}
	}
	return out
}

func allowsPort(r *api.SecurityRule, q *Query) bool {
	return r.Ports == nil || slices.ContainsFunc(r.Ports, func(s string) bool {
		p, err := api.ParsePorts(s)
		return err == nil && p.Has(q.Proto, q.Port)
	})
}

// means reports whether a rule of a group of tenant is about that end.
func (w *World) means(tenant string, r *api.SecurityRule, other *End) bool {
	peers := r.Peers()
	if peers == nil {
		return true
	}
	if n := w.Networks[other.Identity.Network]; other.member() && n != nil && names(r, n) {
		return true
	}
	return slices.ContainsFunc(peers, func(p api.SecurityPeer) bool {
		switch {
		case other.member():
			return w.meansMember(tenant, &p, &other.Identity)
		case other.Host:
			return p.Where == api.WhereHost
		}
		return w.meansOutside(tenant, &p, other.Addr)
	})
}

func (w *World) meansMember(tenant string, p *api.SecurityPeer, i *Identity) bool {
	switch {
	case p.Labels != nil && p.Network != "":
		return i.Network == netOf(tenant, p.Network) && has(i.Labels, p.Labels)
	case p.Labels != nil:
		return i.Tenant == tenant && has(i.Labels, p.Labels)
	case p.Network != "":
		return i.Network == netOf(tenant, p.Network)
	case p.Group != "":
		ref := GroupRef{tenant, p.Group}
		return w.Groups[ref] != nil && selects(ref, w.Groups[ref], i)
	case p.Service != "":
		r := w.Names[Name{Tenant: tenant, Service: p.Service}]
		return r.Select != nil && i.Tenant == tenant && has(i.Labels, r.Select)
	}
	return false
}

func (w *World) meansOutside(tenant string, p *api.SecurityPeer, a netip.Addr) bool {
	if p.Where != "" {
		return p.Where == api.WhereOutside
	}
	in := func(s string) bool { c, err := api.ParseCIDR(s); return err == nil && c.Contains(a) }
	if p.CIDR != "" {
		return in(p.CIDR) && !slices.ContainsFunc(p.Except, in)
	}
	n, ok := nameOf(tenant, p)
	return ok && slices.ContainsFunc(w.Names[n].Prefixes, func(c netip.Prefix) bool { return c.Contains(a) })
}

// refusal says who closes the direction, and which rule comes nearest to what was asked.
func (w *World) refusal(net *Network, groups []GroupRef, dir int, q *Query) string {
	if len(groups) == 0 && !net.Closed && net.Direct && !q.From.member() {
		return fmt.Sprintf("network %s has addresses that are known outside, and no group lets anybody in from there by %s; a published port is let in", net.Net, q.asked())
	}
	if len(groups) == 0 && !net.Closed {
		return fmt.Sprintf("network %s is open to its own tenant only, and no group lets another tenant's instances in by %s", net.Net, q.asked())
	}
	if len(groups) == 0 {
		return fmt.Sprintf("network %s is closed, and no group allows %s %s", net.Net, directionText(dir == ingress), q.asked())
	}
	way := "out"
	if dir == ingress {
		way = "in"
	}
	rules := w.written(groups, dir)
	whom := map[string]bool{}
	for _, r := range rules {
		whom[peersOnly(r.rule)] = true
	}
	var refs []string
	for _, g := range groups {
		refs = append(refs, g.String())
	}
	text := "SecurityGroup " + refs[0] + " lets "
	if len(refs) > 1 {
		text = "SecurityGroups " + someOf(refs, ", ") + " let "
	}
	switch {
	case len(rules) == 0:
		return text + "nothing " + way
	case dir == ingress:
		text += "only " + someOf(slices.Sorted(maps.Keys(whom)), " or ") + " in"
	default:
		text += "instances out to " + someOf(slices.Sorted(maps.Keys(whom)), " or ") + " only"
	}
	if near := w.nearest(rules, dir, q); near != "" {
		text += "; nearest: " + near
	}
	return text
}

// nearest finds the rule that misses by least: the right peer and protocol and another
// port, the right peer and another protocol, or the right port and another peer.
func (w *World) nearest(rules []Rule, dir int, q *Query) string {
	other := &q.From
	if dir == egress {
		other = &q.To
	}
	best, text := 1<<30, ""
	for _, r := range rules {
		name := fmt.Sprintf("rule %d", r.Number)
		if len(rules) > 1 && rules[0].Group != rules[len(rules)-1].Group {
			name += " of " + r.Group.String()
		}
		if w.means(r.Group.Tenant, r.rule, other) {
			if d := portDistance(r.rule, q); d < best {
				best, text = d, fmt.Sprintf("%s allows %s, asked was %s", name, portsText(r.rule), q.asked())
			}
		} else if allowsPort(r.rule, q) && 1<<20 < best {
			who := other.String()
			if other.member() {
				who = strings.TrimSpace(api.FormatLabels(other.Identity.Labels) + " of " + other.Identity.Network.String())
			}
			best, text = 1<<20, fmt.Sprintf("%s allows %s %s, asked was %s", name, portsText(r.rule), peersText(r.rule, dir == ingress), who)
		}
	}
	return text
}

func portDistance(r *api.SecurityRule, q *Query) int {
	best := 1 << 17 // another protocol
	for _, s := range r.Ports {
		p, err := api.ParsePorts(s)
		if err == nil && p.Proto == q.Proto {
			best = min(best, max(int(p.First)-int(q.Port), int(q.Port)-int(p.Last)))
		}
	}
	return best
}
