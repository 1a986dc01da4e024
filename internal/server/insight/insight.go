// Package insight answers questions about traffic on networks of tenants: it asks the hosts
// whose tables decide, puts their answers together, and cuts them to what the caller may
// see. It decides nothing and changes nothing. What it starts it waits for.
package insight

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

// Asker is a caller with a question.
type Asker struct {
	Store  store.Store
	Hub    *tunnel.Hub
	Clock  clock.Clock
	May    func(v api.Verb, k api.Kind, tenant string) bool
	Tenant string // that is meant where none is named
}

// Param is a parameter of the query.
type Param = struct{ Name, Type, Doc string }

// Row is a question as the table of routes has it.
type Row struct {
	Path, ID, Doc string
	Verb          api.Verb // on Kind, in a tenant at least
	Kind          api.Kind
	Params        []Param // of the query
	Result        string  // schema of the answer; "": a stream
	Answer        func(a *Asker, ctx context.Context, q url.Values) (any, error)
}

var (
	between = []Param{{"from", "string", "who begins: NAME or TENANT/NAME of an instance, an address, host or outside"}, {"to", "string", "whom it asks: as from, or a DNS name"},
		{"port", "integer", "the port of to; of icmp there is none"}, {"protocol", "string", "tcp, udp or icmp; default tcp, without a port icmp"}, {"network", "string", "the network that is meant, where both are on several"}}
	which = []Param{{"instance", "string", "only what an instance begins or is asked"}, {"network", "string", "only on networks of that name"}, {"denied", "boolean", "true: only what was refused"}, {"limit", "integer", "at most so many of each host"}}
)

// Rows lists the questions.
func Rows() []Row {
	return []Row{
		{"/v1/net/why", "netWhy", "Says whether one end may begin a flow to another, by the tables of the hosts they are on, and why.", api.VerbGet, api.KindEndpoint, between, "NetVerdict",
			func(a *Asker, ctx context.Context, q url.Values) (any, error) { return a.Why(ctx, q) }},
		{"/v1/net/check", "netCheck", "Tries the path from inside an instance: echoes, the largest packet that passes, a TCP connection. Needs exec on the instance it begins at.", api.VerbExec, api.KindInstance, between, "NetCheck",
			func(a *Asker, ctx context.Context, q url.Values) (any, error) { return a.Check(ctx, q) }},
		{"/v1/net/flows", "netFlows", "Lists the flows that hosts know, and what they refused lately, as far as the caller may see them.", api.VerbList, api.KindEndpoint,
			append(slices.Clone(which), Param{"log", "boolean", "true: what groups with log have recorded, instead"}), "NetFlows",
			func(a *Asker, ctx context.Context, q url.Values) (any, error) { return a.Flows(ctx, q) }},
		{"/v1/net/map", "netMap", "Sums flows: who talks to whom.", api.VerbList, api.KindEndpoint,
			append(slices.Clone(which[1:2]), Param{"by", "string", "sum by instance (default), group, or the value of a label: label=KEY"}), "NetMap",
			func(a *Asker, ctx context.Context, q url.Values) (any, error) { return a.Map(ctx, q) }},
		{"/v1/net/hits", "netHits", "Counts what rules of security groups have allowed, and what those that are only tried would have refused.", api.VerbGet, api.KindSecurityGroup,
			[]Param{{"group", "string", "only this one"}}, "NetHits", func(a *Asker, ctx context.Context, q url.Values) (any, error) { return a.Hits(ctx, q) }},
		{"/v1/net/flows/stream", "followFlows", "Tells of new and refused flows as hosts see them: a JSON object in each message of channel 1.", api.VerbList, api.KindEndpoint, which[:3], "", nil},
	}
}

const (
	patience  = 4 * time.Second // a host that takes longer is left out of the answer
	longest   = 40 * time.Second
	maxOpen   = 64 // hosts asked at once
	maxAnswer = 32 << 20
)

