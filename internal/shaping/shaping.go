// Package shaping divides the network of one host among the instances on it: what a tenant may have at most holds
// over all its instances, what is guaranteed is there when it is wanted, and what nobody uses is for the others. The
// bounds themselves are the kernel's, one for each direction of each cable; this package moves them by what passed
// (docs/shaping.md). It writes nothing to the store.
//
// Run owns all goroutines. While it does not run, the bounds stay as they are: limits go on to hold.
package shaping

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Deps is what a Shaping is built from.
type Deps struct {
	Node    string
	Store   store.Store
	Clock   clock.Clock
	Log     *slog.Logger
	Network driver.Network
}

// Shaping is one host's.
type Shaping struct {
	Deps
	driver driver.Shaper // nil: the host's networks have no limits
	engine *reconcile.Engine

	mu        sync.Mutex // guards all below
	instances map[api.Ref]*api.Instance
	tenants   map[string]*api.Tenant
	changed   chan struct{} // closed and replaced when one of these changes

	// Only the loop has these.
	last map[driver.Cable]passed
	set  map[driver.Cable][2]api.Band // what the driver was told
}

// passed is what was read of a cable, and when.
type passed struct {
	at      time.Time
	traffic driver.Traffic
}

const (
	// beat is how often bounds are moved. A TCP connection that gets more room fills it within some ten round trips.
	beat = 200 * time.Millisecond
	// nearly is the part of a bound from which on a cable is taken to want more.
	nearly = 0.9
	// atFirst is the part of a tenant's limit that an instance has until the next beat when others are there, too.
	atFirst = 20
)

// New makes it; no goroutine, no I/O.
func New(d Deps) *Shaping {
	s := &Shaping{Deps: d, instances: map[api.Ref]*api.Instance{}, tenants: map[string]*api.Tenant{}, changed: make(chan struct{}),
		last: map[driver.Cable]passed{}, set: map[driver.Cable][2]api.Band{}}
	s.driver, _ = d.Network.(driver.Shaper)
	s.engine = reconcile.New(d.Store, d.Clock, d.Log, reconcile.Events{})
	s.engine.Add(controller{s}, 1)
	return s
}

// Run works until ctx ends.
func (s *Shaping) Run(ctx context.Context) error {
	if s.driver == nil {
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.engine.Run(ctx) }()
	s.loop(ctx)
	cancel()
	return <-done
}

// loop moves the bounds while there is anything to move, and otherwise waits for a change.
func (s *Shaping) loop(ctx context.Context) {
	for failed := false; ctx.Err() == nil; {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		busy, err := s.turn(ctx)
		if err != nil && ctx.Err() == nil && !failed {
			s.Log.Warn("cannot divide the network among instances; trying again", "error", err)
		}
		failed = err != nil
		if busy || failed {
			_ = s.Clock.Sleep(ctx, beat) // it ends early with ctx only
			continue
		}
		select {
		case <-changed:
			_ = s.Clock.Sleep(ctx, beat) // more changes may come along
		case <-ctx.Done():
		}
	}
}

// Bands are what an instance is bounded to when it is attached: of a tenant's limit no more than is certainly there
// until the next beat.
func (s *Shaping) Bands(in *api.Instance) *[2]api.Band {
	to, from := in.Spec.Bands()
	s.mu.Lock()
	defer s.mu.Unlock()
	alone := true
	for ref := range s.instances {
		alone = alone && (ref == api.RefOf(in) || topTenant(ref.Tenant) != topTenant(in.Tenant))
	}
	for t := in.Tenant; t != ""; t = api.ParentTenant(t) {
		o := s.tenants[t]
		if o == nil {
			continue
		}
		l := o.Spec.Limit[api.NetBandwidth]
		if l == 0 {
			continue
		}
		if !alone {
			l = max(l/atFirst, 1)
		}
		for _, b := range []*api.Band{&to, &from} {
			if b.Limit == 0 || b.Limit > l {
				b.Limit = l
			}
		}
	}
	return &[2]api.Band{to, from}
}

func topTenant(path string) string {
	for p := api.ParentTenant(path); p != ""; p = api.ParentTenant(path) {
		path = p
	}
	return path
}

// controller is the Shaping as the engine sees it.
type controller struct{ *Shaping }

// Name is "shaping".
func (c controller) Name() string { return "shaping" }

// Watches the tenants, and the instances that are here.
func (c controller) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindTenant}, {Kind: api.KindInstance, Fields: map[string]string{"status.node": c.Node}}}
}

// Owns nothing.
func (c controller) Owns() []api.Kind { return nil }

