package sim

import (
	"context"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
)

// calm is a pool with two hosts, three instances and no accidents.
func calm(t *testing.T) *World {
	t.Helper()
	sc := &scenario.Scenario{Name: "calm", Duration: api.Duration(time.Hour),
		Hosts:    []scenario.HostGroup{{Name: "h", Count: 2, Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30}}},
		Tenants:  []scenario.Tenant{{Name: "t", Guarantee: api.Resources{api.CPU: 1000}}},
		Arrivals: []scenario.Arrival{{Name: "a", Tenant: "t", At: []api.Duration{0}, Count: 3, Sizes: []scenario.Size{{Requests: api.Resources{api.CPU: 1000, api.Memory: 1 << 30}}}}}}
	sc.Defaults()
	w, err := New(context.Background(), sc, Options{Chain: testChain})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	w.sampleAt(w.begin)
	for range 3 {
		if err := w.step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.broken) > 0 || w.books.running != 3 {
		t.Fatalf("%d run, %v", w.books.running, w.broken)
	}
	return w
}

// A checker that finds nothing proves nothing: break every rule and see.
func TestTheChecksSeeABrokenRule(t *testing.T) {
	ctx := context.Background()
	asg := func(t *testing.T, w *World, name string) *api.Assignment {
		a, err := store.Get[*api.Assignment](ctx, w.view, api.Ref{Kind: api.KindAssignment, Tenant: "t", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return api.Clone(a)
	}
	write := func(t *testing.T, w *World, ops ...store.Op) {
		if _, err := w.view.Commit(ctx, ops...); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		breakIt func(t *testing.T, w *World)
		says    string
	}{
		"an instance is lost": {func(t *testing.T, w *World) {
			write(t, w, store.Remove(api.Ref{Kind: api.KindInstance, Tenant: "t", Name: "a-1"}, store.Any))
		}, "nobody asked for that"},
		"an instance comes from nowhere": {func(t *testing.T, w *World) {
			in := w.sc.Arrivals[0].Instance("ghost", scenario.Size{})
			in.UID = "f00d"
			write(t, w, store.Create(in))
		}, "came from nowhere"},
		"a host is given too much": {func(t *testing.T, w *World) {
			n, err := store.Get[*api.Node](ctx, w.view, api.Ref{Kind: api.KindNode, Name: asg(t, w, "a-1").Spec.Node})
			if err != nil {
				t.Fatal(err)
			}
			n = api.Clone(n)
			n.Status.Allocatable = api.Resources{api.CPU: 500, api.Memory: 1 << 40}
			w.books.note(store.Event{Object: n})
		}, "its rule allows"},
		"two have one address": {func(t *testing.T, w *World) {
			a := asg(t, w, "a-1")
			a.Spec.Address = asg(t, w, "a-2").Spec.Address
			write(t, w, store.Update(a))
		}, "of another instance"},
		"it runs where it should not": {func(t *testing.T, w *World) {
			from := asg(t, w, "a-1").Spec.Node
			for _, h := range w.hosts {
				if h.name != from {
					w.books.phase(h, asg(t, w, "a-1").Spec.InstanceUID, driver.PhaseRunning)
				}
			}
		}, "but is assigned to"},
		"an assignment is left behind": {func(t *testing.T, w *World) {
			w.books.asgs[api.Ref{Kind: api.KindAssignment, Tenant: "t", Name: "stale"}] = true
			w.meter.wanted = true
		}, "instances that have one"},
		"somebody waits while there is room": {func(t *testing.T, w *World) {
			in := w.sc.Arrivals[0].Instance("late", w.sc.Arrivals[0].Sizes[0])
			in.UID = strings.Repeat("a", 32)
			w.books.expect(in, w.sources[0].kind)
			a := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: "t", Name: "late"}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Generation: 1}}
			write(t, w, store.Create(in), store.Create(a))
			w.route() // the books hear of it, and the controller never does
			if err := w.checkWaiting(ctx); err != nil {
				t.Fatal(err)
			}
		}, "has room"},
	} {
		t.Run(name, func(t *testing.T) {
			w := calm(t)
			c.breakIt(t, w)
			if err := w.settle(ctx); err != nil {
				t.Fatal(err)
			}
			if err := w.check(ctx, true); err != nil {
				t.Fatal(err)
			}
			for _, b := range w.broken {
				if strings.Contains(b.What, c.says) {
					return
				}
			}
			t.Fatalf("it was not noticed: %v", w.broken)
		})
	}
}

// What the books keep change by change must be what counting anew gives.
func TestTheBooksAreTrue(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(20) {
		w, err := New(ctx, draw(seed), Options{Chain: testChain})
		if err != nil {
			t.Fatal(err)
		}
		w.sampleAt(w.begin)
		for w.clk.Now().Before(w.end) && len(w.broken) == 0 {
			if err := w.step(ctx); err != nil {
				t.Fatal(err)
			}
			if w.books.checks%7 == 0 {
				recount(t, w)
			}
		}
		recount(t, w)
		w.Close()
	}
}

func recount(t *testing.T, w *World) {
	t.Helper()
	ctx := context.Background()
	ins, _, err := store.List[*api.Instance](ctx, w.view.Mem, api.Selector{Kind: api.KindInstance})
	if err != nil {
		t.Fatal(err)
	}
	used, want := map[string]vector{}, map[string]vector{}
	waiting := 0
	for _, in := range ins {
		req := w.books.vector(in.Spec.Requests)
		req[w.books.in] = 1
		a, err := store.Get[*api.Assignment](ctx, w.view, api.Ref{Kind: api.KindAssignment, Tenant: in.Tenant, Name: in.Name})
		node := ""
		if err == nil && a.Spec.InstanceUID == in.UID {
			node = a.Spec.Node
		}
		if used[node] == nil {
			used[node] = make(vector, len(req))
		}
		used[node].add(req, 1)
		if in.DeletedAt == nil {
			if want[in.Tenant] == nil {
				want[in.Tenant] = make(vector, len(req))
			}
			want[in.Tenant].add(req, 1)
			if node == "" {
				waiting++
			}
		}
	}
	running := 0
	for _, h := range w.hosts {
		for i, v := range h.used {
			if used[h.name] == nil && v != 0 || used[h.name] != nil && used[h.name][i] != v {
				t.Fatalf("%s: %v in the books, %v counted", h.name, h.used, used[h.name])
			}
		}
		if !h.up {
			continue
		}
		seen, err := h.rt.Observe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range seen {
			running += btoi(o.Phase == driver.PhaseRunning)
		}
	}
	for _, a := range w.books.order {
		for i, v := range a.want {
			if want[a.name] == nil && v != 0 || want[a.name] != nil && want[a.name][i] != v {
				t.Fatalf("%s wants %v in the books, %v counted", a.name, a.want, want[a.name])
			}
		}
	}
	if running != w.books.running || waiting != len(w.books.waiting) || len(ins) != w.books.live {
		t.Fatalf("%d run, %d wait, %d live in the books; %d, %d, %d counted", w.books.running, len(w.books.waiting), w.books.live, running, waiting, len(ins))
	}
}
