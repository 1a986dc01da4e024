package insight

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

// pool is two tenants with a network each on two hosts, which answer as their test says.
type pool struct {
	t    *testing.T
	mem  *store.Mem
	hub  *tunnel.Hub
	may  map[string]bool                       // "verb kind tenant"; nil: everything
	says func(node string, q api.NetAsk) []any // nil: the host does not answer
}

func newPool(t *testing.T) *pool {
	p := &pool{t: t, mem: store.NewMem(), hub: tunnel.NewHub()}
	p.hub.Patience = 10 * time.Millisecond
	for i, tenant := range []string{"acme", "demo"} {
		p.put(&api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: "main", Tenant: tenant}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/16", CIDR6: "fd00:1::/64"}, Status: api.NetworkStatus{VNI: uint32(70001 + i)}})
	}
	p.put(endpoint("acme", "web", "n1", 2), endpoint("acme", "db", "n2", 3), endpoint("demo", "web", "n1", 2))
	p.put(&api.SecurityGroup{Head: api.Head{K: api.KindSecurityGroup, Meta: api.Meta{Name: "db-clients", Tenant: "acme"}}, Spec: api.SecurityGroupSpec{Select: map[string]string{"app": "db"},
		Ingress: []api.SecurityRule{{From: []api.SecurityPeer{{Labels: map[string]string{"app": "web"}}}, Ports: []string{"tcp/5432"}}}}})
	for _, n := range []string{"n1", "n2"} {
		dial, wait := tunnel.Local(t.Context(), func(ctx context.Context, h tunnel.Header, s *tunnel.Stream) error {
			var q api.NetAsk
			if err := json.Unmarshal(h.Params, &q); err != nil {
				return err
			}
			said := p.says(n, q)
			if said == nil {
				return errs.New(errs.Unavailable, "not now")
			}
			for _, v := range said {
				if err, ok := v.(error); ok {
					return err
				}
				if err := s.WriteJSON(api.ChanStdout, v); err != nil {
					return err
				}
			}
			if q.What == api.NetFollow {
				_, _, _ = s.Read() // until the caller leaves
			}
			return s.WriteJSON(api.ChanExit, api.StreamExit{})
		})
		t.Cleanup(p.hub.Register(n, dial))
		t.Cleanup(wait)
	}
	return p
}

func endpoint(tenant, name, node string, n int) *api.Endpoint {
	return &api.Endpoint{Head: api.Head{K: api.KindEndpoint, Meta: api.Meta{Name: name, Tenant: tenant, Labels: map[string]string{api.NetworkLabel("main"): ""}}},
		Spec: api.EndpointSpec{Node: node, Labels: map[string]string{"app": name}, Interfaces: []api.Interface{{Network: "main", VNI: map[string]uint32{"acme": 70001, "demo": 70002}[tenant], Name: "eth0",
			Address: fmt.Sprintf("10.1.0.%d/16", n), Address6: fmt.Sprintf("fd00:1::%d/64", n), Identity: 256}}}}
}

