package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/cmd/atolld/builtin"
	"atoll/cmd/atolld/change"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/control"
	"atoll/internal/control/host"
	"atoll/internal/errs"
	"atoll/internal/fence/bmc"
	"atoll/internal/lease"
	"atoll/internal/metrics"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
	"atoll/internal/release"
	"atoll/internal/server"
	"atoll/internal/server/rollout"
	"atoll/internal/stage"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
	"atoll/internal/store/quota"
	"atoll/internal/tunnel"
)

// plane is the part of the control plane that runs in this process: a copy of the
// pool's state, the API, and, while this process leads, the controllers.
type plane struct {
	c   config
	clk clock.Clock
	log *slog.Logger

	base   *etcdstore.Store
	shared *store.Shared // asks a majority once for everybody who waits
	cache  *store.Cache
	st     *quota.Store // admission over the mirror: what controllers and this host's agent write to
	fresh  *store.Fresh // the same, reading what is true now
	ca     *auth.CA
	hub    *tunnel.Hub
	srv    *server.Server
	keeper atomic.Pointer[lease.Keeper] // nil while this process does not lead
	usage  func(ctx context.Context) (api.UsageReport, error)
	level  atomic.Int64  // of the pool
	served chan struct{} // closed when the API has ended

	grow sync.Mutex // one step at a time
}

// openPlane opens the store. What runs is run's.
func openPlane(ctx context.Context, c config, peers etcdstore.Peers, clk clock.Clock, log *slog.Logger) (*plane, error) {
	base, err := openStore(ctx, c, peers, clk, log)
	if err != nil {
		return nil, err
	}
	p := &plane{c: c, clk: clk, log: log, base: base, shared: store.NewShared(base), hub: tunnel.NewHub(), served: make(chan struct{})}
	if err := p.readLevel(ctx); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	p.cache = store.NewCache(base, allKinds()...)
	p.st = quota.New(p.cache)
	p.st.Reserve = quota.Reserve{Buffer: c.Buffer, Spare: c.Spare}
	if p.st.FirstUID, err = quota.UIDStart(rand.Reader); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	p.ca = auth.NewCA(filepath.Join(c.State, "pki"), clk, rand.Reader)
	p.fresh = store.NewFresh(p.st, p.cache, p.shared)
	fresh := p.fresh
	var group store.Cluster // an external etcd is its operator's
	if c.EtcdEndpoints == "" {
		group = base
	}
	p.srv = server.New(server.Deps{Store: fresh, Auth: auth.New(clk, auth.Config{}), CA: p.ca, Hub: p.hub, Clock: clk, Rand: rand.Reader, Log: log,
		Lists: fresh, Base: base, Group: group, Upgrades: p.desk(fresh), Chain: builtin.Policies(), Keep: policy.Keep{Buffer: c.Buffer, Spare: c.Spare}, Metrics: metrics.New(), Version: version, Audit: audit(log),
		NodeStream: p.nodeStream, Power: func(b api.BMC) (bmc.Power, error) { return bmc.Open(b, bmc.Dir) }}, serverConfig(c))
	p.usage = p.srv.Usage
	return p, nil
}

// mirror keeps the copy that reads are answered from; it runs before anything else, and
// until the calls that are under way when ctx ends have been answered.
func (p *plane) mirror(ctx context.Context) error {
	last, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-p.served:
		case <-time.After(change.ClosePatience): // the API was never begun
		}
		cancel()
	})()
	return p.cache.Run(last)
}

// serve answers the API.
func (p *plane) serve(ctx context.Context) error {
	defer close(p.served)
	return p.srv.Run(ctx)
}

// lead runs the controllers whenever it is this process's turn.
func (p *plane) lead(ctx context.Context) error { return p.base.Lead(ctx, p.c.Node, p.reign) }

// reign is what runs on one process of the pool only. It begins by taking the leader's
// lease: after that, nobody who led before can write anything, and what the mirror
// shows is all that was decided.
func (p *plane) reign(ctx context.Context) error {
	began := p.clk.Now()
	rev, err := lease.Lead(ctx, p.st, p.clk, p.c.Node)
	if err != nil {
		return err
	}
	st := store.Fenced(p.st, api.LeaderLease(), func() int64 { return rev })
	engine := reconcile.New(st, p.clk, p.log, reconcile.Events{})
	rec := reconcile.NewRecorder(st, p.clk, p.log, "control")
	cs, err := control.All(control.Deps{Clock: p.clk, Log: p.log, Chain: builtin.Policies(), Seed: 1, Subnet: p.c.Subnet,
		Keep: policy.Keep{Buffer: p.c.Buffer, Spare: p.c.Spare}, Rebalance: p.rebalance(), Members: p.members(), Self: p.c.Node, Off: switchOff, Tell: rec.Record})
	if err != nil {
		return err
	}
	for _, x := range cs {
		engine.Add(x, control.Workers(x))
	}
	k := lease.NewKeeper(lease.Deps{Config: lease.Config{Duration: p.c.Lease.D()}, Store: st, Fresh: p.fresh, Term: rev, Sole: p.base.Sole, Clock: p.clk, Log: p.log})
	if err := k.Load(ctx); err != nil {
		return err
	}
	p.keeper.Store(k)
	defer p.keeper.Store(nil)
	p.log.Info("leads the pool", "took", p.clk.Now().Sub(began).Round(time.Millisecond).String())
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return k.Run(gctx) })
	g.Go(func() error { return engine.Run(gctx) })
	g.Go(func() error { return rec.Run(gctx) })
	g.Go(func() error {
		if changed, err := builtin.UpdateRoles(gctx, st); err != nil {
			p.log.Warn("roles of an earlier release are not brought up to date", "error", err)
		} else if len(changed) > 0 {
			p.log.Info("roles of an earlier release were brought up to date", "roles", changed)
		}
		return nil
	})
	g.Go(func() error {
		if err := lease.Replaced(gctx, p.st, rev); err != nil {
			return err
		}
		return errs.New(errs.Conflict, "another server took the lead")
	})
	err = g.Wait()
	p.log.Info("no longer leads the pool", "why", err)
	if ctx.Err() != nil || errors.Is(err, errs.Conflict) {
		return nil
	}
	return err
}

