package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

// pool is servers on one store, of which the one that took the leader's lease leads.
type pool struct {
	t    *testing.T
	mem  *store.Mem
	rand *rand.Rand
	mu   sync.Mutex
	srv  []*server
}

type server struct {
	*pool
	name   string
	rev    atomic.Int64 // of the leader's lease as this server took it
	keeper atomic.Pointer[Keeper]
	stop   context.CancelFunc
	ended  chan struct{}
}

func newPool(t *testing.T, seed uint64, servers int) *pool {
	p := &pool{t: t, mem: store.NewMem(), rand: rand.New(rand.NewPCG(seed, 1))}
	for i := range servers {
		p.srv = append(p.srv, &server{pool: p, name: fmt.Sprint("s", i)})
	}
	return p
}

// fresh is the store as a server sees it after it has asked a majority. That answers to
// every server, also to one that leads no more.
type fresh struct {
	*store.Mem
	s *server
}

// Get reads one object as it is now.
func (f fresh) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	if err := (clock.Real{}).Sleep(ctx, f.s.dice(5*time.Millisecond)); err != nil {
		return nil, err
	}
	return f.Mem.Get(ctx, ref)
}

func (p *pool) dice(most time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(p.rand.Int64N(int64(most)))
}

func (p *pool) chance(percent int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rand.IntN(100) < percent
}

// lead makes s the leader. The former one is not told: its lease is gone.
func (s *server) lead(ctx context.Context) {
	next := &api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: api.LeaseLeader}}, Spec: api.LeaseSpec{Holder: s.name}}
	rev, err := s.mem.Commit(ctx, store.Set(next))
	if err != nil {
		s.t.Fatal(err)
	}
	s.rev.Store(rev)
	k := NewKeeper(Deps{Store: store.Fenced(s.mem, api.LeaderLease(), func() int64 { return rev }), Fresh: fresh{s.mem, s}, Term: rev, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)})
	kctx, stop := context.WithCancel(ctx)
	s.stop, s.ended = stop, make(chan struct{})
	done := s.ended
	go func() { defer close(done); _ = k.Run(kctx) }()
	s.keeper.Store(k)
}

// allow sets how long a node may be out of reach; it is made if it is not there.
func (p *pool) allow(ctx context.Context, name string, d time.Duration) {
	p.t.Helper()
	ref := api.Ref{Kind: api.KindNode, Name: name}
	for {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}}
		op := store.Create(n)
		if old, err := store.Get[*api.Node](ctx, p.mem, ref); err == nil {
			n = api.Clone(old)
			op = store.Update(n)
		}
		n.Spec.DisconnectAllowed = ptr(api.Duration(d))
		_, err := p.mem.Commit(ctx, op)
		if errors.Is(err, errs.Conflict) {
			continue
		}
		if err != nil {
			p.t.Fatal(err)
		}
		return
	}
}

// onePool runs a test on a pool of one server, on a clock of its own, and ends that.
func onePool(t *testing.T, fn func(t *testing.T, ctx context.Context, p *pool)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPool(t, 1, 1)
		fn(t, ctx, p)
		cancel()
		if ended := p.srv[0].ended; ended != nil {
			<-ended
		}
	})
}

// begin makes the first server lead, and waits until it does.
func (p *pool) begin(ctx context.Context) *Keeper {
	p.srv[0].lead(ctx)
	time.Sleep(100 * time.Millisecond)
	return p.srv[0].keeper.Load()
}

// way is a network to a server that loses and delays.
type way struct {
	s   *server
	to  Renewer
	cut *atomic.Bool
	bad int // percent
}

func (w way) Renew(ctx context.Context, b Beat) (Grant, error) {
	lost := errs.New(errs.Unavailable, "lost")
	if w.cut.Load() || w.s.chance(w.bad) {
		_ = (clock.Real{}).Sleep(ctx, w.s.dice(time.Second))
		return Grant{}, lost
	}
	if err := (clock.Real{}).Sleep(ctx, w.s.dice(200*time.Millisecond)); err != nil {
		return Grant{}, lost
	}
	g, err := w.to.Renew(context.WithoutCancel(ctx), b) // it arrived; whoever asked may be gone
	g.Alone = false                                     // as over a stream: only who shares the process with the Keeper can be alone
	if serr := (clock.Real{}).Sleep(ctx, w.s.dice(200*time.Millisecond)); serr != nil || w.s.chance(w.bad) {
		return Grant{}, lost // the answer was
	}
	return g, err
}