// Reconcile follows one change.
func (c controller) Reconcile(ctx context.Context, st store.Store, ref api.Ref) (reconcile.Result, error) {
	var in *api.Instance
	var t *api.Tenant
	var err error
	if ref.Kind == api.KindTenant {
		t, err = store.Get[*api.Tenant](ctx, st, ref)
	} else {
		in, err = store.Get[*api.Instance](ctx, st, ref)
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case t != nil:
		c.tenants[ref.Name] = t
	case in != nil && in.Status.Node == c.Node && in.Status.State == api.StateRunning:
		c.instances[ref] = in
	case ref.Kind == api.KindTenant:
		delete(c.tenants, ref.Name)
	default:
		delete(c.instances, ref)
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return reconcile.Result{}, nil
}

// turn reads what passed and moves the bounds once. It says whether there is something that must be moved again.
func (s *Shaping) turn(ctx context.Context) (busy bool, err error) {
	s.mu.Lock()
	instances, tenants := maps.Clone(s.instances), maps.Clone(s.tenants)
	s.mu.Unlock()
	world := &world{instances: instances, tenants: tenants, uplink: s.driver.Uplink()}
	if !world.shared() {
		return false, s.still(ctx, world)
	}
	traffic, err := s.driver.Traffic(ctx)
	if err != nil {
		return true, fmt.Errorf("read traffic: %w", err)
	}
	now := s.Clock.Now()
	var roots [2]*node
	var of [2]map[driver.Cable]*node
	for d := range roots {
		roots[d], of[d] = world.tree(d, func(c driver.Cable, n *node) { s.look(c, d, traffic[c], now, n) })
		split(roots[d])
	}
	for c, t := range traffic {
		s.last[c] = passed{now, t}
	}
	maps.DeleteFunc(s.last, func(c driver.Cable, p passed) bool { return p.at != now })
	want := map[driver.Cable][2]api.Band{}
	for c, in := range world.cables() {
		to, from := in.Spec.Bands()
		want[c] = [2]api.Band{bounded(to, of[0][c].share), bounded(from, of[1][c].share)}
	}
	return true, s.tell(ctx, want)
}

func bounded(b api.Band, share int64) api.Band {
	if b.Limit = share; share >= unbounded {
		b.Limit = 0
	}
	return b
}

// still gives back what was moved when nothing is shared any more: everybody has his own limits.
func (s *Shaping) still(ctx context.Context, w *world) error {
	clear(s.last)
	if len(s.set) == 0 {
		return nil
	}
	want := map[driver.Cable][2]api.Band{}
	for c, in := range w.cables() {
		if _, moved := s.set[c]; moved {
			to, from := in.Spec.Bands()
			want[c] = [2]api.Band{to, from}
		}
	}
	if err := s.tell(ctx, want); err != nil {
		return err
	}
	clear(s.set)
	return nil
}

// look fills in what a cable did in a direction since it was looked at.
func (s *Shaping) look(c driver.Cable, d int, t driver.Traffic, now time.Time, n *node) {
	p, ok := s.last[c]
	is, was := flow(t, d), flow(p.traffic, d)
	took := now.Sub(p.at).Seconds()
	if !ok || took <= 0 || is.Bytes < was.Bytes || is.Limit == 0 {
		n.hungry = is.Limit == 0 // it was not bounded: what it takes is not known
		return
	}
	n.used = int64(float64(is.Bytes-was.Bytes) * 8 / took)
	n.hungry = is.Waiting > 0 || is.Dropped > was.Dropped || float64(n.used) > nearly*float64(is.Limit)
}

func flow(t driver.Traffic, d int) driver.Passed {
	if d == 0 {
		return t.To
	}
	return t.From
}

// small is the part by which a bound must differ from what is wanted to be moved.
const small = 50

// tell moves bounds, first those that become less, so that the sum is never more than before.
func (s *Shaping) tell(ctx context.Context, want map[driver.Cable][2]api.Band) error {
	maps.DeleteFunc(s.set, func(c driver.Cable, _ [2]api.Band) bool { _, there := want[c]; return !there })
	var first, then []driver.Cable
	for c, w := range want {
		old, ok := s.set[c]
		switch {
		case ok && near(old[0], w[0]) && near(old[1], w[1]):
		case !ok || less(w[0], old[0]) || less(w[1], old[1]):
			first = append(first, c)
		default:
			then = append(then, c)
		}
	}
	order := func(a, b driver.Cable) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Name, b.Name)) }
	slices.SortFunc(first, order)
	slices.SortFunc(then, order)
	var all error
	for _, c := range append(first, then...) {
		err := s.driver.Shape(ctx, c, want[c][0], want[c][1])
		if errors.Is(err, errs.NotFound) {
			delete(s.set, c) // it ended, or is not attached yet
			continue
		}
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		s.set[c] = want[c]
	}
	return all
}

func less(a, b api.Band) bool {
	return a.Limit != 0 && (b.Limit == 0 || a.Limit < b.Limit)
}

// near reports whether a bound may stay: it never does when it is too high.
func near(have, want api.Band) bool {
	if have.Burst != want.Burst || (have.Limit == 0) != (want.Limit == 0) {
		return false
	}
	return have.Limit <= want.Limit && want.Limit-have.Limit <= want.Limit/small
}
