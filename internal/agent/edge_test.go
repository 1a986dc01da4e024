package agent_test

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"atoll/api"
	"atoll/internal/agent"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/driver/runtime/fake"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
	"atoll/internal/store/replica"
)

// line is the way to the pool; it can be cut.
type line struct {
	*store.Mem
	mu    sync.Mutex
	cut   chan struct{}
	calls atomic.Int64
}

func (l *line) state() (cut <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.cut:
		return nil, errs.New(errs.Unavailable, "no server answers")
	default:
		l.calls.Add(1)
		return l.cut, nil
	}
}

func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = make(chan struct{})
}

func (l *line) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	if _, err := l.state(); err != nil {
		return nil, err
	}
	return l.Mem.Get(ctx, ref)
}

func (l *line) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	if _, err := l.state(); err != nil {
		return nil, 0, err
	}
	return l.Mem.List(ctx, sel)
}

func (l *line) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if _, err := l.state(); err != nil {
		return 0, err
	}
	return l.Mem.Commit(ctx, ops...)
}

func (l *line) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	cut, err := l.state()
	if err != nil {
		return err
	}
	wctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		select {
		case <-cut:
			cancel()
		case <-wctx.Done():
		}
	})
	if err = l.Mem.Watch(wctx, sel, rev, fn); ctx.Err() == nil {
		return errs.New(errs.Unavailable, "the connection broke")
	}
	return err
}

type imagesHere struct{}

func (imagesHere) Root(_ context.Context, _, ref, _ string, _ func(api.Progress)) (driver.Image, *api.Image, error) {
	return driver.Image{Digest: "sha256:" + ref}, nil, nil
}
func (imagesHere) Handle(context.Context, api.ImageRequest, agent.ImageStream) error { return nil }
func (imagesHere) Here() []string                                                    { return nil }
func (imagesHere) Known() []*api.Image                                               { return nil }
func (imagesHere) Adopt(context.Context, *api.Image) (*api.ImageStatus, error)       { return nil, nil }
func (imagesHere) Forget(context.Context, api.Ref) error                             { return nil }
func (imagesHere) Collect(context.Context, map[string]bool) error                    { return nil }

type held struct{ atomic.Bool }

func (h *held) Term() (int64, bool) { return 0, h.Load() }

// dog is a watchdog that notes what it is told.
type dog struct {
	mu   sync.Mutex
	told []string // every call
	err  error    // of GuardAll
}

func (d *dog) note(what string, err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.told = append(d.told, what)
	return err
}

func (d *dog) GuardAll(_ context.Context, groups map[string][]string) error {
	ids := slices.Sorted(maps.Keys(groups))
	return d.note("all "+strings.Join(ids, " "), d.err)
}
func (d *dog) Guard(_ context.Context, id string, _ []string) error { return d.note("one "+id, nil) }
func (d *dog) Unguard(id string)                                    { _ = d.note("not "+id, nil) }

func (d *dog) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.told
	d.told = nil
	return was
}

// edge is a host on which an agent lives and dies; the runtime stays.
type edge struct {
	t     *testing.T
	line  *line
	rt    *fake.Runtime
	lease held
	dog   agent.Guard
	rev   int64
	path  string
	stop  func()
	rep   *replica.Replica
}

const host = "isle2"

func newEdge(t *testing.T) *edge {
	e := &edge{t: t, line: &line{Mem: store.NewMem(), cut: make(chan struct{})}, path: filepath.Join(t.TempDir(), "replica", host)}
	e.lease.Store(true)
	rt, err := fake.New(driver.Deps{Node: host, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}, fake.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	e.rt = rt
	e.rev = e.pool(store.Create(&api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: api.NodeLease(host).Name}}, Spec: api.LeaseSpec{Holder: host, State: api.LeaseHeld}}))
	e.pool(store.Create(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "acme"}}, Status: api.TenantStatus{UIDBase: 100000, UIDCount: 65536}}))
	e.assign("web", api.InstanceSpec{Image: "x", Command: []string{"serve"}})
	e.assign("db", api.InstanceSpec{Image: "x", Command: []string{"serve"}, Exclusive: true})
	return e
}

