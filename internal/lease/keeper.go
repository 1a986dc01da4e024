// Package lease is how nodes keep the right to act (ADR 0009): a Keeper at the leader
// of the control plane, a Holder on every node, and the frames between them.
//
// A node's lease lasts Duration from when it sent the last heartbeat that was
// acknowledged; the Keeper gives it up Duration after it received that heartbeat. So
// the node always knows first. A heartbeat is acknowledged only after a majority was
// asked whether the Keeper still leads, and never written.
//
// Keeper.Run and Holder.Run own their goroutines and wait for them. A Keeper must never
// acknowledge what came after somebody else took the lead, a Holder never say that it
// holds a lease that may have ended.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Grant is a lease as its holder knows it.
type Grant struct {
	Epoch    int64         // which taking of the lease it is
	Rev      int64         // revision of the lease: what the holder's commits expect
	Duration time.Duration // from when the heartbeat was sent
	Alone    bool          // the Keeper is in this process, there never was another node, and no other server
}

// Beat is a heartbeat.
type Beat struct {
	Epoch int64 // of the lease that is held; 0: to take it anew
	// Duration is what the holder, and whoever stops things for it, counts on at most; 0: it does not say.
	Duration time.Duration
}

// Config sets a Keeper up.
type Config struct {
	Duration time.Duration // of a lease without a heartbeat; default 5 s
	// Flaps within FlapWindow and a node is held back; the pause doubles with every one more.
	Flaps      int           // default 3
	FlapWindow time.Duration // default 1 h
	FlapPause  time.Duration // default 1 min
}

// Deps is what a Keeper works with.
type Deps struct {
	Config
	Store store.Store // its commits expect the leader's lease
	// Fresh reads what is true now: it asks a majority first, and never shows less than Store.
	Fresh store.Store
	// Term is the revision of the leader's lease that this Keeper acts by.
	Term int64
	// Sole reports whether no other server can ever lead; nil: none can.
	Sole  func() bool
	Clock clock.Clock
	Log   *slog.Logger
}

// Keeper judges which nodes are there. It is made anew by every new leader.
type Keeper struct {
	Deps

	mu     sync.Mutex
	loaded bool
	nodes  map[string]*tenure
	known  map[string]bool      // every node that ever had a lease
	back   map[string]time.Time // until when a node is held back
	gone   map[string]int64     // by node: its lease as it was last known to be held, and is no more
	looked time.Time            // when Look last ran
	wake   chan struct{}        // a lease was taken: there is an earlier end to wait for
}

// tenure is what is known of a node whose lease is held.
type tenure struct {
	lease *api.Lease
	heard time.Time
	away  bool // it is marked as not ready, though its lease is held
	// turning is set while another duration is being written. most bounds what is granted from
	// then on, also when it is not known what became of that; 0: only the lease does.
	turning bool
	most    time.Duration
	// ending is set while the end of the lease is being written, and until it is known
	// whether it was: an acknowledgement after that would come too late.
	ending bool
}

const (
	maxLosses = 10
	// stall is how late a look may be before it is taken for the Keeper's own fault: what
	// it has not heard of meanwhile says nothing about the nodes.
	stall = 1 * time.Second
	// retryLook is the pause after a look that could not be written.
	retryLook = 200 * time.Millisecond
)

// NewKeeper knows nothing before Load.
func NewKeeper(d Deps) *Keeper {
	if d.Duration == 0 {
		d.Duration = 5 * time.Second
	}
	if d.Flaps == 0 {
		d.Flaps = 3
	}
	if d.FlapWindow == 0 {
		d.FlapWindow = time.Hour
	}
	if d.FlapPause == 0 {
		d.FlapPause = time.Minute
	}
	return &Keeper{Deps: d, nodes: map[string]*tenure{}, known: map[string]bool{}, back: map[string]time.Time{}, gone: map[string]int64{}, wake: make(chan struct{}, 1)}
}