// However heartbeats and answers are lost and late, and whoever leads: a node never
// believes to hold a lease that was given up, and holds it again when all is well.
func TestNeverHeldAfterGivenUp(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 5
	}
	var losses atomic.Int64
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { storm(t, seed, &losses) })
		})
	}
	if losses.Load() < int64(seeds)/2 {
		t.Errorf("only %d leases were lost in all: this tests nothing", losses.Load())
	}
}

func storm(t *testing.T, seed uint64, losses *atomic.Int64) {
	ctx, cancel := context.WithCancel(t.Context())
	p := newPool(t, seed, 3)
	p.srv[0].lead(ctx)
	var wg sync.WaitGroup
	var holders []*Holder
	cuts := make([]atomic.Bool, 4)
	for i := range cuts {
		name := fmt.Sprint("n", i)
		var ways []Renewer
		for _, s := range p.srv {
			ways = append(ways, way{s: s, to: Local(name, s.keeper.Load), cut: &cuts[i], bad: int(seed % 40)})
		}
		deps := HolderDeps{Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler), Ways: func() []Renewer { return ways },
			Lost: func() { losses.Add(1) }}
		if i%2 == 1 {
			deps.Shorter = func(context.Context, time.Duration) error {
				if p.chance(30) {
					return errs.New(errs.Unavailable, "the watchdog does not answer")
				}
				return nil
			}
		}
		h := NewHolder(deps)
		holders = append(holders, h)
		wg.Go(func() {
			if h.First(ctx) == nil {
				_ = h.Run(ctx)
			}
		})
	}
	check := func() {
		for i, h := range holders {
			if !h.Held() {
				continue
			}
			l, err := store.Get[*api.Lease](ctx, p.mem, api.NodeLease(fmt.Sprint("n", i)))
			if err != nil || !l.Held() {
				t.Fatalf("node %d believes to hold epoch %d, the pool says %v %v", i, h.Grant().Epoch, l, err)
			}
		}
	}
	leader := 0
	for tick := range 6000 { // a minute
		time.Sleep(10 * time.Millisecond)
		check()
		if tick > 4500 { // all is well again
			for i := range cuts {
				cuts[i].Store(false)
			}
			continue
		}
		if p.chance(1) {
			i := int(p.dice(time.Duration(len(cuts))))
			cuts[i].Store(!cuts[i].Load())
		}
		if p.chance(1) { // an operator cannot decide how long a host may be alone
			p.allow(ctx, "n1", p.dice(30*time.Second))
			p.allow(ctx, "n2", 10*time.Second*time.Duration(p.dice(3)))
		}
		if tick%700 == 650 {
			next := (leader + 1) % len(p.srv)
			p.srv[next].lead(ctx)
			if old := p.srv[leader]; p.chance(70) { // else it goes on believing
				old.stop()
				old.keeper.Store(nil)
			}
			leader = next
		}
	}
	if seed%40 < 10 {
		for i, h := range holders {
			if !h.Held() {
				t.Errorf("node %d has no lease although all is well", i)
			}
		}
	}
	cancel()
	wg.Wait()
	for _, s := range p.srv {
		if s.ended != nil {
			<-s.ended
		}
	}
}