func (e *edge) pool(ops ...store.Op) int64 {
	e.t.Helper()
	rev, err := e.line.Mem.Commit(context.Background(), ops...)
	if err != nil {
		e.t.Fatal(err)
	}
	return rev
}

func (e *edge) assign(name string, spec api.InstanceSpec) {
	head := api.Meta{Tenant: "acme", Name: name, UID: name + "0123456789abcdef", Generation: 1}
	spec.Networks = []api.Attach{{Name: api.NetworkNone}}
	e.pool(store.Create(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: head}, Spec: spec}),
		store.Create(&api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: head}, Spec: api.AssignmentSpec{InstanceUID: head.UID, Node: host, Generation: 1}}))
}

// begin starts the daemon's part that an agent needs.
func (e *edge) begin() {
	e.t.Helper()
	log := slog.New(slog.DiscardHandler)
	rep, err := replica.Open(replica.Config{Node: host, Source: e.line, Path: e.path, Clock: clock.Real{}, Log: log, LeaseRev: func() int64 { return e.rev }})
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = rep.Run(ctx) })
	st := store.Fenced(rep, api.NodeLease(host), func() int64 { return e.rev })
	rec := reconcile.NewRecorder(st, clock.Real{}, log, "agent/"+host)
	a := agent.New(agent.Deps{Node: host, Store: st, Clock: clock.Real{}, Log: log, Recorder: rec, Images: imagesHere{}, Lease: &e.lease, Guard: e.dog,
		Runtimes: map[string]driver.Runtime{"container": e.rt}, Facts: func(context.Context) (api.NodeStatus, error) {
			return api.NodeStatus{Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30}}, nil
		}})
	if err := a.Start(ctx); err != nil {
		e.t.Fatal(err)
	}
	wg.Go(func() { _ = a.Run(ctx) })
	wg.Go(func() { _ = rec.Run(ctx) })
	e.rep, e.stop = rep, func() { cancel(); wg.Wait() }
	e.t.Cleanup(cancel)
}

func (e *edge) runs(name string) bool {
	all, err := e.rt.Observe(context.Background())
	if err != nil {
		e.t.Fatal(err)
	}
	for _, o := range all {
		if o.Ref.Name == name {
			return o.Phase == driver.PhaseRunning
		}
	}
	return false
}

func (e *edge) crash(name string) {
	e.t.Helper()
	if !e.rt.Exit("x"+(name + "0123456789abcdef")[:15], 1, false) {
		e.t.Fatalf("%s did not run", name)
	}
}

// told is the status as the pool has it.
func (e *edge) told(name string) api.InstanceStatus {
	e.t.Helper()
	in, err := store.Get[*api.Instance](context.Background(), e.line.Mem, api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: name})
	if err != nil {
		e.t.Fatal(err)
	}
	return in.Status
}

func settle() {
	time.Sleep(20 * time.Second)
	synctest.Wait()
}

