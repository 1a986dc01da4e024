package quota

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// gate is a store whose commits can be held up, so that others gather behind one.
type gate struct {
	store.Store
	mu     sync.Mutex
	shut   chan struct{} // nil: open
	waits  chan struct{} // told of every commit that is held up
	sizes  []int
	refuse func(ops []store.Op) error
}

func newGate(s store.Store) *gate { return &gate{Store: s, waits: make(chan struct{}, 100)} }

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.sizes = make(chan struct{}), nil
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut = nil
}

// Commit waits at the gate.
func (g *gate) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	g.mu.Lock()
	shut := g.shut
	g.sizes = append(g.sizes, len(ops))
	g.mu.Unlock()
	if shut != nil {
		g.waits <- struct{}{}
		select {
		case <-shut:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if g.refuse != nil {
		if err := g.refuse(ops); err != nil {
			return 0, err
		}
	}
	return g.Store.Commit(ctx, ops...)
}

// crowd is a world in which commits are made to meet.
type crowd struct {
	world
	g *gate
}

func newCrowd(t testing.TB, ops ...store.Op) crowd {
	g := newGate(store.NewMem())
	c := crowd{world{New(g), t}, g}
	c.ok(store.Create(host("n", "cpu=1000,memory=100Gi")), store.Create(tenant("first")))
	for _, op := range ops {
		c.ok(op)
	}
	return c
}

type outcome struct {
	rev int64
	err error
}

// meet holds up one commit, lets all of asks gather behind it in their order, and
// lets them go on together. The number of store commits it took is that of the asks.
func (c crowd) meet(asks ...[]store.Op) (out []outcome, commits int) {
	c.t.Helper()
	c.g.close()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Commit(ctx, store.Create(inst("first", "gate", ""))); err != nil {
			c.t.Error(err)
		}
	})
	<-c.g.waits
	out = make([]outcome, len(asks))
	for i, ops := range asks {
		wg.Go(func() { out[i].rev, out[i].err = c.Commit(ctx, ops...) })
		c.waiting(i + 1)
	}
	c.g.open()
	wg.Wait()
	commits = len(c.g.sizes) - 1
	c.ok(store.Remove(instRef("first", "gate"), store.Any))
	return out, commits
}

// waiting returns when so many asks are in line.
func (c crowd) waiting(n int) {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Microsecond) {
		c.line.mu.Lock()
		have := len(c.line.asks)
		c.line.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%d asks wait, not %d", have, n)
		}
	}
}

func one(ops ...store.Op) []store.Op { return ops }

func TestWhatWaitsIsOneCommit(t *testing.T) {
	c := newCrowd(t, store.Create(tenant("a")), store.Create(tenant("a/b")))
	var asks [][]store.Op
	for i := range 20 {
		asks = append(asks, one(store.Create(inst([]string{"a", "a/b"}[i%2], fmt.Sprint("i", i), "cpu=1"))))
	}
	out, commits := c.meet(asks...)
	for i, o := range out {
		if o.err != nil || o.rev != out[0].rev {
			t.Errorf("%d: revision %d, the first has %d, %v", i, o.rev, out[0].rev, o.err)
		}
	}
	if commits != 1 || c.ledger("a").Requested.String() != "cpu=20,instances=20" || c.ledger("a/b").Requested[api.CPU] != 10_000 {
		t.Errorf("%d commits; a: %v", commits, c.ledger("a").Requested)
	}
}

func TestAGroupNeverExceedsAQuota(t *testing.T) {
	c := newCrowd(t, store.Create(tenant("a", limit("cpu=7"))), store.Create(tenant("b")))
	var asks [][]store.Op
	for i := range 20 {
		asks = append(asks, one(store.Create(inst([]string{"a", "b"}[i%2], fmt.Sprint("i", i), "cpu=2"))))
	}
	out, commits := c.meet(asks...)
	for i, o := range out {
		fits := i%2 == 1 || i < 6 // a has room for three of two cores
		if fits != (o.err == nil) || !fits && !errors.Is(o.err, errs.Quota) {
			t.Errorf("%d: %v", i, o.err)
		}
	}
	if commits != 1 || c.ledger("a").Requested.String() != "cpu=6,instances=3" {
		t.Errorf("%d commits, a has %s", commits, c.ledger("a").Requested)
	}
	// What leaves in a group makes room for what comes after it.
	out, _ = c.meet(one(store.Remove(instRef("a", "i0"), store.Any)), one(store.Create(inst("a", "late", "cpu=3"))))
	if out[0].err != nil || out[1].err != nil {
		t.Error(out)
	}
	c.balanced()
}

