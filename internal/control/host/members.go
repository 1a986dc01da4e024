package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Group is the servers that keep the state, as the leader changes them.
type Group interface {
	store.Cluster
	// Reach makes the leader's own copy reachable for others and says where it and its
	// API are. Nothing happens when it is so already.
	Reach(ctx context.Context) (peer, api string, err error)
	// Self is the leader's own number.
	Self() uint64
}

// Members chooses which hosts keep the pool's state: one, three from three hosts on,
// five from five on, in as many zones as can be, and witnesses only where those that
// answer the API are the majority all the same. One comes or goes at a time: a chosen
// host becomes a learner, is given a vote when it has caught up, and only then one that
// is lost is taken out. Which members there are is etcd's to say; the Members in the
// store follow it.
//
// With an external etcd there is nobody to choose: every server writes its own Member,
// and those whose hosts are lost are taken away, so that nobody asks them in vain.
type Members struct {
	MembersDeps
}

// MembersDeps is what it is built from.
type MembersDeps struct {
	Clock clock.Clock
	Log   *slog.Logger
	Group Group
	Self  string // the host this process runs on
	// External says that the state is in an etcd of somebody else's; then there is no Group.
	External bool
	// Want is how many there should be; 0: by the number of hosts.
	Want int
	// Replace is how long a member may be lost before another takes its place; default 5 min.
	Replace time.Duration
}

const (
	// partPatience is how long a chosen host may take until it takes part.
	partPatience = 2 * time.Minute
	// membersLook is between looks at what is on its way, membersRest otherwise.
	membersLook = 500 * time.Millisecond
	membersRest = 30 * time.Second
)

// NewMembers makes the controller.
func NewMembers(d MembersDeps) *Members {
	if d.Replace == 0 {
		d.Replace = 5 * time.Minute
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Members{d}
}

// Name is "members".
func (m *Members) Name() string { return "members" }

// membersRef stands for all of them: they are decided together.
var membersRef = api.Ref{Kind: api.KindMember, Name: "*"}

// Key makes everything one name.
func (m *Members) Key(api.Ref) api.Ref { return membersRef }

// Watches hosts, whether they are there, and what they may be.
func (m *Members) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNodeIdentity}, {Kind: api.KindLease}, {Kind: api.KindMember}}
}

// Owns members.
func (m *Members) Owns() []api.Kind { return []api.Kind{api.KindMember} }

// Reconcile makes one step.
func (m *Members) Reconcile(ctx context.Context, s store.Store, _ api.Ref) (reconcile.Result, error) {
	if m.External {
		return m.tidy(ctx, s)
	}
	sit, err := m.look(ctx, s)
	if err != nil {
		return reconcile.Result{}, err
	}
	st := nextMember(sit)
	if st.verb == "" {
		return reconcile.Result{Again: cmp.Or(st.again, membersRest), Poll: st.again == 0}, nil
	}
	if err := m.do(ctx, s, sit, st); err != nil {
		if errors.Is(err, errs.Conflict) || errors.Is(err, errs.Unavailable) { // not yet
			m.Log.Debug("members", "step", st.verb, "name", st.name, "error", err)
			return reconcile.Result{Again: membersLook}, nil
		}
		return reconcile.Result{}, fmt.Errorf("%s %s: %w", st.verb, st.name, err)
	}
	return reconcile.Result{Again: membersLook}, nil
}

// hostSeen is a host that could be, or is, a member.
type hostSeen struct {
	name, zone string
	role       api.JoinRole
	live       bool // its lease is held
	lostFor    time.Duration
	cordoned   bool
}

// situation is what the next step follows from.
type situation struct {
	now     time.Time
	self    string
	selfID  uint64
	want    int
	replace time.Duration
	hosts   map[string]hostSeen
	peers   []store.Peer           // as etcd has them
	members map[string]*api.Member // as the store has them
}

// step is what is done next; verb "" is nothing.
type step struct {
	verb, name string // adopt, choose, promote, admit, dismiss, remove, forget
	peer       store.Peer
	why        string
	again      time.Duration
}

