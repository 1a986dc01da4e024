// Package binpack prefers nodes that are fuller after the placement, and evenly
// full over CPU and memory, so that large instances still find room elsewhere.
package binpack

import (
	"math"

	"atoll/internal/policy"
)

// Pack is the scorer.
type Pack struct{}

// New makes it.
func New() Pack { return Pack{} }

// Name is "fits".
func (Pack) Name() string { return "fits" }

// Grade is the mean fill of CPU and memory, less their difference.
func (Pack) Grade(_ *policy.View, it *policy.Item) *policy.Grade {
	return &policy.Grade{Node: func(n *policy.Node) float64 {
		c := fill(n, it, policy.CPU)
		m := fill(n, it, policy.Memory)
		return max((c+m)/2-math.Abs(c-m)/4, 0)
	}}
}

func fill(n *policy.Node, it *policy.Item, i int) float64 {
	if n.Allocatable[i] <= 0 {
		return 0
	}
	return min(float64(n.Used[i]+it.Request[i])/float64(n.Allocatable[i]), 1)
}
