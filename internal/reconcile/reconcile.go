// Package reconcile is the engine that turns changes in the store into calls of
// controllers. A controller is told a name, never a change: it reads what is,
// decides, and commits. The engine gives it a queue in which a name stands once,
// never two calls for one name at the same time, growing pauses after errors, and
// the rule that it writes only the kinds it owns.
//
// Run owns all its goroutines and waits for them. Settle does the same work in
// the caller's goroutine, in a fixed order, for the simulator and for tests.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Controller keeps one part of the world as the store says it should be.
type Controller interface {
	Name() string
	// Watches is what wakes it: every object chosen is enqueued by its ref.
	Watches() []api.Selector
	// Owns lists all kinds it may write; a commit on another fails.
	Owns() []api.Kind
	// Reconcile reads what ref names, decides and commits. It must be safe to call
	// at any time, for things gone, and again after an error.
	Reconcile(ctx context.Context, s store.Store, ref api.Ref) (Result, error)
}

// Keyer is a Controller to which several refs mean the same work, such as an instance
// and its assignment. The queue keeps them as one name, so that there are never two
// calls for it at the same time.
type Keyer interface {
	// Key gives the ref that Reconcile is called with for a ref that was watched or asked for.
	Key(ref api.Ref) api.Ref
}

// Result tells the engine what should be looked at next, beside what changes in the store.
type Result struct {
	Again time.Duration // look at the same ref after this; 0: only when it changes
	// Poll says that Again only looks for what nobody reports: as long as nothing
	// changed, in the store or in the world, the call does nothing. Run makes it all the
	// same; the simulator, where nothing changes unreported, leaves it out (see NextWork).
	Poll bool
	Also []api.Ref // look at these now
}

// Events lets metrics, logs and tests see the engine work. Fields may be nil.
type Events struct {
	Done func(controller string, ref api.Ref, took time.Duration, err error)
}

// Engine runs controllers.
type Engine struct {
	store store.Store
	clock clock.Clock
	log   *slog.Logger
	ev    Events
	units []*unit
}

// unit is one controller with its queue.
type unit struct {
	Controller
	queue   *queue
	workers int
	store   store.Store
	known   []map[api.Ref]bool // per watch, what is in its selection (Settle and Turn only)
	seen    int64              // revision up to which Settle has looked (0: not listed yet)
	calls   int                // that Turn has begun and that have not ended
}

// New makes an engine without controllers.
func New(s store.Store, c clock.Clock, log *slog.Logger, ev Events) *Engine {
	return &Engine{store: s, clock: c, log: log, ev: ev}
}

// Add registers a controller that may work on so many names at once.
func (e *Engine) Add(c Controller, workers int) {
	e.units = append(e.units, &unit{Controller: c, workers: max(workers, 1), queue: newQueue(e.clock),
		store: owned{e.store, c}, known: make([]map[api.Ref]bool, len(c.Watches()))})
}

// Enqueue asks the named controller to look at ref; for facts that are not in the
// store, such as an instance that ended.
func (e *Engine) Enqueue(controller string, ref api.Ref) {
	for _, u := range e.units {
		if u.Name() == controller {
			u.add(ref)
		}
	}
}

// add enqueues the name of a ref.
func (u *unit) add(ref api.Ref) {
	if k, ok := u.Controller.(Keyer); ok {
		ref = k.Key(ref)
	}
	u.queue.add(ref)
}

// Run works until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, u := range e.units {
		wg.Go(func() {
			// In the order of Watches, and all before the first call: a controller must not
			// judge instances before it knows the nodes.
			revs := e.prime(ctx, u)
			for i, sel := range u.Watches() {
				wg.Go(func() { e.feed(ctx, u, sel, revs[i]) })
			}
			for range u.workers {
				wg.Go(func() { e.work(ctx, u) })
			}
		})
	}
	<-ctx.Done()
	for _, u := range e.units {
		u.queue.close()
	}
	wg.Wait()
	return ctx.Err()
}

// listPause is the first pause after a store that did not answer.
const listPause = 50 * time.Millisecond

// prime enqueues everything there is, one selection after the other, and gives the
// revisions it was read at.
func (e *Engine) prime(ctx context.Context, u *unit) []int64 {
	revs := make([]int64, len(u.Watches()))
	for i, sel := range u.Watches() {
		for pause := listPause; ctx.Err() == nil; pause = min(pause*2, 5*time.Second) {
			rev, err := e.list(ctx, u, sel)
			if err == nil {
				revs[i] = rev
				break
			}
			e.log.Warn("cannot list; trying again", "controller", u.Name(), "kind", string(sel.Kind), "error", err)
			_ = e.clock.Sleep(ctx, pause) // only ends early with ctx, which the loop looks at
		}
	}
	return revs
}

func (e *Engine) list(ctx context.Context, u *unit, sel api.Selector) (int64, error) {
	objs, rev, err := e.store.List(ctx, sel)
	if err != nil {
		return 0, err
	}
	for _, o := range objs {
		u.add(api.RefOf(o))
	}
	return rev, nil
}

