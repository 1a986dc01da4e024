package quota

import (
	"context"
	"errors"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

func poolOf(t *testing.T, keep Reserve, nodes ...*api.Node) *Store {
	t.Helper()
	q := New(store.NewMem())
	q.Reserve = keep
	for _, n := range nodes {
		putNew(t, q, n)
	}
	putNew(t, q, &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "t"}}})
	return q
}

func putNew(t *testing.T, q *Store, o api.Object) {
	t.Helper()
	if _, err := q.Commit(context.Background(), store.Create(o)); err != nil {
		t.Fatal(err)
	}
}

func machine(name string, cpu int64) *api.Node {
	return &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}, Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: cpu, api.Memory: 1 << 40}}}
}

func asking(name string, cpu int64, edit func(*api.InstanceSpec)) *api.Instance {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: "t", UID: name}}, Spec: api.InstanceSpec{Image: "x", Requests: api.Resources{api.CPU: cpu}}}
	if edit != nil {
		edit(&in.Spec)
	}
	return in
}

// What may wait is admitted in a full pool, and takes nothing from who comes later;
// the tenant's own limit holds for it all the same.
func TestWhatWaitsIsPromisedNoRoom(t *testing.T) {
	ctx := context.Background()
	q := poolOf(t, DefaultReserve(), machine("n", 1000))
	queue := func(s *api.InstanceSpec) { s.Queue = true }
	putNew(t, q, asking("queued", 5000, queue))
	putNew(t, q, asking("gang", 5000, func(s *api.InstanceSpec) { s.Placement = &api.Placement{Gang: &api.Gang{Name: "g", Size: 2}} }))
	putNew(t, q, asking("firm", 900, nil))
	if _, err := q.Commit(ctx, store.Create(asking("more", 1, nil))); !errors.Is(err, errs.NoCapacity) {
		t.Fatalf("beyond the buffer: %v", err)
	}
	l, err := store.Get[*api.Ledger](ctx, q, ledgerRef("t"))
	if err != nil || l.Spec.Requested[api.CPU] != 10_900 || l.Spec.Waiting[api.CPU] != 10_000 {
		t.Fatalf("%+v %v", l.Spec, err)
	}
	if n, err := q.Recount(ctx); err != nil || n != 0 {
		t.Fatalf("recount changes %d ledgers: %v", n, err)
	}
	in, err := store.Get[*api.Instance](ctx, q, api.Ref{Kind: api.KindInstance, Tenant: "t", Name: "queued"})
	if err != nil {
		t.Fatal(err)
	}
	now := api.Clone(in)
	now.Spec.Queue = false
	if _, err := q.Commit(ctx, store.Update(now)); !errors.Is(err, errs.NoCapacity) {
		t.Fatalf("what waited may not become firm without room: %v", err)
	}
	lim, err := store.Get[*api.Tenant](ctx, q, tenantRef("t"))
	if err != nil {
		t.Fatal(err)
	}
	lim = api.Clone(lim)
	lim.Spec.Limit = api.Resources{api.CPU: 11_000}
	if _, err := q.Commit(ctx, store.Update(lim)); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Commit(ctx, store.Create(asking("queued-2", 200, queue))); !errors.Is(err, errs.Quota) {
		t.Fatalf("beyond the tenant's limit: %v", err)
	}
}

func TestReserve(t *testing.T) {
	over := machine("b", 2000)
	over.Spec.Overcommit = api.Overcommit{Burstable: 200}
	for _, c := range []struct {
		name string
		keep Reserve
		most int64
	}{
		{"nothing", Reserve{}, 1000 + 4000},
		{"a tenth", DefaultReserve(), 4500},
		{"N+1", Reserve{Spare: 1}, 1000},
		{"N+1 and a tenth", Reserve{Buffer: 10, Spare: 1}, 900},
		{"more spare nodes than there are", Reserve{Spare: 3}, 0},
	} {
		q := poolOf(t, c.keep, machine("a", 1000), over)
		if c.most > 0 {
			putNew(t, q, asking("fits", c.most, nil))
		}
		if _, err := q.Commit(context.Background(), store.Create(asking("not", 1, nil))); !errors.Is(err, errs.NoCapacity) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
