// Package sim is the digital twin: the pool's own scheduler, controllers, admission
// and agents on a store in memory, with pretended drivers and a clock that only the
// simulation moves. One seed decides everything; the same scenario and seed give the
// same report, byte for byte. After every step the invariants are checked.
//
// Time jumps from one thing that happens to the next. What an agent does only to look
// for news that nobody reports (reconcile.Result.Poll) is left out while nothing is
// new: in the twin all news is reported. Everything runs in the caller's goroutine;
// calls that take time are coroutines of it. It never touches the host it runs on.
package sim

import (
	"container/heap"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"sort"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/control"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
	"atoll/internal/sim/report"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
	"atoll/internal/store/quota"
)

// Options is what a run needs beside its scenario.
type Options struct {
	// Chain makes the placement chain of the scenario's policies.
	Chain func(scenario.Policies) (policy.Chain, error)
	// Open opens the files of traces; not needed without any.
	Open func(name string) (io.ReadCloser, error)
	Log  *slog.Logger
	// Progress is told how far the run is, at every sample; may be nil.
	Progress func(Progress)
	// State is what is in the pool at the beginning beside the scenario's hosts and
	// tenants: instances, and assignments to its hosts. A replay begins with it.
	State []api.Object
	// Recorded are instances that come at recorded times, beside the scenario's arrivals.
	Recorded []Recorded
}

// Recorded is an instance of a pool's own past.
type Recorded struct {
	At       time.Duration
	Lasts    time.Duration // 0: to the end
	Instance *api.Instance
}

// Progress is a moment of a run.
type Progress struct {
	At, Of  time.Duration
	Running int
	Waiting int
}

const (
	// maxViolations are told; the run ends at the first settled step that has any.
	maxViolations = 20
	// batch bounds how much is created before everything settles.
	batch = 2000
	// maxCalls guards against controllers that wake each other for ever.
	maxCalls = 2_000_000
)

// World is a pool at one moment.
type World struct {
	sc         *scenario.Scenario
	opt        Options
	chain      policy.Chain
	isolations []string

	clk     *clock.Manual
	begin   time.Time
	end     time.Time
	view    *view
	gate    store.Store // what everybody commits to: admission, or the store itself
	ctl     *skewed     // the control plane's clock
	control *reconcile.Engine
	hosts   []*host
	books   *books
	meter   *meter
	crew    *crew
	agenda  agenda
	wakeups wakeups
	dirty   []*host
	fresh   int // commits of users since everything settled
	calls   int

	sources  []*source
	refusals map[string]int
	faults   map[string]int
	removed  int
	created  int
	refused  int
	broken   []report.Violation
}

