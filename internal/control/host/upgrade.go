package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Upgrade walks the hosts of the pool to another version and, until that is finalised,
// back: it gives each its task, one at a time where programs are changed, and looks
// whether the host is well before the next one begins. Hosts do their tasks by themselves;
// it never speaks to one.
type Upgrade struct{ UpgradeDeps }

// UpgradeDeps is what it is built from.
type UpgradeDeps struct {
	Clock clock.Clock
	Log   *slog.Logger
	Self  string // the host this process runs on: its turn comes last
}

const (
	// upgradePatience is how long a host may take to change versions, fall back included,
	// before the walk stops and somebody has to look.
	upgradePatience = 3 * time.Minute
	upgradeLook     = 500 * time.Millisecond
)

// NewUpgrade makes the controller.
func NewUpgrade(d UpgradeDeps) *Upgrade {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Upgrade{d}
}

// Name is "upgrade".
func (u *Upgrade) Name() string { return "upgrade" }

// Key makes everything one name.
func (u *Upgrade) Key(api.Ref) api.Ref { return api.UpgradeRef() }

// Watches what is wanted, and how the hosts are.
func (u *Upgrade) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindUpgrade}, {Kind: api.KindNode}, {Kind: api.KindLease}, {Kind: api.KindMember}, {Kind: api.KindNodeIdentity}}
}

// Owns the status, and the pool's level, which grows at the end.
func (u *Upgrade) Owns() []api.Kind { return []api.Kind{api.KindUpgrade, api.KindPool} }

// Reconcile makes one step.
func (u *Upgrade) Reconcile(ctx context.Context, s store.Store, _ api.Ref) (reconcile.Result, error) {
	up, err := lookup[*api.Upgrade](ctx, s, api.UpgradeRef())
	if err != nil || up == nil {
		return reconcile.Result{}, err
	}
	sit, err := u.look(ctx, s, up)
	if err != nil {
		return reconcile.Result{}, err
	}
	d := nextUpgrade(sit)
	var res reconcile.Result
	if d.busy {
		res = reconcile.Result{Again: upgradeLook, Poll: true}
	}
	var ops []store.Op
	if d.level > sit.level {
		op, err := u.raise(ctx, s, d.level)
		if err != nil {
			return res, err
		}
		ops = append(ops, op)
	}
	if !reflect.DeepEqual(d.status, up.Status) {
		next := api.Clone(up)
		next.Status = d.status
		ops = append(ops, store.Update(next))
		if d.status.State != up.Status.State {
			u.Log.Info("upgrade", "version", up.Spec.Version, "state", string(d.status.State), "message", d.status.Message)
		}
	}
	if len(ops) == 0 {
		return res, nil
	}
	if _, err := s.Commit(ctx, ops...); err != nil {
		if errors.Is(err, errs.Conflict) { // asked for something else meanwhile
			return reconcile.Result{Again: time.Millisecond}, nil
		}
		return res, fmt.Errorf("upgrade to %s: %w", up.Spec.Version, err)
	}
	return res, nil
}

// raise is the end of the way back: from this commit on new formats are written.
func (u *Upgrade) raise(ctx context.Context, s store.Store, level int) (store.Op, error) {
	now := u.Clock.Now().UTC()
	pool, err := lookup[*api.Pool](ctx, s, api.PoolRef())
	if err != nil {
		return store.Op{}, err
	}
	if pool == nil {
		return store.Create(&api.Pool{Head: api.Head{K: api.KindPool, Meta: api.Meta{Name: api.PoolName, CreatedAt: &now}}, Spec: api.PoolSpec{Level: level, Since: now}}), nil
	}
	next := api.Clone(pool)
	next.Spec = api.PoolSpec{Level: level, Since: now}
	return store.Update(next), nil
}

// upgradeHost is what the decision needs of a host.
type upgradeHost struct {
	name    string
	live    bool // its lease is held, and its agent works
	version string
	release int
	told    api.NodeUpgrade
	member  bool // it keeps the state
	voter   bool
}

// upgradeSituation is what the next step follows from.
type upgradeSituation struct {
	now   time.Time
	up    *api.Upgrade
	level int
	self  string
	hosts []upgradeHost // by name
	// seen counts the instances that run on a host, and those of them that were started
	// anew since a moment.
	seen func(host string, since time.Time) (runs, restarted int)
}

func (u *Upgrade) look(ctx context.Context, s store.Store, up *api.Upgrade) (upgradeSituation, error) {
	sit := upgradeSituation{now: u.Clock.Now().UTC(), up: up, self: u.Self}
	pool, err := lookup[*api.Pool](ctx, s, api.PoolRef())
	if err != nil {
		return sit, err
	}
	sit.level = api.LevelOf(pool)
	nodes, _, err := store.List[*api.Node](ctx, s, api.Selector{Kind: api.KindNode})
	if err != nil {
		return sit, fmt.Errorf("list hosts: %w", err)
	}
	members, _, err := store.List[*api.Member](ctx, s, api.Selector{Kind: api.KindMember})
	if err != nil {
		return sit, fmt.Errorf("list members: %w", err)
	}
	ids, _, err := store.List[*api.NodeIdentity](ctx, s, api.Selector{Kind: api.KindNodeIdentity})
	if err != nil {
		return sit, fmt.Errorf("list identities: %w", err)
	}
	nodes = api.UpgradeHosts(nodes, ids)
	state := map[string]api.MemberState{}
	for _, m := range members {
		state[m.Name] = m.Spec.State
	}
	for _, n := range nodes {
		h := upgradeHost{name: n.Name, version: n.Status.Version, release: n.Status.Release, live: n.Ready()}
		if n.Status.Upgrade != nil {
			h.told = *n.Status.Upgrade
		}
		st, is := state[n.Name]
		h.member, h.voter = is, st == api.MemberVoter
		l, err := lookup[*api.Lease](ctx, s, api.NodeLease(n.Name))
		if err != nil {
			return sit, err
		}
		h.live = h.live && l != nil && l.Held()
		sit.hosts = append(sit.hosts, h)
	}
	var failed error
	sit.seen = func(host string, since time.Time) (runs, restarted int) {
		list, _, err := store.List[*api.Instance](ctx, s, api.Selector{Kind: api.KindInstance, Fields: map[string]string{"status.node": host}})
		failed = errors.Join(failed, err)
		for _, i := range list {
			st := &i.Status
			if st.State != api.StateRunning {
				continue
			}
			runs++
			// What keeps ending by itself, and what was just made, says nothing about the host.
			if st.StartedAt != nil && st.StartedAt.After(since) && st.Starts > 1 && st.QuickExits == 0 && st.RestartsIn == 0 {
				restarted++
			}
		}
		return runs, restarted
	}
	return sit, failed
}
