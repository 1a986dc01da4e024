package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/policy/host"
	"atoll/internal/policy/port"
	"atoll/internal/policy/resource"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// world is the real engine and controllers on a store in memory and a clock that stands still.
type world struct {
	t   *testing.T
	mem *store.Mem
	clk *clock.Manual
	eng *reconcile.Engine
	uid int

	told []string // of what happened to instances
}

// tell notes what people are told.
func (w *world) tell(about api.Ref, uid, typ, reason, message string) {
	if uid == "" {
		w.t.Errorf("%s %s: told of without its UID", about, reason)
	}
	w.told = append(w.told, fmt.Sprint(about.Name, " ", typ, " ", reason, ": ", message))
}

func newWorld(t *testing.T, subnet string) *world {
	t.Helper()
	w := &world{t: t, mem: store.NewMem(), clk: clock.NewManual(time.Unix(1000, 0))}
	w.lead(subnet)
	return w
}

// lead starts all controllers anew, as on a host that takes over.
func (w *world) lead(subnet string) {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	w.eng = reconcile.New(w.mem, w.clk, log, reconcile.Events{})
	cs, err := All(Deps{Clock: w.clk, Log: log, Tell: w.tell, Subnet: subnet, Keep: policy.Keep{Buffer: 10}, Chain: policy.Chain{Filters: []policy.Filter{host.New(), resource.New(), port.New()}}})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range cs {
		w.eng.Add(c, 1)
	}
}

func (w *world) settle() {
	w.t.Helper()
	if _, err := w.eng.Settle(context.Background(), w.mem, 1000); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(o api.Object) {
	w.t.Helper()
	if _, err := w.mem.Commit(context.Background(), store.Set(o)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) node(name string, cpu int64) {
	w.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}, Status: api.NodeStatus{
		Allocatable: api.Resources{api.CPU: cpu, api.Memory: 1 << 40}, Drivers: []api.Capability{{Type: "runtime", Name: "container"}},
		Conditions: []api.Condition{{Type: "Ready", Status: true}}}})
}

func (w *world) instance(name string, cpu int64, edit func(*api.Instance)) *api.Instance {
	w.uid++
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: "t", UID: fmt.Sprintf("%032x", w.uid), Finalizers: []string{"node"}}},
		Spec: api.InstanceSpec{Image: "x", Requests: api.Resources{api.CPU: cpu}}}
	if edit != nil {
		edit(in)
	}
	w.put(in)
	return in
}

