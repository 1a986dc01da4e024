package insight

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/segment"
	"atoll/internal/store"
)

// path is a question whose ends were found.
type path struct {
	query
	from, to *end
	peered   map[api.Ref][]api.Ref // networks that are joined
	across   bool                  // the ends are on different ones of these
	v        api.NetVerdict
	decided  bool // before any wall
}

// Why says whether one end may begin a flow to another.
func (a *Asker) Why(ctx context.Context, q url.Values) (api.NetVerdict, error) {
	p, err := a.path(ctx, q)
	if err != nil {
		return api.NetVerdict{}, err
	}
	if p.decided {
		return p.v, nil
	}
	six := true
	if _, _, four := family(p.from, p.to, false); four {
		six = false
	}
	if err := a.judge(ctx, p, six); err != nil {
		return api.NetVerdict{}, err
	}
	a.between(ctx, p)
	return p.v, nil
}

// path finds both ends and the network between them.
func (a *Asker) path(ctx context.Context, values url.Values) (*path, error) {
	q, err := questionOf(values)
	if err != nil {
		return nil, err
	}
	p := &path{query: q}
	peerings, _, err := store.List[*api.Peering](ctx, a.Store, api.Selector{Kind: api.KindPeering})
	if err != nil {
		return nil, err
	}
	p.peered = api.Peered(peerings)
	if p.from, err = a.find(ctx, q.from); err != nil {
		return nil, err
	}
	if p.to, err = a.find(ctx, q.to); err != nil {
		return nil, err
	}
	if p.from.ep == nil && p.to.ep == nil {
		if p.from.hidden || p.to.hidden {
			return nil, errs.New(errs.Denied, "you may not see instances of tenant %s", p.from.Tenant+p.to.Tenant).WithHint("ask about an instance of your own tenant, or an administrator for a role there")
		}
		return nil, errs.InvalidFields("question", []errs.Field{{Field: "from", Value: clip(q.from), Rule: "or to must be an instance on a tenant's network", Example: "web"}})
	}
	p.meet()
	if err := errors.Join(a.settle(ctx, p, p.from, p.to), a.settle(ctx, p, p.to, p.from)); err != nil {
		return nil, err
	}
	p.v.From, p.v.To, p.v.Protocol, p.v.Port = p.from.NetEnd, p.to.NetEnd, api.ProtocolWord(q.proto), q.port
	for _, e := range []*end{p.from, p.to} {
		if e.note != "" {
			p.v.Notes = append(p.v.Notes, e.note)
		}
	}
	if _, _, four := family(p.from, p.to, false); !p.decided && !four {
		if _, _, six := family(p.from, p.to, true); !six {
			p.decide("denied: the two have no addresses of the same family", "give both networks a prefix of the family: cidr, cidr6")
		}
	}
	return p, nil
}

func (p *path) decide(reason, hint string) {
	p.decided, p.v.Reason, p.v.Hint, p.v.Complete = true, reason, hint, true
}