func TestLostIsWrittenOnceAndTakenAnew(t *testing.T) {
	onePool(t, func(t *testing.T, ctx context.Context, p *pool) {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle2"}}}
		n.Status.Conditions = []api.Condition{{Type: api.ConditionReady, Status: true}}
		if _, err := p.mem.Commit(ctx, store.Create(n)); err != nil {
			t.Fatal(err)
		}
		k := p.begin(ctx)
		g, err := k.Take(ctx, "isle2")
		if err != nil || g.Epoch != 1 || g.Duration != 5*time.Second || !g.Alone {
			t.Fatal(g, err)
		}
		for range 10 {
			time.Sleep(time.Second)
			if _, err := k.Renew(ctx, "isle2", Beat{Epoch: 1}); err != nil {
				t.Fatal(err)
			}
		}
		before := time.Now()
		lease := func() *api.Lease {
			l, err := store.Get[*api.Lease](ctx, p.mem, api.NodeLease("isle2"))
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		for lease().Held() {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(before); took < 5*time.Second || took > 5100*time.Millisecond {
			t.Errorf("given up after %s", took)
		}
		if n, err := store.Get[*api.Node](ctx, p.mem, api.RefOf(n)); err != nil || n.Ready() || len(lease().Spec.Losses) != 1 {
			t.Errorf("ready %v, losses %v, %v", n.Ready(), lease().Spec.Losses, err)
		}
		if _, err := k.Renew(ctx, "isle2", Beat{Epoch: 1}); !errors.Is(err, errs.Conflict) {
			t.Errorf("heartbeat after the end: %v", err)
		}
		if g, err := k.Take(ctx, "isle2"); err != nil || g.Epoch != 2 {
			t.Errorf("%v %v", g, err)
		}
	})
}

// An edge host is not ready when it is not heard of, but keeps its lease.
func TestEdgeHostKeepsItsLease(t *testing.T) {
	onePool(t, func(t *testing.T, ctx context.Context, p *pool) {
		day := api.Duration(24 * time.Hour)
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "edge"}}, Spec: api.NodeSpec{DisconnectAllowed: &day}}
		n.Status.Conditions = []api.Condition{{Type: api.ConditionReady, Status: true}}
		if _, err := p.mem.Commit(ctx, store.Create(n)); err != nil {
			t.Fatal(err)
		}
		k := p.begin(ctx)
		if g, err := k.Take(ctx, "edge"); err != nil || g.Duration != 24*time.Hour {
			t.Fatal(g, err)
		}
		time.Sleep(6 * time.Second)
		got, err := store.Get[*api.Node](ctx, p.mem, api.RefOf(n))
		if err != nil || got.Ready() || got.Condition(api.ConditionReady).Reason != "OutOfReach" {
			t.Errorf("%v %v", got.Status.Conditions, err)
		}
		if g, err := k.Renew(ctx, "edge", Beat{Epoch: 1}); err != nil || g.Epoch != 1 {
			t.Errorf("it comes back: %v %v", g, err)
		}
		time.Sleep(25 * time.Hour)
		if _, err := k.Renew(ctx, "edge", Beat{Epoch: 1}); !errors.Is(err, errs.Conflict) {
			t.Errorf("after a day: %v", err)
		}
	})
}

// How long an edge host may be alone holds from its next heartbeat on: a longer time is
// written before it is granted, a shorter one when the host knows.
func TestDurationChanges(t *testing.T) {
	onePool(t, func(t *testing.T, ctx context.Context, p *pool) {
		p.allow(ctx, "edge", 0)
		k := p.begin(ctx)
		written := func() time.Duration {
			l, err := store.Get[*api.Lease](ctx, p.mem, api.NodeLease("edge"))
			if err != nil {
				t.Fatal(err)
			}
			return l.Spec.Duration.D()
		}
		beat := func(b Beat, want, stored time.Duration) Grant {
			t.Helper()
			g, err := k.Renew(ctx, "edge", b)
			if err != nil || g.Epoch != b.Epoch || g.Duration != want || written() != stored {
				t.Fatalf("%+v %v, written %s", g, err, written())
			}
			time.Sleep(time.Second)
			return g
		}
		first, err := k.Take(ctx, "edge")
		if err != nil || first.Duration != 5*time.Second {
			t.Fatal(first, err)
		}
		same, day, hour := 5*time.Second, 24*time.Hour, time.Hour
		if g := beat(Beat{Epoch: 1, Duration: same}, same, same); g.Rev != first.Rev {
			t.Error("written without a change")
		}
		p.allow(ctx, "edge", day)
		if g := beat(Beat{Epoch: 1, Duration: same}, day, day); g.Rev <= first.Rev {
			t.Error("granted before it was written")
		}
		p.allow(ctx, "edge", hour)
		beat(Beat{Epoch: 1, Duration: day}, hour, day)
		beat(Beat{Epoch: 1}, hour, day) // an older host does not say what it knows
		time.Sleep(6 * time.Hour)       // so it is believed to be there for the whole day
		beat(Beat{Epoch: 1, Duration: hour}, hour, hour)
		p.allow(ctx, "edge", day)
		beat(Beat{Epoch: 1, Duration: hour}, day, day)
		p.allow(ctx, "edge", 0)
		// Another process of the host: what the watchdog of the one before knows is not known.
		if g, err := k.Take(ctx, "edge"); err != nil || g.Duration != day {
			t.Fatal(g, err)
		}
		beat(Beat{Epoch: 2, Duration: day}, same, day)
		beat(Beat{Epoch: 2, Duration: same}, same, same)
		time.Sleep(5 * time.Second)
		if _, err := k.Renew(ctx, "edge", Beat{Epoch: 2}); !errors.Is(err, errs.Conflict) {
			t.Error("not given up by the shorter time:", err)
		}
	})
}