func (m *Members) look(ctx context.Context, s store.Store) (situation, error) {
	sit := situation{now: m.Clock.Now(), self: m.Self, want: m.Want, replace: m.Replace, hosts: map[string]hostSeen{}, members: map[string]*api.Member{}}
	ids, _, err := store.List[*api.NodeIdentity](ctx, s, api.Selector{Kind: api.KindNodeIdentity})
	if err != nil {
		return sit, fmt.Errorf("list hosts: %w", err)
	}
	for _, id := range ids {
		if id.Spec.Revoked != "" {
			continue
		}
		h := hostSeen{name: id.Name, role: id.Spec.Role, zone: id.Spec.Zone}
		if n, err := lookup[*api.Node](ctx, s, api.Ref{Kind: api.KindNode, Name: id.Name}); err != nil {
			return sit, err
		} else if n != nil {
			h.zone, h.cordoned = n.Spec.Zone, n.Spec.Cordoned || n.Spec.Maintenance != nil
		}
		if l, err := lookup[*api.Lease](ctx, s, api.NodeLease(id.Name)); err != nil {
			return sit, err
		} else if l != nil {
			h.live = l.Held()
			if !h.live {
				h.lostFor = sit.now.Sub(l.Spec.Since)
			}
		}
		sit.hosts[id.Name] = h
	}
	members, _, err := store.List[*api.Member](ctx, s, api.Selector{Kind: api.KindMember})
	if err != nil {
		return sit, fmt.Errorf("list members: %w", err)
	}
	for _, x := range members {
		sit.members[x.Name] = x
	}
	if m.External {
		return sit, nil
	}
	sit.selfID = m.Group.Self()
	sit.peers, err = m.Group.Peers(ctx)
	return sit, err
}

// tidy removes the members whose hosts are gone: their servers announce themselves
// again when they come back.
func (m *Members) tidy(ctx context.Context, s store.Store) (reconcile.Result, error) {
	sit, err := m.look(ctx, s)
	if err != nil {
		return reconcile.Result{}, err
	}
	for _, x := range sit.byName() {
		why := sit.silent(x)
		if why == "" {
			continue
		}
		m.Log.Warn("a server of the pool answers no longer", "node", x.Name, "why", why)
		if _, err := s.Commit(ctx, store.Remove(api.RefOf(x), x.Revision)); err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Conflict) {
			return reconcile.Result{}, fmt.Errorf("remove the member %s: %w", x.Name, err)
		}
	}
	return reconcile.Result{Again: membersRest, Poll: true}, nil
}

// silent says why a server that shares an external etcd is not there any more; "": it is.
func (s *situation) silent(m *api.Member) string {
	h, known := s.hosts[m.Name]
	switch {
	case m.Name == s.self:
		return ""
	case !known:
		return "its host was removed from the pool"
	case h.live, s.now.Sub(m.Spec.Since) <= partPatience && h.lostFor == 0: // it has just come, and takes its lease
		return ""
	}
	return "its host is lost"
}

// target is how many members there should be: as many as there are hosts for, where
// witnesses are fewer than half.
func (s *situation) target() int {
	full, witnesses := 0, 0
	for _, h := range s.hosts {
		if !h.live && s.members[h.name] == nil {
			continue
		}
		if h.role == api.RoleWitness {
			witnesses++
		} else {
			full++
		}
	}
	most := s.want
	if most == 0 {
		most = 5
	}
	for n := 5; n > 1; n -= 2 {
		if most >= n && full > n/2 && full+witnesses >= n {
			return n
		}
	}
	return 1
}

// there reports whether a host counts as there: being away for a moment is no reason.
func (s *situation) there(name string) bool {
	h := s.hosts[name]
	return h.live || name == s.self || h.lostFor < s.replace
}

// memberOf is the Member of a peer; nil when the store has none.
func (s *situation) memberOf(p store.Peer) *api.Member {
	id := strconv.FormatUint(p.ID, 16)
	for _, m := range s.members {
		if m.Spec.ID == id {
			return m
		}
	}
	return nil
}

