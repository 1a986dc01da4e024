package host

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Drain empties hosts that are in maintenance, and brings back what left when they are
// restored. It asks instances to leave, few at a time; their agents stop them and
// placement places them anew. How far it is stands in a Drain for each host.
//
// It may be killed between any two commits: what it means to do is written before it is
// done, and what was done is found again in the assignments.
type Drain struct {
	d      Deps
	loaded bool
	active map[string]bool // nodes there is something to do about
	items  items           // of the last round
}

const (
	// drainLook is how often is looked at what is under way, drainWait how often at what
	// nothing could be done about, and drainRest how often at what is done.
	drainLook = time.Second
	drainWait = 5 * time.Second
	drainRest = time.Minute
	// lookShare is how many times as long as a round the pause after it is, at least.
	lookShare = 4
)

// NewDrain makes the controller.
func NewDrain(d Deps) *Drain {
	if d.AtOnce <= 0 {
		d.AtOnce = 10
	}
	return &Drain{d: d, active: map[string]bool{}}
}

// Name is "drain".
func (c *Drain) Name() string { return "drain" }

// Watches nodes: their maintenance is what is asked for.
func (c *Drain) Watches() []api.Selector { return []api.Selector{{Kind: api.KindNode}} }

// Owns drains; of assignments it writes only the wish that an instance leaves or stops.
func (c *Drain) Owns() []api.Kind { return []api.Kind{api.KindDrain, api.KindAssignment} }

// drainRef stands for all hosts: drains share budgets and pace, so they are decided together.
var drainRef = api.Ref{Kind: api.KindDrain, Name: "*"}

// Reconcile follows one node, or makes a round over all that are in maintenance.
func (c *Drain) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if err := c.load(ctx, s); err != nil {
		return reconcile.Result{}, err
	}
	if ref == drainRef {
		return c.round(ctx, s)
	}
	n, err := store.Get[*api.Node](ctx, s, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	if err == nil && n.Spec.Maintenance != nil {
		c.active[ref.Name] = true
	}
	if !c.active[ref.Name] {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{Also: []api.Ref{drainRef}}, nil
}

// load finds, once, what an earlier leader had begun.
func (c *Drain) load(ctx context.Context, s store.Store) error {
	if c.loaded {
		return nil
	}
	ds, err := store.All[*api.Drain](ctx, s, api.KindDrain, nil)
	if err != nil {
		return err
	}
	as, err := store.All[*api.Assignment](ctx, s, api.KindAssignment, nil)
	if err != nil {
		return err
	}
	for _, x := range ds {
		c.active[x.Name] = true
	}
	for _, a := range as {
		if e := a.Spec.Evict; e != nil && e.Stay {
			c.active[a.Spec.Node] = true
		}
	}
	c.loaded = true
	return nil
}

// round looks at all that is drained and restored.
func (c *Drain) round(ctx context.Context, s store.Store) (reconcile.Result, error) {
	if len(c.active) == 0 {
		c.items = nil
		return reconcile.Result{}, nil
	}
	began := c.d.Clock.Now()
	p, err := readPool(ctx, s, began.UTC().Truncate(time.Millisecond))
	if err != nil {
		return reconcile.Result{}, err
	}
	p.known = c.items
	r := decide(p, c.d)
	c.items = r.items
	if err := c.write(ctx, s, p, r); err != nil {
		return reconcile.Result{}, err
	}
	for _, a := range r.acts {
		done, err := commit(ctx, s, a.ops()...)
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("%s: %w", api.RefOf(a.as), err)
		}
		if t := r.byUID[a.as.Spec.InstanceUID]; done && t != nil {
			c.d.Tell.of(t.in, "normal", api.ReasonMaintenance, a.told())
		}
	}
	again := c.next(r)
	if again > 0 { // in a pool so large that a round takes long, there are fewer
		again = max(again, lookShare*c.d.Clock.Now().Sub(began))
	}
	return reconcile.Result{Again: again}, nil
}

// write brings the drains up to date, before anything is done: whoever comes after a
// crash finds more there than was begun, never less.
func (c *Drain) write(ctx context.Context, s store.Store, p *pool, r *round) error {
	old := map[string]*api.Drain{}
	for _, x := range p.drains {
		old[x.Name] = x
	}
	clear(c.active)
	for _, x := range r.out {
		if was := old[x.Name]; was != nil && x.Spec.State == api.DrainRestored && x.Spec.EndedAt != nil && p.now.Sub(*x.Spec.EndedAt) > keepRestored {
			continue // told long enough
		} else if was == nil || !reflect.DeepEqual(was.Spec, x.Spec) {
			op := store.Create(x)
			if was != nil {
				op = store.Update(x)
			}
			if _, err := commit(ctx, s, op); err != nil {
				return fmt.Errorf("write %s: %w", api.RefOf(x), err)
			}
		}
		c.active[x.Name] = true
		delete(old, x.Name)
	}
	for _, x := range old {
		if _, err := commit(ctx, s, store.Remove(api.RefOf(x), x.Revision)); err != nil {
			return fmt.Errorf("remove %s: %w", api.RefOf(x), err)
		}
	}
	return nil
}

// next is when to look again.
func (c *Drain) next(r *round) time.Duration {
	if len(r.out) == 0 {
		return 0
	}
	again := keepRestored
	for _, x := range r.out {
		switch x.Spec.State {
		case api.DrainDone:
			again = min(again, drainRest)
		case api.DrainMoving:
			again = min(again, drainLook)
		case api.DrainReturning:
			if len(x.Spec.Waiting) > 0 && x.Spec.UnderWay == 0 {
				again = min(again, drainWait)
			} else {
				again = min(again, drainLook)
			}
		case api.DrainWaiting:
			again = min(again, drainWait)
		case api.DrainRestored:
			again = min(again, max(x.Spec.EndedAt.Add(keepRestored).Sub(r.now)+time.Second, drainLook))
		}
	}
	return again
}

// ops are one commit: it fails if the host was restored, or another maintenance asked
// for, since it was looked at.
func (a act) ops() []store.Op {
	next := api.Clone(a.as)
	next.Spec.Evict = a.evict
	return []store.Op{store.Update(next), store.Expect(api.RefOf(a.node), a.node.Revision)}
}

// told is what the instance's people read about it.
func (a act) told() string {
	switch e := a.evict; {
	case e == nil:
		return "may start again on " + a.as.Spec.Node
	case e.Stay:
		return "stops on " + a.as.Spec.Node + " until that is restored: " + e.Reason
	default:
		return "leaves " + a.as.Spec.Node + ": " + e.Reason
	}
}

// commit writes, and says whether it did; that somebody was faster is for the next round.
func commit(ctx context.Context, s store.Store, ops ...store.Op) (bool, error) {
	_, err := s.Commit(ctx, ops...)
	if errors.Is(err, errs.Conflict) || errors.Is(err, errs.Exists) || errors.Is(err, errs.NotFound) {
		return false, nil
	}
	return err == nil, err
}