func TestFailuresInAGroupAreTheirOwn(t *testing.T) {
	c := newCrowd(t, store.Create(tenant("a", limit("instances=3"))), store.Create(inst("first", "there", "")))
	stale := store.Expect(instRef("first", "there"), 1)
	out, _ := c.meet(
		one(store.Create(inst("a", "bad", "")), stale),                   // would take the first place
		one(store.Create(inst("a", "i1", ""))),                           //
		one(store.Create(inst("first", "there", ""))),                    // waits for the first to be answered
		one(store.Remove(instRef("a", "nobody"), 5)),                     //
		one(store.Create(inst("nowhere", "i", ""))),                      //
		one(store.Create(inst("a", "i2", ""))),                           //
		one(store.Create(inst("a", "i3", ""))),                           // fits, as the first does not come
		one(store.Create(inst("a", "i4", ""))),                           //
		one(store.Create(inst("a", "i1", ""))),                           // made by another meanwhile
		one(store.Create(tenant("c")), store.Create(inst("c", "i", ""))), // a tenant goes alone
	)
	for i, want := range []errs.Kind{errs.Conflict, "", errs.Exists, errs.NotFound, errs.NotFound, "", "", errs.Quota, errs.Exists, ""} {
		if err := out[i].err; (want == "") != (err == nil) || want != "" && errs.KindOf(err) != want {
			t.Errorf("%d: %v, want %q", i, err, want)
		}
	}
	if out[1].rev != out[6].rev || out[1].rev == 0 {
		t.Errorf("revisions %v", out)
	}
	c.balanced()
}

// What cannot be committed together is committed one by one.
func TestAGroupThatIsRefusedAsSuchIsTakenApart(t *testing.T) {
	c := newCrowd(t, store.Create(tenant("a", limit("instances=2"))))
	c.g.refuse = func(ops []store.Op) error {
		n := 0
		for _, op := range ops {
			if op.Target().Name == "poison" {
				return errs.New(errs.Invalid, "nobody can encode this")
			}
			if op.Target().Kind == api.KindInstance {
				n++
			}
		}
		if n > 1 {
			return errs.New(errs.Invalid, "too much for one commit")
		}
		return nil
	}
	out, _ := c.meet(one(store.Create(inst("a", "poison", ""))), one(store.Create(inst("a", "i", ""))), one(store.Create(inst("a", "j", ""))), one(store.Create(inst("a", "k", ""))))
	if !errors.Is(out[0].err, errs.Invalid) || out[1].err != nil || out[2].err != nil || !errors.Is(out[3].err, errs.Quota) {
		t.Errorf("got %v", out)
	}
	c.balanced()
	c.g.refuse = func([]store.Op) error { return errs.New(errs.Unavailable, "the store is down") }
	_, err := c.Commit(ctx, store.Create(inst("first", "x", "")))
	if !errors.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
	c.g.refuse = nil
	c.balanced()
}

func TestWhoGivesUpHarmsNobody(t *testing.T) {
	c := newCrowd(t, store.Create(tenant("a")))
	create := func(ctx context.Context, wg *sync.WaitGroup, name string, err *error) {
		wg.Go(func() { _, *err = c.Commit(ctx, store.Create(inst("a", name, ""))) })
	}
	var wg sync.WaitGroup
	var errFirst, errQueued, errOther error
	first, quitFirst := context.WithCancel(ctx)
	queued, quitQueued := context.WithCancel(ctx)
	c.g.close()
	create(first, &wg, "first", &errFirst)
	<-c.g.waits
	create(queued, &wg, "queued", &errQueued)
	c.waiting(1)
	create(ctx, &wg, "other", &errOther)
	c.waiting(2)
	quitQueued() // nobody has begun with it: it never happens
	c.waiting(1)
	quitFirst() // alone in its commit, which ends with it
	<-c.g.waits // the other's
	c.g.open()
	wg.Wait()
	if !errors.Is(errFirst, context.Canceled) || !errors.Is(errQueued, context.Canceled) || errOther != nil {
		t.Errorf("first %v, queued %v, other %v", errFirst, errQueued, errOther)
	}
	list, _, err := c.List(ctx, api.Selector{Kind: api.KindInstance})
	if err != nil || len(list) != 1 || list[0].Metadata().Name != "other" {
		t.Errorf("there are %v, %v", list, err)
	}
	c.balanced()
}

