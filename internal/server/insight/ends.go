package insight

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/segment"
	"atoll/internal/store"
)

// query is a question as it was asked.
type query struct {
	from, to, network string
	proto             uint8 // as in IPv4
	port              uint16
}

func questionOf(q url.Values) (query, error) {
	out := query{from: q.Get("from"), to: q.Get("to"), network: q.Get("network"), proto: 6}
	var bad []errs.Field
	for _, x := range []struct{ name, value string }{{"from", out.from}, {"to", out.to}} {
		if x.value == "" || len(x.value) > 512 {
			bad = append(bad, errs.Field{Field: x.name, Value: clip(x.value), Rule: "must be an instance, an address, a DNS name, host or outside", Example: "acme/web"})
		}
	}
	if s := q.Get("port"); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			bad = append(bad, errs.Field{Field: "port", Value: clip(s), Rule: "must be 1 to 65535", Example: "5432"})
		}
		out.port = uint16(n)
	}
	if word := q.Get("protocol"); word != "" {
		p, ok := api.NetProtocol(word)
		if !ok {
			bad = append(bad, errs.Field{Field: "protocol", Value: clip(word), Rule: "must be tcp, udp or icmp", Example: "tcp"})
		}
		if out.proto = p; p == 1 && out.port != 0 {
			bad = append(bad, errs.Field{Field: "port", Value: q.Get("port"), Rule: "icmp has no ports"})
		}
		if ok && p != 1 && out.port == 0 {
			bad = append(bad, errs.Field{Field: "port", Rule: "must be given for " + word, Example: "5432"})
		}
	} else if out.port == 0 {
		out.proto = 1
	}
	if out.network != "" && !api.ValidName(out.network) {
		bad = append(bad, errs.Field{Field: "network", Value: clip(out.network), Rule: "must name a network of the tenant", Example: "main"})
	}
	return out, errs.InvalidFields("question", bad)
}

// asked is protocol and port as tables of an address family have them.
func (q query) asked(six bool) (uint8, uint16) {
	switch {
	case q.proto == 1 && six:
		return 58, 128 << 8
	case q.proto == 1:
		return 1, 8 << 8
	}
	return q.proto, q.port
}

// end is one end, as far as it was found.
type end struct {
	api.NetEnd
	word   string
	ep     *api.Endpoint // of an instance on a network of its tenant
	hidden bool          // an instance of a tenant of which the caller may not know
	addrs  []netip.Addr  // by family: IPv4 first
	note   string
}

func (e *end) segment() segment.End {
	s := segment.End{Name: e.NetEnd.String(), Host: e.Place == api.PlaceHost}
	if e.ep != nil {
		s.Identity = identityOf(e.ep, e.Network)
	}
	if len(e.addrs) > 0 {
		s.Addr = e.addrs[0]
	}
	return s
}

// somewhere stands for all that is outside: an address of the block for benchmarks, which no network has.
var somewhere = []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:2::1")}

// find finds an end by its word. What depends on the other end's network is settled by join.
func (a *Asker) find(ctx context.Context, word string) (*end, error) {
	e := &end{word: word}
	if addr, err := netip.ParseAddr(word); err == nil {
		e.addrs, e.Address = []netip.Addr{addr.Unmap()}, addr.Unmap().String()
		return e, nil
	}
	switch {
	case word == api.PlaceOutside || word == api.PlaceHost:
		e.Place = word
		return e, nil
	case strings.Contains(word, "."):
		e.Place = word // a DNS name
		return e, nil
	}
	name, tenant := strings.TrimPrefix(word, "instance/"), a.Tenant
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		tenant, name = name[:i], name[i+1:]
	}
	if !api.ValidName(name) || !api.ValidTenantPath(tenant) {
		return nil, errs.InvalidFields("question", []errs.Field{{Field: "from or to", Value: clip(word), Rule: "must be [TENANT/]NAME of an instance, an address, a DNS name, host or outside", Example: "acme/web"}})
	}
	e.Tenant, e.Instance = tenant, name
	if !a.sees(tenant) {
		e.hidden = true
		return e, nil
	}
	ep, err := store.Get[*api.Endpoint](ctx, a.Store, api.Ref{Kind: api.KindEndpoint, Tenant: tenant, Name: name})
	if errors.Is(err, errs.NotFound) {
		in, err := store.Get[*api.Instance](ctx, a.Store, api.Ref{Kind: api.KindInstance, Tenant: tenant, Name: name})
		if err != nil {
			return nil, err
		}
		if in.Status.Node == "" && len(in.Spec.Networks) > 0 && in.Spec.Networks[0].Name != "" && !api.Standing(in.Spec.Networks[0].Name) {
			return nil, errs.New(errs.Conflict, "%s has no place yet, so nothing is known of its addresses", api.RefOf(in)).WithHint("atoll why instance/%s", name)
		}
		return nil, errs.New(errs.Unsupported, "%s is on no network of its tenant, so no wall is around it", api.RefOf(in)).
			WithHint("put it on one: --network NAME when it is made; what its host's own network lets through: docs/networks.md")
	}
	e.ep = ep
	return e, err
}

// on settles on which network an end is, and by which addresses.
func (e *end) on(network string) bool {
	for _, i := range e.ep.Spec.Interfaces {
		if network == "" || i.Network == network {
			e.Network, e.addrs = i.Network, nil
			for _, s := range i.Addresses() {
				if x, err := netip.ParseAddr(s); err == nil {
					e.addrs = append(e.addrs, x)
				}
			}
			if len(e.addrs) > 0 {
				e.Address = e.addrs[0].String()
			}
			return len(e.addrs) > 0
		}
	}
	return false
}

