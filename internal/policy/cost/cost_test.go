package cost

import (
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func TestScores(t *testing.T) {
	v := policy.NewView()
	node := func(name, price string, idle, full int) *policy.Node {
		o := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}, Spec: api.NodeSpec{Price: price, IdleWatts: idle, MaxWatts: full}}
		o.Status.Allocatable = api.Resources{api.CPU: 4000}
		v.SetNode(o)
		return v.Node(name)
	}
	it := policy.ItemOf(&api.Instance{Head: api.Head{Meta: api.Meta{UID: "new"}}, Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: 1000}}})
	cheap, dear, silent := node("cheap", "1", 100, 300), node("dear", "4", 100, 200), node("silent", "", 0, 0)
	for _, c := range []struct {
		n    *policy.Node
		want float64
	}{{cheap, 0.8}, {dear, 0.5}, {silent, 0.5}} {
		if got := policytest.Score(NewPrice(), v, c.n, it); got != c.want {
			t.Errorf("price of %s: %v, want %v", c.n.Name, got, c.want)
		}
	}
	v.Place(policy.ItemOf(&api.Instance{Head: api.Head{Meta: api.Meta{UID: "old"}}}), "dear", policy.Alloc{})
	for _, c := range []struct {
		n    *policy.Node
		want float64
	}{{cheap, 0.5}, {dear, 0.875}, {silent, 0.5}} { // (200/4+100)/300 and (100/4)/200
		if got := policytest.Score(NewPower(), v, c.n, it); got != c.want {
			t.Errorf("power of %s: %v, want %v", c.n.Name, got, c.want)
		}
	}
}

func TestKeepsItsWord(t *testing.T) {
	policytest.Keeps(t, NewPrice())
	policytest.Keeps(t, NewPower())
}
