// Package host refuses nodes that are not ready, are cordoned or tainted, lack
// the runtime an instance needs, or are not the ones it asked for.
package host

import (
	"fmt"
	"sort"

	"atoll/internal/policy"
)

// Rules is the filter.
type Rules struct{}

// New makes it.
func New() Rules { return Rules{} }

// Name is "host".
func (Rules) Name() string { return "host" }

// Admit looks at the node's own state first, then at what the instance asked for.
func (Rules) Admit(_ *policy.View, n *policy.Node, it *policy.Item) string {
	switch {
	case !n.Object.Ready():
		return "node is not ready"
	case n.Object.Spec.Cordoned:
		return "node is cordoned"
	case !n.Runtimes[string(it.Isolation)]:
		return fmt.Sprintf("no driver for isolation %s", it.Isolation)
	}
	for _, t := range n.Object.Spec.Taints {
		if !tolerated(it, t.Key, t.Value, t.Effect) {
			return fmt.Sprintf("taint %s not tolerated", t)
		}
	}
	p := it.Spec.Placement
	if p == nil {
		return ""
	}
	if p.Node != "" && p.Node != n.Name {
		return fmt.Sprintf("not the node asked for, %s", p.Node)
	}
	if p.Zone != "" && p.Zone != n.Object.Spec.Zone {
		return fmt.Sprintf("not in zone %s", p.Zone)
	}
	keys := make([]string, 0, len(p.NodeLabels))
	for k := range p.NodeLabels {
		keys = append(keys, k)
	}
	sort.Strings(keys) // the same reason every time
	for _, k := range keys {
		if n.Object.Labels[k] != p.NodeLabels[k] {
			return fmt.Sprintf("node label %s is not %s", k, p.NodeLabels[k])
		}
	}
	return ""
}

func tolerated(it *policy.Item, key, value, effect string) bool {
	if it.Spec.Placement == nil {
		return false
	}
	for _, t := range it.Spec.Placement.Tolerate {
		if t.Key == key && (t.Value == "" || t.Value == value) && (t.Effect == "" || t.Effect == effect) {
			return true
		}
	}
	return false
}