// Load learns which leases are held. Everybody's time starts now: what was heard by
// the leader before is not known.
func (k *Keeper) Load(ctx context.Context) error {
	leases, _, err := store.List[*api.Lease](ctx, k.Store, api.Selector{Kind: api.KindLease})
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	nodes, _, err := store.List[*api.Node](ctx, k.Store, api.Selector{Kind: api.KindNode})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.Clock.Now()
	k.back = map[string]time.Time{}
	for _, n := range nodes {
		if c := n.Condition(api.ConditionHeldBack); c != nil && c.Status {
			k.back[n.Name], _ = n.HeldBack(now) // unreadable: at once
		}
	}
	k.nodes, k.known, k.looked, k.loaded = map[string]*tenure{}, map[string]bool{}, now, true
	for _, l := range leases {
		if l.Name != api.LeaseLeader {
			k.known[l.Spec.Holder] = true
		}
		if l.Held() && l.Name != api.LeaseLeader {
			k.nodes[l.Spec.Holder] = &tenure{lease: l, heard: now}
		}
	}
	return nil
}

// Run loads, then gives up leases that end, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := k.Load(ctx); err == nil {
			break
		} else if ctx.Err() == nil {
			k.Log.Warn("leases", "error", err)
			_ = k.Clock.Sleep(ctx, retryLook) // ends early only with ctx
		}
	}
	for ctx.Err() == nil {
		next, err := k.Look(ctx)
		if err != nil && ctx.Err() == nil {
			k.Log.Warn("leases", "error", err)
			next = k.Clock.Now().Add(retryLook)
		}
		k.pause(ctx, next)
	}
	return ctx.Err()
}

// pause waits until at, but looks at its own watch often enough to notice a stall.
func (k *Keeper) pause(ctx context.Context, at time.Time) {
	t := k.Clock.NewTimer(min(at.Sub(k.Clock.Now()), stall/2))
	defer t.Stop()
	select {
	case <-t.C:
	case <-k.wake:
	case <-ctx.Done():
	}
}

// Look gives up the leases that have ended, and says when to look again at the latest.
func (k *Keeper) Look(ctx context.Context) (next time.Time, err error) {
	leases, rev, err := store.List[*api.Lease](ctx, k.Store, api.Selector{Kind: api.KindLease})
	if err != nil {
		return next, fmt.Errorf("list leases: %w", err)
	}
	now := k.Clock.Now()
	k.mu.Lock()
	k.learn(leases, rev, now)
	if late := now.Sub(k.looked); late > stall {
		k.Log.Warn("this server stood still; nodes get their time anew", "for", late.Round(time.Millisecond).String())
		for _, t := range k.nodes {
			t.heard = now
		}
	}
	k.looked = now
	next = now.Add(k.Duration)
	var due []string
	for name, t := range k.nodes {
		end := t.heard.Add(k.length(t.lease))
		if t.away { // nothing to do before its lease ends, and that is the edge host's long one
			end = t.heard.Add(k.allowed(t.lease))
		}
		if !now.Before(end) {
			due = append(due, name)
		} else if end.Before(next) {
			next = end
		}
	}
	var free []string
	for name, until := range k.back {
		if !now.Before(until) {
			free = append(free, name)
		} else if until.Before(next) {
			next = until
		}
	}
	k.mu.Unlock()
	slices.Sort(due)
	slices.Sort(free)
	for _, name := range free {
		if ferr := k.release(ctx, name); ferr != nil {
			err = errors.Join(err, ferr)
		}
	}
	for _, name := range due {
		if lerr := k.lost(ctx, name); lerr != nil {
			err = errors.Join(err, lerr)
		}
	}
	if len(due) > 0 {
		next = now
	}
	return next, err
}

