package host

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"atoll/api"
)

// maxMoves bounds what a Drain remembers, so that it stays an object of a bearable size.
const maxMoves = 2000

// maxNamed bounds the names under one reason.
const maxNamed = 20

// decide is one look at the pool: what to do now, and what to tell. It is pure.
//
// What matters most leaves first: the room there is on other hosts goes to it, and
// should the host fail before it is empty, it is away. That little is disturbed is the
// business of budgets and pace, not of the order.
func decide(p *pool, d Deps) *round {
	r := newRound(p, d)
	known := map[string]*api.Drain{}
	for _, x := range p.drains {
		known[x.Name] = x
	}
	var open, back []*sheet
	for _, n := range p.nodes {
		x := known[n.Name]
		delete(known, n.Name)
		switch {
		case n.Spec.Maintenance != nil:
			open = append(open, r.sheet(n, x))
		case x != nil && x.Spec.State != api.DrainRestored, r.holds(n.Name):
			back = append(back, r.sheet(n, x))
		case x != nil:
			r.out = append(r.out, x)
		}
	}
	oldest := func(a, b *sheet) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.node.Name, b.node.Name))
	}
	slices.SortStableFunc(open, oldest)
	slices.SortStableFunc(back, oldest)
	for _, list := range [][]*sheet{open, back} {
		for _, s := range list {
			s.follow()
		}
	}
	for _, s := range back { // what runs on a host that works comes before what can wait
		s.restore()
	}
	for _, s := range open {
		s.empty()
	}
	for _, s := range append(open, back...) {
		s.sum()
	}
	return r
}

// holds reports whether something is kept stopped on a node.
func (r *round) holds(node string) bool {
	return slices.ContainsFunc(r.on[node], func(t *thing) bool { return t.as.Spec.Evict != nil && t.as.Spec.Evict.Stay })
}

// sheet is one host's part of a round.
type sheet struct {
	*round
	api.DrainSpec
	node    *api.Node
	old     *api.Drain
	listed  map[string]bool // UIDs in Moves
	reasons map[string][]api.Ref
	order   []string // of reasons, as they came
	busy    bool     // something is on its way, or begins now
	idle    int      // would go, but for the pace
}

// sheet takes up what was written last, or begins anew with another wish.
func (r *round) sheet(n *api.Node, old *api.Drain) *sheet {
	s := &sheet{round: r, node: n, old: old, listed: map[string]bool{}, reasons: map[string][]api.Ref{}}
	bySize(r.on[n.Name])
	m := n.Spec.Maintenance
	if old != nil {
		s.DrainSpec = api.Clone(old).Spec
	}
	again := m != nil && (old == nil || s.State == api.DrainReturning || s.State == api.DrainRestored || !m.Since.Equal(s.Since))
	if again || old == nil {
		was := s.Moves
		s.DrainSpec = api.DrainSpec{StartedAt: r.now}
		for _, x := range was { // what did not come back meanwhile is still this host's
			if x.State != api.DrainMoveReturned && x.State != api.DrainMoveStays {
				s.Moves = append(s.Moves, x)
			}
		}
	}
	if m != nil {
		s.Mode, s.Leave, s.Why, s.Since = m.Mode, m.Leave, m.Why, m.Since
	} else if s.Mode == "" {
		s.Mode = "drain"
	}
	s.Total, s.Moved, s.UnderWay, s.Left, s.Kept, s.Stopped, s.Returned = 0, 0, 0, 0, 0, 0, 0
	return s
}

// follow finds out what has become of what was asked to leave.
func (s *sheet) follow() {
	kept := s.Moves[:0:0]
	for _, m := range s.Moves {
		t := s.byUID[m.UID]
		if t == nil || t.in.DeletedAt != nil {
			continue // it is gone
		}
		if s.look(&m, t) {
			s.listed[m.UID] = true
			kept = append(kept, m)
		}
	}
	s.Moves = kept
	for _, t := range s.on[s.node.Name] {
		switch e := t.as.Spec.Evict; {
		case e == nil || t.in.DeletedAt != nil:
		case e.Stay && !t.halted():
			s.UnderWay++
			s.begin(t)
		case !e.Stay && !s.listed[t.in.UID] && s.node.Spec.Maintenance != nil: // others asked it to go
			s.note(t, e.To)
		}
	}
}

// begin counts something that is on its way, if anybody is there to do it.
func (s *sheet) begin(t *thing) {
	s.under++
	if t.as.Spec.Node == s.node.Name && !s.node.Ready() {
		s.waits(t, notReady)
		return
	}
	s.busy = true
}

