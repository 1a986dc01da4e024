package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// hosts makes n nodes that fence themselves and hold their leases.
func (w *world) hosts(n int, cpu int64) {
	for i := range n {
		name := fmt.Sprintf("h%d", i+1)
		w.node(name, cpu)
		no, err := store.Get[*api.Node](context.Background(), w.mem, api.Ref{Kind: api.KindNode, Name: name})
		if err != nil {
			w.t.Fatal(err)
		}
		no = api.Clone(no)
		no.Status.Conditions = append(no.Status.Conditions, api.Condition{Type: api.ConditionFences, Status: true})
		w.put(no)
		w.put(&api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: "node-" + name}}, Spec: api.LeaseSpec{Holder: name, Epoch: 1, State: api.LeaseHeld}})
	}
}

// lose is what the keeper of leases writes when a host is not heard of.
func (w *world) lose(name string, edit func(*api.Node)) {
	w.t.Helper()
	ctx := context.Background()
	l, err := store.Get[*api.Lease](ctx, w.mem, api.NodeLease(name))
	if err != nil {
		w.t.Fatal(err)
	}
	l = api.Clone(l)
	l.Spec.State = api.LeaseExpired
	n, err := store.Get[*api.Node](ctx, w.mem, api.Ref{Kind: api.KindNode, Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	n = api.Clone(n)
	n.Status.Conditions = api.SetCondition(n.Status.Conditions, api.Condition{Type: api.ConditionReady})
	if edit != nil {
		edit(n)
	}
	if _, err := w.mem.Commit(ctx, store.Update(l), store.Update(n)); err != nil {
		w.t.Fatal(err)
	}
}

// started is what an agent reports.
func (w *world) started(name string) {
	w.t.Helper()
	in, a := w.get(name), w.assignment(name)
	in = api.Clone(in)
	in.Status = api.InstanceStatus{State: api.StateRunning, Node: a.Spec.Node, Assigned: a.Spec.Generation, Starts: 1, Generation: in.Generation}
	w.put(in)
}

func (w *world) get(name string) *api.Instance {
	w.t.Helper()
	in, err := store.Get[*api.Instance](context.Background(), w.mem, api.Ref{Kind: api.KindInstance, Tenant: "t", Name: name})
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

func TestLostHost(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.hosts(1, 10_000)
	kinds := map[string]func(*api.Instance){
		"plain":     nil,
		"exclusive": func(in *api.Instance) { in.Spec.Exclusive = true },
		"local":     func(in *api.Instance) { in.Spec.Volumes = []api.Mount{{Name: "data", Path: "/d"}} },
		"once":      func(in *api.Instance) { in.Spec.Restart = "never" },
		"rm":        func(in *api.Instance) { in.Spec.AutoRm = true },
		"stopped":   nil,
		"ended":     func(in *api.Instance) { in.Spec.Restart = "never" },
		"deleted":   nil,
	}
	for name, edit := range kinds {
		w.instance(name, 100, edit)
	}
	w.settle()
	for name := range kinds {
		w.started(name)
	}
	change := func(name string, fn func(*api.Instance)) {
		in := api.Clone(w.get(name))
		fn(in)
		w.put(in)
	}
	change("stopped", func(in *api.Instance) {
		in.Spec.Stopped, in.Status.State, in.Status.Reason = true, api.StateStopped, "Stopped"
	})
	change("ended", func(in *api.Instance) { in.Status.State, in.Status.Reason = api.StateStopped, "Completed" })
	change("deleted", func(in *api.Instance) { now := w.clk.Now(); in.DeletedAt = &now })
	w.node("h2", 10_000)
	w.settle()
	for name := range kinds {
		if a := w.assignment(name); a == nil || a.Spec.Node != "h1" {
			t.Fatalf("%s: before the loss: %+v", name, a)
		}
	}
	w.lose("h1", nil)
	w.settle()
	for _, name := range []string{"plain", "exclusive"} {
		if a, in := w.assignment(name), w.get(name); a.Spec.Node != "h2" || in.Status.Reason != api.ReasonEvicted || a.Spec.Evict != nil {
			t.Errorf("%s: %+v %+v", name, a.Spec, in.Status)
		}
	}
	if a, in := w.assignment("local"), w.get("local"); a.Spec.Node != "h1" || in.Status.State != api.StateUnknown || a.Spec.Evict != nil {
		t.Errorf("local: %+v %+v", a.Spec, in.Status)
	}
	w.settle() // nothing is told twice
	slices.Sort(w.told)
	if want := []string{"exclusive warning HostLost: its host h1 was lost",
		"local warning HostLost: its host h1 is lost, and its volumes with it: it waits for the host to come back; 'atoll node remove h1 --force' gives it up",
		"once warning HostLost: its host h1 was lost, and spec.restart is never",
		"plain warning HostLost: its host h1 was lost"}; !slices.Equal(w.told, want) {
		t.Errorf("told: %q", w.told)
	}
	if in := w.get("once"); in.Status.State != api.StateFailed || in.Status.Reason != api.ReasonHostLost {
		t.Errorf("once: %+v", in.Status)
	}
	if in := w.get("ended"); in.Status.State != api.StateStopped || in.Status.Reason != "Completed" {
		t.Errorf("ended: %+v", in.Status)
	}
	for _, name := range []string{"rm", "deleted"} {
		if in := w.get(name); in != nil {
			t.Errorf("%s is still there: %+v", name, in.Status)
		}
	}
	change("stopped", func(in *api.Instance) { in.Spec.Stopped = false })
	w.settle()
	if a := w.assignment("stopped"); a.Spec.Node != "h2" {
		t.Errorf("started after the loss: %+v", a.Spec)
	}
	l, err := store.Get[*api.Lease](context.Background(), w.mem, api.NodeLease("h1"))
	if err != nil || l.Spec.Proof == nil || l.Spec.Proof.By != "lease" {
		t.Errorf("proof: %+v %v", l.Spec, err)
	}
}

// Without a watchdog nothing proves that what must not run twice has ended.
func TestLostHostThatDoesNotFence(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.hosts(1, 10_000)
	w.instance("plain", 100, nil)
	w.instance("exclusive", 100, func(in *api.Instance) { in.Spec.Exclusive = true })
	w.settle()
	w.started("plain")
	w.started("exclusive")
	w.node("h2", 10_000)
	unfenced := func(n *api.Node) {
		n.Status.Conditions = api.SetCondition(n.Status.Conditions, api.Condition{Type: api.ConditionFences})
	}
	w.lose("h1", unfenced)
	w.settle()
	if l, err := store.Get[*api.Lease](context.Background(), w.mem, api.NodeLease("h1")); err != nil || l.Spec.Proof != nil {
		t.Errorf("proof: %+v %v", l, err)
	}
	if a := w.assignment("plain"); a.Spec.Node != "h2" {
		t.Errorf("plain: %+v", a.Spec)
	}
	if a, in := w.assignment("exclusive"), w.get("exclusive"); a.Spec.Node != "h1" || in.Status.State != api.StateUnknown {
		t.Errorf("exclusive: %+v %+v", a.Spec, in.Status)
	}
	n, err := store.Get[*api.Node](context.Background(), w.mem, api.Ref{Kind: api.KindNode, Name: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	say := func(epoch string) {
		n := api.Clone(n)
		n.Annotations = map[string]string{api.AnnotationOff: epoch}
		w.put(n)
		w.settle()
	}
	say("7") // of another time
	if a := w.assignment("exclusive"); a.Spec.Node != "h1" {
		t.Errorf("by a word about another epoch: %+v", a.Spec)
	}
	say("1")
	if a := w.assignment("exclusive"); a.Spec.Node != "h2" {
		t.Errorf("by an operator's word: %+v", a.Spec)
	}
}

// Of a host whose node is gone nobody knows whether it stops by itself what must not run twice.
func TestLostHostWithoutANode(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.hosts(1, 10_000)
	w.instance("plain", 100, nil)
	w.instance("exclusive", 100, func(in *api.Instance) { in.Spec.Exclusive = true })
	w.settle()
	w.started("plain")
	w.started("exclusive")
	w.node("h2", 10_000)
	w.lose("h1", nil)
	if _, err := w.mem.Commit(context.Background(), store.Remove(api.Ref{Kind: api.KindNode, Name: "h1"}, store.Any)); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if a := w.assignment("plain"); a.Spec.Node != "h2" {
		t.Errorf("plain: %+v", a.Spec)
	}
	if a, in := w.assignment("exclusive"), w.get("exclusive"); a != nil && a.Spec.Node == "h2" || in.Status.State != api.StateUnknown {
		t.Errorf("exclusive: %+v %+v", a, in.Status)
	}
}

// The most important are placed first where there is not room for all.
func TestLostHostByPriority(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.put(&api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: "high"}}, Spec: api.PriorityClassSpec{Value: 1000}})
	w.hosts(1, 10_000)
	for i := range 8 {
		w.instance(fmt.Sprintf("a%d", i), 1000, func(in *api.Instance) {
			if i >= 5 {
				in.Spec.Priority = "high"
			}
		})
	}
	w.settle()
	for i := range 8 {
		w.started(fmt.Sprintf("a%d", i))
	}
	w.node("h2", 4500)
	w.lose("h1", nil)
	w.settle()
	placed := 0
	for i := range 8 {
		a := w.assignment(fmt.Sprintf("a%d", i))
		if a.Spec.Node == "h2" {
			placed++
		} else if i >= 5 {
			t.Errorf("a%d of high priority waits: %+v", i, a.Spec.Decision)
		}
	}
	if placed != 4 {
		t.Errorf("%d have a place", placed)
	}
}

// A host that comes back before anything was decided keeps what it has.
func TestHostComesBack(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.hosts(1, 10_000)
	w.instance("local", 100, func(in *api.Instance) { in.Spec.Volumes = []api.Mount{{Name: "data", Path: "/d"}} })
	w.settle()
	w.started("local")
	w.lose("h1", nil)
	w.settle()
	l, err := store.Get[*api.Lease](context.Background(), w.mem, api.NodeLease("h1"))
	if err != nil {
		t.Fatal(err)
	}
	l = api.Clone(l)
	l.Spec.State, l.Spec.Epoch, l.Spec.Proof = api.LeaseHeld, 2, nil
	w.put(l)
	in := api.Clone(w.get("local"))
	in.Status.State = api.StateRunning
	w.put(in)
	w.settle()
	if in, a := w.get("local"), w.assignment("local"); in.Status.State != api.StateRunning || a.Spec.Node != "h1" {
		t.Errorf("%+v %+v", in.Status, a.Spec)
	}
}