// learn takes in what the store says of the leases, where that is newer than what is
// known here: one was taken or given up by a commit whose answer never came, or somebody
// took it away from a node, or removed it. Called with mu held.
func (k *Keeper) learn(leases []*api.Lease, rev int64, now time.Time) {
	there := make(map[string]bool, len(leases))
	for _, l := range leases {
		name := l.Spec.Holder
		if l.Name == api.LeaseLeader {
			continue
		}
		there[name] = true
		t := k.nodes[name]
		switch {
		case t != nil && t.lease.Revision >= l.Revision:
		case !l.Held():
			delete(k.nodes, name)
		case l.Revision > k.gone[name]:
			k.nodes[name], k.known[name] = &tenure{lease: l, heard: now}, true
		}
	}
	for name, t := range k.nodes {
		if !there[name] && rev >= t.lease.Revision {
			k.drop(name, t)
		}
	}
}

// release lets a node that was held back get work again.
func (k *Keeper) release(ctx context.Context, name string) error {
	n, err := store.Get[*api.Node](ctx, k.Store, api.Ref{Kind: api.KindNode, Name: name})
	if err == nil {
		n = api.Clone(n)
		n.Status.Conditions = api.SetCondition(n.Status.Conditions, api.Condition{Type: api.ConditionHeldBack, Since: k.Clock.Now().UTC()})
		_, err = k.Store.Commit(ctx, store.Update(n))
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("give %s work again: %w", name, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.back, name)
	return nil
}

// length is how long a node is believed to be there without a heartbeat.
func (k *Keeper) length(l *api.Lease) time.Duration {
	if d := l.Spec.Duration.D(); d > 0 && d < k.Duration {
		return d
	}
	return k.Duration
}

// allowed is how long the lease itself lasts: longer on edge hosts.
func (k *Keeper) allowed(l *api.Lease) time.Duration { return max(l.Spec.Duration.D(), k.length(l)) }

// lost writes that a node is not heard of: it is not ready; and when its lease has ended, so that is.
func (k *Keeper) lost(ctx context.Context, name string) error {
	now := k.Clock.Now()
	k.mu.Lock()
	t := k.nodes[name]
	if t == nil || now.Before(t.heard.Add(k.length(t.lease))) { // heard of meanwhile
		k.mu.Unlock()
		return nil
	}
	lease, heard := t.lease, t.heard
	over := !now.Before(heard.Add(k.allowed(lease)))
	doubt := t.ending // an earlier attempt may have been the one
	t.ending = over
	k.mu.Unlock()
	err := k.giveUp(ctx, lease, heard, over)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case errors.Is(err, errs.NotFound): // the node was removed, and its lease with it
		k.drop(name, t)
		return nil
	case errors.Is(err, errs.Conflict): // its lease is another one now, or its node was changed
		t.ending = doubt
		return fmt.Errorf("give up the lease of %s: %w", name, err)
	case err != nil: // perhaps it was written: no heartbeat is taken until that is known
		return fmt.Errorf("give up the lease of %s: %w", name, err)
	}
	t.ending = false
	k.Log.Warn("a node is not heard of", "node", name, "since", now.Sub(heard).Round(time.Millisecond).String(), "expired", over)
	t.away = t.heard.Equal(heard) // else it was heard of while that was written
	if over {
		k.drop(name, t)
	}
	return nil
}

// drop ends a tenure. Called with mu held.
func (k *Keeper) drop(name string, t *tenure) {
	if k.nodes[name] == t {
		delete(k.nodes, name)
		k.gone[name] = max(k.gone[name], t.lease.Revision)
	}
}

