package binpack

import (
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func TestFullerAndEvenIsBetter(t *testing.T) {
	v := policy.NewView()
	for _, n := range []string{"empty", "full", "skewed"} {
		v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: n}}, Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: 1000, api.Memory: 1000}}})
	}
	item := func(uid string, cpu, mem int64) *policy.Item {
		return policy.ItemOf(&api.Instance{Head: api.Head{Meta: api.Meta{UID: uid}}, Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: cpu, api.Memory: mem}}})
	}
	v.Place(item("a", 500, 500), "full", policy.Alloc{})
	v.Place(item("b", 900, 100), "skewed", policy.Alloc{})
	it := item("c", 100, 100)
	empty, full, skewed := policytest.Score(New(), v, v.Node("empty"), it), policytest.Score(New(), v, v.Node("full"), it), policytest.Score(New(), v, v.Node("skewed"), it)
	if !(full > skewed && skewed > empty) {
		t.Fatalf("full %v skewed %v empty %v", full, skewed, empty)
	}
	if s := policytest.Score(New(), v, &policy.Node{}, it); s != 0 {
		t.Fatalf("a node without capacity scores %v", s)
	}
}

func TestKeepsItsWord(t *testing.T) { policytest.Keeps(t, New()) }