// A host that is cut off supervises what it runs, also after its daemon was restarted
// without a server, and tells the pool of it later.
func TestAHostThatIsCutOffRunsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t)
		e.begin()
		settle()
		if !e.runs("web") || !e.runs("db") || e.told("web").Starts != 1 || e.told("db").State != api.StateRunning {
			t.Fatalf("not begun: %+v %+v", e.told("web"), e.told("db"))
		}
		close(e.line.cut)
		e.crash("web")
		settle()
		if !e.runs("web") || e.told("web").Starts != 1 {
			t.Fatalf("cut off: runs %v, the pool was told of %d starts", e.runs("web"), e.told("web").Starts)
		}

		e.stop() // and nothing is written any more, as after a kill
		e.begin()
		settle()
		if !e.runs("web") || !e.runs("db") {
			t.Fatal("the new agent did not keep what runs")
		}
		e.crash("web")
		e.crash("db")
		settle()
		if !e.runs("web") || !e.runs("db") {
			t.Fatalf("begun alone, by a lease that lasts: web %v, db %v", e.runs("web"), e.runs("db"))
		}
		e.lease.Store(false)
		e.crash("web")
		e.crash("db")
		settle()
		if !e.runs("web") || e.runs("db") {
			t.Fatalf("begun alone, without a lease: web %v, db %v", e.runs("web"), e.runs("db"))
		}

		// The pool has marked the host meanwhile; it takes its lease anew when it is back.
		n, err := store.Get[*api.Node](t.Context(), e.line.Mem, api.Ref{Kind: api.KindNode, Name: host})
		if err != nil {
			t.Fatal(err)
		}
		n = api.Clone(n)
		n.Spec.Zone = "harbour"
		n.Status.Conditions = api.SetCondition(n.Status.Conditions, api.Condition{Type: api.ConditionReady, Reason: api.ReasonOutOfReach})
		e.pool(store.Update(n))
		l, err := store.Get[*api.Lease](t.Context(), e.line.Mem, api.NodeLease(host))
		if err != nil {
			t.Fatal(err)
		}
		rev := e.pool(store.Update(api.Clone(l)))
		e.line.mend()
		settle()
		if got := e.told("web").Starts; got != 1 {
			t.Fatalf("told of %d starts by a lease that is over", got)
		}
		e.rev = rev
		e.lease.Store(true)
		settle()
		web, db := e.told("web"), e.told("db")
		if web.Starts != 4 || web.State != api.StateRunning || db.Starts != 3 || !e.runs("db") || e.rep.Pending() != 0 {
			t.Errorf("back: web %+v\ndb %+v\n%d wait", web, db, e.rep.Pending())
		}
		if n, err = store.Get[*api.Node](t.Context(), e.line.Mem, api.RefOf(n)); err != nil || !n.Ready() || n.Spec.Zone != "harbour" {
			t.Errorf("back: %+v %v", n, err)
		}
		e.stop()
	})
}

// An agent that begins has everything guarded at once that it finds and that must not run
// twice, also what the pool knows no more, and never one after the other.
func TestWhatIsFoundIsGuardedAtOnce(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			d := &dog{}
			e := newEdge(t)
			e.dog = d
			for _, name := range []string{"db2", "old"} {
				e.assign(name, api.InstanceSpec{Image: "x", Command: []string{"serve"}, Exclusive: true})
			}
			e.begin()
			time.Sleep(10 * time.Second)
			id := func(name string) string { return "x" + (name + "0123456789abcdef")[:15] }
			if got := d.take(); len(got) != 4 || got[0] != "all " || slices.Contains(got, "one "+id("web")) {
				t.Fatal("at first:", got)
			}
			e.stop()
			for _, k := range []api.Kind{api.KindAssignment, api.KindInstance} {
				e.pool(store.Remove(api.Ref{Kind: k, Tenant: "acme", Name: "old"}, store.Any))
			}
			if fails {
				d.err = errs.New(errs.Unsupported, "no watchdog")
			}
			e.begin()
			time.Sleep(10 * time.Second)
			got := d.take()
			want := []string{"all " + strings.Join([]string{id("db"), id("db2"), id("old")}, " "), "not " + id("old")}
			if fails {
				want = append(want, "one "+id("db"), "one "+id("db2"))
			}
			missing := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(got, s) })
			if got[0] != want[0] || len(missing) > 0 || !fails && len(got) != 2 {
				t.Errorf("it fails %v: %v, not %v", fails, got, want)
			}
			if !e.runs("db") || !e.runs("db2") || !e.runs("web") || e.runs("old") {
				t.Error("something runs that should not, or the other way round")
			}
			e.stop()
		})
	}
}