// giveUp commits that a node is not ready, and the end of its lease where it is over.
func (k *Keeper) giveUp(ctx context.Context, lease *api.Lease, heard time.Time, over bool) error {
	name, now := lease.Spec.Holder, k.Clock.Now()
	var ops []store.Op
	node, err := store.Get[*api.Node](ctx, k.Store, api.Ref{Kind: api.KindNode, Name: name})
	switch {
	case err == nil:
		n := api.Clone(node)
		reason, msg := api.ReasonOutOfReach, fmt.Sprintf("not heard of since %s; it may run on alone for %s", heard.UTC().Format(time.TimeOnly), k.allowed(lease))
		if over {
			reason, msg = "LeaseExpired", fmt.Sprintf("not heard of since %s", heard.UTC().Format(time.TimeOnly))
		}
		n.Status.Conditions = api.SetCondition(n.Status.Conditions, api.Condition{Type: api.ConditionReady, Reason: reason, Message: msg, Since: now.UTC()})
		ops = append(ops, store.Update(n))
	case !errors.Is(err, errs.NotFound):
		return fmt.Errorf("read node %s: %w", name, err)
	}
	next := api.Clone(lease)
	if over {
		next.Spec.State, next.Spec.Since = api.LeaseExpired, now.UTC()
		next.Spec.Losses = append(next.Spec.Losses, now.UTC())
		next.Spec.Losses = next.Spec.Losses[max(0, len(next.Spec.Losses)-maxLosses):]
		ops = append(ops, store.Update(next))
	}
	if len(ops) == 0 {
		return nil
	}
	_, err = k.Store.Commit(ctx, ops...)
	return err
}

// Forget drops a node that was removed.
func (k *Keeper) Forget(node string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := k.nodes[node]; t != nil {
		k.drop(node, t)
	}
	delete(k.known, node)
}

// Take gives a node its lease, as a new epoch: at its start, and after it was lost.
func (k *Keeper) Take(ctx context.Context, node string) (Grant, error) {
	if err := k.usable(); err != nil {
		return Grant{}, err
	}
	ref := api.NodeLease(node)
	now := k.Clock.Now()
	old, err := store.Get[*api.Lease](ctx, k.Store, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return Grant{}, fmt.Errorf("read %s: %w", ref, err)
	}
	next := &api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: ref.Name, CreatedAt: ptr(now.UTC())}}}
	op := store.Create(next)
	if err == nil {
		next = api.Clone(old)
		op = store.Update(next)
	}
	if err := k.succeeds(ctx, node, next); err != nil {
		return Grant{}, err
	}
	ops := []store.Op{op}
	duration := k.Duration
	var back api.Condition
	n, err := store.Get[*api.Node](ctx, k.Store, api.Ref{Kind: api.KindNode, Name: node})
	switch {
	case err == nil:
		if d := n.Spec.DisconnectAllowed; d != nil {
			duration = max(duration, d.D())
		}
		c, changed, err := k.heldBack(ctx, n, next, now)
		if err != nil {
			return Grant{}, err
		}
		if changed {
			back = c
			n = api.Clone(n)
			n.Status.Conditions = api.SetCondition(n.Status.Conditions, c)
			ops = append(ops, store.Update(n))
		}
	case !errors.Is(err, errs.NotFound):
		return Grant{}, fmt.Errorf("read node %s: %w", node, err)
	}
	if next.Held() { // an earlier process may count on that; Renew makes it shorter
		duration = max(duration, next.Spec.Duration.D())
	}
	next.Spec = api.LeaseSpec{Holder: node, Epoch: next.Spec.Epoch + 1, State: api.LeaseHeld, Since: now.UTC(),
		Duration: api.Duration(duration), Losses: next.Spec.Losses}
	rev, err := k.Store.Commit(ctx, ops...)
	if errors.Is(err, errs.Conflict) || errors.Is(err, errs.Exists) { // of this node and another call, or of this leader and the next
		return Grant{}, errs.New(errs.Unavailable, "give %s its lease: somebody was faster", node)
	}
	if err != nil {
		return Grant{}, fmt.Errorf("give %s its lease: %w", node, err)
	}
	next.Revision = rev
	k.mu.Lock()
	k.nodes[node], k.known[node] = &tenure{lease: next, heard: now}, true
	if delete(k.back, node); back.Status {
		k.back[node], _ = time.Parse(time.RFC3339, back.Reason)
	}
	g := k.grant(next)
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
	return g, nil
}

