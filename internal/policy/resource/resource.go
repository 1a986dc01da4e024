// Package resource refuses nodes whose free capacity is less than what is
// requested, in any dimension the node publishes.
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

// Admit compares dimension by dimension. Counted things that a node does not
// publish (volumes, snapshots …) are not its to refuse.
func (f *Fit) Admit(_ *policy.View, n *policy.Node, it *policy.Item) string {
	var lack []string
	for i := range it.Request {
		if it.Request[i] > 0 && published(n, i, f.names[i]) && n.Used[i]+it.Request[i] > n.Allocatable[i] {
			lack = append(lack, word(f.names[i]))
		}
	}
	if len(lack) == 0 {
		return ""
	}
	return "not enough " + strings.Join(lack, " and ")
}

func published(n *policy.Node, i int, r api.Resource) bool {
	return n.Allocatable[i] > 0 || r == api.CPU || r == api.Memory || r == api.GPU
}

func word(r api.Resource) string {
	if r == api.CPU {
		return "CPU"
	}
	return string(r)
}

// Short names the dimension that is furthest from fitting.
func (f *Fit) Short(_ *policy.View, n *policy.Node, it *policy.Item) (float64, string) {
	worst, text := 0.0, ""
	for i, want := range it.Request {
		if want == 0 || !published(n, i, f.names[i]) {
			continue
		}
		free := max(n.Allocatable[i]-n.Used[i], 0)
		if s := float64(want-free) / float64(want); s > worst {
			worst = s
			text = fmt.Sprintf("%s %s free of %s", word(f.names[i]), api.HumanQuantity(f.names[i], free), api.HumanQuantity(f.names[i], n.Allocatable[i]))
		}
	}
	return worst, text
}
