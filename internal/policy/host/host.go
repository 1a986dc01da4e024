// Package host refuses nodes that are not ready, are cordoned, in maintenance or
// tainted, lack the runtime an instance needs, or are not the ones it asked for, and
// prefers those it wishes for.
package host

import (
	"fmt"
	"maps"
	"slices"

	"atoll/api"
	"atoll/internal/policy"
)

// Rules is filter and scorer.
type Rules struct{}

// New makes it.
func New() Rules { return Rules{} }

// Name is "host".
func (Rules) Name() string { return "host" }

// Check looks at the node's own state first, then at what the instance asked for.
func (Rules) Check(_ *policy.View, it *policy.Item) *policy.Check {
	p := it.Spec.Placement
	if p == nil {
		p = &api.Placement{}
	}
	keys := slices.Sorted(maps.Keys(p.NodeLabels)) // the same reason every time
	isolation, spans := string(it.Isolation), it.Spec.OnNetworks()
	return &policy.Check{Node: func(n *policy.Node) string {
		switch spec := &n.Object.Spec; {
		case !n.Object.Ready():
			return "node is not ready"
		case n.Object.Closed() != "":
			return n.Object.Closed()
		case !n.Runtimes[isolation]:
			return "no driver for isolation " + isolation
		case spans && !n.Spans:
			return "host takes no part in networks of tenants"
		case p.Node != "" && p.Node != n.Name:
			return "not the node asked for, " + p.Node
		case p.Zone != "" && p.Zone != spec.Zone:
			return "not in zone " + p.Zone
		}
		for _, t := range n.Object.Spec.Taints {
			if !tolerated(p, t) {
				return fmt.Sprintf("taint %s not tolerated", t)
			}
		}
		for _, k := range keys {
			if n.Object.Labels[k] != p.NodeLabels[k] {
				return fmt.Sprintf("node label %s is not %s", k, p.NodeLabels[k])
			}
		}
		for _, t := range p.Nodes {
			if t.Weight == 0 && !t.Holds(n.Object.Labels) {
				return fmt.Sprintf("node label: %s not met", t)
			}
		}
		return ""
	}}
}

// Grade is the weighted share of the wishes for labels that a node meets.
func (Rules) Grade(_ *policy.View, it *policy.Item) *policy.Grade {
	if it.Spec.Placement == nil {
		return nil
	}
	var wishes []api.NodeTerm
	all := 0
	for _, t := range it.Spec.Placement.Nodes {
		if t.Weight > 0 {
			wishes, all = append(wishes, t), all+t.Weight
		}
	}
	if all == 0 {
		return nil
	}
	return &policy.Grade{Node: func(n *policy.Node) float64 {
		met := 0
		for _, t := range wishes {
			if t.Holds(n.Object.Labels) {
				met += t.Weight
			}
		}
		return float64(met) / float64(all)
	}}
}

func tolerated(p *api.Placement, taint api.Taint) bool {
	return slices.ContainsFunc(p.Tolerate, func(t api.Taint) bool {
		return t.Key == taint.Key && (t.Value == "" || t.Value == taint.Value) && (t.Effect == "" || t.Effect == taint.Effect)
	})
}