// ask puts one question to a host and decodes the answer.
func (a *Asker) ask(ctx context.Context, node string, ref api.Ref, q api.NetAsk, out any) error {
	params, err := json.Marshal(q)
	if err != nil {
		return errs.New(errs.Internal, "encode question: %w", err)
	}
	st, err := a.Hub.Open(ctx, node, tunnel.Header{Verb: tunnel.VerbNet, Instance: ref, Params: params})
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { st.Close() })()
	var data bytes.Buffer
	for {
		ch, p, err := st.Read()
		if err != nil {
			if ctx.Err() != nil {
				return errs.New(errs.Timeout, "node %s did not answer in time", node)
			}
			return errs.New(errs.Unavailable, "node %s broke off: %w", node, err)
		}
		switch ch {
		case api.ChanStdout:
			if data.Write(p); data.Len() > maxAnswer {
				return errs.New(errs.Unavailable, "the answer of node %s is over %d bytes", node, maxAnswer)
			}
		case api.ChanExit:
			var x api.StreamExit
			if err := json.Unmarshal(p, &x); err != nil {
				return errs.New(errs.Internal, "node %s ended in a way that cannot be read: %w", node, err)
			}
			if x.Kind != "" {
				return errs.New(errs.Kind(x.Kind), "node %s: %s", node, x.Message).WithHint("%s", x.Hint)
			}
			if err := json.Unmarshal(data.Bytes(), out); err != nil {
				return errs.New(errs.Internal, "answer of node %s: %w", node, err)
			}
			return nil
		}
	}
}

// gather asks hosts the same and calls fn with each answer, one at a time. It names those that did not answer.
func gather[T any](ctx context.Context, a *Asker, nodes []string, q api.NetAsk, fn func(T)) (missing []string) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	sem := make(chan struct{}, maxOpen)
	for _, n := range nodes {
		wg.Go(func() {
			sem <- struct{}{}
			defer func() { <-sem }()
			var out T
			err := a.ask(ctx, n, api.Ref{}, q, &out)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				missing = append(missing, n)
			} else {
				fn(out)
			}
		})
	}
	wg.Wait()
	slices.Sort(missing)
	return missing
}

// sees reports whether the caller may know of instances of a tenant and where they are.
func (a *Asker) sees(tenant string) bool { return a.May(api.VerbGet, api.KindEndpoint, tenant) }

// endpoints are those that the caller may see, in the tenant that is meant if one is.
func (a *Asker) endpoints(ctx context.Context, network string) ([]*api.Endpoint, error) {
	sel := api.Selector{Kind: api.KindEndpoint}
	if network != "" {
		sel.Labels = []api.LabelTerm{{Key: api.NetworkLabel(network)}}
	}
	list, _, err := store.List[*api.Endpoint](ctx, a.Store, sel)
	if err != nil {
		return nil, err
	}
	may := map[string]bool{}
	return slices.DeleteFunc(list, func(e *api.Endpoint) bool {
		if _, known := may[e.Tenant]; !known {
			may[e.Tenant] = (a.Tenant == "" || api.WithinTenant(e.Tenant, a.Tenant)) && a.sees(e.Tenant)
		}
		return !may[e.Tenant]
	}), nil
}

// nodesOf are the hosts that endpoints are on.
func nodesOf(list []*api.Endpoint) []string {
	set := map[string]bool{}
	for _, e := range list {
		if e.Spec.Node != "" {
			set[e.Spec.Node] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// asked reads which flows are asked for.
func (a *Asker) asked(q url.Values) (api.NetAsk, error) {
	ask := api.NetAsk{What: api.NetTables, Tenant: a.Tenant, Network: q.Get("network"), Instance: q.Get("instance"), Denied: q.Get("denied") == "true"}
	var bad []errs.Field
	for _, x := range []struct{ name, value string }{{"network", ask.Network}, {"instance", ask.Instance}} {
		if x.value != "" && !api.ValidName(x.value) {
			bad = append(bad, errs.Field{Field: x.name, Value: clip(x.value), Rule: "must be a name, of a-z, 0-9 and -", Example: "web"})
		}
	}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			bad = append(bad, errs.Field{Field: "limit", Value: clip(s), Rule: "must be a number of flows", Example: "1000"})
		}
		ask.Limit = n
	}
	if s := q.Get("denied"); s != "" && s != "true" && s != "false" {
		bad = append(bad, errs.Field{Field: "denied", Value: clip(s), Rule: "must be true or false", Example: "true"})
	}
	return ask, errs.InvalidFields("flows", bad)
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