// New builds the pool of a scenario that was decoded and checked.
func New(ctx context.Context, sc *scenario.Scenario, opt Options) (*World, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	w := &World{sc: sc, opt: opt, clk: clock.NewManual(*sc.Start), begin: *sc.Start, end: sc.Start.Add(sc.Duration.D()),
		view: newView(), books: newBooks(), refusals: map[string]int{}, faults: map[string]int{}}
	w.crew = &crew{clk: w.clk}
	w.ctl = &skewed{Manual: w.clk, crew: w.crew}
	w.gate = w.view
	if !sc.Policies.Unlimited {
		q := quota.New(w.view)
		q.Clock = w.ctl
		w.gate = q
	}
	w.books.violate, w.books.onStart, w.books.onEnd = w.violate, w.started, w.ended
	w.meter = newMeter(w)
	var err error
	if w.chain, err = opt.Chain(sc.Policies); err != nil {
		return nil, err
	}
	w.findIsolations()
	if err := w.build(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Close ends what still sleeps. Run does it itself.
func (w *World) Close() {
	for _, h := range w.hosts {
		if h.up {
			h.cancel()
		}
	}
	w.crew.close()
}

// rng is a stream of random numbers of its own for every part of the world, so that a
// change of one part changes nothing of what is drawn for the others.
func (w *World) rng(part string) *rand.Rand {
	h := fnv.New64a()
	io.WriteString(h, part)                            //nolint:errcheck // never fails
	return rand.New(rand.NewPCG(w.sc.Seed, h.Sum64())) //nolint:gosec // repeatable by intent
}

func (w *World) findIsolations() {
	seen := map[string]bool{string(api.IsolationContainer): true}
	for i := range w.sc.Arrivals {
		s := api.InstanceSpec{Isolation: w.sc.Arrivals[i].Isolation}
		seen[string(s.EffectiveIsolation())] = true
	}
	for _, x := range w.opt.Recorded {
		seen[string(x.Instance.Spec.EffectiveIsolation())] = true
	}
	for _, o := range w.opt.State {
		if in, ok := o.(*api.Instance); ok {
			seen[string(in.Spec.EffectiveIsolation())] = true
		}
	}
	for name := range seen {
		w.isolations = append(w.isolations, name)
	}
	sort.Strings(w.isolations)
}

// build makes controllers, hosts and tenants, in the order a pool is built in.
func (w *World) build(ctx context.Context) error {
	w.control = reconcile.New(w.gate, w.ctl, w.opt.Log, reconcile.Events{})
	cs, err := control.All(control.Deps{Clock: w.ctl, Log: w.opt.Log, Chain: w.chain, Seed: w.sc.Policies.Seed, Subnet: "10.0.0.0/8"})
	if err != nil {
		return err
	}
	for _, c := range cs {
		w.control.Add(c, 1)
	}
	for name, v := range map[string]int64{"low": -1000, "normal": 0, "high": 1000} {
		p := &api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: name}}, Spec: api.PriorityClassSpec{Value: v, Preempt: name == "high", Default: name == "normal"}}
		if _, err := w.view.Commit(ctx, store.Set(p)); err != nil {
			return err
		}
	}
	for i := range w.sc.Hosts {
		g := &w.sc.Hosts[i]
		for k := range g.Count {
			h := w.newHost(g, k)
			if g.Later {
				continue
			}
			if err := w.join(ctx, h); err != nil {
				return err
			}
		}
	}
	for i := range w.sc.Tenants {
		if err := w.setTenant(ctx, &w.sc.Tenants[i]); err != nil {
			return fmt.Errorf("tenants[%d]: %w", i, err)
		}
	}
	if err := w.restore(ctx); err != nil {
		return err
	}
	if err := w.arrivals(); err != nil {
		return err
	}
	w.recorded()
	w.plans()
	return w.settle(ctx)
}

// setTenant makes or changes a tenant.
func (w *World) setTenant(ctx context.Context, t *scenario.Tenant) error {
	ref := api.Ref{Kind: api.KindTenant, Name: t.Name}
	old, err := store.Get[*api.Tenant](ctx, w.view, ref)
	if err == nil {
		next := api.Clone(old)
		next.Spec, next.Generation = t.Object().Spec, old.Generation+1
		_, err = w.gate.Commit(ctx, store.Update(next))
		return err
	}
	now, o := w.clk.Now(), t.Object()
	o.UID, o.CreatedAt = uid(w.rng("tenant/"+t.Name)), &now
	if w.sc.Policies.Unlimited {
		o.Status = api.TenantStatus{UIDBase: uint32(16+len(w.books.order)) << 16, UIDCount: 1 << 16}
	}
	w.books.tenant(t.Name)
	_, err = w.gate.Commit(ctx, store.Create(o))
	return err
}

func uid(r *rand.Rand) string { return fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64()) }

// Run plays the whole scenario.
func (w *World) Run(ctx context.Context) (*report.Report, error) {
	defer w.Close()
	w.sampleAt(w.begin)
	for ctx.Err() == nil {
		if err := w.step(ctx); err != nil {
			return w.report(), err
		}
		if len(w.broken) > 0 {
			v := w.broken[0]
			return w.report(), errs.New(errs.Internal, "after %s with seed %d: %s", v.At.D(), w.sc.Seed, v.What)
		}
		if !w.clk.Now().Before(w.end) && !w.due(w.end) {
			break
		}
	}
	return w.report(), ctx.Err()
}

// due reports whether something is on the agenda until t.
func (w *World) due(t time.Time) bool {
	return len(w.agenda.items) > 0 && !w.agenda.items[0].at.After(t)
}