// A host says that it knows of a shorter lease when everything on it does, and not before.
func TestShorterIsSaidWhenItIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPool(t, 1, 1)
		s := p.srv[0]
		p.allow(ctx, "edge", 24*time.Hour)
		s.lead(ctx)
		start := time.Now()
		boot := func() time.Duration { return time.Since(start) + time.Hour }
		var cut, hangs atomic.Bool
		hangs.Store(true)
		var told time.Duration
		revs := map[int64]bool{}
		h := NewHolder(HolderDeps{Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler), Boot: boot,
			Ways: func() []Renewer { return []Renewer{way{s: s, to: Local("edge", s.keeper.Load), cut: &cut}} },
			Took: func(g Grant) { revs[g.Rev] = true },
			Shorter: func(ctx context.Context, end time.Duration) error {
				if hangs.Load() {
					<-ctx.Done()
					return ctx.Err()
				}
				told = end
				return nil
			}})
		done := make(chan error, 1)
		go func() {
			if err := h.First(ctx); err != nil {
				done <- err
				return
			}
			done <- h.Run(ctx)
		}()
		time.Sleep(3 * time.Second)
		if _, until := h.Tenure(); until < boot()+20*time.Hour {
			t.Fatal("no long lease:", until-boot())
		}
		p.allow(ctx, "edge", 0)
		written := func() time.Duration {
			l, err := store.Get[*api.Lease](ctx, p.mem, api.NodeLease("edge"))
			if err != nil {
				t.Fatal(err)
			}
			return l.Spec.Duration.D()
		}
		time.Sleep(time.Minute)
		if _, until := h.Tenure(); until > boot()+5*time.Second || written() != 24*time.Hour {
			t.Fatalf("counts on %s, written %s", until-boot(), written())
		}
		hangs.Store(false)
		time.Sleep(4 * time.Second)
		if _, until := h.Tenure(); until > boot()+5*time.Second || written() != 5*time.Second || told == 0 || told > boot()+5*time.Second {
			t.Fatalf("counts on %s, written %s, told %s", until-boot(), written(), told-boot())
		}
		if len(revs) != 2 || !revs[h.Rev()] {
			t.Error("another revision of the lease was not told of:", revs)
		}
		cancel()
		<-done
		<-s.ended
	})
}

func condition(t *testing.T, s store.Store) api.Condition {
	n, err := store.Get[*api.Node](t.Context(), s, api.Ref{Kind: api.KindNode, Name: "isle2"})
	if err != nil {
		t.Fatal(err)
	}
	if c := n.Condition(api.ConditionHeldBack); c != nil {
		return *c
	}
	return api.Condition{}
}

