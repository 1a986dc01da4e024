package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/storetest"
)

// cut lets the suite cut the history of the source and of the mirror.
type cut struct {
	*store.Cache
	mem *store.Mem
}

func (c cut) Compact(ctx context.Context, rev int64) error {
	c.Forget(rev)
	return c.mem.Compact(ctx, rev)
}

// start runs a cache until the test ends.
func start(t testing.TB, c *store.Cache) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run ended with %v", err)
		}
	})
	if err := c.WaitLoaded(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestCacheOfEverything(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		m := store.NewMem()
		c := store.NewCache(m)
		start(t, c)
		return cut{c, m}
	})
}

func TestCacheOfOneKind(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		m := store.NewMem()
		c := store.NewCache(m, api.KindAssignment)
		start(t, c)
		return cut{c, m}
	})
}

func TestCacheOfAnotherKindPassesThrough(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		m := store.NewMem()
		c := store.NewCache(m, api.KindUser, api.KindImage)
		start(t, c)
		return cut{c, m}
	})
}

// A cache over a source that keeps failing.
func TestCacheOverFlakySource(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		f := &flaky{Mem: store.NewMem(), rnd: rand.New(rand.NewSource(7))}
		c := store.NewCache(f)
		start(t, c)
		return c
	})
}

// flaky ends every watch after a few events, and sometimes has lost the history.
type flaky struct {
	*store.Mem
	mu  sync.Mutex
	rnd *rand.Rand
}

func (f *flaky) chance(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rnd.Intn(n)
}

func (f *flaky) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	left := f.chance(120)
	if left == 0 {
		return errs.New(errs.Compacted, "the history is gone")
	}
	return f.Mem.Watch(ctx, sel, rev, func(ev store.Event) error {
		if left--; left < 0 {
			return errs.New(errs.Unavailable, "the source went away")
		}
		return fn(ev)
	})
}

func item(kind api.Kind, tenant, name string, labels map[string]string) api.Object {
	head := api.Head{K: kind, Meta: api.Meta{Name: name, Tenant: tenant, UID: "u-" + name, Labels: labels}}
	if kind == api.KindAssignment {
		return &api.Assignment{Head: head}
	}
	return &api.Instance{Head: head, Spec: api.InstanceSpec{Image: "busybox", Requests: api.Resources{api.CPU: 100, api.Memory: 64 << 20}}}
}

// What happened while the mirror was not looking reaches its watchers as differences.
func TestCacheEmitsDifferencesAfterAGap(t *testing.T) {
	ctx := context.Background()
	src := &gate{Mem: store.NewMem(), cut: make(chan struct{})}
	mustCommit(t, src, store.Create(item(api.KindInstance, "t", "stays", nil)), store.Create(item(api.KindInstance, "t", "goes", nil)),
		store.Create(item(api.KindInstance, "t", "changes", nil)), store.Create(item(api.KindInstance, "t", "reborn", nil)))
	c := store.NewCache(src, api.KindInstance, api.KindAssignment)
	start(t, c)
	_, rev, err := c.List(ctx, api.Selector{Kind: api.KindInstance})
	if err != nil {
		t.Fatal(err)
	}
	wctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	evs, done := make(chan store.Event, 100), make(chan error, 1)
	go func() {
		done <- c.Watch(wctx, api.Selector{Kind: api.KindInstance}, rev, func(ev store.Event) error { evs <- ev; return nil })
	}()
	src.closeFor(func() {
		reborn := item(api.KindInstance, "t", "reborn", nil)
		reborn.Metadata().UID = "another"
		mustCommit(t, src.Mem, store.Remove(api.Ref{Kind: api.KindInstance, Tenant: "t", Name: "goes"}, store.Any))
		mustCommit(t, src.Mem, store.Set(item(api.KindInstance, "t", "changes", map[string]string{"a": "b"})))
		mustCommit(t, src.Mem, store.Set(reborn))
		mustCommit(t, src.Mem, store.Create(item(api.KindInstance, "t", "comes", nil)))
		if err := src.Compact(ctx, src.Revision()); err != nil {
			t.Fatal(err)
		}
	})
	got := map[string]bool{}
	last := rev
	for range 5 {
		select {
		case ev := <-evs:
			got[fmt.Sprintf("%s %v %s", ev.Object.Metadata().Name, ev.Deleted, ev.Object.Metadata().UID)] = true
			if ev.Rev < last {
				t.Errorf("revision %d after %d", ev.Rev, last)
			}
			last = ev.Rev
		case <-wctx.Done():
			t.Fatalf("only %v came", got)
		}
	}
	for _, want := range []string{"goes true u-goes", "changes false u-changes", "reborn true u-reborn", "reborn false another", "comes false u-comes"} {
		if !got[want] {
			t.Errorf("%q is missing in %v", want, got)
		}
	}
	stop()
	<-done
}

