// Package resource refuses nodes whose free capacity is less than what is
// requested, in any dimension the node publishes. CPU may be promised several
// times where the node's operator allows it (api.Overcommit); nothing else is.
package resource

import (
	"fmt"
	"strings"

	"atoll/api"
	"atoll/internal/policy"
)

// Fit is the filter.
type Fit struct{ names []api.Resource }

// New makes it.
func New() *Fit { return &Fit{names: api.ResourceNames()} }

// Name is "resources".
func (*Fit) Name() string { return "resources" }

// Check compares dimension by dimension. Counted things that a node does not
// publish (volumes, snapshots …) are not its to refuse.
func (f *Fit) Check(_ *policy.View, it *policy.Item) *policy.Check {
	var asked []int
	for i, v := range it.Request {
		if v > 0 {
			asked = append(asked, i)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	return &policy.Check{
		Node: func(n *policy.Node) string {
			lack := 0
			for _, i := range asked {
				if it.Request[i] > free(n, it, i) {
					lack |= 1 << i
				}
			}
			if lack == 0 {
				return ""
			}
			return f.reason(lack)
		},
		Short: func(n *policy.Node) float64 { s, _ := shortest(n, it, asked); return s },
		Tell: func(n *policy.Node) string {
			_, i := shortest(n, it, asked)
			return fmt.Sprintf("%s %s free of %s", word(f.names[i]), api.HumanQuantity(f.names[i], max(free(n, it, i), 0)), api.HumanQuantity(f.names[i], n.Allocatable[i]))
		},
	}
}

// free is what an item could still be given of a dimension.
func free(n *policy.Node, it *policy.Item, i int) int64 {
	room := n.Room(i)
	if i == policy.CPU && it.Class == api.ClassGuaranteed {
		room = min(room, n.Allocatable[i]*int64(max(n.Object.Spec.Overcommit.Guaranteed, 100))/100-n.Guaranteed[i])
	}
	return room
}

func (f *Fit) reason(lack int) string {
	var words []string
	for i := range f.names {
		if lack&(1<<i) != 0 {
			words = append(words, word(f.names[i]))
		}
	}
	return "not enough " + strings.Join(words, " and ")
}

func word(r api.Resource) string {
	if r == api.CPU {
		return "CPU"
	}
	return string(r)
}

// shortest is the dimension that is furthest from fitting, and by what part of what is asked.
func shortest(n *policy.Node, it *policy.Item, asked []int) (worst float64, dim int) {
	for _, i := range asked {
		want, have := it.Request[i], max(free(n, it, i), 0)
		if s := float64(want-have) / float64(want); s > worst {
			worst, dim = s, i
		}
	}
	return worst, dim
}
