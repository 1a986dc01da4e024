// Package affinity keeps instances near others or away from them, at any level of
// topology. Terms name labels of instances of the same tenant. Required terms
// refuse nodes, preferred terms score them.
package affinity

import (
	"fmt"

	"atoll/api"
	"atoll/internal/policy"
)

// Terms is filter and scorer.
type Terms struct{}

// New makes it.
func New() Terms { return Terms{} }

// Name is "affinity".
func (Terms) Name() string { return "affinity" }

// term is an api.AffinityTerm with those it names counted.
type term struct {
	level  policy.Level
	group  *policy.Group
	near   bool
	first  bool // it names itself: the first of all may run anywhere
	reason string
}

// meets tells whether a place is as the term wants it.
func (t *term) meets(p policy.Place) bool {
	some := t.group.In(p, t.level) > 0
	if t.near {
		return some || t.first && t.group.Total() == 0
	}
	return !some
}

// Check refuses where required terms are not met, those of the instances already
// there too: who asked to avoid app=web keeps a later app=web away as well.
func (Terms) Check(v *policy.View, it *policy.Item) *policy.Check {
	terms := compile(v, it, false)
	for _, a := range v.Avoiders(it.Ref.Tenant) {
		if policy.Matches(it.Labels, a.Labels) {
			terms = append(terms, &term{level: a.Level, group: a.Group, reason: fmt.Sprintf("something in the same %s wants to avoid %s", a.Level, api.FormatLabels(a.Labels))})
		}
	}
	if len(terms) == 0 {
		return nil
	}
	c := &policy.Check{Node: func(n *policy.Node) string { return refuse(terms, n.Place, true) }}
	for _, t := range terms {
		if t.level != policy.Host {
			c.Level = policy.Nearer(c.Level, t.level)
			c.In = func(p policy.Place) string { return refuse(terms, p, false) }
		}
		if t.first {
			c.Epoch = func() uint64 { return empties(terms) }
		}
	}
	return c
}

// empties says, bit by bit, which terms name nobody yet.
func empties(terms []*term) uint64 {
	var e uint64
	for i, t := range terms {
		if t.group.Total() == 0 {
			e |= 1 << (i % 64)
		}
	}
	return e
}

func refuse(terms []*term, p policy.Place, host bool) string {
	for _, t := range terms {
		if (t.level == policy.Host) == host && !t.meets(p) {
			return t.reason
		}
	}
	return ""
}

// Grade is the share of preferred terms a node meets.
func (Terms) Grade(v *policy.View, it *policy.Item) *policy.Grade {
	terms := compile(v, it, true)
	if len(terms) == 0 {
		return nil
	}
	share := func(p policy.Place, host bool) float64 {
		met := 0
		for _, t := range terms {
			if (t.level == policy.Host) == host && t.meets(p) {
				met++
			}
		}
		return float64(met) / float64(len(terms))
	}
	g := &policy.Grade{Node: func(n *policy.Node) float64 { return share(n.Place, true) }, Epoch: func() uint64 { return empties(terms) }}
	for _, t := range terms {
		if t.level != policy.Host {
			g.Level = policy.Nearer(g.Level, t.level)
			g.In = func(p policy.Place) float64 { return share(p, false) }
		}
	}
	return g
}

func compile(v *policy.View, it *policy.Item, preferred bool) []*term {
	p := it.Spec.Placement
	if p == nil {
		return nil
	}
	var out []*term
	add := func(list []api.AffinityTerm, near bool, format string) {
		for _, t := range list {
			if t.Preferred == preferred {
				l := policy.LevelOf(t.Topology)
				out = append(out, &term{level: l, group: v.Matching(it.Ref.Tenant, t.Labels), near: near, first: near && policy.Matches(it.Labels, t.Labels),
					reason: fmt.Sprintf(format, api.FormatLabels(t.Labels), l)})
			}
		}
	}
	add(p.Avoid, false, "%s in the same %s must be avoided")
	add(p.Near, true, "no %s in the same %s")
	return out
}