const notReady = "the host is not ready: nothing can be stopped there"

// look brings one move up to date; false when it is none: the instance is here as if nothing had been.
func (s *sheet) look(m *api.DrainMove, t *thing) bool {
	a := &t.as.Spec
	late := s.now.Sub(m.At) > slow
	switch m.State {
	case api.DrainMoveMoving:
		switch {
		case a.Node == s.node.Name && (a.Evict == nil || a.Evict.Stay):
			return false
		case a.Node == s.node.Name:
		case a.Node != "" && (t.up() || t.over() || late):
			m.State, m.To, m.At = api.DrainMoveMoved, a.Node, s.now
		}
	case api.DrainMoveMoved:
		if a.Node == s.node.Name && a.Evict == nil {
			return false // it came back by itself
		}
	case api.DrainMoveReturning:
		switch {
		case a.Evict != nil && a.Node != s.node.Name:
		case a.Node == s.node.Name && (t.up() || t.over() || late):
			m.State, m.At = api.DrainMoveReturned, s.now
		case a.Node == "" && late:
			m.State, m.Note = api.DrainMoveStays, "found no place within "+slow.String()
		case a.Node == m.To && (a.Decision == nil || a.Decision.At.Before(m.At)):
			m.State = api.DrainMoveMoved // it was never asked to leave
		case a.Node != "" && a.Node != s.node.Name:
			m.State, m.Note, m.To = api.DrainMoveStays, "it was placed on "+a.Node+" instead", a.Node
		}
	}
	if s.moving(m) {
		s.begin(t)
	}
	return true
}

func (s *sheet) moving(m *api.DrainMove) bool {
	return (m.State == api.DrainMoveMoving || m.State == api.DrainMoveReturning) && s.now.Sub(m.At) <= slow
}

// note lists a move that begins.
func (s *sheet) note(t *thing, to string) {
	s.begin(t)
	if len(s.Moves) >= maxMoves {
		return
	}
	s.listed[t.in.UID] = true
	s.Moves = append(s.Moves, api.DrainMove{Instance: t.ref(), UID: t.in.UID, From: s.node.Name, To: to, State: api.DrainMoveMoving, At: s.now})
}

// waits notes why something is still there.
func (s *sheet) waits(t *thing, why string) {
	if s.reasons[why] == nil {
		s.order = append(s.order, why)
	}
	s.reasons[why] = append(s.reasons[why], t.ref())
}

// empty decides what leaves the host now.
func (s *sheet) empty() {
	var last []*thing // to be stopped here when nothing else is left
	for _, t := range s.on[s.node.Name] {
		e := t.as.Spec.Evict
		switch {
		case t.in.DeletedAt != nil:
			if t.runs() {
				s.Left++
				s.waits(t, "is being removed")
			}
		case e != nil && e.Stay:
			s.held(t)
		case e != nil: // on its way; listed, and counted there
		case t.over():
		default:
			s.Left++
			if s.leaves(t) {
				last = append(last, t)
			}
		}
	}
	if s.busy || s.idle > 0 || len(s.order) > 0 {
		return
	}
	slices.Reverse(last) // what matters most runs longest
	for _, t := range last {
		s.halt(t)
	}
}

// held looks at what is kept stopped here.
func (s *sheet) held(t *thing) {
	if !t.halted() {
		return // counted already
	}
	if why := t.in.BoundTo(s.node.Name); s.Leave && why != "" {
		s.acts = append(s.acts, act{as: t.as, node: s.node})
		s.busy = true
		return
	} else if why != "" || t.over() || s.under >= s.atOnce {
		s.Stopped++
		return
	}
	// It was stopped for want of room: perhaps there is some now.
	if to := s.find(t); to != "" {
		s.send(t, to)
		return
	}
	s.Stopped++
}

// leaves decides about something that runs here. last: it is to be stopped here, at the end.
func (s *sheet) leaves(t *thing) (last bool) {
	if t.in.PerNode() {
		s.Kept++
		return false
	}
	why := t.in.BoundTo(s.node.Name)
	if why != "" && s.Leave {
		s.Kept++
		return false
	}
	if !s.node.Ready() {
		s.waits(t, notReady)
		return false
	}
	if until := s.node.Spec.Maintenance.WaitsUntil(s.StartedAt); t.in.Spec.RunsToEnd() && s.now.Before(until) {
		s.waits(t, "runs to its end, and is waited for until "+until.UTC().Format("2006-01-02 15:04 MST"))
		return false
	}
	switch {
	case why != "":
		return true
	case s.under >= s.atOnce:
		s.idle++
		return false
	}
	if why := s.spares(t); why != "" && s.Mode != "evacuate" {
		s.waits(t, why)
		return false
	}
	to := s.find(t)
	if to == "" {
		if s.Mode == "evacuate" {
			if s.Leave {
				s.Kept++
				return false
			}
			return true
		}
		s.waits(t, "no other host can run it: "+s.refusal(t))
		return false
	}
	s.Left--
	s.send(t, to)
	return false
}

