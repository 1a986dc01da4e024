package spread

import (
	"fmt"
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func item(n int, p *api.Placement) *policy.Item {
	uid := fmt.Sprint("u", n)
	return policy.ItemOf(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, UID: uid, Tenant: "t", Labels: map[string]string{"app": "web"}}}, Spec: api.InstanceSpec{Placement: p}})
}

func pool() *policy.View {
	v := policy.NewView()
	for n, z := range map[string]string{"n1": "a", "n2": "a", "n3": "b"} {
		v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: n}}, Spec: api.NodeSpec{Zone: z}})
	}
	return v
}

func TestMaxPerNode(t *testing.T) {
	v, p := pool(), &api.Placement{MaxPerNode: 1}
	v.Place(item(1, p), "n1", policy.Alloc{})
	if policytest.Admit(New(), v, v.Node("n1"), item(2, p)) == "" || policytest.Admit(New(), v, v.Node("n2"), item(2, p)) != "" {
		t.Fatal("maxPerNode is not kept")
	}
}

func TestMaxSkew(t *testing.T) {
	v, p := pool(), &api.Placement{Spread: []api.SpreadTerm{{Topology: "zone", MaxSkew: 1}}}
	v.Place(item(1, p), "n1", policy.Alloc{})
	if policytest.Admit(New(), v, v.Node("n2"), item(2, p)) == "" {
		t.Fatal("zone a would be two ahead")
	}
	if r := policytest.Admit(New(), v, v.Node("n3"), item(2, p)); r != "" {
		t.Fatal(r)
	}
}

func TestScorePrefersTheEmptier(t *testing.T) {
	v, p := pool(), &api.Placement{Spread: []api.SpreadTerm{{Topology: "host"}}}
	v.Place(item(1, p), "n1", policy.Alloc{})
	if a, b := policytest.Score(New(), v, v.Node("n1"), item(2, p)), policytest.Score(New(), v, v.Node("n2"), item(2, p)); a >= b {
		t.Fatalf("%v %v", a, b)
	}
	if a, b := policytest.Score(New(), v, v.Node("n1"), item(2, nil)), policytest.Score(New(), v, v.Node("n2"), item(2, nil)); a >= b {
		t.Fatalf("without terms: %v %v", a, b)
	}
}

func TestKeepsItsWord(t *testing.T) { policytest.Keeps(t, New()) }
