// Package image prefers nodes that have the image already.
package image

import "atoll/internal/policy"

// Locality is the scorer.
type Locality struct{}

// New makes it.
func New() Locality { return Locality{} }

// Name is "image here".
func (Locality) Name() string { return "image here" }

// Score is 1 where the image is, else 0. Nodes publish references and digests.
func (Locality) Score(_ *policy.View, n *policy.Node, it *policy.Item) float64 {
	if n.Images[it.Spec.Image] || n.Images[it.Ref.Tenant+"|"+it.Spec.Image] {
		return 1
	}
	return 0
}