func TestFlappingIsHeldBack(t *testing.T) {
	onePool(t, func(t *testing.T, ctx context.Context, p *pool) {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle2"}}}
		if _, err := p.mem.Commit(ctx, store.Create(n)); err != nil {
			t.Fatal(err)
		}
		k := p.begin(ctx)
		held := func() (time.Time, bool) {
			got, err := store.Get[*api.Node](ctx, p.mem, api.RefOf(n))
			if err != nil {
				t.Fatal(err)
			}
			return got.HeldBack(time.Now())
		}
		var last time.Time
		for i := range 6 {
			if _, err := k.Take(ctx, "isle2"); err != nil {
				t.Fatal(err)
			}
			until, back := held()
			if back != (i >= 3) {
				t.Errorf("taken the %dth time: held back %v until %s", i+1, back, until)
			}
			if back && !until.After(last) {
				t.Errorf("not longer than before: %s, %s", until, last)
			}
			last = until
			time.Sleep(6 * time.Second)
			if c := condition(t, p.mem); back && c.Status != time.Now().Before(until) {
				t.Errorf("at %s held back until %s: %v", time.Now(), until, c)
			}
		}
		time.Sleep(2 * time.Hour)
		if _, err := k.Take(ctx, "isle2"); err != nil {
			t.Fatal(err)
		}
		if _, back := held(); back {
			t.Error("still held back after hours")
		}
		if condition(t, p.mem).Status {
			t.Error("the condition is still there after hours")
		}
	})
}

// What most of the nodes lost at the same time is not held against any of them; what one
// loses on its own is.
func TestLostTogetherIsNobodysFault(t *testing.T) {
	onePool(t, func(t *testing.T, ctx context.Context, p *pool) {
		k := p.begin(ctx)
		names := []string{"a", "b", "c", "d"}
		take := func(names ...string) {
			t.Helper()
			for _, n := range names {
				if _, err := k.Take(ctx, n); err != nil {
					t.Fatal(err)
				}
				time.Sleep(300 * time.Millisecond)
			}
		}
		back := func(name string) bool {
			n, err := store.Get[*api.Node](ctx, p.mem, api.Ref{Kind: api.KindNode, Name: name})
			if err != nil {
				t.Fatal(err)
			}
			_, held := n.HeldBack(time.Now())
			return held
		}
		for _, n := range append(names, "dead") {
			p.allow(ctx, n, 0)
		}
		take("dead") // lost long before, and never seen again
		time.Sleep(time.Minute)
		steady := func(d time.Duration, names ...string) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
				for _, n := range names {
					l, err := store.Get[*api.Lease](ctx, p.mem, api.NodeLease(n))
					if err != nil {
						t.Fatal(err)
					}
					if _, err := k.Renew(ctx, n, Beat{Epoch: l.Spec.Epoch}); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for range 4 { // all but one
			take(names...)
			steady(8*time.Second, "a")
		}
		take("b", "c", "d")
		for _, n := range names {
			if back(n) {
				t.Errorf("%s is held back for what all had", n)
			}
		}
		for range 3 { // one of them alone
			steady(8*time.Second, "a", "c", "d")
			take("b")
		}
		if !back("b") || back("c") {
			t.Errorf("held back: b %v, c %v", back("b"), back("c"))
		}
	})
}

// A new machine under an old name gets no lease before the old one's has ended.
func TestReplacedMachineIsWaitedFor(t *testing.T) {
	onePool(t, func(t *testing.T, ctx context.Context, p *pool) {
		k := p.begin(ctx)
		joined := func() {
			id := &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: "isle2"}}, Spec: api.NodeIdentitySpec{JoinedAt: time.Now()}}
			if _, err := p.mem.Commit(ctx, store.Set(id)); err != nil {
				t.Fatal(err)
			}
		}
		joined()
		time.Sleep(time.Second)
		for range 2 { // the same machine may start again at any time
			if _, err := k.Take(ctx, "isle2"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		joined()
		began := time.Now()
		for {
			g, err := k.Take(ctx, "isle2")
			if err == nil {
				if took := time.Since(began); took < 4*time.Second || took > 5*time.Second || g.Epoch != 3 {
					t.Errorf("taken after %s, epoch %d", took, g.Epoch)
				}
				break
			}
			if !errors.Is(err, errs.Unavailable) {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

func TestOverAStream(t *testing.T) {
	ctx := t.Context()
	p := newPool(t, 1, 1)
	s := p.srv[0]
	kctx, stop := context.WithCancel(ctx)
	s.lead(kctx)
	defer func() { stop(); <-s.ended }()
	var served sync.WaitGroup
	defer served.Wait()
	var conns []net.Conn
	r := NewRemote(func(context.Context) (*tunnel.Stream, error) {
		a, b := net.Pipe()
		conns = append(conns, b)
		served.Go(func() { _ = Serve(ctx, "isle2", s.keeper.Load, tunnel.NewStream(b)) })
		return tunnel.NewStream(a), nil
	})
	var g Grant
	var err error
	for try := 0; ; try++ {
		if g, err = r.Renew(ctx, Beat{Epoch: 0}); err == nil || try > 100 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || g.Epoch != 1 || g.Rev == 0 {
		t.Fatal(g, err)
	}
	if g, err := r.Renew(ctx, Beat{Epoch: 1}); err != nil || g.Epoch != 1 {
		t.Fatal(g, err)
	}
	if _, err := r.Renew(ctx, Beat{Epoch: 7}); !errors.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	conns[0].Close()
	if _, err := r.Renew(ctx, Beat{Epoch: 1}); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
	if g, err := r.Renew(ctx, Beat{Epoch: 1}); err != nil || g.Epoch != 1 {
		t.Fatal("on a new stream:", g, err)
	}
	s.keeper.Store(nil)
	if _, err := r.Renew(ctx, Beat{Epoch: 1}); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
	conns[1].Close()
}

func FuzzServe(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 9, '{', '"', 's', 'e', 'q', '"', ':', '1', '}'})
	f.Add([]byte{1, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = a.Write(in); a.Close() })
		_ = Serve(t.Context(), "n", func() *Keeper { return nil }, tunnel.NewStream(b))
		b.Close()
		wg.Wait()
	})
}

func TestLeadIsTakenAndNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		m := store.NewMem()
		a, err := Lead(ctx, m, clock.Real{}, "a")
		if err != nil {
			t.Fatal(err)
		}
		gone := make(chan error, 1)
		go func() { gone <- Replaced(ctx, m, a) }()
		synctest.Wait()
		select {
		case err := <-gone:
			t.Fatal("replaced by nobody:", err)
		default:
		}
		b, err := Lead(ctx, m, clock.Real{}, "b")
		if err != nil || b <= a {
			t.Fatal(b, err)
		}
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		l, err := store.Get[*api.Lease](ctx, m, api.LeaderLease())
		if err != nil || l.Spec.Holder != "b" || l.Spec.Epoch != 2 {
			t.Fatal(l, err)
		}
	})
}

