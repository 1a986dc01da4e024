package host

import (
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func node(edit func(*api.Node)) *policy.Node {
	o := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "n1", Labels: map[string]string{"disk": "ssd"}}}, Spec: api.NodeSpec{Zone: "a"},
		Status: api.NodeStatus{Conditions: []api.Condition{{Type: "Ready", Status: true}}, Drivers: []api.Capability{{Type: "runtime", Name: "container"}}}}
	edit(o)
	v := policy.NewView()
	v.SetNode(o)
	return v.Nodes[0]
}

func TestAdmit(t *testing.T) {
	ok := func(*api.Node) {}
	for name, c := range map[string]struct {
		node func(*api.Node)
		spec api.InstanceSpec
		want string
	}{
		"plain":        {ok, api.InstanceSpec{}, ""},
		"not ready":    {func(n *api.Node) { n.Status.Conditions = nil }, api.InstanceSpec{}, "not ready"},
		"cordoned":     {func(n *api.Node) { n.Spec.Cordoned = true }, api.InstanceSpec{}, "cordoned"},
		"maintenance":  {func(n *api.Node) { n.Spec.Maintenance = &api.Maintenance{Mode: "drain"} }, api.InstanceSpec{}, "in maintenance"},
		"no driver":    {ok, api.InstanceSpec{Isolation: api.IsolationVM}, "no driver for isolation vm"},
		"taint":        {func(n *api.Node) { n.Spec.Taints = []api.Taint{{Key: "gpu", Value: "only", Effect: "NoSchedule"}} }, api.InstanceSpec{}, "taint gpu=only:NoSchedule"},
		"tolerated":    {func(n *api.Node) { n.Spec.Taints = []api.Taint{{Key: "gpu", Value: "only", Effect: "NoSchedule"}} }, api.InstanceSpec{Placement: &api.Placement{Tolerate: []api.Taint{{Key: "gpu"}}}}, ""},
		"other value":  {func(n *api.Node) { n.Spec.Taints = []api.Taint{{Key: "gpu", Value: "only", Effect: "NoSchedule"}} }, api.InstanceSpec{Placement: &api.Placement{Tolerate: []api.Taint{{Key: "gpu", Value: "x"}}}}, "taint"},
		"this node":    {ok, api.InstanceSpec{Placement: &api.Placement{Node: "n1"}}, ""},
		"another node": {ok, api.InstanceSpec{Placement: &api.Placement{Node: "n2"}}, "not the node asked for"},
		"zone":         {ok, api.InstanceSpec{Placement: &api.Placement{Zone: "b"}}, "not in zone b"},
		"label":        {ok, api.InstanceSpec{Placement: &api.Placement{NodeLabels: map[string]string{"disk": "hdd"}}}, "node label disk is not hdd"},
	} {
		t.Run(name, func(t *testing.T) {
			it := policy.ItemOf(&api.Instance{Spec: c.spec})
			got := policytest.Admit(New(), policy.NewView(), node(c.node), it)
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Fatalf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestKeepsItsWord(t *testing.T) { policytest.Keeps(t, New()) }
