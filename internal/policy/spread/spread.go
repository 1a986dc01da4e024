// Package spread keeps instances with equal labels evenly over hosts, racks or
// zones, and enforces maxPerNode.
package spread

import (
	"fmt"

	"atoll/internal/policy"
)

// Even is filter and scorer.
type Even struct{}

// New makes it.
func New() Even { return Even{} }

// Name is "spread".
func (Even) Name() string { return "spread" }

// Admit refuses a node that would exceed a maximal skew or maxPerNode.
func (Even) Admit(v *policy.View, n *policy.Node, it *policy.Item) string {
	p := it.Spec.Placement
	if p == nil {
		return ""
	}
	if p.MaxPerNode > 0 {
		if have := siblings(n, it); have >= p.MaxPerNode {
			return fmt.Sprintf("has %d of these already, maxPerNode is %d", have, p.MaxPerNode)
		}
	}
	for _, t := range p.Spread {
		if t.MaxSkew <= 0 {
			continue
		}
		counts, here := count(v, n, it, t.Topology)
		least := here
		for _, c := range counts {
			least = min(least, c)
		}
		if here+1-least > t.MaxSkew {
			return fmt.Sprintf("would be more than %d ahead of the emptiest %s", t.MaxSkew, t.Topology)
		}
	}
	return ""
}

// Score is 1 for the emptiest domain, falling to 0 for the fullest. Without terms,
// siblings on the same host count a little, so copies part by themselves.
func (Even) Score(v *policy.View, n *policy.Node, it *policy.Item) float64 {
	p := it.Spec.Placement
	if p == nil || len(p.Spread) == 0 {
		return 1 / float64(1+siblings(n, it))
	}
	sum := 0.0
	for _, t := range p.Spread {
		counts, here := count(v, n, it, t.Topology)
		least, most := here, here
		for _, c := range counts {
			least, most = min(least, c), max(most, c)
		}
		if most == least {
			sum++
			continue
		}
		sum += float64(most-here) / float64(most-least)
	}
	return sum / float64(len(p.Spread))
}

// count gives the number of siblings per domain, and in the node's own.
func count(v *policy.View, n *policy.Node, it *policy.Item, level string) (map[string]int, int) {
	counts := map[string]int{}
	for _, m := range v.Nodes {
		counts[m.Domain(level)] += siblings(m, it)
	}
	return counts, counts[n.Domain(level)]
}

func siblings(n *policy.Node, it *policy.Item) int {
	if len(it.Labels) == 0 {
		return 0
	}
	c := 0
	for _, x := range n.Items {
		if x.UID != it.UID && x.Ref.Tenant == it.Ref.Tenant && same(x.Labels, it.Labels) {
			c++
		}
	}
	return c
}

func same(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}