// spares says which budget does not let something go now; "" when none minds.
func (s *sheet) spares(t *thing) string {
	if n, by, bounded := s.view.Spare(t.item); bounded && n < 1 {
		return fmt.Sprintf("disruption budget %s/%s spares none now", by.Tenant, by.Name)
	}
	return ""
}

// find gives the host something would go to, "" when there is none, and leaves the view as it was.
func (s *sheet) find(t *thing) string {
	was, alloc := s.view.Where(t.in.UID), s.view.Alloc(t.in.UID)
	gone := t.as.Spec.Evict != nil
	s.view.Unplace(t.in.UID)
	pl := s.planner.Fits(t.item)
	if pl.Node != "" && gang(t) && s.view.Keeps(t.item, s.keep) != "" {
		pl.Node = "" // placement would not give it the room
	}
	s.view.Place(t.item, was, alloc)
	if gone {
		s.view.Leaves(t.in.UID)
	}
	return pl.Node
}

// refusal is the reason most hosts gave.
func (s *sheet) refusal(t *thing) string {
	was, alloc := s.view.Where(t.in.UID), s.view.Alloc(t.in.UID)
	s.view.Unplace(t.in.UID)
	d := s.planner.Decide(t.item).Decision
	s.view.Place(t.item, was, alloc)
	best := api.Refusal{Reason: "none is there"}
	for _, x := range d.Refusals {
		if x.Reason != s.node.Closed() && x.Nodes > best.Nodes {
			best = x
		}
	}
	return best.Reason
}

func gang(t *thing) bool { return t.in.Spec.Placement != nil && t.in.Spec.Placement.Gang != nil }

// send asks something to leave for another host, and takes the room there.
func (s *sheet) send(t *thing, to string) {
	s.view.Unplace(t.in.UID)
	s.view.Place(t.item, to, s.chain.Pick(s.view.Node(to), t.item))
	s.view.Leaves(t.in.UID)
	e := &api.Eviction{At: s.now, Reason: s.reason(), To: to}
	if gang(t) {
		e.To = "" // a gang is placed by its own rules
	}
	s.acts = append(s.acts, act{as: t.as, node: s.node, evict: e})
	s.note(t, e.To)
}

// halt asks something to stop where it is.
func (s *sheet) halt(t *thing) {
	if s.under >= s.atOnce {
		s.idle++
		return
	}
	if why := s.spares(t); why != "" && s.Mode != "evacuate" {
		s.waits(t, why)
		return
	}
	s.view.Leaves(t.in.UID)
	s.acts = append(s.acts, act{as: t.as, node: s.node, evict: &api.Eviction{At: s.now, Reason: s.reason(), Stay: true}})
	s.Left--
	s.UnderWay++
	s.under++
	s.busy = true
}

func (s *sheet) reason() string {
	why := s.node.Name + " is in maintenance"
	if s.Why != "" {
		why += ": " + s.Why
	}
	return why
}

// restore decides what starts again here, and what comes back.
func (s *sheet) restore() {
	for _, t := range s.on[s.node.Name] {
		if e := t.as.Spec.Evict; e == nil || !e.Stay || t.in.DeletedAt != nil {
			continue
		}
		s.busy = true
		if t.halted() { // while its agent stops it, a change of mind would be taken for a failure
			s.acts = append(s.acts, act{as: t.as, node: s.node})
		}
	}
	if s.RestoreAt == nil {
		now := s.now
		s.RestoreAt = &now
	}
	away := s.node.Annotations[api.AnnotationLeftAway] == api.LeftAway(s.Since)
	order := make([]*api.DrainMove, 0, len(s.Moves))
	for i := range s.Moves {
		order = append(order, &s.Moves[i])
	}
	slices.SortStableFunc(order, func(a, b *api.DrainMove) int {
		return cmp.Compare(s.byUID[b.UID].item.Priority, s.byUID[a.UID].item.Priority)
	})
	for _, m := range order {
		if m.State == api.DrainMoveMoved {
			s.comeBack(m, s.byUID[m.UID], away)
		}
	}
}

