// Package policytest asks single policies, and checks that they keep the promise
// the engine lives on: what they said of a node holds until the node changes.
package policytest

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/policy"
)

// Admit is what a filter says of a node and the domains it is in.
func Admit(f policy.Filter, v *policy.View, n *policy.Node, it *policy.Item) string {
	v.Arrange()
	c := f.Check(v, it)
	if c == nil {
		return ""
	}
	if why := c.Node(n); why != "" || c.In == nil {
		return why
	}
	return c.In(n.Place)
}

// Score is what a scorer says of a node and the domains it is in; 0.5 when all are equal to it.
func Score(s policy.Scorer, v *policy.View, n *policy.Node, it *policy.Item) float64 {
	v.Arrange()
	g := s.Grade(v, it)
	if g == nil {
		return 0.5
	}
	x := 0.0
	if g.Node != nil {
		x = g.Node(n)
	}
	if g.In != nil {
		x += g.In(n.Place)
	}
	return x
}

// Keeps checks a policy (a Filter, a Scorer or both): on random pools that change at
// random, what it prepared says the same as it says when asked anew, for every node
// that has not changed, as long as its epoch is the same.
func Keeps(t *testing.T, p any) {
	t.Helper()
	f, filters := p.(policy.Filter)
	s, scores := p.(policy.Scorer)
	if !filters && !scores {
		t.Fatal("neither a filter nor a scorer")
	}
	rapid.Check(t, func(t *rapid.T) {
		v := policy.NewView()
		for i := range rapid.IntRange(1, 8).Draw(t, "nodes") {
			v.SetNode(Node(t, fmt.Sprintf("n%d", i)))
		}
		v.Arrange()
		it := Item(t, "judged")
		type said struct {
			refused map[int]string
			worth   map[int]float64
		}
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			var c *policy.Check
			var g *policy.Grade
			before := said{map[int]string{}, map[int]float64{}}
			version := v.Version(it.Ref.Tenant)
			if filters {
				c = f.Check(v, it)
			}
			if scores {
				g = s.Grade(v, it)
			}
			epoch := epochs(c, g)
			for id, n := range v.Nodes {
				if c != nil {
					before.refused[id] = c.Node(n)
				}
				if g != nil {
					before.worth[id] = g.Node(n)
				}
			}
			_, at, _ := v.Changes(0)
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				change(t, v)
			}
			changed, _, ok := v.Changes(at)
			if !ok || v.Version(it.Ref.Tenant) != version || epochs(c, g) != epoch {
				v.Arrange()
				continue
			}
			for _, id := range changed {
				delete(before.refused, int(id))
				delete(before.worth, int(id))
			}
			for id, was := range before.refused {
				if now := c.Node(v.Nodes[id]); now != was {
					t.Fatalf("%s of %s, which did not change: %q, then %q", f.Name(), v.Nodes[id].Name, was, now)
				}
				if fresh := f.Check(v, it); fresh == nil || fresh.Node(v.Nodes[id]) != was {
					t.Fatalf("%s of %s: %q, asked anew it differs", f.Name(), v.Nodes[id].Name, was)
				}
			}
			for id, was := range before.worth {
				if now := g.Node(v.Nodes[id]); now != was {
					t.Fatalf("%s of %s, which did not change: %v, then %v", s.Name(), v.Nodes[id].Name, was, now)
				}
				if now := Score(s, v, v.Nodes[id], it); now < -1e-9 || now > 1+1e-9 {
					t.Fatalf("%s of %s: %v is not in 0..1", s.Name(), v.Nodes[id].Name, now)
				}
			}
		}
	})
}

func epochs(c *policy.Check, g *policy.Grade) [2]uint64 {
	var e [2]uint64
	if c != nil && c.Epoch != nil {
		e[0] = c.Epoch()
	}
	if g != nil && g.Epoch != nil {
		e[1] = g.Epoch()
	}
	return e
}

