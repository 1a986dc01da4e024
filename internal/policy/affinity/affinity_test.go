package affinity

import (
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func item(uid, tenant, app string, p *api.Placement) *policy.Item {
	return policy.ItemOf(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, UID: uid, Tenant: tenant, Labels: map[string]string{"app": app}}}, Spec: api.InstanceSpec{Placement: p}})
}

func pool() *policy.View {
	v := policy.NewView()
	for n, z := range map[string]string{"n1": "a", "n2": "a", "n3": "b"} {
		v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: n}}, Spec: api.NodeSpec{Zone: z}})
	}
	return v
}

func wish(app, topology string, preferred bool) []api.AffinityTerm {
	return []api.AffinityTerm{{Labels: map[string]string{"app": app}, Topology: topology, Preferred: preferred}}
}

func TestAdmit(t *testing.T) {
	for name, c := range map[string]struct {
		there *policy.Item // on n1
		want  map[string]bool
		p     *api.Placement
	}{
		"avoid host":             {item("x", "t", "db", nil), map[string]bool{"n1": false, "n2": true, "n3": true}, &api.Placement{Avoid: wish("db", "", false)}},
		"avoid zone":             {item("x", "t", "db", nil), map[string]bool{"n1": false, "n2": false, "n3": true}, &api.Placement{Avoid: wish("db", "zone", false)}},
		"near zone":              {item("x", "t", "db", nil), map[string]bool{"n1": true, "n2": true, "n3": false}, &api.Placement{Near: wish("db", "zone", false)}},
		"near nobody":            {item("x", "t", "other", nil), map[string]bool{"n1": false, "n2": false, "n3": false}, &api.Placement{Near: wish("db", "", false)}},
		"first of itself":        {item("x", "t", "other", nil), map[string]bool{"n1": true, "n2": true, "n3": true}, &api.Placement{Near: wish("web", "", false)}},
		"another tenant's":       {item("x", "u", "db", nil), map[string]bool{"n1": true}, &api.Placement{Avoid: wish("db", "", false)}},
		"the one there wants it": {item("x", "t", "db", &api.Placement{Avoid: wish("web", "", false)}), map[string]bool{"n1": false, "n2": true}, nil},
		"preferred only":         {item("x", "t", "db", nil), map[string]bool{"n1": true}, &api.Placement{Avoid: wish("db", "", true)}},
	} {
		t.Run(name, func(t *testing.T) {
			v := pool()
			v.Place(c.there, "n1", policy.Alloc{})
			for n, want := range c.want {
				if got := policytest.Admit(New(), v, v.Node(n), item("new", "t", "web", c.p)); (got == "") != want {
					t.Errorf("%s: %q", n, got)
				}
			}
		})
	}
}

func TestScorePrefers(t *testing.T) {
	v := pool()
	v.Place(item("x", "t", "db", nil), "n1", policy.Alloc{})
	near := item("new", "t", "web", &api.Placement{Near: wish("db", "zone", true)})
	if a, b := policytest.Score(New(), v, v.Node("n2"), near), policytest.Score(New(), v, v.Node("n3"), near); a <= b {
		t.Errorf("near: %v %v", a, b)
	}
	avoid := item("new", "t", "web", &api.Placement{Avoid: wish("db", "", true)})
	if a, b := policytest.Score(New(), v, v.Node("n1"), avoid), policytest.Score(New(), v, v.Node("n2"), avoid); a >= b {
		t.Errorf("avoid: %v %v", a, b)
	}
}

func TestKeepsItsWord(t *testing.T) { policytest.Keeps(t, New()) }
