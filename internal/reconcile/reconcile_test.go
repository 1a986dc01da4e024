package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// probe is a controller that remembers its calls.
type probe struct {
	mu    sync.Mutex
	calls []string
	busy  map[api.Ref]bool
	twice bool
	fn    func(ctx context.Context, s store.Store, ref api.Ref) (Result, error)
}

func (p *probe) Name() string            { return "probe" }
func (p *probe) Watches() []api.Selector { return []api.Selector{{Kind: api.KindUser}} }
func (p *probe) Owns() []api.Kind        { return []api.Kind{api.KindUser} }

func (p *probe) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (Result, error) {
	p.mu.Lock()
	if p.busy == nil {
		p.busy = map[api.Ref]bool{}
	}
	p.twice = p.twice || p.busy[ref]
	p.busy[ref] = true
	p.calls = append(p.calls, ref.Name)
	p.mu.Unlock()
	defer func() { p.mu.Lock(); p.busy[ref] = false; p.mu.Unlock() }()
	if p.fn == nil {
		return Result{}, nil
	}
	return p.fn(ctx, s, ref)
}

func (p *probe) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.calls...)
}

func user(name string) *api.User {
	return &api.User{Head: api.Head{K: api.KindUser, Meta: api.Meta{Name: name}}}
}

func put(t *testing.T, s store.Store, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := s.Commit(context.Background(), store.Set(user(n))); err != nil {
			t.Fatal(err)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestSettleIsInOrderAndOncePerName(t *testing.T) {
	m := store.NewMem()
	put(t, m, "b", "a")
	p := &probe{}
	e := New(m, clock.NewManual(time.Unix(0, 0)), quiet(), Events{})
	e.Add(p, 1)
	settle := func(want int) {
		t.Helper()
		if n, err := e.Settle(context.Background(), m, 100); err != nil || n != want {
			t.Fatalf("settled with %d calls %v, want %d: %v", n, err, want, p.calls)
		}
	}
	settle(2)
	put(t, m, "a", "a", "c")
	settle(2)
	settle(0)
	if got := p.seen(); got[0] != "a" || got[1] != "b" || got[2] != "a" || got[3] != "c" {
		t.Fatalf("got %v", got)
	}
}

func TestAgainComesWhenDue(t *testing.T) {
	m, clk := store.NewMem(), clock.NewManual(time.Unix(0, 0))
	put(t, m, "a")
	p := &probe{fn: func(context.Context, store.Store, api.Ref) (Result, error) { return Result{Again: time.Minute}, nil }}
	e := New(m, clk, quiet(), Events{})
	e.Add(p, 1)
	for i, step := range []struct {
		wait  time.Duration
		calls int
	}{{0, 1}, {59 * time.Second, 0}, {time.Second, 1}} {
		clk.Advance(step.wait)
		if n, err := e.Settle(context.Background(), m, 10); err != nil || n != step.calls {
			t.Fatalf("step %d: %d calls, %v", i, n, err)
		}
	}
	if at, ok := e.NextAt(); !ok || at != time.Unix(120, 0) {
		t.Fatalf("next at %v %v", at, ok)
	}
}

func TestErrorsBackOffAndConflictsDoNot(t *testing.T) {
	m, clk := store.NewMem(), clock.NewManual(time.Unix(0, 0))
	put(t, m, "a")
	fail := errs.New(errs.Conflict, "somebody was faster")
	p := &probe{}
	p.fn = func(context.Context, store.Store, api.Ref) (Result, error) {
		if len(p.calls) < 3 {
			return Result{}, fail
		}
		if len(p.calls) < 6 {
			return Result{}, errors.New("broken")
		}
		return Result{}, nil
	}
	e := New(m, clk, quiet(), Events{})
	e.Add(p, 1)
	if n, _ := e.Settle(context.Background(), m, 100); n != 3 {
		t.Fatalf("%d calls at once, want 3: two conflicts are tried again without a pause", n)
	}
	total, waits := 3, []time.Duration{}
	for total < 6 {
		at, ok := e.NextAt()
		if !ok {
			t.Fatal("forgotten after an error")
		}
		waits = append(waits, at.Sub(clk.Now()))
		clk.Advance(at.Sub(clk.Now()))
		n, err := e.Settle(context.Background(), m, 100)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	for i := 1; i < len(waits); i++ {
		if waits[i] <= waits[i-1] {
			t.Fatalf("pauses do not grow: %v", waits)
		}
	}
}

func TestAControllerWritesOnlyWhatItOwns(t *testing.T) {
	m := store.NewMem()
	put(t, m, "a")
	var got error
	p := &probe{fn: func(ctx context.Context, s store.Store, _ api.Ref) (Result, error) {
		_, got = s.Commit(ctx, store.Set(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "n"}}}))
		return Result{}, nil
	}}
	e := New(m, clock.NewManual(time.Unix(0, 0)), quiet(), Events{})
	e.Add(p, 1)
	if _, err := e.Settle(context.Background(), m, 10); err != nil {
		t.Fatal(err)
	}
	if got == nil {
		t.Fatal("a foreign kind was written")
	}
}

