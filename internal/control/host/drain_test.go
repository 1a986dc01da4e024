package host

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/host"
	"atoll/internal/policy/resource"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func deps() Deps {
	return Deps{Chain: policy.Chain{Filters: []policy.Filter{host.New(), resource.New()}}, Seed: 1, AtOnce: 2}
}

func (p *pool) node(name string, cpu int64, edit func(*api.Node)) {
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}, Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: cpu, api.Memory: 1 << 40},
		Drivers: []api.Capability{{Type: "runtime", Name: "container"}}, Conditions: []api.Condition{{Type: "Ready", Status: true}}}}
	if edit != nil {
		edit(n)
	}
	p.nodes = append(p.nodes, n)
}

func (p *pool) on(name, node string, cpu int64, edit func(*api.Instance, *api.Assignment)) {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: "t", UID: "uid-" + name}},
		Spec:   api.InstanceSpec{Image: "x", Requests: api.Resources{api.CPU: cpu}},
		Status: api.InstanceStatus{State: api.StateRunning, Node: node, Assigned: 1}}
	a := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: name, Tenant: "t"}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: node, Generation: 1}}
	if edit != nil {
		edit(in, a)
	}
	p.instances, p.assignments = append(p.instances, in), append(p.assignments, a)
}

// does tells what a round would do: name>host, name! is stopped where it is, name+ starts again.
func (r *round) does() string {
	var out []string
	for _, a := range r.acts {
		switch e := a.evict; {
		case e == nil:
			out = append(out, a.as.Name+"+")
		case e.Stay:
			out = append(out, a.as.Name+"!")
		default:
			out = append(out, a.as.Name+">"+e.To)
		}
	}
	return strings.Join(out, " ")
}

func (r *round) waitsFor() string {
	var out []string
	for _, d := range r.out {
		for _, w := range d.Spec.Waiting {
			out = append(out, fmt.Sprintf("%s (%d)", w.Reason, w.Count))
		}
	}
	return strings.Join(out, "; ")
}

