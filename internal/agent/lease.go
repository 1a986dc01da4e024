package agent

import (
	"context"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// mayRun reports whether what must not run twice may be started now: the lease is held,
// and what the store shows here is no older than it.
func (a *Agent) mayRun() bool {
	if a.Lease == nil {
		return true
	}
	rev, held := a.Lease.Term()
	a.mu.Lock()
	defer a.mu.Unlock()
	return held && rev == a.seen
}

// LeaseTaken is told that this node has taken its lease anew, at a revision of the
// store: what the store showed before may have been decided without this node since.
// It returns when the store shows that much, and looks at everything again. Until then
// nothing that must not run twice is started, also before this is called.
func (a *Agent) LeaseTaken(ctx context.Context, rev int64) error {
	ref := api.NodeLease(a.Node)
	if _, _, err := a.Store.List(ctx, api.Selector{Kind: ref.Kind, Name: ref.Name, MinRev: rev}); err != nil {
		return err
	}
	a.mu.Lock()
	a.seen = rev
	a.mu.Unlock()
	a.enqueueKnown()
	list, _, err := store.List[*api.Assignment](ctx, a.Store, api.Selector{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": a.Node}})
	if err != nil {
		return err
	}
	for _, as := range list {
		a.engine.Enqueue("instances", api.RefOf(as))
	}
	a.engine.Enqueue("upkeep", upkeepRef)
	return nil
}

// LeaseResumed is told that this node goes on with a lease of an earlier process, that had
// seen the pool by it (Seen): nothing was decided without this node since.
func (a *Agent) LeaseResumed(rev int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = rev
}

// Seen is the revision of the lease that the pool was looked at by; 0: by none yet.
func (a *Agent) Seen() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen
}

// LeaseLost stops everything that must not run twice, and returns when it has ended.
func (a *Agent) LeaseLost(ctx context.Context) {
	type victim struct {
		id string
		rt driver.Runtime
	}
	var victims []victim
	a.mu.Lock()
	for id, l := range a.lives {
		if l.once && l.runtime != nil && l.obs.Phase == driver.PhaseRunning {
			l.fenced = true
			victims = append(victims, victim{id, l.runtime})
		}
	}
	a.mu.Unlock()
	var wg sync.WaitGroup
	for _, v := range victims {
		wg.Go(func() {
			if err := v.rt.Stop(ctx, v.id, "KILL", 0); err != nil {
				a.Log.Error("cannot stop what must not run twice", "instance", v.id, "error", err)
			}
		})
	}
	wg.Go(func() { a.letGo(ctx) })
	wg.Wait()
	if len(victims) > 0 {
		a.Log.Warn("the lease ended: stopped what must not run twice", "instances", len(victims))
	}
}

// fencePause is between looks whether the lease is held again.
const fencePause = 500 * time.Millisecond

// guard has what must not run twice stopped when the lease ends, whatever becomes of this process.
func (a *Agent) guard(ctx context.Context, id string, in *api.Instance, rt driver.Runtime) error {
	once := in.Spec.RunsOnce()
	a.set(id, func(l *life) { l.once, l.guarded, l.fenced = once, false, false })
	if !once || a.Guard == nil {
		return nil
	}
	if !a.mayRun() {
		return errs.New(errs.Unavailable, "this host does not hold its lease: what must not run twice is not started")
	}
	g, ok := rt.(driver.Grouper)
	if !ok {
		return errs.New(errs.Unsupported, "isolation %s cannot promise to run only once", in.Spec.EffectiveIsolation()).WithHint("leave out spec.exclusive, the fixed address and named volumes")
	}
	if err := a.Guard.Guard(ctx, id, g.Groups(id)); err != nil {
		return err
	}
	a.set(id, func(l *life) { l.guarded = true })
	return nil
}

// guardFound guards all at once what an earlier agent started. What the store does not know
// any more may have been what must not run twice: it counts as such until it is gone.
func (a *Agent) guardFound(ctx context.Context) error {
	groups := map[string][]string{}
	a.mu.Lock()
	running := map[string]life{}
	for id, l := range a.lives {
		if l.obs.Phase == driver.PhaseRunning {
			running[id] = *l
		}
	}
	a.mu.Unlock()
	for id, l := range running {
		in, err := read[*api.Instance](ctx, a.Store, api.Ref{Kind: api.KindInstance, Tenant: l.ref.Tenant, Name: l.ref.Name})
		if err != nil {
			return err
		}
		if in != nil && runtimeID(in.UID) == id && !in.Spec.RunsOnce() {
			continue
		}
		a.set(id, func(l *life) { l.once = true })
		if g, ok := l.runtime.(driver.Grouper); ok {
			groups[id] = g.Groups(id)
		}
	}
	if a.Guard == nil {
		return nil
	}
	if err := a.Guard.GuardAll(ctx, groups); err != nil {
		a.Log.Warn("what must not run twice is not guarded", "instances", len(groups), "error", err)
		return nil
	}
	for id := range groups {
		a.set(id, func(l *life) { l.guarded = true })
	}
	return nil
}

// adoptGuard guards again what an earlier agent started, where guardFound could not.
func (a *Agent) adoptGuard(ctx context.Context, id string, in *api.Instance, l life) {
	if a.Guard == nil && l.once || l.guarded || l.obs.Phase != driver.PhaseRunning || !in.Spec.RunsOnce() || l.runtime == nil {
		return
	}
	if err := a.guard(ctx, id, in, l.runtime); err != nil {
		a.Log.Warn("what must not run twice is not guarded", "instance", id, "error", err) // tried again at the next look
	}
}

// Fenced notes that the watchdog stopped an instance.
func (a *Agent) Fenced(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.lives[id]; l != nil {
		l.fenced = true
	}
}

func (a *Agent) unguard(id string) {
	if a.Guard != nil {
		a.Guard.Unguard(id)
	}
}
