package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// majority counts how often it is asked, and takes its time.
type majority struct {
	*store.Mem
	asked atomic.Int64
	fail  atomic.Bool
	sole  bool
}

func (m *majority) Sole() bool { return m.sole }

func (m *majority) Sync(ctx context.Context) (int64, error) {
	m.asked.Add(1)
	time.Sleep(10 * time.Millisecond)
	if m.fail.Load() {
		return 0, errs.New(errs.Unavailable, "no majority")
	}
	_, rev, err := m.List(ctx, api.Selector{Kind: api.KindNode, Limit: 1})
	return rev, err
}

func node(name string) *api.Node {
	return &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}}
}

// Two servers on one store: what one acknowledged, the other reads at once, although
// its mirror follows in its own time.
func TestFreshReadsWhatAnotherServerWrote(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := &majority{Mem: store.NewMem()}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var servers []*store.Fresh
	for range 2 {
		c := store.NewCache(m)
		wg.Go(func() { _ = c.Run(ctx) })
		servers = append(servers, store.NewFresh(c, c, store.NewShared(m)))
	}
	for i := range 50 {
		w, r := servers[i%2], servers[(i+1)%2]
		name := fmt.Sprint("n", i)
		if _, err := w.Commit(ctx, store.Create(node(name))); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Get(ctx, api.RefOf(node(name))); err != nil {
			t.Fatal(err)
		}
		objs, _, err := r.List(ctx, api.Selector{Kind: api.KindNode})
		if err != nil || len(objs) != i+1 {
			t.Fatalf("%d of %d: %v", len(objs), i+1, err)
		}
		items, _, err := r.ListEncoded(ctx, api.Selector{Kind: api.KindNode})
		if err != nil || len(items) != i+1 {
			t.Fatalf("%d of %d encoded: %v", len(items), i+1, err)
		}
	}
}

func TestFreshAsksOnceForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		m := &majority{Mem: store.NewMem()}
		c := store.NewCache(m)
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.Run(ctx) })
		f := store.NewFresh(c, c, store.NewShared(m))
		var readers sync.WaitGroup
		for i := range 1000 {
			readers.Go(func() {
				time.Sleep(time.Duration(i%20) * time.Millisecond)
				if _, err := f.Get(ctx, api.RefOf(node("none"))); !errors.Is(err, errs.NotFound) {
					t.Errorf("%v", err)
				}
			})
		}
		readers.Wait()
		if n := m.asked.Load(); n < 2 || n > 6 {
			t.Errorf("asked %d times", n)
		}
		m.fail.Store(true)
		if _, _, err := f.List(ctx, api.Selector{Kind: api.KindNode}); !errors.Is(err, errs.Unavailable) {
			t.Errorf("without a majority: %v", err)
		}
		m.fail.Store(false)
		short, stop := context.WithTimeout(ctx, time.Millisecond)
		defer stop()
		if _, err := f.Get(short, api.RefOf(node("none"))); err == nil || errors.Is(err, errs.Internal) {
			t.Errorf("out of patience: %v", err)
		}
		if _, err := f.Get(ctx, api.RefOf(node("none"))); !errors.Is(err, errs.NotFound) {
			t.Errorf("after a caller lost patience: %v", err)
		}
		m.sole = true
		before := m.asked.Load()
		if _, err := f.Get(ctx, api.RefOf(node("none"))); !errors.Is(err, errs.NotFound) || m.asked.Load() != before {
			t.Errorf("alone: asked %d times, %v", m.asked.Load()-before, err)
		}
		cancel()
		wg.Wait()
	})
}

func TestFencedWritesOnlyByTheLease(t *testing.T) {
	ctx := t.Context()
	m := store.NewMem()
	lease := &api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: api.LeaseLeader}}, Spec: api.LeaseSpec{Holder: "a", Epoch: 1}}
	rev, err := m.Commit(ctx, store.Create(lease))
	if err != nil {
		t.Fatal(err)
	}
	a := store.Fenced(m, api.LeaderLease(), func() int64 { return rev })
	if _, err := a.Commit(ctx, store.Create(node("one"))); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Commit(ctx, store.Expect(api.RefOf(node("one")), store.Any)); err != nil {
		t.Fatalf("writes nothing: %v", err)
	}
	next := api.Clone(lease)
	next.Revision, next.Spec.Holder, next.Spec.Epoch = rev, "b", 2
	if _, err := m.Commit(ctx, store.Update(next)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Commit(ctx, store.Create(node("two"))); !errors.Is(err, errs.Conflict) {
		t.Errorf("after the lease went to b: %v", err)
	}
	if _, err := m.Get(ctx, api.RefOf(node("two"))); !errors.Is(err, errs.NotFound) {
		t.Errorf("a former leader wrote: %v", err)
	}
}