// succeeds makes a new machine under an old name wait until the lease of the one before
// has ended: that one stops by itself what must not run twice, but not sooner. One that
// was turned away gets no lease, also while its connection still stands.
func (k *Keeper) succeeds(ctx context.Context, node string, l *api.Lease) error {
	id, err := store.Get[*api.NodeIdentity](ctx, k.Store, api.Ref{Kind: api.KindNodeIdentity, Name: node})
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read identity of %s: %w", node, err)
	}
	if id.Spec.Revoked != "" {
		return errs.New(errs.Denied, "host %s was turned away: %s", node, id.Spec.Revoked).WithHint("it comes back by joining anew: atoll node token --node %s", node)
	}
	if l.Held() && id.Spec.JoinedAt.After(l.Spec.Since) {
		return errs.New(errs.Unavailable, "another machine was %s, and its lease has not ended yet", node)
	}
	return nil
}

// heldBack says whether a node that comes back gets new work at once: not when it has been coming and going.
func (k *Keeper) heldBack(ctx context.Context, n *api.Node, l *api.Lease, now time.Time) (c api.Condition, changed bool, err error) {
	losses := slices.DeleteFunc(slices.Clone(l.Spec.Losses), func(at time.Time) bool { return now.Sub(at) >= k.FlapWindow })
	if len(losses) >= k.Flaps {
		all, _, err := store.List[*api.Lease](ctx, k.Store, api.Selector{Kind: api.KindLease})
		if err != nil {
			return c, false, fmt.Errorf("list leases: %w", err)
		}
		losses = slices.DeleteFunc(losses, func(at time.Time) bool { return k.shared(all, at) })
	}
	recent := len(losses)
	was := n.Condition(api.ConditionHeldBack)
	if recent < k.Flaps {
		return api.Condition{Type: api.ConditionHeldBack, Since: now.UTC()}, was != nil && was.Status, nil
	}
	until := now.Add(min(k.FlapPause<<min(recent-k.Flaps, 10), k.FlapWindow)).UTC().Truncate(time.Second)
	return api.Condition{Type: api.ConditionHeldBack, Status: true, Reason: until.Format(time.RFC3339), Since: now.UTC(),
		Message: fmt.Sprintf("lost %d times within %s: nothing new is placed here until %s", recent, k.FlapWindow, until.Format(time.TimeOnly))}, true, nil
}

// shared reports whether most of the nodes that were there lost their leases at that time:
// that was the leader's fault, or the network's, and no node's.
func (k *Keeper) shared(all []*api.Lease, at time.Time) bool {
	near := func(t time.Time) bool { return t.Sub(at).Abs() <= k.Duration }
	there, lost := 0, 0
	for _, l := range all {
		switch {
		case l.Name == api.LeaseLeader:
		case slices.ContainsFunc(l.Spec.Losses, near):
			there, lost = there+1, lost+1
		case l.Held(), l.Spec.Since.After(at): // others were lost long before
			there++
		}
	}
	return lost > 1 && 2*lost > there
}