func (p *pool) put(os ...api.Object) {
	p.t.Helper()
	for _, o := range os {
		if _, err := p.mem.Commit(p.t.Context(), store.Set(o)); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *pool) asker(tenant string) *Asker {
	return &Asker{Store: p.mem, Hub: p.hub, Clock: clock.Real{}, Tenant: tenant, May: func(v api.Verb, k api.Kind, t string) bool {
		return p.may == nil || p.may[fmt.Sprintf("%s %s %s", v, k, t)] || p.may["* * "+t]
	}}
}

// judged answers as hosts do whose tables say what is written.
func judged(node string, q api.NetAsk) []any {
	switch q.What {
	case api.NetJudge:
		h := api.NetHop{Node: node, Known: true, Port: 7, Allowed: true, Text: "default inside network acme/main"}
		if q.Ingress && q.Local == "10.1.0.3" {
			h.Text, h.Allowed = "no rule of SecurityGroup acme/db-clients allows it", q.Port == 5432
			if h.Allowed {
				h.Rule = "SecurityGroup acme/db-clients, ingress rule 1 (from app=web, tcp 5432)"
				h.Text = h.Rule
			}
		}
		return []any{h}
	case api.NetTables:
		flow := api.NetFlow{Node: node, Seen: "egress", From: api.NetEnd{Tenant: "acme", Instance: "web", Network: "main", Address: "10.1.0.2"}, To: api.NetEnd{Tenant: "acme", Instance: "db", Network: "main", Address: "10.1.0.3"},
			Protocol: "tcp", SourcePort: 4000, Port: 5432, Packets: 10, Bytes: 1000}
		if node == "n2" {
			flow.Seen, flow.Rule = "ingress", "SecurityGroup acme/db-clients, ingress rule 1"
		}
		shared := api.NetFlow{Node: node, Seen: "egress", From: api.NetEnd{Tenant: "acme", Instance: "web", Network: "main", Address: "10.1.0.2"}, To: api.NetEnd{Tenant: "demo", Instance: "web", Network: "main", Address: "10.1.9.2"},
			Protocol: "tcp", SourcePort: 1, Port: 80, Refused: "no rule allows it", Rule: "SecurityGroup demo/x", Packets: 3, Bytes: 180}
		if node == "n2" {
			return []any{api.NetFlows{Flows: []api.NetFlow{flow}}}
		}
		return []any{api.NetFlows{Flows: []api.NetFlow{flow, shared}}}
	}
	return nil
}

func params(s string) url.Values {
	q, err := url.ParseQuery(s)
	if err != nil {
		panic(err)
	}
	return q
}

func TestWhy(t *testing.T) {
	p := newPool(t)
	p.says = judged
	a := p.asker("acme")
	for q, want := range map[string]string{
		"from=web&to=db&port=5432":                          "allowed by SecurityGroup acme/db-clients, ingress rule 1 (from app=web, tcp 5432)",
		"from=web&to=db&port=80":                            "denied: SecurityGroup acme/db-clients lets only app=web in; nearest: rule 1 allows tcp 5432, asked was tcp 80",
		"from=web&to=10.1.0.3&port=5432":                    "allowed by SecurityGroup acme/db-clients, ingress rule 1 (from app=web, tcp 5432)",
		"from=web&to=db.main.acme.atoll.internal&port=5432": "allowed by SecurityGroup acme/db-clients, ingress rule 1 (from app=web, tcp 5432)",
		"from=db&to=outside&port=443":                       "allowed (default inside network acme/main)", // as the host said
		"from=acme/web&to=demo/web&port=80":                 "denied: different tenants, and no peering between acme/main and demo/main",
		"from=web&to=db&port=1&network=absent":              "denied: acme/web is not on network absent",
	} {
		v, err := a.Why(t.Context(), params(q))
		if err != nil || v.Reason != want || v.Allowed != strings.HasPrefix(want, "allow") {
			t.Errorf("%s: %q %v\n%+v", q, v.Reason, err, v)
		}
	}
	v, err := a.Why(t.Context(), params("from=web&to=db&port=5432"))
	if err != nil || len(v.Hops) != 3 || v.Hops[1].Text != "vxlan 70001 -> n2" || !v.Complete || len(v.Flows) != 1 || v.Flows[0].Rule == "" {
		t.Errorf("%+v %v", v, err)
	}
	if v, _ := a.Why(t.Context(), params("from=web&to=db&port=80")); !strings.Contains(v.Hint, "spec.ingress: [{from: [{labels: {app: web}}], ports: [tcp/80]}]") {
		t.Errorf("hint %q", v.Hint)
	}
	for _, q := range []string{"", "from=web", "from=web&to=db&port=0", "from=web&to=db&port=x", "from=web&to=db&protocol=sctp", "from=web&to=db&protocol=tcp", "from=web&to=db&protocol=icmp&port=1", "from=we b&to=db", "from=outside&to=host", "from=web&to=db&network=../x"} {
		if _, err := a.Why(t.Context(), params(q)); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v", q, err)
		}
	}
	if _, err := a.Why(t.Context(), params("from=web&to=nobody&port=1")); errs.KindOf(err) != errs.NotFound {
		t.Error(err)
	}
	if _, err := a.Why(t.Context(), params("from=web&to=10.1.7.7&port=1")); errs.KindOf(err) != errs.NotFound {
		t.Error(err)
	}
}

// What cannot be asked is judged by what is written, and that is said; where the two differ, the tables decide.
func TestWhyWithoutAHost(t *testing.T) {
	p := newPool(t)
	p.says = func(node string, q api.NetAsk) []any {
		if node == "n2" {
			return nil
		}
		return judged(node, q)
	}
	v, err := p.asker("acme").Why(t.Context(), params("from=web&to=db&port=5432"))
	if err != nil || v.Complete || !v.Allowed || v.Hops[2].Known || !strings.Contains(v.Hops[2].Text, "node n2 does not answer") || !strings.Contains(v.Reason, "ingress rule 1") {
		t.Errorf("%+v %v", v, err)
	}
	p.says = func(node string, q api.NetAsk) []any {
		if q.What == api.NetJudge && q.Ingress {
			return []any{errs.New(errs.NotFound, "no wire")}
		}
		return judged(node, q)
	}
	if v, err = p.asker("acme").Why(t.Context(), params("from=web&to=db&port=80")); err != nil || v.Allowed || v.Complete || !strings.Contains(v.Reason, "does not run on n2") {
		t.Errorf("%+v %v", v, err)
	}
	p.says = func(node string, q api.NetAsk) []any {
		if q.What == api.NetJudge && q.Ingress {
			return []any{api.NetHop{Known: true, Allowed: false, Text: "no rule"}}
		}
		return judged(node, q)
	}
	if v, err = p.asker("acme").Why(t.Context(), params("from=web&to=db&port=5432")); err != nil || v.Allowed || !strings.Contains(v.Reason, "what is written now says otherwise") {
		t.Errorf("%+v %v", v, err)
	}
}