func mustCommit(t testing.TB, s store.Store, ops ...store.Op) int64 {
	t.Helper()
	rev, err := s.Commit(context.Background(), ops...)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// gate is a source that can be shut.
type gate struct {
	*store.Mem
	mu     sync.Mutex
	closed bool
	cut    chan struct{}
}

func (g *gate) closeFor(fn func()) {
	g.mu.Lock()
	g.closed = true
	close(g.cut)
	g.cut = make(chan struct{})
	g.mu.Unlock()
	fn()
	g.mu.Lock()
	g.closed = false
	g.mu.Unlock()
}

func (g *gate) state() (bool, chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed, g.cut
}

func (g *gate) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	if closed, _ := g.state(); closed {
		return nil, 0, errs.New(errs.Unavailable, "the source is down")
	}
	return g.Mem.List(ctx, sel)
}

func (g *gate) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	closed, cut := g.state()
	if closed {
		return errs.New(errs.Unavailable, "the source is down")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- g.Mem.Watch(ctx, sel, rev, fn) }()
	select {
	case <-cut:
		cancel()
		<-done
		return errs.New(errs.Unavailable, "the source went away")
	case err := <-done:
		return err
	}
}

// Of a commit of several objects a reader sees all or nothing.
func TestCacheShowsCommitsWhole(t *testing.T) {
	ctx, m := context.Background(), store.NewMem()
	c := store.NewCache(m, api.KindInstance, api.KindAssignment)
	start(t, c)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			labels := map[string]string{"n": fmt.Sprint(i)}
			var ops []store.Op
			for j := range 20 {
				ops = append(ops, store.Set(item(api.KindInstance, "t", fmt.Sprintf("x%d", j), labels)))
			}
			if _, err := m.Commit(ctx, ops...); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 2000 {
		objs, rev, err := c.List(ctx, api.Selector{Kind: api.KindInstance})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objs {
			if o.Metadata().Labels["n"] != objs[0].Metadata().Labels["n"] || o.Metadata().Revision > rev || len(objs) != 20 {
				t.Fatalf("half a commit at %d: %d objects, %s at %d", rev, len(objs), o.Metadata().Name, o.Metadata().Revision)
			}
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestCacheEncodesOnceAndAnew(t *testing.T) {
	ctx, m := context.Background(), store.NewMem()
	c := store.NewCache(m, api.KindInstance)
	start(t, c)
	sel := api.Selector{Kind: api.KindInstance}
	list := func() []json.RawMessage {
		items, rev, err := c.ListEncoded(ctx, sel)
		if err != nil || rev == 0 {
			t.Fatal(rev, err)
		}
		return items
	}
	if _, err := c.Commit(ctx, store.Create(item(api.KindInstance, "t", "a", nil)), store.Create(item(api.KindInstance, "t", "b", nil))); err != nil {
		t.Fatal(err)
	}
	first, second := list(), list()
	if len(first) != 2 || &first[0][0] != &second[0][0] {
		t.Fatal("encoded twice")
	}
	if _, err := c.Commit(ctx, store.Set(item(api.KindInstance, "t", "a", map[string]string{"new": "yes"}))); err != nil {
		t.Fatal(err)
	}
	third := list()
	o, err := api.Decode(third[0])
	if err != nil || o.Metadata().Labels["new"] != "yes" || &third[1][0] != &first[1][0] {
		t.Fatalf("%s %v", third[0], err)
	}
}

// A source put back to an older state (restored from a backup) is another history.
func TestCacheNoticesAnotherHistory(t *testing.T) {
	ctx := context.Background()
	src := &swap{Store: store.NewMem()}
	for i := range 20 {
		mustCommit(t, src, store.Set(item(api.KindInstance, "t", fmt.Sprintf("old%d", i), nil)))
	}
	c := store.NewCache(src, api.KindInstance)
	start(t, c)
	_, rev, err := c.List(ctx, api.Selector{Kind: api.KindInstance})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	wctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	go func() {
		done <- c.Watch(wctx, api.Selector{Kind: api.KindInstance}, rev, func(store.Event) error { return nil })
	}()
	fresh := store.NewMem()
	mustCommit(t, fresh, store.Create(item(api.KindInstance, "t", "new", nil)))
	src.put(fresh)
	if err := <-done; !errors.Is(err, errs.Compacted) {
		t.Fatalf("the old watch ended with %v", err)
	}
	objs, at, err := c.List(ctx, api.Selector{Kind: api.KindInstance})
	if err != nil || len(objs) != 1 || at >= rev {
		t.Fatalf("%d objects at %d, %v", len(objs), at, err)
	}
}

type swap struct {
	mu sync.Mutex
	store.Store
	stop context.CancelFunc
}

func (s *swap) put(n store.Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Store = n
	s.stop()
}

func (s *swap) now() store.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Store
}

func (s *swap) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	return s.now().List(ctx, sel)
}

func (s *swap) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.stop = cancel
	st := s.Store
	s.mu.Unlock()
	err := st.Watch(inner, sel, rev, fn)
	if ctx.Err() == nil && inner.Err() != nil {
		return errs.New(errs.Unavailable, "the source went away")
	}
	return err
}

