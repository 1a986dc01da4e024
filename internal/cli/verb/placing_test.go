package verb

import (
	"testing"

	"atoll/api"
)

// That a host was lost a moment after it was chosen is no verdict of the scheduler: the instance is placed
// anew, and must not be given up for it.
func TestLeavingIsNoRefusal(t *testing.T) {
	left := api.Decision{Refusals: []api.Refusal{{Policy: "eviction", Reason: "its host isle1 was lost", Nodes: 1, Best: "isle1"}}}
	full := api.Decision{Of: 2, Refusals: []api.Refusal{{Policy: "resources", Reason: "not enough CPU", Nodes: 2}}}
	for _, c := range []struct {
		name string
		d    api.Decision
		want bool
	}{{"it left its node", left, true}, {"no node has room", full, false}, {"there is no node", api.Decision{}, false}} {
		if got := OnTheMove(&c.d); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
