// Package binpack prefers nodes that are fuller after the placement, and evenly
// full over CPU and memory, so that large instances still find room elsewhere.
package binpack

import (
	"math"

	"atoll/api"
	"atoll/internal/policy"
)

// Pack is the scorer.
type Pack struct{ cpu, memory int }

// New makes it.
func New() *Pack { return &Pack{policy.Index(api.CPU), policy.Index(api.Memory)} }

// Name is "fits".
func (*Pack) Name() string { return "fits" }

// Score is the mean fill of CPU and memory, less their difference.
func (p *Pack) Score(_ *policy.View, n *policy.Node, it *policy.Item) float64 {
	c := fill(n, it, p.cpu)
	m := fill(n, it, p.memory)
	return max((c+m)/2-math.Abs(c-m)/4, 0)
}

func fill(n *policy.Node, it *policy.Item, i int) float64 {
	if n.Allocatable[i] <= 0 {
		return 0
	}
	return min(float64(n.Used[i]+it.Request[i])/float64(n.Allocatable[i]), 1)
}