// meet finds the network on which both are. Two instances that have none in common do not meet.
func (p *path) meet() {
	f, t := p.from, p.to
	for _, e := range []*end{f, t} {
		if e.ep != nil && !e.on(p.network) {
			p.decide(fmt.Sprintf("denied: %s is not on network %s", e.NetEnd, p.network), "leave out --network, or name one it is on: atoll get endpoints")
			return
		}
	}
	switch {
	case f.hidden || t.hidden:
		seen, other := f, t
		if f.hidden {
			seen, other = t, f
		}
		// Nothing is looked up of the other: not even whether it exists. What this side has agreed to, it knows.
		if at := p.joinedWith(seen, other.Tenant); at.Name != "" {
			p.decide(fmt.Sprintf("not known: %s/%s is peered with %s/%s, but you may not see instances of tenant %s", seen.Tenant, seen.Network, at.Tenant, at.Name, at.Tenant),
				"ask by an address: what this side's wall says of it is yours to see")
			return
		}
		p.decide(fmt.Sprintf("denied: different tenants, and no peering between %s/%s and tenant %s that you may see", seen.Tenant, seen.Network, other.Tenant), "")
	case f.ep == nil || t.ep == nil:
	case f.Tenant == t.Tenant:
		for _, i := range f.ep.Spec.Interfaces {
			if p.network == "" && t.on(i.Network) {
				f.on(i.Network)
				return
			}
		}
		if t.on(""); p.network == "" && !p.cross() {
			p.decide(fmt.Sprintf("denied: %s is on network %s/%s, %s on %s/%s, and there is no peering between the two", f.NetEnd, f.Tenant, f.Network, t.NetEnd, t.Tenant, t.Network),
				fmt.Sprintf("put both on one network, or join the two: atoll network peer %s %s --tenant %s", f.Network, t.Network, f.Tenant))
		}
	case !p.cross():
		p.decide(fmt.Sprintf("denied: different tenants, and no peering between %s/%s and %s/%s", f.Tenant, f.Network, t.Tenant, t.Network), "")
	}
}

// cross finds two networks of the ends that are joined, and settles on these.
func (p *path) cross() bool {
	for _, x := range p.from.ep.Spec.Interfaces {
		for _, y := range p.to.ep.Spec.Interfaces {
			own, peer := networkRef(p.from.Tenant, x.Network), networkRef(p.to.Tenant, y.Network)
			if (p.network == "" || p.network == x.Network || p.network == y.Network) && slices.Contains(p.peered[own], peer) {
				p.from.on(x.Network)
				p.to.on(y.Network)
				p.across = true
				return true
			}
		}
	}
	return false
}

// joinedWith is the first network of a tenant that is joined with one of e's.
func (p *path) joinedWith(e *end, tenant string) api.Ref {
	if e.ep == nil {
		return api.Ref{}
	}
	for _, i := range e.ep.Spec.Interfaces {
		for _, at := range p.peered[networkRef(e.Tenant, i.Network)] {
			if at.Tenant == tenant {
				e.on(i.Network)
				return at
			}
		}
	}
	return api.Ref{}
}

func networkRef(tenant, name string) api.Ref {
	return api.Ref{Kind: api.KindNetwork, Tenant: tenant, Name: name}
}

// world is what is written about the traffic of tenants.
func (a *Asker) world(ctx context.Context, peered map[api.Ref][]api.Ref, tenants ...string) (*segment.World, error) {
	w := &segment.World{Networks: map[segment.Net]*segment.Network{}, Groups: map[segment.GroupRef]*api.SecurityGroupSpec{}, Names: map[segment.Name]segment.Resolved{}}
	for _, t := range tenants {
		nets, _, err := store.List[*api.Network](ctx, a.Store, api.Selector{Kind: api.KindNetwork, Tenant: t})
		if err != nil {
			return nil, err
		}
		for _, n := range nets {
			ref := segment.Net{Tenant: n.Tenant, Name: n.Name}
			s := &segment.Network{Net: ref, Prefixes: n.Spec.Prefixes(), Closed: n.Spec.Closed(), Direct: n.Spec.Egress == "direct"}
			for _, x := range peered[api.RefOf(n)] {
				s.Peers = append(s.Peers, segment.Net{Tenant: x.Tenant, Name: x.Name})
			}
			w.Networks[ref] = s
		}
		groups, _, err := store.List[*api.SecurityGroup](ctx, a.Store, api.Selector{Kind: api.KindSecurityGroup, Tenant: t})
		if err != nil {
			return nil, err
		}
		for _, g := range groups {
			w.Groups[segment.GroupRef{Tenant: g.Tenant, Name: g.Name}] = &g.Spec
		}
	}
	return w, nil
}