func change(t *rapid.T, v *policy.View) {
	uid := fmt.Sprintf("u%d", rapid.IntRange(0, 12).Draw(t, "uid"))
	switch n := v.Nodes[rapid.IntRange(0, len(v.Nodes)-1).Draw(t, "where")]; rapid.IntRange(0, 4).Draw(t, "what") {
	case 0, 1, 2:
		v.Place(Item(t, uid), n.Name, policy.Alloc{})
	case 3:
		v.Unplace(uid)
	case 4:
		o := Node(t, n.Name)
		o.Spec.Zone, o.Spec.Rack = n.Object.Spec.Zone, n.Object.Spec.Rack
		v.SetNode(o)
	}
}

// Node draws a host.
func Node(t *rapid.T, name string) *api.Node {
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name, Labels: map[string]string{"disk": rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")}}}}
	n.Spec.Zone = rapid.SampledFrom([]string{"za", "zb", "zc"}).Draw(t, "zone")
	n.Spec.Rack = rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "rack")
	n.Spec.Cordoned = rapid.IntRange(0, 9).Draw(t, "cordoned") == 0
	if rapid.IntRange(0, 5).Draw(t, "tainted") == 0 {
		n.Spec.Taints = []api.Taint{{Key: "gpu", Value: "only", Effect: "NoSchedule"}}
	}
	n.Status.Allocatable = api.Resources{api.CPU: rapid.Int64Range(0, 8000).Draw(t, "cpu"), api.Memory: rapid.Int64Range(0, 8<<30).Draw(t, "memory"), api.Instances: 110}
	n.Status.Conditions = []api.Condition{{Type: "Ready", Status: rapid.IntRange(0, 9).Draw(t, "ready") > 0}}
	n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
	n.Status.Images = []string{rapid.SampledFrom([]string{"busybox", "t|web", "other"}).Draw(t, "image")}
	return n
}

// Item draws an instance.
func Item(t *rapid.T, uid string) *policy.Item {
	label := rapid.SampledFrom([]string{"web", "db", "job"})
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, UID: uid, Tenant: rapid.SampledFrom([]string{"t", "s"}).Draw(t, "tenant"),
		Labels: map[string]string{"app": label.Draw(t, "app")}}}}
	in.Spec.Image = rapid.SampledFrom([]string{"busybox", "web"}).Draw(t, "wants")
	in.Spec.Requests = api.Resources{api.CPU: rapid.Int64Range(0, 4000).Draw(t, "asks"), api.Memory: rapid.Int64Range(0, 2<<30).Draw(t, "asks memory")}
	if rapid.Bool().Draw(t, "limited") {
		in.Spec.Limits = in.Spec.Requests
	}
	if rapid.IntRange(0, 3).Draw(t, "publishes") == 0 {
		in.Spec.Ports = []api.Port{{Port: 80, Publish: uint16(rapid.IntRange(8080, 8083).Draw(t, "port"))}}
	}
	level := rapid.SampledFrom([]string{"", "host", "rack", "zone", "region"})
	p := &api.Placement{}
	term := func(what string) []api.AffinityTerm {
		var out []api.AffinityTerm
		for range rapid.IntRange(0, 2).Draw(t, what) {
			out = append(out, api.AffinityTerm{Labels: map[string]string{"app": label.Draw(t, what)}, Topology: level.Draw(t, what), Preferred: rapid.Bool().Draw(t, what)})
		}
		return out
	}
	p.Near, p.Avoid = term("near"), term("avoid")
	for range rapid.IntRange(0, 2).Draw(t, "spreads") {
		p.Spread = append(p.Spread, api.SpreadTerm{Topology: rapid.SampledFrom([]string{"host", "rack", "zone", "region"}).Draw(t, "spread"), MaxSkew: rapid.IntRange(0, 2).Draw(t, "skew")})
	}
	p.MaxPerNode = rapid.IntRange(0, 3).Draw(t, "per node")
	if rapid.IntRange(0, 3).Draw(t, "terms") == 0 {
		p.Nodes = []api.NodeTerm{{Key: "disk", Values: []string{"ssd"}, Weight: rapid.IntRange(0, 2).Draw(t, "weight")}}
	}
	in.Spec.Placement = p
	return policy.ItemAt(in, rapid.Int64Range(0, 3).Draw(t, "priority"))
}
