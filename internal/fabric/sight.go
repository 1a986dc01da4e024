package fabric

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/segment"
)

// sight is what a Fabric knows of the traffic on its host, beside what the tables have.
type sight struct {
	mu        sync.Mutex // guards all below; taken after Fabric.mu, if both
	names     map[place]api.NetEnd
	named     time.Time             // when names were gathered
	refused   map[refusal]*refusals // lately
	followers map[*follower]bool
	logged    map[uint32]bool // rules of which the driver tells
	log       *record         // nil: nothing is recorded
}

// refusal is what was refused, or would have been.
type refusal struct {
	vni      uint32
	src, dst netip.Addr
	proto    uint8
	port     uint16
	ingress  bool
	dry      bool
}

type refusals struct {
	flow           api.NetFlow
	packets, bytes uint64
	groups         []segment.GroupRef // of a dry run
}

// Bounds of what is kept and told.
const (
	keptRefusals = 2048
	followerRoom = 1024
	maxFollowers = 64
	mostFlows    = 20_000 // of one answer
	namesFor     = time.Second
	samplesKept  = 3
)

// follower is somebody who looks on.
type follower struct {
	ask  api.NetAsk
	next chan api.NetFlow
	lost uint64 // guarded by sight.mu
}

func newSight(dir string) *sight {
	s := &sight{refused: map[refusal]*refusals{}, followers: map[*follower]bool{}, logged: map[uint32]bool{}}
	if dir != "" {
		s.log = &record{dir: dir}
	}
	return s
}

// inspector is the driver's ability to tell.
func (f *Fabric) inspector() (driver.Inspector, error) {
	i, ok := f.Driver.(driver.Inspector)
	if !ok {
		return nil, errs.New(errs.Unsupported, "the network driver of this host cannot tell what its tables say")
	}
	return i, nil
}

// Answer answers a question of a server with JSON, one value a line. netns is that of the instance a path
// is tried from. Who asks was authorized by the API already.
func (f *Fabric) Answer(ctx context.Context, ask api.NetAsk, netns string, out io.Writer) error {
	enc := json.NewEncoder(out)
	switch ask.What {
	case api.NetJudge:
		hop, err := f.judge(ask)
		if err != nil {
			return err
		}
		return enc.Encode(hop)
	case api.NetTables:
		list, err := f.flows(ask)
		if err != nil {
			return err
		}
		return enc.Encode(list)
	case api.NetCounts:
		hits, err := f.hits(ask)
		if err != nil {
			return err
		}
		return enc.Encode(hits)
	case api.NetRecord:
		list, err := f.recorded(ask)
		if err != nil {
			return err
		}
		return enc.Encode(list)
	case api.NetPath:
		r, err := f.reach(ctx, ask, netns)
		if err != nil {
			return err
		}
		return enc.Encode(r)
	case api.NetFollow:
		return f.follow(ctx, ask, enc)
	}
	return errs.New(errs.Unsupported, "this host does not know questions of kind %q about networks", ask.What)
}

// on finds the network of a number, with mu held.
func (f *Fabric) on(vni uint32) *network {
	for _, n := range f.nets {
		if n.net.VNI == vni {
			return n
		}
	}
	return nil
}

// end names an address of a network.
func (f *Fabric) end(vni uint32, a netip.Addr) api.NetEnd {
	s := f.sight
	now := f.Clock.Now()
	s.mu.Lock()
	fresh := s.names != nil && now.Sub(s.named) < namesFor
	s.mu.Unlock()
	if !fresh {
		names := f.gather()
		s.mu.Lock()
		s.names, s.named = names, now
		s.mu.Unlock()
	}
	s.mu.Lock()
	e, ok := s.names[place{vni, a}]
	s.mu.Unlock()
	switch {
	case ok:
		return e
	case f.inside(vni, a):
		return api.NetEnd{Address: a.String()} // whoever had it is gone
	}
	return api.NetEnd{Address: a.String(), Place: api.PlaceOutside}
}

