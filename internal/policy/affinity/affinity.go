// Package affinity keeps instances near others or away from them, at any level of
// topology. Terms name labels of instances of the same tenant. Required terms
// refuse nodes, preferred terms score them.
package affinity

import (
	"fmt"
	"sort"
	"strings"

	"atoll/api"
	"atoll/internal/policy"
)

// Terms is filter and scorer.
type Terms struct{}

// New makes it.
func New() Terms { return Terms{} }

// Name is "affinity".
func (Terms) Name() string { return "affinity" }

// Admit checks required terms, those of the instances already there too: who
// asked to avoid app=web keeps a later app=web away as well.
func (Terms) Admit(v *policy.View, n *policy.Node, it *policy.Item) string {
	if p := it.Spec.Placement; p != nil {
		for _, t := range p.Avoid {
			if !t.Preferred && anyIn(v, n, it, t) {
				return fmt.Sprintf("%s in the same %s must be avoided", labels(t.Labels), level(t))
			}
		}
		for _, t := range p.Near {
			if !t.Preferred && !anyIn(v, n, it, t) && !firstOfItself(v, it, t) {
				return fmt.Sprintf("no %s in the same %s", labels(t.Labels), level(t))
			}
		}
	}
	for _, x := range n.Items {
		if x.Spec.Placement == nil || x.Ref.Tenant != it.Ref.Tenant || x.UID == it.UID {
			continue
		}
		for _, t := range x.Spec.Placement.Avoid {
			if !t.Preferred && has(it.Labels, t.Labels) {
				return fmt.Sprintf("%s there wants to avoid %s", x.Ref.Name, labels(t.Labels))
			}
		}
	}
	return ""
}

// Score is the share of preferred terms the node meets; 0.5 when there are none.
func (Terms) Score(v *policy.View, n *policy.Node, it *policy.Item) float64 {
	p := it.Spec.Placement
	if p == nil {
		return 0.5
	}
	met, all := 0, 0
	for _, t := range p.Avoid {
		if t.Preferred {
			all++
			if !anyIn(v, n, it, t) {
				met++
			}
		}
	}
	for _, t := range p.Near {
		if t.Preferred {
			all++
			if anyIn(v, n, it, t) {
				met++
			}
		}
	}
	if all == 0 {
		return 0.5
	}
	return float64(met) / float64(all)
}

// anyIn reports whether a matching instance of the tenant is in the node's domain.
func anyIn(v *policy.View, n *policy.Node, it *policy.Item, t api.AffinityTerm) bool {
	d := n.Domain(level(t))
	for _, m := range v.Nodes {
		if m != n && (level(t) == "host" || m.Domain(level(t)) != d) {
			continue
		}
		for _, x := range m.Items {
			if x.Ref.Tenant == it.Ref.Tenant && x.UID != it.UID && has(x.Labels, t.Labels) {
				return true
			}
		}
	}
	return false
}

// firstOfItself lets the first of a group that wants to be near itself start anywhere.
func firstOfItself(v *policy.View, it *policy.Item, t api.AffinityTerm) bool {
	if !has(it.Labels, t.Labels) {
		return false
	}
	for _, m := range v.Nodes {
		for _, x := range m.Items {
			if x.Ref.Tenant == it.Ref.Tenant && x.UID != it.UID && has(x.Labels, t.Labels) {
				return false
			}
		}
	}
	return true
}

func level(t api.AffinityTerm) string {
	if t.Topology == "" {
		return "host"
	}
	return t.Topology
}

func has(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

func labels(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}
