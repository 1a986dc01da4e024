// Package image prefers nodes that have the image already.
package image

import "atoll/internal/policy"

// Locality is the scorer.
type Locality struct{}

// New makes it.
func New() Locality { return Locality{} }

// Name is "image here".
func (Locality) Name() string { return "image here" }

// Grade is 1 where the image is, else 0. Nodes publish references and digests.
func (Locality) Grade(_ *policy.View, it *policy.Item) *policy.Grade {
	if it.Spec.Image == "" {
		return nil
	}
	own := it.Ref.Tenant + "|" + it.Spec.Image
	return &policy.Grade{Node: func(n *policy.Node) float64 {
		if n.Images[it.Spec.Image] || n.Images[own] {
			return 1
		}
		return 0
	}}
}
