// Package cost prefers nodes that cost less: in money, by the price of a core, and
// in power, by the watts that one more instance there adds. Nodes that do not say
// are in the middle; where none says, there is nothing to prefer.
package cost

import (
	"slices"
	"strconv"

	"atoll/internal/policy"
)

// Price is the scorer of money.
type Price struct{}

// NewPrice makes it.
func NewPrice() Price { return Price{} }

// Name is "price".
func (Price) Name() string { return "price" }

// Grade is 1 for a host for nothing and halves where a core costs 1 an hour.
func (Price) Grade(v *policy.View, _ *policy.Item) *policy.Grade {
	if !slices.ContainsFunc(v.Nodes, func(n *policy.Node) bool { return n.Object.Spec.Price != "" }) {
		return nil
	}
	return &policy.Grade{Node: func(n *policy.Node) float64 {
		price, err := strconv.ParseFloat(n.Object.Spec.Price, 64)
		if err != nil || n.Allocatable[policy.CPU] <= 0 {
			return 0.5
		}
		return 1 / (1 + price*1000/float64(n.Allocatable[policy.CPU]))
	}}
}

// Power is the scorer of watts.
type Power struct{}

// NewPower makes it.
func NewPower() Power { return Power{} }

// Name is "power".
func (Power) Name() string { return "power" }

// Grade is 1 less the share of the host's full power that the instance would add: on
// an empty host that is also what it draws idle, as it could be switched off.
func (Power) Grade(v *policy.View, it *policy.Item) *policy.Grade {
	if !slices.ContainsFunc(v.Nodes, func(n *policy.Node) bool { return n.Object.Spec.MaxWatts > 0 }) {
		return nil
	}
	return &policy.Grade{Node: func(n *policy.Node) float64 {
		idle, full := float64(n.Object.Spec.IdleWatts), float64(n.Object.Spec.MaxWatts)
		if full <= 0 || n.Allocatable[policy.CPU] <= 0 {
			return 0.5
		}
		more := (full - idle) * min(float64(it.Request[policy.CPU])/float64(n.Allocatable[policy.CPU]), 1)
		if len(n.Items) == 0 {
			more += idle
		}
		return 1 - min(more/full, 1)
	}}
}