// inside reports whether an address is one of the network's own.
func (f *Fabric) inside(vni uint32, a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.on(vni)
	return n != nil && slices.ContainsFunc(n.net.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// gather lists who has which address.
func (f *Fabric) gather() map[place]api.NetEnd {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[place]api.NetEnd{}
	for _, n := range f.nets {
		for ref, ms := range n.members {
			for _, m := range ms {
				out[place{n.net.VNI, m.Addr}] = api.NetEnd{Tenant: ref.Tenant, Instance: ref.Name, Network: n.object.Name, Address: m.Addr.String()}
			}
		}
		for _, g := range n.net.Gateways {
			out[place{n.net.VNI, g}] = api.NetEnd{Place: api.PlaceHost, Address: g.String()}
		}
	}
	return out
}

// rule puts a rule's number into words; "" when it is known no more.
func (f *Fabric) rule(vni, id uint32) (segment.Rule, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.on(vni); n != nil && id != 0 {
		return n.compiler.Rule(id)
	}
	return segment.Rule{}, false
}

func (f *Fabric) ruleText(vni, id uint32) string {
	if r, ok := f.rule(vni, id); ok {
		return r.String()
	}
	if id != 0 {
		return fmt.Sprintf("a rule that was changed since (number %d)", id)
	}
	return ""
}

// judge asks the tables about one wall, and says why in words.
func (f *Fabric) judge(ask api.NetAsk) (api.NetHop, error) {
	hop := api.NetHop{Node: f.Node, Known: true, Direction: direction(ask.Ingress)}
	local, err1 := netip.ParseAddr(ask.Local)
	remote, err2 := netip.ParseAddr(ask.Remote)
	if err := errors.Join(err1, err2); err != nil {
		return hop, errs.New(errs.Invalid, "question about a wall: %w", err)
	}
	i, err := f.inspector()
	if err != nil {
		return hop, err
	}
	v, err := i.Judge(driver.Question{VNI: ask.VNI, Local: local, Remote: remote, Ingress: ask.Ingress, Unbidden: ask.Unbidden, Proto: ask.Proto, Port: ask.Port})
	if err != nil {
		return hop, err
	}
	hop.Port, hop.Allowed, hop.Instance = v.Port, v.Allowed, f.end(ask.VNI, local).String()
	if c, err := i.Counts(); err == nil { // the verdict stands without
		hop.Dropped = c.Drops[v.Port]
	}
	hop.Rule = f.ruleText(ask.VNI, v.Rule)
	hop.Text = f.because(ask, local, v)
	if d := v.Dry; d != nil && d.Allowed != v.Allowed {
		if hop.Dry = "would be denied by groups that are only tried"; d.Allowed {
			hop.Dry = "would be allowed by " + f.ruleText(ask.VNI, d.Rule)
		}
	}
	return hop, nil
}

func (f *Fabric) because(ask api.NetAsk, local netip.Addr, v driver.Verdict) string {
	if text := f.ruleText(ask.VNI, v.Rule); text != "" {
		return text
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.on(ask.VNI)
	if n == nil {
		return "the network has left this host"
	}
	name := segment.Net{Tenant: n.object.Tenant, Name: n.object.Name}
	if v.Allowed {
		if v.Peer >= driver.FirstIdentity && v.Peer < driver.FirstPrefix {
			return "default inside network " + name.String()
		}
		return "default of network " + name.String()
	}
	dir := segment.Egress
	if ask.Ingress {
		dir = segment.Ingress
	}
	var by []string
	for _, j := range n.compiler.Judges(local, dir) {
		if !j.DryRun {
			by = append(by, j.Group.String())
		}
	}
	if len(by) == 0 {
		return fmt.Sprintf("network %s is closed, and no group allows it", name)
	}
	return fmt.Sprintf("no rule of SecurityGroup %s allows it", joined(by))
}

func joined(s []string) string {
	if len(s) > 4 {
		return fmt.Sprintf("%s, %s and %d more", s[0], s[1], len(s)-2)
	}
	out := ""
	for i, x := range s {
		if i > 0 {
			out += ", "
		}
		out += x
	}
	return out
}

func direction(ingress bool) string {
	if ingress {
		return "ingress"
	}
	return "egress"
}

// flows lists what the tables have, and what was refused lately.
func (f *Fabric) flows(ask api.NetAsk) (api.NetFlows, error) {
	out := api.NetFlows{At: f.Clock.Now().UTC(), Flows: []api.NetFlow{}}
	i, err := f.inspector()
	if err != nil {
		return out, err
	}
	limit := mostFlows
	if ask.Limit > 0 && ask.Limit < limit {
		limit = ask.Limit
	}
	if !ask.Denied {
		err = i.Flows(func(x driver.Flow) bool {
			fl := f.flow(x)
			if !chosen(ask, &fl) {
				return true
			}
			if out.More = len(out.Flows) >= limit; out.More {
				return false
			}
			fl.Rule = f.ruleText(x.VNI, x.Rule)
			out.Flows = append(out.Flows, fl)
			return true
		})
		if err != nil {
			return out, err
		}
	}
	for _, fl := range f.lately(false) {
		if chosen(ask, &fl.flow) {
			out.Flows = append(out.Flows, fl.flow)
		}
	}
	c, err := i.Counts()
	out.Lost = c.Lost
	return out, err
}

// lately copies what was refused, the latest first. dry: what would have been.
func (f *Fabric) lately(dry bool) []refusals {
	f.sight.mu.Lock()
	defer f.sight.mu.Unlock()
	var out []refusals
	for k, r := range f.sight.refused {
		if k.dry == dry {
			c := *r
			c.flow.Packets, c.flow.Bytes = r.packets, r.bytes
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b refusals) int { return b.flow.At.Compare(a.flow.At) })
	return out
}

func (f *Fabric) flow(x driver.Flow) api.NetFlow {
	local, remote := f.end(x.VNI, x.Local), f.end(x.VNI, x.Remote)
	fl := api.NetFlow{Node: f.Node, Seen: direction(x.Ingress), From: local, To: remote, Protocol: api.ProtocolWord(x.Proto), SourcePort: x.LocalPort, Port: x.RemotePort,
		State: x.State, Packets: x.Packets, Bytes: x.Bytes, AgeMS: x.Age.Milliseconds(), IdleMS: x.Idle.Milliseconds()}
	if x.Ingress {
		fl.From, fl.To, fl.SourcePort, fl.Port = remote, local, x.RemotePort, x.LocalPort
	}
	if fl.Protocol == "icmp" {
		fl.SourcePort, fl.Port = 0, 0 // they tell echoes apart, and are nobody's
	}
	return fl
}

// chosen reports whether a flow is one of those that are asked for.
func chosen(ask api.NetAsk, fl *api.NetFlow) bool {
	of := func(e api.NetEnd) bool {
		return e.Instance != "" && (ask.Tenant == "" || api.WithinTenant(e.Tenant, ask.Tenant)) && (ask.Instance == "" || e.Instance == ask.Instance) && (ask.Network == "" || e.Network == ask.Network)
	}
	return (!ask.Denied || fl.Refused != "") && (of(fl.From) || of(fl.To))
}

// hits counts what rules have allowed, and what groups that are only tried would have refused.
func (f *Fabric) hits(ask api.NetAsk) (api.NetHits, error) {
	out := api.NetHits{At: f.Clock.Now().UTC(), Hits: []api.NetHit{}}
	i, err := f.inspector()
	if err != nil {
		return out, err
	}
	c, err := i.Counts()
	if err != nil {
		return out, err
	}
	samples := map[string][]string{}
	for _, r := range f.lately(true) {
		for _, g := range r.groups {
			if len(samples[g.String()]) < samplesKept {
				samples[g.String()] = append(samples[g.String()], fmt.Sprintf("%s -> %s %s", r.flow.From, r.flow.To, PortText(r.flow.Protocol, r.flow.Port)))
			}
		}
	}
	sum := map[string]*api.NetHit{}
	at := func(group segment.GroupRef, rule, text string) *api.NetHit {
		k := group.String() + "|" + rule
		if sum[k] == nil {
			sum[k] = &api.NetHit{Group: group.String(), Rule: rule, Text: text}
		}
		return sum[k]
	}
	wanted := func(g segment.GroupRef) bool {
		return g.Name != "" && (ask.Tenant == "" || api.WithinTenant(g.Tenant, ask.Tenant)) && (ask.Instance == "" || g.Name == ask.Instance)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nets {
		for id, r := range n.compiler.Rules() {
			if wanted(r.Group) && !r.DryRun {
				h := at(r.Group, fmt.Sprintf("%s rule %d", direction(r.Ingress), r.Number), r.Text())
				h.Allowed += c.Rules[id]
				h.Log = r.Log
			}
		}
		for set, groups := range n.compiler.Tried() {
			for _, g := range groups {
				if wanted(g) {
					h := at(g, "", "only tried")
					h.DryRun, h.Samples = true, samples[g.String()]
					h.Allowed += c.Dry[set].Allowed
					h.Refused += c.Dry[set].Refused
				}
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(sum)) {
		out.Hits = append(out.Hits, *sum[k])
	}
	return out, nil
}

// PortText is "tcp 5432", or "icmp".
func PortText(proto string, port uint16) string {
	if port == 0 {
		return proto
	}
	return fmt.Sprintf("%s %d", proto, port)
}

// reach tries a path from inside an instance.
func (f *Fabric) reach(ctx context.Context, ask api.NetAsk, netns string) (api.NetReach, error) {
	out := api.NetReach{Address: ask.Remote}
	to, err := netip.ParseAddr(ask.Remote)
	if err != nil {
		return out, errs.New(errs.Invalid, "path to try: %w", err)
	}
	p, ok := f.Driver.(driver.Prober)
	if !ok {
		return out, errs.New(errs.Unsupported, "the network driver of this host cannot try paths")
	}
	if netns == "" {
		return out, errs.New(errs.Conflict, "the instance has no network of its own")
	}
	r, err := p.Reach(ctx, netns, driver.Probe{To: to, Echo: ask.Echo, Port: ask.Port})
	if err != nil {
		return out, err
	}
	return api.NetReach{Address: ask.Remote, Sent: r.Sent, Answered: r.Answered, RTTUS: r.RTT.Microseconds(), MTU: r.MTU, Largest: r.Largest, TCP: r.TCP, TCPUS: r.TCPTook.Microseconds()}, nil
}
