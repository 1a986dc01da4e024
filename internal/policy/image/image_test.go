package image

import (
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func TestWhereTheImageIsCountsPerTenant(t *testing.T) {
	v := policy.NewView()
	v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "n"}}, Status: api.NodeStatus{Images: []string{"busybox", "acme|private"}}})
	for _, c := range []struct {
		tenant, image string
		want          float64
	}{{"acme", "busybox", 1}, {"demo", "busybox", 1}, {"acme", "private", 1}, {"demo", "private", 0}, {"acme", "else", 0}} {
		it := policy.ItemOf(&api.Instance{Head: api.Head{Meta: api.Meta{Tenant: c.tenant}}, Spec: api.InstanceSpec{Image: c.image}})
		if got := policytest.Score(New(), v, v.Nodes[0], it); got != c.want {
			t.Errorf("%s %s: %v", c.tenant, c.image, got)
		}
	}
}

func TestKeepsItsWord(t *testing.T) { policytest.Keeps(t, New()) }
