// Package port refuses nodes on which a port to be published is taken.
package port

import (
	"slices"

	"atoll/internal/policy"
)

// Free is the filter.
type Free struct{}

// New makes it.
func New() Free { return Free{} }

// Name is "ports".
func (Free) Name() string { return "ports" }

// Check looks each port up.
func (Free) Check(_ *policy.View, it *policy.Item) *policy.Check {
	if len(it.Publish) == 0 {
		return nil
	}
	return &policy.Check{Node: func(n *policy.Node) string {
		for _, p := range it.Publish {
			if n.Published[p] == 0 {
				continue
			}
			for _, x := range n.Items {
				if slices.Contains(x.Publish, p) && x.Ref.Tenant == it.Ref.Tenant {
					return "host port " + p + " is taken by " + x.Ref.Name
				}
			}
			return "host port " + p + " is taken" // by whom is not this tenant's to know
		}
		return ""
	}}
}
