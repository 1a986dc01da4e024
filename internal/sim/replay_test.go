package sim

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
)

// backup is a pool with a past: two nodes, a tenant, an instance from before, one that
// came an hour ago, and one of which only events are left.
func backup(t *testing.T, now time.Time) *bytes.Buffer {
	t.Helper()
	mem := store.NewMem()
	put := func(o api.Object) {
		if _, err := mem.Commit(context.Background(), store.Create(o)); err != nil {
			t.Fatal(err)
		}
	}
	head := func(k api.Kind, tenant, name string, at time.Time) api.Head {
		return api.Head{K: k, Meta: api.Meta{Name: name, Tenant: tenant, UID: uidOf(api.Ref{Kind: k, Name: name}), Generation: 1, CreatedAt: &at}}
	}
	for _, n := range []string{"isle1", "isle2"} {
		put(&api.Node{Head: head(api.KindNode, "", n, now.Add(-99*time.Hour)), Spec: api.NodeSpec{Zone: "a", Rack: "r9", Price: "0.5", IdleWatts: 10, MaxWatts: 100},
			Status: api.NodeStatus{Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30, api.Instances: 100}}})
	}
	put(&api.Tenant{Head: head(api.KindTenant, "", "acme", now.Add(-99*time.Hour)), Spec: api.TenantSpec{Guarantee: api.Resources{api.CPU: 1000}}})
	began := now.Add(-50 * time.Hour)
	for name, at := range map[string]time.Time{"old": began, "young": now.Add(-time.Hour)} {
		in := &api.Instance{Head: head(api.KindInstance, "acme", name, at), Spec: api.InstanceSpec{Image: "debian:12", Command: []string{"sleep", "9"}, AutoRm: true,
			Requests: api.Resources{api.CPU: 500, api.Memory: 1 << 30}, Volumes: []api.Mount{{Name: "data", Path: "/data"}}, Health: &api.Health{TCP: "80"}},
			Status: api.InstanceStatus{State: api.StateRunning, Node: "isle2", StartedAt: &at}}
		put(in)
		put(&api.Assignment{Head: head(api.KindAssignment, "acme", name, at), Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: "isle2", Generation: 3, Address: "10.88.0.9", Decision: &api.Decision{At: at}}})
	}
	put(&api.Event{Head: head(api.KindEvent, "acme", "e1", now), Spec: api.EventSpec{About: api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: "gone"},
		Type: "normal", Reason: "Started", First: now.Add(-90 * time.Minute), Last: now.Add(-80 * time.Minute), Count: 2}})
	var b bytes.Buffer
	if err := store.Dump(context.Background(), mem, &b, now); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestAPoolsOwnPastIsPlayedAgain(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	h, err := ReadHistory(context.Background(), backup(t, now), Before(2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	// The last thing known is of an hour ago.
	if len(h.State) != 2 || len(h.Recorded) != 2 || h.Assumed != 1 || !h.Taken.Equal(now) {
		t.Fatalf("%d in the state, %d come, %d assumed, taken %s", len(h.State), len(h.Recorded), h.Assumed, h.Taken)
	}
	if g := h.Recorded[0]; g.Instance.Name != "gone" || g.At != 30*time.Minute || g.Lasts != 10*time.Minute || g.Instance.Spec.Requests[api.CPU] != 500 {
		t.Fatalf("%+v %+v", g, g.Instance.Spec)
	}
	h.Overlay(&scenario.Scenario{Faults: []scenario.Fault{{Kind: scenario.FaultHosts, At: []api.Duration{api.Duration(time.Hour)}, Where: scenario.Selection{Host: "isle2"}, Lasts: api.Duration(5 * time.Minute)}}})
	if err := h.Ready(); err != nil {
		t.Fatal(err)
	}
	rep, err := play(t, h.Scenario, Options{State: h.State, Recorded: h.Recorded})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Totals.Hosts != 2 || rep.Totals.Running != 2 || rep.Totals.Created != 2 || rep.Totals.Removed != 1 || rep.Pending.N != 2 || rep.Cost != 2 {
		t.Fatalf("%+v %+v %g", rep.Totals, rep.Pending, rep.Cost)
	}
	if rep.Totals.Starts < 4 {
		t.Fatalf("what was on isle2 did not start again: %+v", rep.Totals)
	}
}

func TestAReplayNeedsAPast(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	if _, err := ReadHistory(context.Background(), backup(t, now), From(now.Add(time.Hour))); !errors.Is(err, errs.Invalid) {
		t.Fatalf("from the future: %v", err)
	}
	if _, err := ReadHistory(context.Background(), bytes.NewReader([]byte("nothing")), Before(time.Hour)); !errors.Is(err, errs.Invalid) {
		t.Fatalf("not a backup: %v", err)
	}
}