// judge asks the walls on the way about one address family, and puts together what they say.
func (a *Asker) judge(ctx context.Context, p *path, six bool) error {
	fa, ta, ok := family(p.from, p.to, six)
	if !ok {
		return errs.New(errs.Internal, "the ends have no addresses of one family")
	}
	tenants := []string{p.from.Tenant}
	if p.from.ep == nil {
		tenants[0] = p.to.Tenant
	}
	if p.across && p.to.Tenant != p.from.Tenant {
		tenants = append(tenants, p.to.Tenant)
	}
	w, err := a.world(ctx, p.peered, tenants...)
	if err != nil {
		return err
	}
	f, t := p.from.segment(), p.to.segment()
	f.Addr, t.Addr = fa, ta
	proto, port := p.asked(six)
	said := w.Explain(segment.Query{From: f, To: t, Proto: proto, Port: port})
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var wg sync.WaitGroup
	var out, in *api.NetHop
	if p.from.ep != nil {
		wg.Go(func() { out = a.hop(ctx, p.from, wallAsk(p.from, fa, ta, proto, port), said.Egress) })
	}
	if p.to.ep != nil {
		wg.Go(func() {
			q := wallAsk(p.to, ta, fa, proto, port)
			n := w.Networks[segment.Net{Tenant: p.to.Tenant, Name: p.to.Network}]
			q.Ingress, q.Unbidden = true, n != nil && n.Direct && p.from.ep == nil && p.from.Place == api.PlaceOutside
			in = a.hop(ctx, p.to, q, said.Ingress)
		})
	}
	wg.Wait()
	p.v.Hops = nil
	if out != nil {
		p.v.Hops = append(p.v.Hops, *out)
	}
	if out != nil && p.across {
		p.v.Hops = append(p.v.Hops, api.NetHop{Node: out.Node, Known: true, Allowed: true, Text: fmt.Sprintf("peering %s/%s - %s/%s", p.from.Tenant, p.from.Network, p.to.Tenant, p.to.Network)})
	}
	if out != nil && in != nil && out.Node != in.Node && out.Node != "" && in.Node != "" {
		p.v.Hops = append(p.v.Hops, api.NetHop{Node: out.Node, Known: true, Allowed: true, Text: fmt.Sprintf("vxlan %d -> %s", p.to.vni(), in.Node)})
	}
	if in != nil {
		p.v.Hops = append(p.v.Hops, *in)
	}
	p.conclude()
	return nil
}

func wallAsk(e *end, self, other netip.Addr, proto uint8, port uint16) api.NetAsk {
	return api.NetAsk{What: api.NetJudge, VNI: e.vni(), Local: self.String(), Remote: other.String(), Proto: proto, Port: port}
}

// hop asks the wall of e. What cannot be asked is judged by what is written, o.
func (a *Asker) hop(ctx context.Context, e *end, q api.NetAsk, o *segment.Opinion) *api.NetHop {
	h := &api.NetHop{Node: e.ep.Spec.Node, Instance: e.NetEnd.String(), Direction: "egress"}
	if q.Ingress {
		h.Direction = "ingress"
	}
	written := func(why string) *api.NetHop {
		h.Known, h.Text = false, why
		if o != nil {
			h.Allowed, h.Dry = o.Allowed, o.Dry
			if h.Text = fmt.Sprintf("%s (judged by what is written: %s)", o.Why, why); o.Rule != nil {
				h.Rule = o.Rule.String()
			}
		}
		return h
	}
	if h.Node == "" {
		return written(h.Instance + " is on no host now")
	}
	var got api.NetHop
	err := a.ask(ctx, h.Node, api.Ref{}, q, &got)
	if errs.KindOf(err) == errs.NotFound {
		return written(h.Instance + " does not run on " + h.Node + " now")
	}
	if err != nil {
		return written("node " + h.Node + " does not answer")
	}
	if o != nil && o.Allowed == got.Allowed { // the tables decide; those who wrote them find more words
		if got.Dry = o.Dry; !got.Allowed {
			got.Text = o.Why
		}
	} else if o != nil {
		got.Text += fmt.Sprintf("; what is written now says otherwise (%s): the host may be about to learn it", o.Why)
	}
	got.Node, got.Instance, got.Direction, got.Known = h.Node, h.Instance, h.Direction, true
	return &got
}

