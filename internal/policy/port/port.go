// Package port refuses nodes on which a port to be published is taken.
package port

import (
	"atoll/internal/policy"
)

// Free is the filter.
type Free struct{}

// New makes it.
func New() Free { return Free{} }

// Name is "ports".
func (Free) Name() string { return "ports" }

// Admit looks each port up.
func (Free) Admit(_ *policy.View, n *policy.Node, it *policy.Item) string {
	for _, p := range it.Publish {
		if !n.Published[p] {
			continue
		}
		for _, x := range n.Items {
			for _, q := range x.Publish {
				if q == p {
					return "host port " + p + " is taken by " + x.Ref.Tenant + "/" + x.Ref.Name
				}
			}
		}
		return "host port " + p + " is taken"
	}
	return ""
}