// A caller of acme learns nothing of demo: not who is there, not whether anybody is.
func TestOthersAreHidden(t *testing.T) {
	p := newPool(t)
	p.says = judged
	p.may = map[string]bool{"* * acme": true}
	a := p.asker("")
	var reasons []string
	for _, name := range []string{"demo/web", "demo/nobody"} {
		v, err := a.Why(t.Context(), params("from=acme/web&to="+name+"&port=80"))
		if err != nil || v.Allowed || len(v.Hops) != 0 || v.To.Address != "" {
			t.Errorf("%+v %v", v, err)
		}
		reasons = append(reasons, v.Reason)
	}
	if reasons[0] != reasons[1] || strings.Contains(reasons[0], "demo/main") {
		t.Error(reasons)
	}
	if _, err := a.Why(t.Context(), params("from=demo/web&to=demo/db&port=80")); errs.KindOf(err) != errs.Denied {
		t.Error(err)
	}
	f, err := a.Flows(t.Context(), nil)
	if err != nil || len(f.Flows) != 2 || len(f.Missing) != 0 {
		t.Fatalf("%+v %v", f, err)
	}
	if s := fmt.Sprintf("%+v", f.Flows); strings.Contains(s, "demo") || !strings.Contains(s, "10.1.9.2") {
		t.Error(s)
	}
	p.may = map[string]bool{"* * demo": true}
	if f, err = p.asker("").Flows(t.Context(), nil); err != nil || len(f.Flows) != 1 || strings.Contains(fmt.Sprintf("%+v", f.Flows), "acme") {
		t.Errorf("%+v %v", f, err)
	}
	p.may = map[string]bool{"get Endpoint acme": true}
	if _, err := p.asker("acme").Check(t.Context(), params("from=web&to=db")); errs.KindOf(err) != errs.Denied {
		t.Error("who may not exec checks:", err)
	}
}

func TestMapSums(t *testing.T) {
	p := newPool(t)
	p.says = judged
	for by, want := range map[string]string{"": "acme/web acme/db", "label=app": "acme app=web acme app=db", "group": "acme/web acme/db-clients"} {
		m, err := p.asker("acme").Map(t.Context(), url.Values{"by": {by}})
		if err != nil || len(m.Edges) != 2 || m.Edges[0].From+" "+m.Edges[0].To != want || m.Edges[0].Flows != 1 || m.Edges[0].Packets != 10 || m.Edges[1].Refused != 3 || !slices.Equal(m.Edges[0].Ports, []string{"tcp/5432"}) {
			t.Errorf("%s: %+v %v", by, m, err)
		}
	}
	if _, err := p.asker("acme").Map(t.Context(), url.Values{"by": {"colour"}}); errs.KindOf(err) != errs.Invalid {
		t.Error(err)
	}
}

func TestHitsAddUp(t *testing.T) {
	p := newPool(t)
	p.says = func(node string, q api.NetAsk) []any {
		return []any{api.NetHits{Hits: []api.NetHit{{Group: "acme/db-clients", Rule: "ingress rule 1", Allowed: 2}, {Group: "acme/trial", DryRun: true, Refused: 1, Samples: []string{node}}, {Group: "demo/x", Rule: "ingress rule 1", Allowed: 9}}}}
	}
	p.may = map[string]bool{"* * acme": true}
	h, err := p.asker("").Hits(t.Context(), nil)
	if err != nil || len(h.Hits) != 2 || h.Hits[0].Allowed != 4 || h.Hits[1].Refused != 2 || len(h.Hits[1].Samples) != 2 {
		t.Errorf("%+v %v", h, err)
	}
}

func TestCheckSaysThatNobodyRuns(t *testing.T) {
	p := newPool(t)
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "db", Tenant: "acme"}}}
	in.Status.State, in.Status.Message = api.StateBackoff, "it ended with exit code 1"
	if _, err := p.mem.Commit(t.Context(), store.Set(in)); err != nil {
		t.Fatal(err)
	}
	out, err := p.asker("acme").Check(t.Context(), params("from=web&to=db"))
	if err != nil || out.OK || out.Fault != "acme/db is not running (backoff): it ended with exit code 1" {
		t.Errorf("%+v %v", out, err)
	}
}