// conclude makes one line of what the hops say.
func (p *path) conclude() {
	v := &p.v
	v.Allowed, v.Complete, v.Reason, v.Hint = true, true, "", ""
	for i := range v.Hops {
		h := &v.Hops[i]
		v.Complete = v.Complete && h.Known
		if !h.Allowed && v.Allowed {
			v.Allowed, v.Reason, v.Hint = false, "denied: "+h.Text, p.hint(h)
		}
	}
	if !v.Allowed {
		return
	}
	for _, h := range v.Hops {
		if h.Rule != "" {
			v.Reason = "allowed by " + h.Rule
		} else if v.Reason == "" && h.Direction != "" {
			v.Reason = "allowed (" + h.Text + ")"
		}
	}
}

// hint says which rule would allow it.
func (p *path) hint(h *api.NetHop) string {
	ports := ""
	switch {
	case p.port != 0:
		ports = fmt.Sprintf(", ports: [%s/%d]", api.ProtocolWord(p.proto), p.port)
	case p.proto == 1:
		ports = ", ports: [icmp/8]"
	}
	self, other, list, word := p.from, p.to, "egress", "to"
	if h.Direction == "ingress" {
		self, other, list, word = p.to, p.from, "ingress", "from"
	}
	peer := ""
	switch {
	case other.ep != nil && len(other.ep.Spec.Labels) > 0:
		peer = "labels: {" + labels(other.ep.Spec.Labels) + "}"
	case other.ep != nil:
		peer = "network: " + other.Network
	case other.Place == api.PlaceHost || other.Place == api.PlaceOutside && other.Address == "":
		peer = "where: " + other.Place
	case len(other.addrs) > 0:
		peer = fmt.Sprintf("cidr: %s/%d", other.addrs[0], other.addrs[0].BitLen())
	}
	return fmt.Sprintf("a group that selects %s would need spec.%s: [{%s: [{%s}]%s}]; atoll get securitygroups --tenant %s", self.NetEnd, list, word, peer, ports, self.Tenant)
}

func labels(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+": "+v)
	}
	slices.Sort(out)
	if len(out) > 3 {
		out = out[:3]
	}
	return strings.Join(out, ", ")
}

const pairShown = 20

// between adds the flows between the two that the hosts know.
func (a *Asker) between(ctx context.Context, p *path) {
	e, other := p.from, p.to
	if e.ep == nil {
		e, other = other, e
	}
	eps := []*api.Endpoint{e.ep}
	if other.ep != nil {
		eps = append(eps, other.ep)
	}
	mine := *a
	mine.Tenant = e.Tenant
	f := mine.flows(ctx, nodesOf(eps), api.NetAsk{What: api.NetTables, Tenant: e.Tenant, Instance: e.Instance})
	same := func(x api.NetEnd, y *end) bool {
		if y.ep != nil {
			return x.Tenant == y.Tenant && x.Instance == y.Instance
		}
		return x.Place == y.Place && y.Address == "" || y.Address != "" && x.Address == y.Address || x.Instance == "" && slices.ContainsFunc(y.addrs, func(b netip.Addr) bool { return b.String() == x.Address })
	}
	for _, x := range f.Flows {
		if !same(x.From, p.from) || !same(x.To, p.to) {
			continue
		}
		if x.Refused != "" && len(p.v.Refused) < pairShown {
			p.v.Refused = append(p.v.Refused, x)
		} else if x.Refused == "" && len(p.v.Flows) < pairShown {
			p.v.Flows = append(p.v.Flows, x)
		}
	}
}