func cacheWith(b *testing.B, n int) *store.Cache {
	m := store.NewMem()
	for i := range n {
		mustCommit(b, m, store.Create(item(api.KindInstance, fmt.Sprintf("t%d", i/50), fmt.Sprintf("web-%04d", i), map[string]string{"app": "web"})))
	}
	c := store.NewCache(m, api.KindInstance, api.KindAssignment)
	start(b, c)
	b.ReportAllocs()
	b.ResetTimer()
	return c
}

func benchList(b *testing.B, n int, sel api.Selector, want int) {
	c, ctx := cacheWith(b, n), context.Background()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if objs, _, err := c.List(ctx, sel); err != nil || len(objs) != want {
				b.Error(len(objs), err)
				return
			}
		}
	})
}

func BenchmarkCacheList50(b *testing.B) { benchList(b, 50, api.Selector{Kind: api.KindInstance}, 50) }

func BenchmarkCacheListTenantOf5000(b *testing.B) {
	benchList(b, 5000, api.Selector{Kind: api.KindInstance, Tenant: "t40"}, 50)
}

func BenchmarkCacheListEncoded50(b *testing.B) {
	c, ctx := cacheWith(b, 50), context.Background()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if items, _, err := c.ListEncoded(ctx, api.Selector{Kind: api.KindInstance}); err != nil || len(items) != 50 {
				b.Error(len(items), err)
				return
			}
		}
	})
}

func BenchmarkCacheGet(b *testing.B) {
	c, ctx := cacheWith(b, 5000), context.Background()
	ref := api.Ref{Kind: api.KindInstance, Tenant: "t40", Name: "web-2010"}
	for b.Loop() {
		if _, err := c.Get(ctx, ref); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCacheCommitThenList50(b *testing.B) {
	c, ctx := cacheWith(b, 50), context.Background()
	o := item(api.KindInstance, "t0", "web-0001", nil)
	for b.Loop() {
		if _, err := c.Commit(ctx, store.Set(o)); err != nil {
			b.Fatal(err)
		}
		if _, _, err := c.ListEncoded(ctx, api.Selector{Kind: api.KindInstance}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMemCommit(b *testing.B) {
	ctx, m := context.Background(), store.NewMem()
	o := item(api.KindInstance, "t0", "web-0001", nil)
	for b.Loop() {
		if _, err := m.Commit(ctx, store.Set(o)); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCacheFollow(t *testing.T) {
	ctx := context.Background()
	m := store.NewMem()
	c := store.NewCache(m, api.KindNode)
	start(t, c)
	have := map[string]int64{}
	follow := func(from uint64) uint64 {
		t.Helper()
		next, err := c.Follow(ctx, api.KindNode, from, func(was, is api.Object) {
			switch {
			case is != nil && was != nil && have[is.Metadata().Name] != was.Metadata().Revision:
				t.Errorf("%s was at %d, not %d", is.Metadata().Name, have[is.Metadata().Name], was.Metadata().Revision)
			case is != nil:
				have[is.Metadata().Name] = is.Metadata().Revision
			default:
				delete(have, was.Metadata().Name)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	put := func(name string) int64 {
		t.Helper()
		rev, err := c.Commit(ctx, store.Set(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}}))
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	at := follow(0)
	put("a")
	put("b")
	if at = follow(at); len(have) != 2 {
		t.Fatalf("have %v", have)
	}
	if _, err := c.Commit(ctx, store.Remove(api.Ref{Kind: api.KindNode, Name: "a"}, store.Any)); err != nil {
		t.Fatal(err)
	}
	rev := put("b")
	if at = follow(at); len(have) != 1 || have["b"] != rev {
		t.Fatalf("have %v", have)
	}
	if again := follow(at); again != at {
		t.Errorf("place %d after %d, with nothing new", again, at)
	}
	rev = put("b")
	if _, err := c.Get(ctx, api.Ref{Kind: api.KindNode, Name: "b"}); err != nil { // so that the mirror has it
		t.Fatal(err)
	}
	c.Forget(rev)
	if _, err := c.Follow(ctx, api.KindNode, at, func(api.Object, api.Object) { t.Error("told of what is gone") }); !errors.Is(err, errs.Compacted) {
		t.Errorf("got %v", err)
	}
	clear(have)
	if follow(0); have["b"] != rev {
		t.Errorf("have %v", have)
	}
	if _, err := c.Follow(ctx, api.KindTenant, 0, nil); !errors.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
}