func TestControllersThatWakeEachOtherForEverAreFound(t *testing.T) {
	m := store.NewMem()
	put(t, m, "a")
	n := 0
	p := &probe{fn: func(ctx context.Context, s store.Store, ref api.Ref) (Result, error) {
		n++
		u := user(ref.Name)
		u.Spec.FullName = time.Duration(n).String()
		_, err := s.Commit(ctx, store.Set(u))
		return Result{}, err
	}}
	e := New(m, clock.NewManual(time.Unix(0, 0)), quiet(), Events{})
	e.Add(p, 1)
	if _, err := e.Settle(context.Background(), m, 50); err == nil {
		t.Fatal("no error")
	}
}

func TestRunNeverWorksOnANameTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMem()
		p := &probe{fn: func(context.Context, store.Store, api.Ref) (Result, error) {
			time.Sleep(time.Millisecond)
			return Result{}, nil
		}}
		e := New(m, clock.Real{}, quiet(), Events{})
		e.Add(p, 8)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- e.Run(ctx) }()
		for range 50 {
			put(t, m, "a", "b", "c")
			time.Sleep(300 * time.Microsecond)
		}
		time.Sleep(time.Second)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if p.twice {
			t.Fatal("two calls for one name at the same time")
		}
		last := map[string]bool{}
		for _, n := range p.seen() {
			last[n] = true
		}
		if len(last) != 3 {
			t.Fatalf("saw %v", last)
		}
	})
}

// two watches two kinds and remembers which came first.
type two struct{ probe }

func (*two) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindRole}, {Kind: api.KindUser}}
}

func TestRunListsInOrderBeforeTheFirstCall(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			m := store.NewMem()
			put(t, m, "a-user")
			if _, err := m.Commit(t.Context(), store.Set(&api.Role{Head: api.Head{K: api.KindRole, Meta: api.Meta{Name: "z-role"}}})); err != nil {
				t.Fatal(err)
			}
			p := &two{}
			e := New(m, clock.Real{}, quiet(), Events{})
			e.Add(p, 1)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- e.Run(ctx) }()
			synctest.Wait()
			cancel()
			<-done
			if got := p.seen(); len(got) != 2 || got[0] != "z-role" {
				t.Fatalf("got %v", got)
			}
		})
	}
}

func TestRecorderCountsRepeats(t *testing.T) {
	m, clk := store.NewMem(), clock.NewManual(time.Unix(100, 0))
	r := NewRecorder(m, clk, quiet(), "test")
	about := api.Ref{Kind: api.KindInstance, Tenant: "t", Name: "a"}
	r.Record(about, "u", "warning", "OOM", "m")
	r.Record(about, "u", "warning", "OOM", "m")
	r.Flush(context.Background())
	clk.Advance(time.Hour)
	r.Record(about, "u", "warning", "OOM", "m")
	r.Record(about, "u", "normal", "Started", "m")
	r.Flush(context.Background())
	evs, _, err := store.List[*api.Event](context.Background(), m, api.Selector{Kind: api.KindEvent})
	if err != nil || len(evs) != 2 {
		t.Fatalf("%d events, %v", len(evs), err)
	}
	for _, e := range evs {
		if e.Spec.Reason == "OOM" && (e.Spec.Count != 3 || e.Spec.Last.Sub(e.Spec.First) != time.Hour) {
			t.Fatalf("%+v", e.Spec)
		}
	}
}