// nodeStream takes what nodes open: their heartbeats.
func (p *plane) nodeStream(ctx context.Context, node string, h tunnel.Header, s *tunnel.Stream) error {
	if h.Verb != lease.Verb {
		return errs.New(errs.Unsupported, "this server takes no streams of kind %q from nodes", h.Verb)
	}
	return lease.Serve(ctx, node, p.keeper.Load, s)
}

// switchOff switches a lost host off by its management controller.
func switchOff(ctx context.Context, n *api.Node) error {
	b, err := bmc.Open(*n.Spec.BMC, bmc.Dir)
	if err != nil {
		return err
	}
	return b.Off(ctx)
}

// members is how the hosts are chosen that keep the state; an external etcd is its operator's.
func (p *plane) members() host.MembersDeps {
	if p.c.EtcdEndpoints != "" {
		return host.MembersDeps{Clock: p.clk, Log: p.log, External: true, Self: p.c.Node}
	}
	want, err := strconv.Atoi(p.c.Members)
	if err != nil {
		want = 0 // auto
	}
	return host.MembersDeps{Clock: p.clk, Log: p.log, Group: reacher{p.base, p}, Self: p.c.Node, Want: want, Replace: p.c.Replace.D()}
}

// reacher is the servers that keep the state, as the leader changes them.
type reacher struct {
	*etcdstore.Store
	p *plane
}

// Reach makes the leader's own copy reachable.
func (r reacher) Reach(ctx context.Context) (peer, api string, err error) { return r.p.Reach(ctx) }

// rebalance is how the pool is kept in shape.
func (p *plane) rebalance() control.RebalanceConfig {
	mode := control.RebalanceMode(p.c.Rebalance)
	if mode == "off" {
		mode = control.RebalanceOff
	}
	return control.RebalanceConfig{Mode: mode, PerHour: p.c.PerHour, Usage: p.usage}
}

// desk is where administrators ask for upgrades.
func (p *plane) desk(st store.Store) *rollout.Desk {
	return &rollout.Desk{Store: st, Dir: stage.Of(p.c.State), Backups: filepath.Join(p.c.State, "backups"), Node: p.c.Node, Clock: p.clk,
		Level: func() int { return int(p.level.Load()) }}
}

// readLevel learns in which formats the pool is written, before anything else is read: a
// build that cannot work on it stops here.
func (p *plane) readLevel(ctx context.Context) error {
	pool, err := store.Get[*api.Pool](ctx, p.base, api.PoolRef())
	if errors.Is(err, errs.NotFound) {
		pool, err = nil, nil // older than levels, or new
	}
	if err != nil {
		return err
	}
	return p.setLevel(pool)
}

func (p *plane) setLevel(pool *api.Pool) error {
	level := api.LevelOf(pool)
	if err := api.ReadableAt(release.Number(), level); err != nil {
		return err
	}
	p.base.SetLevel(level)
	p.level.Store(int64(level))
	return nil
}

// keepLevel follows the level: it grows when an upgrade is finalised.
func (p *plane) keepLevel(ctx context.Context) error {
	sel := api.Selector{Kind: api.KindPool, Name: api.PoolName}
	for ctx.Err() == nil {
		list, rev, err := store.List[*api.Pool](ctx, p.cache, sel)
		if err == nil && len(list) > 0 {
			if err := p.setLevel(list[0]); err != nil {
				return err
			}
		}
		if err == nil {
			err = p.cache.Watch(ctx, sel, rev, func(store.Event) error { return errAgain })
		}
		if !errors.Is(err, errAgain) {
			_ = p.clk.Sleep(ctx, followAgain) // ends early only with ctx
		}
	}
	return ctx.Err()
}

// bootstrap makes what every pool begins with.
func (p *plane) bootstrap(ctx context.Context, role api.JoinRole) error {
	if err := bootstrap(ctx, p.st, p.clk); err != nil {
		return err
	}
	if err := knowSelf(ctx, p.st, p.clk, p.c, role); err != nil {
		return fmt.Errorf("node %s: %w", p.c.Node, err)
	}
	return nil
}