// A lease from before a restart is gone on with, as long as it lasts and nobody says otherwise.
func TestResume(t *testing.T) {
	onePool(t, func(t *testing.T, ctx context.Context, p *pool) {
		s := p.srv[0]
		day := api.Duration(24 * time.Hour)
		if _, err := p.mem.Commit(ctx, store.Create(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "edge"}}, Spec: api.NodeSpec{DisconnectAllowed: &day}})); err != nil {
			t.Fatal(err)
		}
		p.begin(ctx)
		g, err := s.keeper.Load().Take(ctx, "edge")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		boot := func() time.Duration { return time.Since(start) + time.Hour }
		var cut atomic.Bool
		cut.Store(true)
		var ends []time.Duration
		lost := 0
		h := NewHolder(HolderDeps{Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler), Boot: boot, Lost: func() { lost++ },
			Ways:     func() []Renewer { return []Renewer{way{s: s, to: Local("edge", s.keeper.Load), cut: &cut}} },
			Extended: func(end time.Duration, alone bool) { ends = append(ends, end) }})
		h.Resume(g, boot()-time.Second)
		h.Resume(Grant{}, boot()+time.Hour)
		if h.Held() || len(ends) != 0 {
			t.Fatal("held by a lease that is over, or by none")
		}
		h.Resume(g, boot()+10*time.Minute)
		if !h.Held() || h.Rev() != g.Rev || len(ends) != 1 || ends[0] != boot()+10*time.Minute {
			t.Fatal("not resumed", h.Held(), h.Rev(), ends)
		}
		go func() { _ = h.Run(ctx) }()
		time.Sleep(9 * time.Minute)
		if !h.Held() {
			t.Error("given up early")
		}
		cut.Store(false)
		time.Sleep(5 * time.Second)
		if got, until := h.Tenure(); !h.Held() || got.Epoch != g.Epoch || until < boot()+20*time.Hour || lost != 0 {
			t.Error("a server answered:", got, until, lost)
		}
		cut.Store(true)
		time.Sleep(25 * time.Hour)
		if h.Held() || lost != 1 {
			t.Error("held beyond its end", lost)
		}
	})
}