func (e *end) vni() uint32 {
	for _, i := range e.ep.Spec.Interfaces {
		if i.Network == e.Network {
			return i.VNI
		}
	}
	return 0
}

// settle finds what an end that is no instance means as seen from a network.
func (a *Asker) settle(ctx context.Context, p *path, e, other *end) error {
	if e.ep != nil || e.hidden || other.ep == nil {
		return nil
	}
	n, err := store.Get[*api.Network](ctx, a.Store, api.Ref{Kind: api.KindNetwork, Tenant: other.Tenant, Name: other.Network})
	if err != nil {
		return err
	}
	switch {
	case e.Place == api.PlaceOutside:
		e.addrs = somewhere
		return nil
	case e.Place == api.PlaceHost:
		for _, p := range n.Spec.Prefixes() {
			e.addrs = append(e.addrs, api.Gateway(p))
		}
		return nil
	case e.Place != "":
		if name, ok := strings.CutSuffix(strings.TrimSuffix(e.Place, "."), "."+n.EffectiveDomain()); ok && api.ValidName(name) {
			ep, err := store.Get[*api.Endpoint](ctx, a.Store, api.Ref{Kind: api.KindEndpoint, Tenant: other.Tenant, Name: name})
			if err != nil {
				return err
			}
			return e.become(ep, n)
		}
		if e.addrs, err = resolve(ctx, e.Place); err != nil {
			return err
		}
		e.note = e.Place + " is " + e.addrs[0].String() + " as this server resolves it"
	}
	for _, p := range n.Spec.Prefixes() {
		if len(e.addrs) == 0 || !p.Contains(e.addrs[0]) {
			continue
		}
		if e.addrs[0] == api.Gateway(p) {
			e.Place = api.PlaceHost
			return nil
		}
		return a.owner(ctx, e, n)
	}
	if e.Place == "" && len(e.addrs) > 0 {
		if done, err := a.peer(ctx, p, e, n); done || err != nil {
			return err
		}
	}
	if e.Place == "" {
		e.Place = api.PlaceOutside
	}
	return nil
}

// peer finds who on a network that is joined with n has e's address.
func (a *Asker) peer(ctx context.Context, p *path, e *end, n *api.Network) (bool, error) {
	for _, ref := range p.peered[api.RefOf(n)] {
		o, err := store.Get[*api.Network](ctx, a.Store, ref)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		if !slices.ContainsFunc(o.Spec.Prefixes(), func(x netip.Prefix) bool { return x.Contains(e.addrs[0]) }) {
			continue
		}
		if !a.sees(ref.Tenant) {
			e.Tenant, e.Network = ref.Tenant, ref.Name
			e.note = "what " + ref.Tenant + "/" + ref.Name + " says is for tenant " + ref.Tenant + " to see: this side is judged alone"
			return true, nil
		}
		p.across = true
		return true, a.owner(ctx, e, o)
	}
	return false, nil
}

// owner finds the instance with an address of a network.
func (a *Asker) owner(ctx context.Context, e *end, n *api.Network) error {
	list, _, err := store.List[*api.Endpoint](ctx, a.Store, api.Selector{Kind: api.KindEndpoint, Tenant: n.Tenant, Labels: []api.LabelTerm{{Key: api.NetworkLabel(n.Name)}}})
	if err != nil {
		return err
	}
	for _, ep := range list {
		for _, i := range ep.Spec.Interfaces {
			if i.Network == n.Name && slices.Contains(i.Addresses(), e.addrs[0].String()) {
				want := e.addrs[0]
				if err := e.become(ep, n); err != nil {
					return err
				}
				e.addrs, e.Address = []netip.Addr{want}, want.String()
				return nil
			}
		}
	}
	return errs.New(errs.NotFound, "nobody on network %s/%s has address %s", n.Tenant, n.Name, e.addrs[0]).WithHint("atoll get endpoints --tenant %s", n.Tenant)
}

func (e *end) become(ep *api.Endpoint, n *api.Network) error {
	e.ep, e.Tenant, e.Instance, e.Place = ep, ep.Tenant, ep.Name, ""
	if !e.on(n.Name) {
		return errs.New(errs.NotFound, "%s is not on network %s/%s", ep.Name, n.Tenant, n.Name)
	}
	return nil
}

const resolveFor = 2 * time.Second

func resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveFor)
	defer cancel()
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", strings.TrimSuffix(name, ".")+".")
	if err != nil || len(list) == 0 {
		return nil, errs.New(errs.NotFound, "%s does not resolve", clip(name)).WithHint("give an address instead, or: atoll exec INSTANCE -- nslookup %s", clip(name))
	}
	for i := range list {
		list[i] = list[i].Unmap()
	}
	slices.SortStableFunc(list, func(x, y netip.Addr) int { return x.BitLen() - y.BitLen() })
	return list, nil
}

// family leaves of both ends the addresses of one family that both have; false: there is none.
func family(from, to *end, six bool) (f, t netip.Addr, ok bool) {
	of := func(e *end) (netip.Addr, bool) {
		for _, x := range e.addrs {
			if x.Is6() == six {
				return x, true
			}
		}
		return netip.Addr{}, false
	}
	f, ok1 := of(from)
	t, ok2 := of(to)
	return f, t, ok1 && ok2
}
