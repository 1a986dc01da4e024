package port

import (
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func item(uid, proto string, publish uint16) *policy.Item {
	return policy.ItemOf(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, UID: uid, Tenant: "t"}},
		Spec: api.InstanceSpec{Ports: []api.Port{{Port: 80, Protocol: proto, Publish: publish}}}})
}

func TestATakenPortIsRefusedByName(t *testing.T) {
	v := policy.NewView()
	v.Place(item("web", "", 8080), "n1", policy.Alloc{})
	for _, c := range []struct {
		it   *policy.Item
		want string
	}{
		{item("b", "tcp", 8080), "host port tcp/8080 is taken by web"},
		{item("b", "udp", 8080), ""},
		{item("b", "tcp", 8081), ""},
		{item("b", "tcp", 0), ""},
	} {
		if got := policytest.Admit(New(), v, v.Node("n1"), c.it); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	v.Unplace("web")
	if got := policytest.Admit(New(), v, v.Node("n1"), item("b", "tcp", 8080)); got != "" {
		t.Errorf("still taken: %q", got)
	}
}

func TestKeepsItsWord(t *testing.T) { policytest.Keeps(t, New()) }