// comeBack decides about one that left. It comes back only where nothing becomes worse
// by it: what would begin anew, or does not belong here any more, stays where it is.
func (s *sheet) comeBack(m *api.DrainMove, t *thing, away bool) {
	stay := func(why string) { m.State, m.Note = api.DrainMoveStays, why }
	switch at := t.as.Spec.Node; {
	case away:
		stay("it was to be left where it is")
	case at != m.To:
		stay("it has moved on since")
	case t.over():
		stay("it does not run")
	case t.as.Spec.Evict != nil:
		stay("it is leaving " + at + " for another reason")
	case t.in.BoundTo(at) != "":
		stay(t.in.BoundTo(at))
	case t.in.Spec.RunsToEnd():
		stay("it runs once, and would begin anew")
	case gang(t):
		stay("it belongs to a gang")
	case !s.node.Ready():
		s.awaits(m, t, "the host is not ready")
	case s.under >= s.atOnce:
		s.idle++
	case !t.up():
		s.awaits(m, t, "is not up where it is now")
	default:
		n := s.view.Node(s.node.Name)
		if why := s.admits(t, n); why != "" {
			stay(why)
			return
		}
		if why := s.spares(t); why != "" { // to come back is never urgent
			s.awaits(m, t, why)
			return
		}
		s.view.Unplace(t.in.UID)
		s.view.Place(t.item, n.Name, s.chain.Pick(n, t.item))
		s.view.Leaves(t.in.UID)
		s.acts = append(s.acts, act{as: t.as, node: s.node, evict: &api.Eviction{At: s.now, Reason: "goes back to " + n.Name + ", which is restored", To: n.Name}})
		m.State, m.At = api.DrainMoveReturning, s.now
		s.under++
		s.busy = true
	}
}

// restorePatience is how long is waited for a chance to bring something back.
const restorePatience = time.Hour

// awaits is waits for something that is to come back; after a while it may stay.
func (s *sheet) awaits(m *api.DrainMove, t *thing, why string) {
	if s.now.Sub(*s.RestoreAt) > restorePatience {
		m.State, m.Note = api.DrainMoveStays, why
		return
	}
	s.waits(t, why)
}

// sum writes down how far it is.
func (s *sheet) sum() {
	for i := range s.Moves {
		switch m := &s.Moves[i]; m.State {
		case api.DrainMoveMoving, api.DrainMoveReturning:
			s.UnderWay++
			if !s.moving(m) {
				s.waits(s.byUID[m.UID], s.stuck(m))
			}
		case api.DrainMoveReturned:
			s.Returned++
		default:
			s.Moved++
		}
	}
	s.Total = s.Moved + s.UnderWay + s.Left + s.Stopped + s.Returned
	s.Waiting = nil
	for _, why := range s.order {
		refs := s.reasons[why]
		s.Waiting = append(s.Waiting, api.DrainReason{Reason: why, Count: len(refs), Instances: refs[:min(len(refs), maxNamed)]})
	}
	was := s.State
	working := s.busy || s.idle > 0
	switch restoring := s.node.Spec.Maintenance == nil; {
	case restoring && (working || len(s.order) > 0):
		s.State = api.DrainReturning
	case restoring:
		s.State = api.DrainRestored
	case working:
		s.State = api.DrainMoving
	case len(s.order) > 0:
		s.State = api.DrainWaiting
	default:
		s.State = api.DrainDone
	}
	over := s.State == api.DrainDone || s.State == api.DrainRestored
	switch {
	case !over:
		s.EndedAt = nil
	case was != s.State || s.EndedAt == nil:
		now := s.now
		s.EndedAt = &now
	}
	next := &api.Drain{Head: api.Head{K: api.KindDrain, Meta: api.Meta{Name: s.node.Name, CreatedAt: &s.StartedAt}}, Spec: s.DrainSpec}
	if s.old != nil {
		next.Head = s.old.Head
	}
	s.out = append(s.out, next)
}

// stuck says what a move that takes long waits for.
func (s *sheet) stuck(m *api.DrainMove) string {
	if s.byUID[m.UID].as.Spec.Node == "" {
		return "has left, and has found no place yet"
	}
	return "was asked to leave, and has not stopped yet"
}

// keepRestored is how long it is told how the restoring of a host went.
const keepRestored = 24 * time.Hour
