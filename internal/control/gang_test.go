package control

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/store"
)

func (w *world) class(name string, value int64, preempt bool) {
	w.put(&api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: name}}, Spec: api.PriorityClassSpec{Value: value, Preempt: preempt, Default: value == 0}})
}

// runs does what the agent would: it reports what an assigned instance does.
func (w *world) reports(name string, state api.State, reason string) {
	w.t.Helper()
	in, err := store.Get[*api.Instance](context.Background(), w.mem, api.Ref{Kind: api.KindInstance, Tenant: "t", Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	a := w.assignment(name)
	in = api.Clone(in)
	in.Status.State, in.Status.Reason, in.Status.Node, in.Status.Assigned = state, reason, a.Spec.Node, a.Spec.Generation
	w.put(in)
	w.settle()
}

func (w *world) node1(name string) string {
	if a := w.assignment(name); a != nil {
		return a.Spec.Node
	}
	return "?"
}

func TestALowerPriorityMakesRoom(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.class("low", -10, false)
	w.class("normal", 0, false)
	w.class("high", 10, true)
	w.node("n1", 1000)
	low := func(i *api.Instance) { i.Spec.Priority = "low" }
	w.instance("a", 500, low)
	w.instance("b", 500, low)
	w.settle()
	w.reports("a", api.StateRunning, "")
	w.reports("b", api.StateRunning, "")

	w.instance("plain", 500, nil)
	w.settle()
	if a := w.assignment("plain"); a.Spec.Node != "" || w.assignment("a").Spec.Evict != nil {
		t.Fatalf("a class that may not preempt does: %+v", a.Spec)
	}
	w.instance("vip", 500, func(i *api.Instance) { i.Spec.Priority = "high" })
	w.settle()
	victim, other := "a", "b"
	if w.assignment("b").Spec.Evict != nil {
		victim, other = "b", "a"
	}
	e := w.assignment(victim).Spec.Evict
	if e == nil || !strings.Contains(e.Reason, "t/vip") || w.assignment(other).Spec.Evict != nil {
		t.Fatalf("victims: %+v %+v", e, w.assignment(other).Spec.Evict)
	}
	if a := w.assignment("vip"); a.Spec.Node != "" || a.Spec.Decision.Refusals[0].Policy != "preemption" {
		t.Fatalf("placed before there is room: %+v", a.Spec)
	}
	w.reports(victim, api.StateStopping, api.ReasonEvicted)
	if w.node1("vip") != "" {
		t.Fatal("placed before its victim has gone")
	}
	w.reports(victim, api.StateStopped, api.ReasonEvicted)
	if w.node1("vip") != "n1" || w.node1(victim) != "" || w.node1("plain") != "" {
		t.Fatalf("vip %q victim %q plain %q", w.node1("vip"), w.node1(victim), w.node1("plain"))
	}
	if a := w.assignment(victim); a.Spec.Evict != nil || a.Spec.Generation != 1 || a.Spec.Address != "" {
		t.Fatalf("the victim: %+v", a.Spec)
	}
	w.node("n2", 1000)
	w.settle()
	if w.node1(victim) != "n2" || w.node1("plain") != "n2" || w.assignment(victim).Spec.Generation != 2 {
		t.Fatalf("after room was made: victim %q plain %q", w.node1(victim), w.node1("plain"))
	}
}

func TestABudgetKeepsItsInstances(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.class("low", -10, false)
	w.class("high", 10, true)
	w.node("n1", 1000)
	w.put(&api.DisruptionBudget{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: "db", Tenant: "t"}}, Spec: api.DisruptionBudgetSpec{Labels: map[string]string{"app": "db"}, MinAvailable: 1}})
	w.instance("db", 800, func(i *api.Instance) { i.Spec.Priority, i.Labels = "low", map[string]string{"app": "db"} })
	w.settle()
	w.instance("vip", 500, func(i *api.Instance) { i.Spec.Priority = "high" })
	w.settle()
	if w.assignment("db").Spec.Evict != nil || w.node1("vip") != "" {
		t.Fatal("the budget was not kept")
	}
}

func (w *world) gang(name string, size int, cpu int64) {
	w.instance(name, cpu, func(i *api.Instance) {
		now := w.clk.Now()
		i.CreatedAt = &now
		i.Spec.Placement = &api.Placement{Gang: &api.Gang{Name: "g", Size: size}}
	})
}

