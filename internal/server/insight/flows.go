package insight

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/segment"
	"atoll/internal/tunnel"
)

const ingress = "ingress" // in Seen

// Flows lists what the hosts know.
func (a *Asker) Flows(ctx context.Context, q url.Values) (api.NetFlows, error) {
	ask, err := a.asked(q)
	if err != nil {
		return api.NetFlows{}, err
	}
	if q.Get("log") == "true" {
		ask.What = api.NetRecord
	}
	list, err := a.endpoints(ctx, ask.Network)
	if err != nil {
		return api.NetFlows{}, err
	}
	return a.flows(ctx, nodesOf(list), ask), nil
}

func (a *Asker) flows(ctx context.Context, nodes []string, ask api.NetAsk) api.NetFlows {
	out := api.NetFlows{At: a.Clock.Now().UTC(), Flows: []api.NetFlow{}}
	out.Missing = gather(ctx, a, nodes, ask, func(f api.NetFlows) {
		out.More, out.Lost = out.More || f.More, out.Lost+f.Lost
		for i := range f.Flows {
			if a.cut(&f.Flows[i]) {
				out.Flows = append(out.Flows, f.Flows[i])
			}
		}
	})
	if ask.What == api.NetRecord {
		slices.SortStableFunc(out.Flows, func(x, y api.NetFlow) int { return x.At.Compare(y.At) })
		return out
	}
	out.Flows = once(out.Flows)
	slices.SortFunc(out.Flows, func(x, y api.NetFlow) int {
		return cmp.Or(cmp.Compare(x.From.String(), y.From.String()), cmp.Compare(x.To.String(), y.To.String()), cmp.Compare(x.Port, y.Port), cmp.Compare(x.SourcePort, y.SourcePort), cmp.Compare(x.Node, y.Node))
	})
	return out
}

// cut hides an end that the caller may not see; false: neither, so the flow is none of the caller's.
func (a *Asker) cut(f *api.NetFlow) bool {
	seen := false
	for _, e := range []*api.NetEnd{&f.From, &f.To} {
		if e.Instance == "" {
			continue
		}
		if a.sees(e.Tenant) {
			seen = seen || a.Tenant == "" || api.WithinTenant(e.Tenant, a.Tenant)
		} else {
			*e = api.NetEnd{Address: e.Address}
			f.Rule = "" // it may be of that one's groups
		}
	}
	return seen
}

// once leaves one of two entries of the same flow, as the walls at both of its ends have one: that of the one who began.
// Echoes, whose numbers are not told, are those of the one who began, too. What the wall at the other end refused is told as refused, and not also as what the first wall let go.
func once(list []api.NetFlow) []api.NetFlow {
	type key struct {
		from, to    string
		proto       string
		sport, port uint16
	}
	at := func(f *api.NetFlow) key {
		return key{f.From.Tenant + "/" + f.From.Instance + f.From.Address, f.To.Tenant + "/" + f.To.Instance + f.To.Address, f.Protocol, f.SourcePort, f.Port}
	}
	arrived, refused := map[key]*api.NetFlow{}, map[key]bool{}
	for i := range list {
		f := &list[i]
		k := at(f)
		if f.Refused != "" {
			k.sport = 0
			refused[k] = refused[k] || f.Seen == ingress
		} else if f.Seen == ingress {
			arrived[k] = f
		}
	}
	began := map[key]bool{}
	var out []api.NetFlow
	for _, f := range list {
		k := at(&f)
		if f.Refused == "" && f.Seen != ingress {
			there := arrived[k]
			if there != nil {
				f.Rule = cmp.Or(f.Rule, there.Rule)
				began[k] = true
			}
			if k.sport = 0; there == nil && refused[k] && f.State != "established" {
				continue
			}
		}
		out = append(out, f)
	}
	return slices.DeleteFunc(out, func(f api.NetFlow) bool { return f.Refused == "" && f.Seen == ingress && began[at(&f)] })
}

// edge is a sum that is being made.
type edge struct {
	api.NetEdge
	ports map[string]uint64 // by packets
}

const portsShown = 5

