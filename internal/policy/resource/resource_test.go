package resource

import (
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func TestAdmitAndShort(t *testing.T) {
	v := policy.NewView()
	v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "n"}}, Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: 2000, api.Memory: 4 << 30, api.Instances: 2}}})
	place := func(uid string, r api.Resources) *policy.Item {
		return policy.ItemOf(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, UID: uid, Tenant: "t"}}, Spec: api.InstanceSpec{Requests: r}})
	}
	v.Place(place("a", api.Resources{api.CPU: 1500}), "n", policy.Alloc{})
	for _, c := range []struct {
		req  api.Resources
		want string
	}{
		{api.Resources{api.CPU: 500}, ""},
		{nil, ""},
		{api.Resources{api.CPU: 501}, "not enough CPU"},
		{api.Resources{api.CPU: 501, api.Memory: 5 << 30}, "not enough CPU and memory"},
		{api.Resources{api.GPU: 1}, "not enough gpu"},
		{api.Resources{api.IOPS: 100}, ""}, // the node does not publish it
	} {
		if got := policytest.Admit(New(), v, v.Nodes[0], place("b", c.req)); got != c.want {
			t.Errorf("%v: got %q, want %q", c.req, got, c.want)
		}
	}
	c := New().Check(v, place("b", api.Resources{api.CPU: 1000}))
	if s, text := c.Short(v.Nodes[0]), c.Tell(v.Nodes[0]); s != 0.5 || text != "CPU 500m free of 2" {
		t.Errorf("short by %v, %q", s, text)
	}
	v.Place(place("c", nil), "n", policy.Alloc{})
	if got := policytest.Admit(New(), v, v.Nodes[0], place("d", nil)); got != "not enough instances" {
		t.Errorf("got %q", got)
	}
}

func TestKeepsItsWord(t *testing.T) { policytest.Keeps(t, New()) }
