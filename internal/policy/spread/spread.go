// Package spread keeps instances with equal labels evenly over hosts, racks, zones
// or regions, and enforces maxPerNode.
package spread

import (
	"fmt"

	"atoll/api"
	"atoll/internal/policy"
)

// Even is filter and scorer.
type Even struct{}

// New makes it.
func New() Even { return Even{} }

// Name is "spread".
func (Even) Name() string { return "spread" }

// Check refuses a node that would exceed a maximal skew or maxPerNode.
func (Even) Check(v *policy.View, it *policy.Item) *policy.Check {
	p := it.Spec.Placement
	if p == nil || p.MaxPerNode == 0 && !limited(p) {
		return nil
	}
	g := v.Siblings(it)
	c := &policy.Check{Node: func(n *policy.Node) string {
		if have := g.On(n); p.MaxPerNode > 0 && have >= p.MaxPerNode {
			return fmt.Sprintf("has %d of these already, maxPerNode is %d", have, p.MaxPerNode)
		}
		return ahead(g, p, n.Place, true)
	}}
	for _, t := range p.Spread {
		l := policy.LevelOf(t.Topology)
		switch {
		case t.MaxSkew <= 0:
		case l == policy.Host:
			c.Epoch = func() uint64 { least, _ := g.Range(policy.Host); return uint64(least) }
		default:
			c.Level = policy.Nearer(c.Level, l)
			c.In = func(d policy.Place) string { return ahead(g, p, d, false) }
		}
	}
	return c
}

func limited(p *api.Placement) bool {
	for _, t := range p.Spread {
		if t.MaxSkew > 0 {
			return true
		}
	}
	return false
}

func ahead(g *policy.Group, p *api.Placement, d policy.Place, host bool) string {
	for _, t := range p.Spread {
		l := policy.LevelOf(t.Topology)
		if t.MaxSkew <= 0 || (l == policy.Host) != host {
			continue
		}
		if least, _ := g.Range(l); g.In(d, l)+1-least > t.MaxSkew {
			return fmt.Sprintf("would be more than %d ahead of the emptiest %s", t.MaxSkew, t.Topology)
		}
	}
	return ""
}

// Grade is 1 for the emptiest domain and less for fuller ones. Without terms,
// siblings on the same host count a little, so copies part by themselves.
func (Even) Grade(v *policy.View, it *policy.Item) *policy.Grade {
	p := it.Spec.Placement
	if p == nil || len(p.Spread) == 0 {
		if len(it.Labels) == 0 {
			return nil
		}
		g := v.Siblings(it)
		return &policy.Grade{Node: func(n *policy.Node) float64 { return 1 / float64(1+g.On(n)) }}
	}
	g := v.Siblings(it)
	share := 1 / float64(len(p.Spread))
	sum := func(d policy.Place, host bool) float64 {
		s := 0.0
		for _, t := range p.Spread {
			if l := policy.LevelOf(t.Topology); (l == policy.Host) == host {
				least, _ := g.Range(l)
				s += share / float64(max(1+g.In(d, l)-least, 1)) // a closed domain may be below the least of the open ones
			}
		}
		return s
	}
	gr := &policy.Grade{Node: func(n *policy.Node) float64 { return sum(n.Place, true) }}
	for _, t := range p.Spread {
		if l := policy.LevelOf(t.Topology); l == policy.Host {
			gr.Epoch = func() uint64 { least, _ := g.Range(policy.Host); return uint64(least) }
		} else {
			gr.Level = policy.Nearer(gr.Level, l)
			gr.In = func(d policy.Place) float64 { return sum(d, false) }
		}
	}
	return gr
}