func (s *situation) peerOf(m *api.Member) (store.Peer, bool) {
	for _, p := range s.peers {
		if m.Spec.ID == strconv.FormatUint(p.ID, 16) {
			return p, true
		}
	}
	return store.Peer{}, false
}

// nextMember decides the next step. It is pure.
func nextMember(s situation) step {
	if st := s.repair(); st.verb != "" {
		return st
	}
	voters, live := 0, 0
	var learner *api.Member
	var lost []*api.Member
	for _, p := range s.peers {
		m := s.memberOf(p)
		if p.Learner {
			learner = m
			continue
		}
		voters++
		if s.there(m.Name) {
			live++
		} else {
			lost = append(lost, m)
		}
	}
	if learner != nil {
		p, _ := s.peerOf(learner)
		if h := s.hosts[learner.Name]; !h.live && s.now.Sub(learner.Spec.Since) > partPatience {
			return step{verb: "dismiss", name: learner.Name, peer: p, why: "it was lost before it had caught up"}
		}
		if s.now.Sub(learner.Spec.Since) > 10*partPatience {
			return step{verb: "dismiss", name: learner.Name, peer: p, why: "it did not catch up"}
		}
		return step{verb: "promote", name: learner.Name, peer: p}
	}
	for _, m := range s.byName() {
		if m.Spec.State == api.MemberWanted {
			if s.now.Sub(m.Spec.Since) > partPatience || !s.hosts[m.Name].live {
				return step{verb: "forget", name: m.Name, why: "it did not take part"}
			}
			return step{again: membersLook}
		}
	}
	target := s.target()
	slices.SortFunc(lost, func(a, b *api.Member) int { return cmp.Compare(a.Name, b.Name) })
	switch {
	case live < target && live > voters/2:
		if name := s.best(target); name != "" {
			return step{verb: "choose", name: name}
		}
	case live >= target && len(lost) > 0:
		p, _ := s.peerOf(lost[0])
		return step{verb: "dismiss", name: lost[0].Name, peer: p, why: "it was lost, and another keeps the state in its place"}
	case len(lost) == 0 && voters > target:
		if m := s.surplus(); m != nil {
			p, _ := s.peerOf(m)
			return step{verb: "dismiss", name: m.Name, peer: p, why: "fewer are needed"}
		}
	}
	return step{}
}

// repair brings the store's Members in line with etcd's.
func (s *situation) repair() step {
	for _, p := range s.peers {
		m := s.memberOf(p)
		switch {
		case m == nil && p.ID == s.selfID:
			return step{verb: "adopt", name: s.self, peer: p}
		case m == nil && p.Name != "" && s.hosts[p.Name].name != "":
			return step{verb: "adopt", name: p.Name, peer: p}
		case m == nil:
			return step{verb: "remove", name: p.URL, peer: p, why: "no host of the pool"}
		case s.hosts[m.Name].name == "" && m.Name != s.self:
			return step{verb: "dismiss", name: m.Name, peer: p, why: "its host was removed from the pool"}
		case !p.Learner && m.Spec.State != api.MemberVoter:
			return step{verb: "admit", name: m.Name, peer: p}
		}
	}
	for _, m := range s.byName() {
		if _, there := s.peerOf(m); !there && (m.Spec.State != api.MemberWanted || s.hosts[m.Name].name == "") {
			return step{verb: "forget", name: m.Name, why: "it is no member any more"}
		}
	}
	return step{}
}

func (s *situation) byName() []*api.Member {
	out := make([]*api.Member, 0, len(s.members))
	for _, m := range s.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *api.Member) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// best is the host that should be the next member: a witness first (that is all it is
