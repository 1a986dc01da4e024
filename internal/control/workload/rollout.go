package workload

import (
	"cmp"
	"slices"
	"time"

	"atoll/api"
)

// situation is everything a step of a rollout is decided from.
type situation struct {
	now         time.Time
	wants       int // replicas; not looked at with perNode
	surge       int
	unavailable int
	recreate    bool
	paused      bool
	deadline    time.Duration
	hash        string // of the template that is wanted
	last        api.DeploymentStatus
	ones        []one
	perNode     bool
	nodes       []place // perNode: the nodes of the pool
}

// one is an instance as a rollout sees it.
type one struct {
	name      string
	hash      string
	node      string // perNode: the node it was made for
	created   time.Time
	ready     bool
	available bool
	leaving   bool // its removal was asked for
}

// place is a node as a deployment with one instance on every node sees it.
type place struct {
	name   string
	admits bool // what the template asks of a node holds
	takes  bool // it is ready and takes something new
	closed bool // it is cordoned
}

// order is an instance that is to be made.
type order struct {
	hash string
	node string // perNode: for this node
}

// decision is what follows from a situation.
type decision struct {
	create []order
	remove []string // names
	status api.DeploymentStatus
	// least is how many must be available.
	least   int
	rolling bool
	stalled bool
	again   time.Duration // look again then, even if nothing happens
}

// group is the living instances, by whether they are of the wanted template.
type group struct {
	fresh, old []one
	leaving    []one
}

func (s *situation) sorted() group {
	var g group
	for _, o := range s.ones {
		switch {
		case o.leaving:
			g.leaving = append(g.leaving, o)
		case o.hash == s.hash:
			g.fresh = append(g.fresh, o)
		default:
			g.old = append(g.old, o)
		}
	}
	slices.SortFunc(g.fresh, worstFirst)
	slices.SortFunc(g.old, worstFirst)
	return g
}

// worstFirst is the order in which instances go: what is not available, then what is not
// even ready, then the youngest.
func worstFirst(a, b one) int {
	if c := cmp.Or(boolCmp(a.available, b.available), boolCmp(a.ready, b.ready)); c != 0 {
		return c
	}
	if c := b.created.Compare(a.created); c != 0 {
		return c
	}
	return cmp.Compare(b.name, a.name)
}