// step lets time jump to the next thing that happens, lets it happen, and everything settle.
func (w *World) step(ctx context.Context) error {
	next := w.end
	consider := func(at time.Time, ok bool) {
		if ok && at.Before(next) {
			next = at
		}
	}
	if len(w.agenda.items) > 0 {
		consider(w.agenda.items[0].at, true)
	}
	if len(w.crew.sleepers) > 0 {
		consider(w.crew.sleepers[0].at, true)
	}
	for len(w.wakeups) > 0 && !w.wakeups[0].at.Equal(w.wakeups[0].h.nextAt) {
		heap.Pop(&w.wakeups) // was put off
	}
	if len(w.wakeups) > 0 {
		consider(w.wakeups[0].at, true)
	}
	if at, ok := w.control.NextWork(); ok {
		consider(at.Add(-w.ctl.offset), true)
	}
	if d := next.Sub(w.clk.Now()); d > 0 {
		w.books.pass(d)
		w.clk.Advance(d)
	}
	now := w.clk.Now()
	for len(w.wakeups) > 0 && !w.wakeups[0].at.After(now) {
		x := heap.Pop(&w.wakeups).(wakeup)
		if x.at.Equal(x.h.nextAt) {
			x.h.nextAt = time.Time{}
			w.mark(x.h)
		}
	}
	for h := w.crew.wake(now); h != nil; h = w.crew.wake(now) {
		w.mark(h)
	}
	sample := false
	for w.due(now) && w.fresh < batch {
		e := heap.Pop(&w.agenda).(event)
		if err := e.do(ctx); err != nil {
			return err
		}
		sample = sample || w.meter.wanted
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	w.books.settle()
	if err := w.check(ctx, sample); err != nil {
		return err
	}
	if w.meter.wanted {
		w.meter.wanted = false
		w.meter.sample()
	}
	return nil
}

// settle runs everybody until nobody has anything left to do now.
func (w *World) settle(ctx context.Context) error {
	calls := 0
	for {
		n, err := w.control.Settle(ctx, w.view, maxCalls)
		if err != nil {
			return err
		}
		calls += n
		w.route()
		if len(w.dirty) == 0 {
			break
		}
		todo := w.dirty
		w.dirty = nil
		sort.Slice(todo, func(i, j int) bool { return todo[i].idx < todo[j].idx })
		for _, h := range todo {
			k, err := w.turn(h)
			if err != nil {
				return err
			}
			if calls += k; calls > maxCalls {
				return errs.New(errs.Internal, "the pool does not settle: %d calls, last on %s", calls, h.name)
			}
			if h.up && h.wire.frozen == nil {
				h.rec.Flush(h.ctx)
			}
		}
	}
	w.calls += calls
	w.fresh = 0
	return w.view.Compact(ctx, w.view.Revision())
}

// route tells the hosts and the books what changed.
func (w *World) route() {
	for _, ev := range w.view.EventsSince(w.view.seen) {
		w.view.seen = ev.Rev
		was, is := w.view.note(ev)
		w.books.note(ev)
		switch ev.Object.(type) {
		case *api.Tenant, *api.Image:
			for _, h := range w.hosts {
				w.tell(h, ev)
			}
		case *api.Node:
			w.tell(w.books.hosts[ev.Object.Metadata().Name], ev)
		case *api.Instance, *api.Assignment:
			w.tell(w.books.hosts[is], ev)
			if was != is {
				w.tell(w.books.hosts[was], ev)
			}
		}
	}
}

func (w *World) tell(h *host, ev store.Event) {
	if h == nil || !h.up {
		return
	}
	h.inbox = append(h.inbox, ev)
	w.mark(h)
}

func (w *World) violate(format string, args ...any) {
	if len(w.broken) < maxViolations {
		w.broken = append(w.broken, report.Violation{At: api.Duration(w.books.now), What: fmt.Sprintf(format, args...)})
	}
}

// restore puts what was recorded into the pool, with what it was assigned to.
func (w *World) restore(ctx context.Context) error {
	if len(w.opt.State) == 0 {
		return nil
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	ops := make([]store.Op, 0, len(w.opt.State))
	k := &kindOf{name: "recorded"}
	for _, o := range w.opt.State {
		if in, ok := o.(*api.Instance); ok {
			w.books.expect(in, k).restored = true
		}
		ops = append(ops, store.Create(o))
	}
	for len(ops) > 0 {
		n := min(len(ops), batch)
		if _, err := w.view.Commit(ctx, ops[:n]...); err != nil {
			return fmt.Errorf("put back what was recorded: %w", err)
		}
		ops = ops[n:]
	}
	if q, ok := w.gate.(*quota.Store); ok {
		if _, err := q.Recount(ctx); err != nil {
			return err
		}
	}
	return w.settle(ctx)
}

func (w *World) policyNames() []string {
	var out []string
	for _, s := range w.chain.Scorers {
		out = append(out, s.Name()+"="+strconv.FormatFloat(s.Weight, 'g', -1, 64))
	}
	return out
}