func TestAGangIsPlacedTogether(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.node("n1", 1000)
	w.gang("g1", 3, 500)
	w.gang("g2", 3, 500)
	w.settle()
	if a := w.assignment("g1"); a.Spec.Node != "" || a.Spec.Decision.Refusals[0].Reason != "2 of 3 members of gang g are there" && a.Spec.Decision.Refusals[0].Reason != "1 of 3 members of gang g are there" {
		t.Fatalf("%+v", a.Spec.Decision)
	}
	w.gang("g3", 3, 500)
	w.settle()
	for i := 1; i <= 3; i++ {
		if n := w.node1(fmt.Sprint("g", i)); n != "" {
			t.Fatalf("g%d is on %s though not all fit", i, n)
		}
	}
	w.instance("single", 1000, nil) // gangs that wait hold nothing
	w.settle()
	if w.node1("single") != "n1" {
		t.Fatal("a gang that waits holds room")
	}
	w.node("n2", 2000)
	w.settle()
	for i := 1; i <= 3; i++ {
		if n := w.node1(fmt.Sprint("g", i)); n != "n2" {
			t.Fatalf("g%d is on %q", i, n)
		}
	}
}

func TestAGangGivesUp(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.gang("g1", 2, 500)
	w.settle()
	w.clk.Advance(11 * time.Minute)
	w.settle()
	in, err := store.Get[*api.Instance](context.Background(), w.mem, api.Ref{Kind: api.KindInstance, Tenant: "t", Name: "g1"})
	if err != nil || in.StateOf() != api.StateFailed || in.Status.Reason != api.ReasonGangTimeout {
		t.Fatalf("%+v %v", in.Status, err)
	}
	w.node("n1", 1200)
	w.gang("g2", 2, 500) // the gang is not complete without the one that gave up
	w.settle()
	if w.node1("g1") != "?" || w.node1("g2") != "" {
		t.Fatalf("%q %q", w.node1("g1"), w.node1("g2"))
	}
	again := api.Clone(in)
	again.Spec.Restarts++
	again.Generation++
	w.put(again)
	w.settle()
	if w.node1("g1") != "n1" || w.node1("g2") != "n1" {
		t.Fatalf("after a restart: %q %q", w.node1("g1"), w.node1("g2"))
	}
}

// What waits for room takes only what is nobody's: the guarantees of others stay free.
func TestQueuedInstancesLeaveGuaranteesAlone(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.put(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "other"}}, Spec: api.TenantSpec{Guarantee: api.Resources{api.CPU: 500}}})
	w.put(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "t"}}})
	w.node("n1", 1000) // 100 of it is the buffer, 500 are promised
	queued := func(i *api.Instance) { i.Spec.Queue = true }
	w.instance("q1", 300, queued)
	w.instance("q2", 300, queued)
	w.settle()
	if w.node1("q1") != "n1" || w.node1("q2") != "" || w.assignment("q2").Spec.Decision.Refusals[0].Policy != "pool" {
		t.Fatalf("q1 on %q, q2 on %q: %+v", w.node1("q1"), w.node1("q2"), w.assignment("q2").Spec.Decision)
	}
	w.instance("own", 300, nil) // admitted for good
	w.settle()
	if w.node1("own") != "n1" {
		t.Fatal("what was admitted waits")
	}
	w.put(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "other"}}})
	w.settle()
	if w.node1("q2") != "n1" {
		t.Fatalf("a guarantee was given back, and nobody looked: %+v", w.assignment("q2").Spec.Decision)
	}
}

// What has a place and asks for more than its node, or the pool, has left is placed anew
// rather than booked.
func TestGrowthBeyondTheNode(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.node("n1", 1000)
	w.instance("other", 500, nil)
	in := w.instance("grows", 100, func(i *api.Instance) { i.Spec.Queue = true })
	w.settle()
	if w.node1("grows") != "n1" {
		t.Fatal("not placed")
	}
	for cpu, evicted := range map[int64]bool{300: false, 100_000: true} {
		more := api.Clone(in)
		more.Spec.Requests = api.Resources{api.CPU: cpu}
		more.Generation++
		w.put(more)
		w.settle()
		if got := w.assignment("grows").Spec.Evict != nil; got != evicted && cpu > 300 {
			t.Errorf("with %dm: evicted %v", cpu, got)
		}
	}
}

// A thousand members of a gang that cannot fit wake nobody, and keep nobody else from being woken.
func TestAHopelessGangIsNotLookedAtForEver(t *testing.T) {
	w := newWorld(t, "10.0.0.0/16")
	w.node("n1", 1000)
	for i := range 60 {
		w.instance(fmt.Sprintf("g%03d", i), 0, func(x *api.Instance) {
			x.Spec.Placement = &api.Placement{Gang: &api.Gang{Name: "g", Size: 60}}
			if i == 59 {
				x.Spec.Placement.Node = "nowhere"
			}
		})
	}
	w.instance("big", 2000, nil)
	w.settle()
	w.node("n2", 3000)
	w.settle() // more than a thousand calls is an error
	if w.node1("big") != "n2" || w.node1("g000") != "" {
		t.Fatalf("big on %q, gang on %q", w.node1("big"), w.node1("g000"))
	}
}