func boolCmp(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func available(list []one) int {
	n := 0
	for _, o := range list {
		if o.available {
			n++
		}
	}
	return n
}

// next decides one step of a rollout. It is pure. What it keeps to: it never takes away
// an available instance when only wants-unavailable are left, it never makes more than
// wants+surge, and it does not count on new instances before they are available.
func next(s situation) decision {
	g := s.sorted()
	if s.perNode {
		return s.nextPerNode(g)
	}
	d := decision{least: s.wants - s.unavailable}
	if s.recreate {
		d.least = 0
	}
	s.progress(&d, g, s.wants)
	switch {
	case s.paused || d.stalled:
		s.hold(&d, g)
	case s.recreate:
		s.replace(&d, g)
	default:
		s.roll(&d, g)
	}
	return d
}

// progress counts, and notes how far the rollout is and since when it stands still.
func (s *situation) progress(d *decision, g group, wants int) {
	st := &d.status
	living := append(slices.Clone(g.fresh), g.old...)
	st.Hash, st.Complete, st.Revision = s.hash, s.last.Complete, s.last.Revision
	st.Desired, st.Replicas, st.Updated, st.Available = wants, len(living), len(g.fresh), available(living)
	for _, o := range living {
		if o.ready {
			st.Ready++
		}
	}
	st.Unavailable = max(wants-st.Available, 0)
	if st.Updated >= wants && available(g.fresh) >= wants && len(g.old) == 0 {
		st.Complete = s.hash
	}
	d.rolling = len(g.old) > 0 || s.hash != st.Complete
	if !d.rolling || s.paused {
		return // no deadline runs
	}
	score := st.Updated + available(g.fresh) // an old one that is lost is no progress
	st.Progress, st.ProgressAt = s.last.Progress, s.last.ProgressAt
	if s.last.Hash != s.hash || s.last.Desired != wants || st.ProgressAt == nil || score > st.Progress {
		now := s.now
		st.Progress, st.ProgressAt = score, &now
	}
	left := st.ProgressAt.Add(s.deadline).Sub(s.now)
	if d.stalled = left <= 0; !d.stalled {
		d.again = left
	}
}

// roll replaces some at a time.
func (s *situation) roll(d *decision, g group) {
	total := len(g.fresh) + len(g.old)
	for range min(s.wants-len(g.fresh), s.wants+s.surge-total) {
		d.create = append(d.create, order{hash: s.hash})
	}
	if extra := len(g.fresh) - s.wants; extra > 0 {
		d.drop(g.fresh[:extra])
		g.fresh = g.fresh[extra:]
	}
	d.trim(g, d.least)
}

// trim takes old instances away, the broken first. New ones that are not available yet
// stand for nothing: were they never to become so, least would still be kept by the old
// ones and those that did.
func (d *decision) trim(g group, least int) {
	spare := len(g.old) + available(g.fresh) - least
	d.drop(g.old[:min(max(spare, 0), len(g.old))])
}

func (d *decision) drop(list []one) {
	for _, o := range list {
		d.remove = append(d.remove, o.name)
	}
}

// replace lets all old ones go before the first new one comes.
func (s *situation) replace(d *decision, g group) {
	d.drop(g.old)
	if extra := len(g.fresh) - s.wants; extra > 0 {
		d.drop(g.fresh[:extra])
	}
	if len(g.old) > 0 || slices.ContainsFunc(g.leaving, func(o one) bool { return o.hash != s.hash }) {
		return
	}
	for range s.wants - len(g.fresh) {
		d.create = append(d.create, order{hash: s.hash})
	}
}

// held is the template that missing instances are made of while the rollout does not go
// on: the last one that worked. "": none, nothing is made.
func (s *situation) held() string {
	if s.last.Complete == "" && !s.paused {
		return s.hash
	}
	return s.last.Complete
}

// hold keeps the number of instances while a rollout is paused or stuck.
func (s *situation) hold(d *decision, g group) {
	total, hash := len(g.fresh)+len(g.old), s.held()
	most := s.wants
	if len(g.fresh) > 0 && len(g.old) > 0 {
		most += s.surge
	}
	missing := s.wants - total
	if hash != s.hash && len(g.fresh) > 0 { // those that do not come up stand for nothing
		need := d.least - len(g.old) - available(g.fresh)
		missing = max(missing, min(need, s.wants+s.surge-total))
	}
	for range missing {
		if hash != "" {
			d.create = append(d.create, order{hash: hash})
		}
	}
	if extra := total - most; extra > 0 {
		all := append(slices.Clone(g.fresh), g.old...)
		slices.SortStableFunc(all, func(a, b one) int {
			return cmp.Or(boolCmp(a.available, b.available), boolCmp(a.hash == hash, b.hash == hash))
		})
		d.drop(all[:extra])
	}
}

// nextPerNode is next for one instance on every node.
func (s *situation) nextPerNode(g group) decision {
	here, going := map[string][]one{}, map[string]bool{}
	for _, o := range append(slices.Clone(g.fresh), g.old...) {
		here[o.node] = append(here[o.node], o)
	}
	for _, o := range g.leaving {
		going[o.node] = true
	}
	d := decision{}
	var kept group
	var free []string // wanted nodes with nothing on them
	wants := 0
	for _, n := range s.nodes {
		list := here[n.name]
		slices.SortFunc(list, func(a, b one) int { // the one to keep last
			return cmp.Or(boolCmp(a.hash == s.hash, b.hash == s.hash), worstFirst(a, b))
		})
		if !n.wanted(list) {
			continue // what is there stays in here, and goes
		}
		wants++
		if len(list) == 0 {
			if !going[n.name] { // two never share a node, not even for a moment
				free = append(free, n.name)
			}
			continue
		}
		best := list[len(list)-1]
		here[n.name] = list[:len(list)-1]
		if best.hash == s.hash {
			kept.fresh = append(kept.fresh, best)
		} else {
			kept.old = append(kept.old, best)
		}
	}
	for _, o := range s.ones { // in the order they came in
		if slices.Contains(here[o.node], o) {
			d.remove = append(d.remove, o.name)
		}
	}
	slices.SortFunc(kept.old, worstFirst)
	d.least = max(wants-s.unavailable, 0)
	s.progress(&d, kept, wants)
	hash := s.hash
	if s.paused || d.stalled {
		hash = s.held()
	} else if s.recreate {
		d.drop(kept.old)
	} else {
		d.trim(kept, d.least)
	}
	for _, n := range free {
		if hash != "" {
			d.create = append(d.create, order{hash: hash, node: n})
		}
	}
	return d
}

// wanted reports whether an instance belongs on a node. What runs stays on a node that
// takes nothing new, until it has stopped there.
func (p place) wanted(here []one) bool {
	switch {
	case !p.admits:
		return false
	case len(here) == 0:
		return p.takes
	case p.closed:
		return slices.ContainsFunc(here, func(o one) bool { return o.ready })
	}
	return true
}