// Map sums flows by who talks to whom.
func (a *Asker) Map(ctx context.Context, q url.Values) (api.NetMap, error) {
	ask, err := a.asked(q)
	if err != nil {
		return api.NetMap{}, err
	}
	list, err := a.endpoints(ctx, "")
	if err != nil {
		return api.NetMap{}, err
	}
	name, err := a.namer(ctx, q.Get("by"), list)
	if err != nil {
		return api.NetMap{}, err
	}
	f := a.flows(ctx, nodesOf(list), ask)
	out := api.NetMap{At: f.At, More: f.More, Missing: f.Missing, Edges: []api.NetEdge{}}
	sums := map[[2]string]*edge{}
	for _, x := range f.Flows {
		k := [2]string{name(x.From), name(x.To)}
		e := sums[k]
		if e == nil {
			e = &edge{NetEdge: api.NetEdge{From: k[0], To: k[1]}, ports: map[string]uint64{}}
			sums[k] = e
		}
		port := x.Protocol
		if x.Port != 0 {
			port += "/" + strconv.Itoa(int(x.Port))
		}
		e.ports[port] += x.Packets
		if x.Refused != "" {
			e.Refused += x.Packets
			e.Why = x.Refused
			continue
		}
		e.Flows++
		e.Packets += x.Packets
		e.Bytes += x.Bytes
	}
	for _, e := range sums {
		e.Ports = slices.SortedFunc(maps.Keys(e.ports), func(x, y string) int {
			return cmp.Or(cmp.Compare(e.ports[y], e.ports[x]), cmp.Compare(x, y))
		})
		if n := len(e.Ports); n > portsShown {
			e.Ports = append(e.Ports[:portsShown], "and "+strconv.Itoa(n-portsShown)+" more")
		}
		out.Edges = append(out.Edges, e.NetEdge)
	}
	slices.SortFunc(out.Edges, func(x, y api.NetEdge) int {
		return cmp.Or(cmp.Compare(y.Bytes, x.Bytes), cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To))
	})
	return out, nil
}

// namer says what an end is called in a map.
func (a *Asker) namer(ctx context.Context, by string, list []*api.Endpoint) (func(api.NetEnd) string, error) {
	plain := func(e api.NetEnd) string {
		if e.Instance == "" && e.Place == api.PlaceOutside {
			return api.PlaceOutside
		}
		return e.String()
	}
	key, labelled := strings.CutPrefix(by, "label=")
	switch {
	case by == "" || by == "instance":
		return plain, nil
	case labelled && key != "", by == "group":
	default:
		return nil, errs.InvalidFields("map", []errs.Field{{Field: "by", Value: clip(by), Rule: "must be instance, group or label=KEY", Example: "label=app"}})
	}
	called := map[[2]string]string{}
	var w *segment.World
	if by == "group" {
		tenants := map[string]bool{}
		for _, e := range list {
			tenants[e.Tenant] = true
		}
		var err error
		if w, err = a.world(ctx, nil, slices.Collect(maps.Keys(tenants))...); err != nil {
			return nil, err
		}
	}
	for _, e := range list {
		k := [2]string{e.Tenant, e.Name}
		if w == nil {
			if v, ok := e.Spec.Labels[key]; ok {
				called[k] = e.Tenant + " " + key + "=" + v
			}
			continue
		}
		var groups []string
		for _, i := range e.Spec.Interfaces {
			for _, g := range w.GroupsOf(identityOf(e, i.Network)) {
				if a.May(api.VerbGet, api.KindSecurityGroup, g.Tenant) && !slices.Contains(groups, g.String()) {
					groups = append(groups, g.String())
				}
			}
		}
		called[k] = strings.Join(groups, "+")
	}
	return func(e api.NetEnd) string {
		if s := called[[2]string{e.Tenant, e.Instance}]; s != "" && e.Instance != "" {
			return s
		}
		return plain(e)
	}, nil
}

func identityOf(e *api.Endpoint, network string) segment.Identity {
	return segment.Identity{Tenant: e.Tenant, Network: segment.Net{Tenant: e.Tenant, Name: network}, Labels: e.Spec.Labels}
}