// feed enqueues every change after rev, for ever; when the watch breaks it lists anew.
func (e *Engine) feed(ctx context.Context, u *unit, sel api.Selector, rev int64) {
	pause := listPause
	for ctx.Err() == nil {
		err := e.store.Watch(ctx, sel, rev, func(ev store.Event) error {
			u.add(api.RefOf(ev.Object))
			pause = listPause
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, errs.Compacted) {
			e.log.Warn("watch broken; trying again", "controller", u.Name(), "kind", string(sel.Kind), "error", err)
			_ = e.clock.Sleep(ctx, pause) // only ends early with ctx, which the loop looks at
			pause = min(pause*2, 5*time.Second)
		}
		if now, err := e.list(ctx, u, sel); err == nil {
			rev = now
		}
	}
}

func (e *Engine) work(ctx context.Context, u *unit) {
	for {
		ref, ok := u.queue.next(ctx)
		if !ok {
			return
		}
		e.one(ctx, u, ref)
	}
}

// one calls the controller for one name and settles what comes next for it.
func (e *Engine) one(ctx context.Context, u *unit, ref api.Ref) {
	start := e.clock.Now()
	res, err := u.Reconcile(ctx, u.store, ref)
	if e.ev.Done != nil {
		e.ev.Done(u.Name(), ref, e.clock.Now().Sub(start), err)
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, errs.Conflict) {
		e.log.Warn("reconcile failed; trying again", "controller", u.Name(), "ref", ref.String(), "error", err)
	}
	u.queue.done(ref, res, err)
	for _, r := range res.Also {
		u.add(r)
	}
}

// History is what Settle needs of a store: all changes after a revision, at once.
type History interface {
	EventsSince(rev int64) []store.Event
}

// Settle works in the caller's goroutine until nothing is due at the clock's
// present time, and returns how many calls that took. It is deterministic.
// limit bounds the calls, as a guard against controllers that wake each other
// for ever; reaching it is an error.
func (e *Engine) Settle(ctx context.Context, h History, limit int) (int, error) {
	calls := 0
	for {
		busy := false
		for _, u := range e.units {
			if err := e.pull(ctx, u, h); err != nil {
				return calls, err
			}
			for {
				ref, ok := u.queue.try()
				if !ok {
					break
				}
				busy = true
				if calls++; calls > limit {
					return calls, errs.New(errs.Internal, "controllers do not settle: %d calls, last %s for %s", calls, u.Name(), ref)
				}
				e.one(ctx, u, ref)
			}
		}
		if !busy {
			return calls, nil
		}
	}
}

// Turn is Settle for a caller in whose world a call may take time: every call is
// given to run, which may return before the call has ended, and at most so many calls
// of a controller are under way as it has workers. When one ends later, Turn has to be
// called again. It returns how many calls were begun. Turn and the calls must not run
// at the same time: the caller lets one after the other work.
func (e *Engine) Turn(ctx context.Context, h History, run func(call func())) (int, error) {
	calls := 0
	for {
		busy := false
		for _, u := range e.units {
			if err := e.pull(ctx, u, h); err != nil {
				return calls, err
			}
			for u.calls < u.workers {
				ref, ok := u.queue.try()
				if !ok {
					break
				}
				busy = true
				calls++
				u.calls++
				run(func() {
					defer func() { u.calls-- }()
					e.one(ctx, u, ref)
				})
			}
		}
		if !busy {
			return calls, nil
		}
	}
}

// pull enqueues what changed since the unit last looked.
func (e *Engine) pull(ctx context.Context, u *unit, h History) error {
	if u.seen == 0 {
		for i, sel := range u.Watches() {
			objs, rev, err := e.store.List(ctx, sel)
			if err != nil {
				return fmt.Errorf("list %s for %s: %w", sel.Kind, u.Name(), err)
			}
			u.known[i] = map[api.Ref]bool{}
			for _, o := range objs {
				u.known[i][api.RefOf(o)] = true
				u.add(api.RefOf(o))
			}
			u.seen = max(rev, 1)
		}
		return nil
	}
	for _, ev := range h.EventsSince(u.seen) {
		ref := api.RefOf(ev.Object)
		for i, sel := range u.Watches() {
			in := !ev.Deleted && sel.Matches(ev.Object)
			if in || u.known[i][ref] {
				u.add(ref)
			}
			if in {
				u.known[i][ref] = true
			} else {
				delete(u.known[i], ref)
			}
		}
		u.seen = ev.Rev
	}
	return nil
}

// NextAt tells when the earliest delayed call is due; false when none is.
func (e *Engine) NextAt() (time.Time, bool) {
	var at time.Time
	for _, u := range e.units {
		if t, ok := u.queue.nextAt(); ok && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at, !at.IsZero()
}

// NextWork is NextAt without the calls that only poll.
func (e *Engine) NextWork() (time.Time, bool) {
	var at time.Time
	for _, u := range e.units {
		if t, ok := u.queue.nextWork(); ok && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at, !at.IsZero()
}

// owned refuses commits on kinds the controller does not own.
type owned struct {
	store.Store
	c Controller
}

// Commit checks every op, then passes them on.
func (o owned) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	for _, op := range ops {
		if op.Verb == store.Check {
			continue
		}
		k := op.Target().Kind
		mine := false
		for _, own := range o.c.Owns() {
			mine = mine || own == k
		}
		if !mine {
			return 0, errs.New(errs.Internal, "controller %s wrote %s, which it does not own", o.c.Name(), k)
		}
	}
	return o.Store.Commit(ctx, ops...)
}