func TestCheckNamesWhoIsAtFault(t *testing.T) {
	for name, c := range map[string]struct {
		q     string
		reach api.NetReach
		here  bool // db's host has seen the packets
		want  string
	}{
		"well":      {"from=web&to=db&port=5432", api.NetReach{MTU: 1450, TCP: "connected"}, true, ""},
		"wall":      {"from=web&to=db&port=80", api.NetReach{}, true, "the destination's wall (acme/db on n2)"},
		"listens":   {"from=web&to=db&port=5432", api.NetReach{MTU: 1450, TCP: "refused"}, true, "nobody listens"},
		"tunnel":    {"from=web&to=db&port=5432", api.NetReach{MTU: 1450, TCP: "timeout"}, false, "the tunnel between n1 and n2"},
		"instance":  {"from=web&to=db&port=5432", api.NetReach{MTU: 1450, TCP: "timeout"}, true, "the destination: packets pass"},
		"mtu":       {"from=db&to=web", api.NetReach{Sent: 5, Answered: 5, MTU: 1450, Largest: 1222}, true, "the MTU of an uplink"},
		"echo only": {"from=db&to=web", api.NetReach{Sent: 5, Answered: 5, MTU: 1450, Largest: 1450}, true, ""},
	} {
		p := newPool(t)
		p.says = func(node string, q api.NetAsk) []any {
			switch q.What {
			case api.NetPath:
				r := c.reach
				r.Address = q.Remote
				return []any{r}
			case api.NetTables:
				if !c.here {
					return []any{api.NetFlows{}}
				}
				six := []any{}
				var fl []api.NetFlow
				for _, x := range []string{"10.1.0.2", "fd00:1::2"} {
					fl = append(fl, api.NetFlow{Seen: "ingress", From: api.NetEnd{Tenant: "acme", Instance: "web", Address: x}})
				}
				return append(six, api.NetFlows{Flows: fl})
			case api.NetJudge:
				if a, err := netip.ParseAddr(q.Local); err == nil && a.Is6() && q.Ingress { // as by IPv4
					q.Local = "10.1.0." + q.Local[len(q.Local)-1:]
				}
			}
			return judged(node, q)
		}
		out, err := p.asker("acme").Check(t.Context(), params(c.q))
		if err != nil || out.OK != (c.want == "") || !strings.Contains(out.Fault, c.want) {
			t.Errorf("%s: %+v %v", name, out, err)
		}
	}
}

func TestFollowCutsAndEnds(t *testing.T) {
	p := newPool(t)
	p.says = func(node string, q api.NetAsk) []any {
		secret := api.NetFlow{Node: node, Seen: "ingress", From: api.NetEnd{Tenant: "demo", Instance: "a"}, To: api.NetEnd{Tenant: "demo", Instance: "b"}}
		mine := api.NetFlow{Node: node, Seen: "ingress", From: api.NetEnd{Tenant: "demo", Instance: "a", Address: "10.9.9.9"}, To: api.NetEnd{Tenant: "acme", Instance: "web"}}
		return []any{secret, mine, api.NetFlow{Node: node, Seen: api.SeenLost, Packets: 4}}
	}
	p.may = map[string]bool{"* * acme": true}
	s, err := p.asker("").Follow(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 { // two of each host
		ch, b, err := s.Read()
		if err != nil || ch != api.ChanStdout || strings.Contains(string(b), "demo") {
			t.Fatalf("%d %s %v", ch, b, err)
		}
	}
	s.Close()
}

// The walls at both ends have an entry of a flow; what the second refused is not also told as let go by the first.
func TestEachFlowIsToldOnce(t *testing.T) {
	end := func(name string) api.NetEnd { return api.NetEnd{Tenant: "a", Instance: name} }
	flow := func(seen, refused string, sport, port uint16) api.NetFlow {
		return api.NetFlow{Seen: seen, From: end("x"), To: end("y"), Protocol: "tcp", SourcePort: sport, Port: port, Refused: refused}
	}
	got := ""
	for _, f := range once([]api.NetFlow{flow("egress", "", 1, 80), flow("ingress", "", 1, 80), flow("ingress", "", 2, 80), flow("egress", "", 3, 81), flow("ingress", "no", 9, 81), flow("egress", "no", 4, 82), flow("egress", "", 5, 82)}) {
		got += fmt.Sprint(f.Seen, f.SourcePort, f.Refused, " ")
	}
	if want := "egress1 ingress2 ingress9no egress4no egress5 "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