// Hits counts by group and rule.
func (a *Asker) Hits(ctx context.Context, q url.Values) (api.NetHits, error) {
	out := api.NetHits{At: a.Clock.Now().UTC(), Hits: []api.NetHit{}}
	group := q.Get("group")
	if group != "" && !api.ValidName(group) {
		return out, errs.InvalidFields("hits", []errs.Field{{Field: "group", Value: clip(group), Rule: "must name a security group", Example: "db-clients"}})
	}
	list, err := a.endpoints(ctx, "")
	if err != nil {
		return out, err
	}
	sums := map[[2]string]*api.NetHit{}
	out.Missing = gather(ctx, a, nodesOf(list), api.NetAsk{What: api.NetCounts, Tenant: a.Tenant, Instance: group}, func(h api.NetHits) {
		for _, x := range h.Hits {
			i := strings.LastIndexByte(x.Group, '/')
			if i < 0 || !a.May(api.VerbGet, api.KindSecurityGroup, x.Group[:i]) {
				continue
			}
			k := [2]string{x.Group, x.Rule}
			if sums[k] == nil {
				sums[k] = &x
				continue
			}
			sums[k].Allowed += x.Allowed
			sums[k].Refused += x.Refused
			if sums[k].Samples = append(sums[k].Samples, x.Samples...); len(sums[k].Samples) > portsShown {
				sums[k].Samples = sums[k].Samples[:portsShown]
			}
		}
	})
	for _, h := range sums {
		out.Hits = append(out.Hits, *h)
	}
	slices.SortFunc(out.Hits, func(x, y api.NetHit) int {
		return cmp.Or(cmp.Compare(x.Group, y.Group), cmp.Compare(len(x.Rule), len(y.Rule)), cmp.Compare(x.Rule, y.Rule))
	})
	return out, nil
}

// Follow makes one stream of what all hosts tell of new and refused flows.
func (a *Asker) Follow(ctx context.Context, q url.Values) (*tunnel.Stream, error) {
	ask, err := a.asked(q)
	if err != nil {
		return nil, err
	}
	ask.What = api.NetFollow
	list, err := a.endpoints(ctx, ask.Network)
	if err != nil {
		return nil, err
	}
	nodes := nodesOf(list)
	if len(nodes) == 0 {
		return nil, errs.New(errs.NotFound, "no instance on a tenant's network runs that the caller may see").WithHint("atoll get endpoints")
	}
	dial, _ := tunnel.Local(ctx, func(ctx context.Context, _ tunnel.Header, out *tunnel.Stream) error {
		return a.relay(ctx, nodes, ask, out)
	})
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	return tunnel.Open(conn, tunnel.Header{Verb: tunnel.VerbNet})
}

// relay passes on what hosts tell, cut to what the caller may see, until the caller leaves or no host is left.
func (a *Asker) relay(ctx context.Context, nodes []string, ask api.NetAsk, out *tunnel.Stream) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var hosts sync.WaitGroup
	for _, n := range nodes {
		hosts.Go(func() {
			err := a.hear(ctx, n, ask, func(f api.NetFlow) error {
				if f.Seen != api.SeenLost && !a.cut(&f) {
					return nil
				}
				return out.WriteJSON(api.ChanStdout, f)
			})
			if ctx.Err() == nil && err != nil {
				_ = out.WriteJSON(api.ChanStdout, api.NetFlow{Node: n, Seen: api.SeenLost, Refused: err.Error()}) // a caller who left ends ctx
			}
		})
	}
	wg.Go(func() {
		for {
			if _, _, err := out.Read(); err != nil { // the caller left
				cancel()
				return
			}
		}
	})
	hosts.Wait()
	err := out.WriteJSON(api.ChanExit, api.StreamExit{})
	out.Close() // wakes the reader
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// hear reads what one host tells.
func (a *Asker) hear(ctx context.Context, node string, ask api.NetAsk, fn func(api.NetFlow) error) error {
	params, err := json.Marshal(ask)
	if err != nil {
		return errs.New(errs.Internal, "encode question: %w", err)
	}
	st, err := a.Hub.Open(ctx, node, tunnel.Header{Verb: tunnel.VerbNet, Params: params})
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { st.Close() })()
	for {
		ch, p, err := st.Read()
		if err != nil {
			return errs.New(errs.Unavailable, "node %s broke off: %w", node, err)
		}
		switch ch {
		case api.ChanStdout: // a line is one frame, as the host writes it in one piece
			var f api.NetFlow
			if json.Unmarshal(p, &f) == nil {
				if err := fn(f); err != nil {
					return err
				}
			}
		case api.ChanExit:
			var x api.StreamExit
			_ = json.Unmarshal(p, &x) // what cannot be read has no message
			return errs.New(errs.Unavailable, "node %s ended it: %s", node, x.Message)
		}
	}
}