func TestDecide(t *testing.T) {
	drain := func(n *api.Node) { n.Spec.Maintenance = &api.Maintenance{Mode: "drain", Since: noon} }
	evacuate := func(n *api.Node) { n.Spec.Maintenance = &api.Maintenance{Mode: "evacuate", Since: noon} }
	leave := func(n *api.Node) { n.Spec.Maintenance = &api.Maintenance{Mode: "drain", Leave: true, Since: noon} }
	volume := func(in *api.Instance, _ *api.Assignment) {
		in.Spec.Volumes = []api.Mount{{Name: "data", Path: "/d"}}
	}
	gang := func(in *api.Instance, _ *api.Assignment) {
		in.Spec.Placement = &api.Placement{Gang: &api.Gang{Name: "g", Size: 1}}
	}
	held := func(state api.State) func(in *api.Instance, a *api.Assignment) {
		return func(in *api.Instance, a *api.Assignment) {
			a.Spec.Evict = &api.Eviction{At: noon, Stay: true}
			if in.Status.State = state; state == api.StateStopped {
				in.Status.Reason = api.ReasonMaintenance
			}
		}
	}
	for name, c := range map[string]struct {
		node  func(*api.Node) // n1; n2 has 1000m
		fill  func(p *pool)
		does  string
		waits string
		state api.DrainState
	}{
		"nothing there":       {drain, func(*pool) {}, "", "", api.DrainDone},
		"two at once":         {drain, func(p *pool) { p.on("a", "n1", 100, nil); p.on("b", "n1", 100, nil); p.on("c", "n1", 100, nil) }, "a>n2 b>n2", "", api.DrainMoving},
		"the largest first":   {drain, func(p *pool) { p.on("a", "n1", 100, nil); p.on("b", "n1", 950, nil) }, "b>n2", "no other host can run it: not enough CPU (1)", api.DrainMoving},
		"no room":             {drain, func(p *pool) { p.on("a", "n1", 2000, nil) }, "", "no other host can run it: not enough CPU (1)", api.DrainWaiting},
		"no room, evacuating": {evacuate, func(p *pool) { p.on("a", "n1", 2000, nil) }, "a!", "", api.DrainMoving},
		"bound, alone":        {drain, func(p *pool) { p.on("db", "n1", 100, volume) }, "db!", "", api.DrainMoving},
		"bound, not alone":    {drain, func(p *pool) { p.on("db", "n1", 100, volume); p.on("a", "n1", 100, nil) }, "a>n2", "", api.DrainMoving},
		"bound, and left":     {leave, func(p *pool) { p.on("db", "n1", 100, volume) }, "", "", api.DrainDone},
		"held, and to be left": {leave, func(p *pool) {
			p.on("db", "n1", 100, func(in *api.Instance, a *api.Assignment) {
				volume(in, a)
				held(api.StateStopped)(in, a)
			})
		}, "db+", "", api.DrainMoving},
		"held for want of room": {evacuate, func(p *pool) { p.on("a", "n1", 100, held(api.StateStopped)) }, "a>n2", "", api.DrainMoving},
		"a gang finds its own":  {drain, func(p *pool) { p.on("g1", "n1", 100, gang) }, "g1>", "", api.DrainMoving},
		"ended": {drain, func(p *pool) {
			p.on("a", "n1", 100, func(in *api.Instance, _ *api.Assignment) { in.Status.State = api.StateFailed })
		}, "", "", api.DrainDone},
		"being removed": {drain, func(p *pool) {
			p.on("a", "n1", 100, func(in *api.Instance, _ *api.Assignment) { in.DeletedAt = &noon })
		}, "", "is being removed (1)", api.DrainWaiting},
		"a host that is silent": {func(n *api.Node) { drain(n); n.Status.Conditions = nil }, func(p *pool) { p.on("a", "n1", 100, nil) }, "", notReady + " (1)", api.DrainWaiting},
		"asked by others": {drain, func(p *pool) {
			p.on("a", "n1", 100, func(_ *api.Instance, a *api.Assignment) { a.Spec.Evict = &api.Eviction{At: noon} })
		}, "", "", api.DrainMoving},
		"restored, stopped":  {nil, func(p *pool) { p.on("db", "n1", 100, held(api.StateStopped)) }, "db+", "", api.DrainReturning},
		"restored, stopping": {nil, func(p *pool) { p.on("db", "n1", 100, held(api.StateStopping)) }, "", "", api.DrainReturning},
		"the room of what is under way is taken": {drain, func(p *pool) {
			p.on("a", "n1", 600, func(_ *api.Instance, a *api.Assignment) { a.Spec.Evict = &api.Eviction{At: noon, To: "n2"} })
			p.on("b", "n1", 600, nil)
		}, "", "no other host can run it: not enough CPU (1)", api.DrainMoving},
	} {
		t.Run(name, func(t *testing.T) {
			p := &pool{now: noon.Add(time.Minute)}
			p.node("n1", 8000, c.node)
			p.node("n2", 1000, nil)
			c.fill(p)
			r := decide(p, deps())
			if got := r.does(); got != c.does || r.waitsFor() != c.waits || len(r.out) != 1 || r.out[0].Spec.State != c.state {
				t.Fatalf("does %q, waits for %q, %+v; want %q, %q, %s", got, r.waitsFor(), r.out, c.does, c.waits, c.state)
			}
			again := decide(p, deps())
			if again.does() != r.does() || !slices.EqualFunc(again.out, r.out, func(a, b *api.Drain) bool { return fmt.Sprint(a.Spec) == fmt.Sprint(b.Spec) || a.Spec.EndedAt != nil }) {
				t.Fatal("the same pool, another decision")
			}
		})
	}
}