// for), but never so many that they are half; then in a zone that has none yet, there a
// server before one that runs instances, then one with nothing else against it.
func (s *situation) best(target int) string {
	used, witnesses := map[string]int{}, 0
	for name := range s.members {
		h := s.hosts[name]
		used[h.zone]++
		if h.role == api.RoleWitness && s.there(name) {
			witnesses++
		}
	}
	var list []hostSeen
	for _, h := range s.hosts {
		if h.live && s.members[h.name] == nil && (h.role != api.RoleWitness || witnesses < target/2) {
			list = append(list, h)
		}
	}
	slices.SortFunc(list, func(a, b hostSeen) int {
		rank := func(h hostSeen) int {
			r := used[h.zone] * 4
			switch {
			case h.role == api.RoleWitness:
				return -2
			case h.role == api.RoleServer:
				r--
			case h.cordoned:
				r += 2
			}
			return r
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.name, b.name))
	})
	if len(list) == 0 {
		return ""
	}
	return list[0].name
}

// surplus is the member that is missed least: not the leader, of the zone with most members.
func (s *situation) surplus() *api.Member {
	used := map[string]int{}
	for name := range s.members {
		used[s.hosts[name].zone]++
	}
	var out *api.Member
	for _, m := range s.byName() {
		if m.Name == s.self {
			continue
		}
		if out == nil || used[s.hosts[m.Name].zone] > used[s.hosts[out.Name].zone] {
			out = m
		}
	}
	return out
}

// do makes a step so: first in etcd, then in the store, which repair would bring in line anyway.
func (m *Members) do(ctx context.Context, s store.Store, sit situation, st step) error {
	now := m.Clock.Now().UTC()
	id := strconv.FormatUint(st.peer.ID, 16)
	have := sit.members[st.name]
	switch st.verb {
	case "adopt":
		spec := api.MemberSpec{State: api.MemberVoter, ID: id, Peer: st.peer.URL, Zone: sit.hosts[st.name].zone, Since: now}
		if st.peer.Learner {
			spec.State = api.MemberLearner
		}
		if have != nil {
			spec.API, spec.Witness = have.Spec.API, have.Spec.Witness
		}
		return m.put(ctx, s, have, st.name, spec)
	case "choose":
		peer, url, err := m.Group.Reach(ctx)
		if err != nil {
			return err
		}
		if self := sit.members[sit.self]; self != nil && (self.Spec.API != url || self.Spec.Peer != peer) {
			spec := self.Spec
			spec.API, spec.Peer = url, peer
			if err := m.put(ctx, s, self, sit.self, spec); err != nil {
				return err
			}
		}
		m.Log.Info("another host will keep the pool's state", "node", st.name)
		return m.put(ctx, s, have, st.name, api.MemberSpec{State: api.MemberWanted, Witness: sit.hosts[st.name].role == api.RoleWitness, Zone: sit.hosts[st.name].zone,
			Since: now, Message: "chosen; waits for the host to take part"})
	case "promote":
		if err := m.Group.Promote(ctx, st.peer.ID); err != nil {
			return err
		}
		fallthrough
	case "admit":
		spec := have.Spec
		spec.State, spec.Since, spec.Message = api.MemberVoter, now, ""
		m.Log.Info("another host keeps the pool's state", "node", st.name)
		return m.put(ctx, s, have, st.name, spec)
	case "dismiss", "remove":
		m.Log.Warn("a host keeps the pool's state no longer", "node", st.name, "why", st.why)
		if err := m.Group.RemovePeer(ctx, st.peer.ID); err != nil {
			return err
		}
	}
	if have == nil {
		return nil
	}
	_, err := s.Commit(ctx, store.Remove(api.RefOf(have), have.Revision))
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (m *Members) put(ctx context.Context, s store.Store, have *api.Member, name string, spec api.MemberSpec) error {
	now := m.Clock.Now().UTC()
	next := &api.Member{Head: api.Head{K: api.KindMember, Meta: api.Meta{Name: name, CreatedAt: &now}}}
	op := store.Create(next)
	if have != nil {
		next = api.Clone(have)
		op = store.Update(next)
	}
	next.Spec = spec
	_, err := s.Commit(ctx, op)
	return err
}