func (w *world) assignment(name string) *api.Assignment {
	w.t.Helper()
	a, err := store.Get[*api.Assignment](context.Background(), w.mem, api.Ref{Kind: api.KindAssignment, Tenant: "t", Name: name})
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func TestWhatWaitsIsPlacedWhenRoomIsMade(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.instance("early", 500, nil)
	w.settle()
	if a := w.assignment("early"); a == nil || a.Spec.Node != "" || len(a.Spec.Decision.Hints) == 0 {
		t.Fatalf("without nodes: %+v", a)
	}
	w.node("n1", 1000)
	w.settle()
	if a := w.assignment("early"); a.Spec.Node != "n1" || a.Spec.Address != "10.0.0.2" || a.Spec.Generation != 2 {
		t.Fatalf("after the node came: %+v", a.Spec)
	}
	w.instance("late", 600, nil)
	w.settle()
	a := w.assignment("late")
	if a.Spec.Node != "" || a.Spec.Decision.Refusals[0].Reason != "not enough CPU" || !strings.Contains(a.Spec.Decision.Refusals[0].Best, "n1: CPU 500m free of 1") {
		t.Fatalf("no room: %+v", a.Spec.Decision)
	}
	if _, err := w.mem.Commit(context.Background(), store.Remove(api.Ref{Kind: api.KindInstance, Tenant: "t", Name: "early"}, store.Any)); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if w.assignment("early") != nil {
		t.Fatal("the assignment of a removed instance stayed")
	}
	if a := w.assignment("late"); a.Spec.Node != "n1" {
		t.Fatalf("room was made, and nobody looked: %+v", a.Spec)
	}
}

func TestAnUnplacedInstanceIsRemovedWithoutAnAgent(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	in := w.instance("a", 1, nil)
	w.settle()
	fresh, err := store.Get[*api.Instance](context.Background(), w.mem, api.RefOf(in))
	if err != nil {
		t.Fatal(err)
	}
	gone := api.Clone(fresh)
	now := w.clk.Now()
	gone.DeletedAt = &now
	w.put(gone)
	w.settle()
	if _, err := w.mem.Get(context.Background(), api.RefOf(in)); !errors.Is(err, errs.NotFound) {
		t.Fatalf("still there: %v", err)
	}
	if w.assignment("a") != nil {
		t.Fatal("its assignment stayed")
	}
}

func TestANewInstanceOfTheSameNameIsPlacedAnew(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.node("n1", 1000)
	w.instance("a", 100, nil)
	w.settle()
	w.instance("a", 200, nil) // another UID
	w.settle()
	a := w.assignment("a")
	if a == nil || a.Spec.Node != "n1" || a.Spec.InstanceUID != fmt.Sprintf("%032x", 2) {
		t.Fatalf("%+v", a)
	}
}

func TestAddressesAndPortsAreGivenOnce(t *testing.T) {
	w := newWorld(t, "10.0.0.0/29") // five for instances
	w.node("n1", 100_000)
	seen := map[string]bool{}
	for i := range 6 {
		w.instance(fmt.Sprint("i", i), 1, nil)
		w.settle()
		a := w.assignment(fmt.Sprint("i", i))
		if i == 5 {
			if a.Spec.Node != "" || !strings.Contains(a.Spec.Decision.Refusals[0].Reason, "no free address") {
				t.Fatalf("a sixth address was found: %+v", a.Spec)
			}
			break
		}
		if seen[a.Spec.Address] || a.Spec.Address == "" {
			t.Fatalf("address %q twice", a.Spec.Address)
		}
		seen[a.Spec.Address] = true
	}
	none := func(in *api.Instance) {
		in.Spec.Networks = []api.Attach{{Name: api.NetworkNone}}
	}
	w.instance("quiet", 1, none)
	w.settle()
	if a := w.assignment("quiet"); a.Spec.Node != "n1" || a.Spec.Address != "" {
		t.Fatalf("%+v", a.Spec)
	}
}

func TestAFixedAddressIsKeptOrRefused(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.node("n1", 1000)
	fixed := func(addr string) func(*api.Instance) {
		return func(in *api.Instance) { in.Spec.Networks = []api.Attach{{Name: "default", Address: addr}} }
	}
	for _, c := range []struct {
		name, addr string
		ok         bool
	}{{"a", "10.0.0.9", true}, {"b", "10.0.0.9", false}, {"c", "10.0.0.1", false}, {"d", "10.9.0.1", false}, {"e", "10.0.0.255", false}} {
		w.instance(c.name, 1, fixed(c.addr))
		w.settle()
		if a := w.assignment(c.name); (a.Spec.Node != "") != c.ok {
			t.Errorf("%s %s: %+v", c.name, c.addr, a.Spec)
		}
	}
}

func TestTidyKeepsEventsBounded(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.put(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "t"}}})
	for i := range eventsPerTenant + 50 {
		w.put(&api.Event{Head: api.Head{K: api.KindEvent, Meta: api.Meta{Name: fmt.Sprint("e", i), Tenant: "t"}}, Spec: api.EventSpec{Last: w.clk.Now().Add(time.Duration(i) * time.Second)}})
	}
	w.settle()
	evs, _, err := store.List[*api.Event](context.Background(), w.mem, api.Selector{Kind: api.KindEvent})
	if err != nil || len(evs) != eventsPerTenant {
		t.Fatalf("%d events %v", len(evs), err)
	}
	w.clk.Advance(eventLife + time.Hour)
	w.settle()
	if evs, _, _ = store.List[*api.Event](context.Background(), w.mem, api.Selector{Kind: api.KindEvent}); len(evs) != 0 {
		t.Fatalf("%d old events are left", len(evs))
	}
}

func FuzzSubnet(f *testing.F) {
	f.Add("10.88.0.0/16", "10.88.0.9")
	f.Fuzz(func(t *testing.T, subnet, fixed string) {
		a, err := newAddresses(subnet)
		if err != nil {
			return
		}
		for i := range 3 {
			got, err := a.give(fmt.Sprint("u", i), fixed)
			if err == nil && !a.prefix.Contains(a.byUID[fmt.Sprint("u", i)]) {
				t.Fatalf("%s is not in %s", got, subnet)
			}
		}
	})
}

func TestTidyForgetsTheImagesOfATenantThatIsGone(t *testing.T) {
	w := newWorld(t, "10.88.0.0/16")
	for _, tenant := range []string{"acme", "acme/research", "demo"} {
		w.put(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: tenant}}})
		w.put(&api.Image{Head: api.Head{K: api.KindImage, Meta: api.Meta{Name: "app", Tenant: tenant}}, Spec: api.ImageSpec{Reference: "app"}})
	}
	w.settle()
	if _, err := w.mem.Commit(context.Background(), store.Remove(api.Ref{Kind: api.KindTenant, Name: "acme"}, store.Any)); err != nil {
		t.Fatal(err)
	}
	w.settle()
	left, _, err := store.List[*api.Image](context.Background(), w.mem, api.Selector{Kind: api.KindImage})
	if err != nil || len(left) != 2 || left[0].Tenant != "acme/research" || left[1].Tenant != "demo" {
		t.Fatalf("%v %v", left, err)
	}
}