// Renew takes a heartbeat. errs.Conflict: the lease is not held in this epoch, take it anew.
//
// How long the lease of an edge host lasts may be changed meanwhile (spec.disconnectAllowed).
// The lease says at least what the holder may count on: a longer one is written before it
// is granted, a shorter one when the holder has said that it knows.
func (k *Keeper) Renew(ctx context.Context, node string, b Beat) (Grant, error) {
	if err := k.usable(); err != nil {
		return Grant{}, err
	}
	received := k.Clock.Now()
	// Before a refusal, too: who was replaced knows nothing of later epochs. That a majority
	// answers is not enough, it answers to everybody: that nobody has taken the lead is what
	// says that the next leader's time begins after this heartbeat.
	leader, err := store.Get[*api.Lease](ctx, k.Fresh, api.LeaderLease())
	if err != nil {
		return Grant{}, fmt.Errorf("lease of %s: %w", node, err)
	}
	if leader.Revision != k.Term {
		return Grant{}, errs.New(errs.Unavailable, "another server took the lead")
	}
	want, err := k.wanted(ctx, node)
	if err != nil {
		return Grant{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	t, err := k.tenure(node, b.Epoch)
	if err != nil {
		return Grant{}, err
	}
	if received.After(t.heard) {
		t.heard = received
	}
	t.away = false
	want = max(want, k.length(t.lease))
	now := k.allowed(t.lease)
	if !t.turning && (want > now || want < now && b.Duration == want || t.most != 0) {
		if t, err = k.turn(ctx, t, want); err != nil {
			return Grant{}, err
		}
	}
	g := k.grant(t.lease)
	g.Duration = min(g.Duration, want)
	if t.most != 0 {
		g.Duration = min(g.Duration, t.most)
	}
	return g, nil
}

// tenure is that of an epoch that is held. Called with mu held.
func (k *Keeper) tenure(node string, epoch int64) (*tenure, error) {
	t := k.nodes[node]
	if t == nil || t.lease.Spec.Epoch != epoch {
		return nil, notHeld(node, epoch)
	}
	if t.ending {
		return nil, errs.New(errs.Unavailable, "the lease of %s is being given up", node)
	}
	return t, nil
}

// wanted is how long a node's lease is to last by what its node says; 0 when that says nothing.
func (k *Keeper) wanted(ctx context.Context, node string) (time.Duration, error) {
	n, err := store.Get[*api.Node](ctx, k.Store, api.Ref{Kind: api.KindNode, Name: node})
	switch {
	case errors.Is(err, errs.NotFound):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read node %s: %w", node, err)
	case n.Spec.DisconnectAllowed == nil:
		return 0, nil
	}
	return n.Spec.DisconnectAllowed.D(), nil
}

// turn writes how long a lease lasts from now on, and gives the tenure as it is then. That it
// could not be written is no reason to refuse a heartbeat. mu is held, but not meanwhile.
func (k *Keeper) turn(ctx context.Context, t *tenure, want time.Duration) (*tenure, error) {
	t.turning = true
	if t.most == 0 || want < t.most {
		t.most = want
	}
	next := api.Clone(t.lease)
	next.Spec.Duration = api.Duration(want)
	name, epoch := next.Spec.Holder, next.Spec.Epoch
	k.mu.Unlock()
	rev, err := k.Store.Commit(ctx, store.Update(next))
	k.mu.Lock()
	t.turning = false
	if err == nil {
		next.Revision, t.most = rev, 0
		k.Log.Info("a host's lease lasts another time", "node", name, "duration", want.String())
	} else { // perhaps it was written; learn finds out
		k.Log.Warn("a host's lease is to last another time, which cannot be written yet", "node", name, "duration", want.String(), "error", err)
	}
	t, terr := k.tenure(name, epoch) // it may have been given up, or be known anew
	if terr == nil && err == nil && t.lease.Revision < rev {
		t.lease = next
	}
	return t, terr
}

func notHeld(node string, epoch int64) error {
	return errs.New(errs.Conflict, "node %s does not hold its lease in epoch %d any more", node, epoch)
}

// grant is called with mu held.
func (k *Keeper) grant(l *api.Lease) Grant {
	alone := len(k.known) < 2 && (k.Sole == nil || k.Sole())
	return Grant{Epoch: l.Spec.Epoch, Rev: l.Revision, Duration: k.allowed(l), Alone: alone}
}

func (k *Keeper) usable() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.loaded {
		return errs.New(errs.Unavailable, "this server has just begun to lead")
	}
	return nil
}

// Heard tells when each node whose lease is held was heard of last.
func (k *Keeper) Heard() map[string]time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[string]time.Time, len(k.nodes))
	for n, t := range k.nodes {
		out[n] = t.heard
	}
	return out
}

func ptr[T any](v T) *T { return &v }