// In a group of several, one that gives up does not end the others' commit.
func TestOneOfAGroupGivesUp(t *testing.T) {
	c := newCrowd(t, store.Create(tenant("a")))
	var wg sync.WaitGroup
	errA := make([]error, 3)
	c.g.close()
	gone, quit := context.WithCancel(ctx)
	wg.Go(func() { _, errA[0] = c.Commit(ctx, store.Create(inst("first", "gate", ""))) })
	<-c.g.waits
	wg.Go(func() { _, errA[1] = c.Commit(gone, store.Create(inst("a", "gone", ""))) })
	c.waiting(1)
	wg.Go(func() { _, errA[2] = c.Commit(ctx, store.Create(inst("a", "stays", ""))) })
	c.waiting(2)
	c.g.mu.Lock()
	close(c.g.shut) // the first goes, the two are held up together
	c.g.shut = make(chan struct{})
	c.g.mu.Unlock()
	<-c.g.waits
	quit()
	time.Sleep(time.Millisecond)
	c.g.open()
	wg.Wait()
	if errA[0] != nil || errA[2] != nil || errA[1] != nil && !errors.Is(errA[1], context.Canceled) {
		t.Errorf("got %v", errA)
	}
	if _, err := c.Get(ctx, instRef("a", "stays")); err != nil {
		t.Error(err)
	}
	c.balanced()
}

// Many at the edge of quotas, on all stores, with others that fail in between.
func rush(t *testing.T, s store.Store) {
	w := world{New(s), t}
	w.ok(store.Create(host("n", "cpu=1000,memory=100Gi")), store.Create(tenant("a", limit("instances=150"))), store.Create(tenant("b", limit("cpu=3"))), store.Create(tenant("free")))
	other := New(s) // another process with a turn of its own
	var wg sync.WaitGroup
	var mu sync.Mutex
	won, failed := map[string]int{}, map[errs.Kind]int{}
	for i := range 400 {
		wg.Go(func() {
			q, tn := w.Store, []string{"a", "b", "free", "a"}[i%4]
			if i%8 < 2 {
				q = other
			}
			ops := one(store.Create(inst(tn, fmt.Sprint("i", i), "cpu=100m")))
			if tn == "free" {
				switch i % 3 {
				case 1:
					ops = append(ops, store.Expect(api.Ref{Kind: api.KindNode, Name: "n"}, 1))
				case 2:
					ops = one(store.Create(inst(tn, "same", "")))
				}
			}
			_, err := q.Commit(ctx, ops...)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won[tn]++
			} else {
				failed[errs.KindOf(err)]++
			}
		})
	}
	wg.Wait()
	list, _, err := store.List[*api.Instance](ctx, s, api.Selector{Kind: api.KindInstance})
	conflicts, made := 0, 0
	for i := 2; i < 400; i += 4 {
		switch i % 3 {
		case 0:
			made++
		case 1:
			conflicts++
		}
	}
	same := 100 - made - conflicts
	if err != nil || won["a"] != 150 || won["b"] != 30 || won["free"] != made+1 || len(list) != 150+30+made+1 {
		t.Errorf("won %v, %d are there, %v", won, len(list), err)
	}
	if failed[errs.Quota] != 50+70 || failed[errs.Conflict] != conflicts || failed[errs.Exists] != same-1 || len(failed) != 3 {
		t.Errorf("failed %v, want 120 by quota, %d by conflict, %d by name", failed, conflicts, same-1)
	}
	w.balanced()
}

func TestRushMem(t *testing.T)       { rush(t, store.NewMem()) }
func TestRushEtcdCache(t *testing.T) { rush(t, mirror(t, openEtcd(t))) }

// After any commits that met, the ledgers equal a recount and the rules hold.
func TestGroupsEqualARecount(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		c := crowd{g: newGate(store.NewMem())}
		c.world = world{New(c.g), t}
		c.ok(store.Create(host("n", "cpu=10,memory=10Gi")), store.Create(tenant("first")))
		for _, p := range paths {
			if _, err := c.Commit(ctx, store.Create(tenant(p, limit("instances=2")))); err != nil && !errors.Is(err, errs.NotFound) {
				r.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 4).Draw(r, "rounds") {
			var asks [][]store.Op
			for range rapid.IntRange(2, 12).Draw(r, "asks") {
				var ops []store.Op
				for range rapid.IntRange(1, 2).Draw(r, "ops") {
					ops = append(ops, anyOp(r))
				}
				if store.CheckOps(ops) == nil && comesOrGoes(ops) {
					asks = append(asks, ops)
				}
			}
			out, _ := c.meet(asks...)
			for i, o := range out {
				switch k := errs.KindOf(o.err); {
				case o.err == nil, k == errs.Quota, k == errs.NoCapacity, k == errs.Denied, k == errs.NotFound, k == errs.Exists, k == errs.Conflict:
				default:
					r.Fatalf("%v: %v", asks[i], o.err)
				}
			}
			obeys(r, c.world)
		}
	})
}