// What a Drain lists is followed by what has really become of it.
func TestFollow(t *testing.T) {
	long := noon.Add(-time.Hour)
	for name, c := range map[string]struct {
		node  string // the instance is on it now; "" on none
		state api.State
		evict bool
		move  api.DrainMove
		want  api.DrainMoveState // "": not listed any more
	}{
		"was never asked":           {"n1", api.StateRunning, false, api.DrainMove{State: api.DrainMoveMoving, At: noon}, ""},
		"is being stopped":          {"n1", api.StateStopping, true, api.DrainMove{State: api.DrainMoveMoving, At: noon}, api.DrainMoveMoving},
		"has no place yet":          {"", api.StateStopped, false, api.DrainMove{State: api.DrainMoveMoving, At: noon}, api.DrainMoveMoving},
		"starts there":              {"n2", api.StateCreating, false, api.DrainMove{State: api.DrainMoveMoving, At: noon}, api.DrainMoveMoving},
		"starts there, for long":    {"n2", api.StateCreating, false, api.DrainMove{State: api.DrainMoveMoving, At: long}, api.DrainMoveMoved},
		"is there":                  {"n2", api.StateRunning, false, api.DrainMove{State: api.DrainMoveMoving, At: noon}, api.DrainMoveMoved},
		"came back by itself":       {"n1", api.StateRunning, false, api.DrainMove{State: api.DrainMoveMoved, At: noon}, ""},
		"was never asked back":      {"n2", api.StateRunning, false, api.DrainMove{State: api.DrainMoveReturning, To: "n2", At: noon}, api.DrainMoveMoved},
		"is on its way back":        {"n2", api.StateStopping, true, api.DrainMove{State: api.DrainMoveReturning, To: "n2", At: noon}, api.DrainMoveReturning},
		"is back":                   {"n1", api.StateRunning, false, api.DrainMove{State: api.DrainMoveReturning, To: "n2", At: noon}, api.DrainMoveReturned},
		"went elsewhere instead":    {"n3", api.StateRunning, false, api.DrainMove{State: api.DrainMoveReturning, To: "n2", At: noon}, api.DrainMoveStays},
		"finds no place for an age": {"", api.StateStopped, false, api.DrainMove{State: api.DrainMoveReturning, To: "n2", At: long}, api.DrainMoveStays},
	} {
		t.Run(name, func(t *testing.T) {
			p := &pool{now: noon.Add(time.Minute)}
			p.node("n1", 8000, func(n *api.Node) { n.Spec.Maintenance = &api.Maintenance{Mode: "drain", Since: noon} })
			p.node("n2", 8000, nil)
			p.node("n3", 8000, nil)
			p.on("a", c.node, 100, func(in *api.Instance, a *api.Assignment) {
				if in.Status.State = c.state; c.state == api.StateStopped {
					in.Status.Reason = api.ReasonEvicted
				}
				if c.evict {
					a.Spec.Evict = &api.Eviction{At: noon, To: c.move.To}
				}
			})
			c.move.UID, c.move.Instance, c.move.From = "uid-a", api.RefOf(p.instances[0]), "n1"
			old := &api.Drain{Head: api.Head{K: api.KindDrain, Meta: api.Meta{Name: "n1"}}, Spec: api.DrainSpec{Mode: "drain", Since: noon, State: api.DrainMoving, Moves: []api.DrainMove{c.move}}}
			p.drains = []*api.Drain{old}
			r := newRound(p, deps())
			s := r.sheet(p.nodes[0], old)
			s.follow()
			got := api.DrainMoveState("")
			if len(s.Moves) > 0 {
				got = s.Moves[0].State
			}
			if got != c.want {
				t.Fatalf("%+v, want %q", s.Moves, c.want)
			}
		})
	}
}

// BenchmarkRound is one look at a pool of a thousand hosts with fifty instances each,
// one of them being emptied.
func BenchmarkRound(b *testing.B) {
	p := &pool{now: noon.Add(time.Minute)}
	for i := range 1000 {
		name := fmt.Sprintf("n%04d", i)
		p.node(name, 64000, nil)
		for j := range 50 {
			p.on(fmt.Sprintf("i%04d-%02d", i, j), name, int64(100+j), nil)
		}
	}
	p.nodes[500].Spec.Maintenance = &api.Maintenance{Mode: "drain", Since: noon}
	d := deps()
	d.AtOnce = 10
	for b.Loop() {
		if r := decide(p, d); len(r.acts) != 10 {
			b.Fatalf("%d acts", len(r.acts))
		} else {
			p.known = r.items
		}
	}
}
