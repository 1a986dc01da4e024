package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/cmd/atolld/change"
	"atoll/cmd/atolld/images"
	"atoll/internal/agent"
	"atoll/internal/announce"
	"atoll/internal/clock"
	"atoll/internal/dhcp"
	"atoll/internal/droplist"
	"atoll/internal/encrypt"
	"atoll/internal/errs"
	"atoll/internal/fabric"
	"atoll/internal/fence"
	"atoll/internal/join"
	"atoll/internal/lease"
	"atoll/internal/reconcile"
	"atoll/internal/resolve"
	"atoll/internal/shaping"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/store/replica"
	"atoll/internal/sys/cgroup"
)

// node is the part of this process that runs instances on its host: the agent, the
// lease it acts by, and the connections to the pool's servers.
type node struct {
	*heart
	taken, lost chan struct{} // what became of the lease, for run

	st      store.Store   // as this node may write: by its lease
	remote  *remote.Store // what is below it; nil where the pool began, which has the state in this process
	agent   *agent.Agent
	fabric  *fabric.Fabric
	shaping *shaping.Shaping
	drops   *droplist.List
	names   *resolve.Resolver
	dhcp    *dhcp.Server
	bgp     *announce.Announcer
	crypt   *encrypt.Actor
	rec     *reconcile.Recorder
	warden  *warden
	began   atomic.Bool      // the agent has
	file    sync.Mutex       // held while the lease is written to the disk, as it is
	rep     *replica.Replica // what the agent works on, where others keep the state; else nil
}

// nodeDeps is what a node is made of.
type nodeDeps struct {
	c      config
	clk    clock.Clock
	log    *slog.Logger
	store  store.Store
	imgs   *images.Images
	id     *join.Identity
	plane  func() *plane
	remote *remote.Store // what is below store; nil where the state is in this process
	up     *change.Changer
}

func newNode(d nodeDeps) (*node, error) {
	n := &node{remote: d.remote}
	n.warden = newWarden(fence.New(fence.Config{Run: d.c.Run, Group: d.c.Group, Start: fence.Spawn(d.c.Run, d.c.Group), Clock: d.clk, Log: d.log, OnFenced: n.fenced}), d.log)
	n.heart = newHeart(heartDeps{c: d.c, clk: d.clk, log: d.log, id: d.id, plane: d.plane, dir: directory{where: n.endpoints, watched: d.store}, extended: n.warden.extend, shorter: n.shorter})
	n.st = store.Fenced(d.store, api.NodeLease(d.c.Node), n.holder.Rev)
	dv, err := driversOf(d.c, d.clk, d.log)
	if err != nil {
		return nil, err
	}
	cg, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	n.rec = reconcile.NewRecorder(n.st, d.clk, d.log, "agent/"+d.c.Node)
	n.fabric = fabric.New(fabric.Deps{Node: d.c.Node, Store: n.st, Clock: d.clk, Log: d.log, Driver: dv.Fabric, Dir: filepath.Join(d.c.State, "flows")})
	n.shaping = shaping.New(shaping.Deps{Node: d.c.Node, Store: n.st, Clock: d.clk, Log: d.log, Network: dv.Network})
	n.drops = droplist.New(droplist.Deps{Node: d.c.Node, Store: n.st, Clock: d.clk, Log: d.log, Barrier: dv.Barrier})
	n.names = resolve.New(resolve.Deps{Node: d.c.Node, Store: n.st, Clock: d.clk, Log: d.log, Upstream: hostResolvers(d.c), Listen: resolve.On(dv.Fabric)})
	n.dhcp = dhcp.New(dhcp.Deps{Node: d.c.Node, Store: n.st, Clock: d.clk, Log: d.log, Questions: dhcp.On(dv.Fabric)})
	n.crypt = encrypt.New(encrypt.Deps{Node: d.c.Node, State: filepath.Join(d.c.State, encrypt.Verb), Store: n.st, Clock: d.clk, Log: d.log, Driver: dv.Fabric, Host: wireguardOf(d.c, d.clk), Random: rand.Reader,
		Publish: func() { n.agent.Publish() }})
	n.bgp = announce.New(announce.Deps{Node: d.c.Node, Store: n.st, Clock: d.clk, Log: d.log, Driver: dv.Routers, Held: n.holder.Held, Learn: n.fabric.Learn, Publish: func() { n.agent.Publish() }})
	n.agent = agent.New(agent.Deps{Fabric: dv.Fabric, Ready: n.fabric.Ready, Traffic: n.fabric, Bands: n.shaping.Bands, Drops: n.drops.Counts, Node: d.c.Node, Store: n.st, Clock: d.clk, Log: d.log, Runtimes: dv.Runtimes, Network: dv.Network, Storage: dv.Storage,
		Images: d.imgs, Groups: groups{cg}, Root: d.c.Group, Recorder: n.rec, DNS: resolvers(d.c), Facts: newFacts(d.c, d.up.Status, n.bgp.Sessions).read, Lease: n.holder, Guard: n.warden, Extend: n.crypt.Extend})
	n.connect(n.agent.Handle)
	return n, nil
}

// start takes the lease and publishes the host. run must be called next.
func (n *node) start(ctx context.Context, g *errgroup.Group) error {
	n.reach(ctx, g)
	alone, err := n.first(ctx)
	if err != nil {
		return fmt.Errorf("take the lease of %s: %w", n.c.Node, err)
	}
	// From here on the heart beats: on a slow host, what follows takes longer than a lease.
	n.taken, n.lost = make(chan struct{}, 1), make(chan struct{}, 1)
	n.holder.Took = func(lease.Grant) { poke(n.taken) }
	n.holder.Lost = func() {
		n.dropLease()
		poke(n.lost)
	}
	n.keep(ctx, g)
	g.Go(func() error { return n.warden.run(ctx) }) // the watchdog of an earlier daemon hears of it as well
	if !alone {
		if err := n.agent.LeaseTaken(ctx, n.holder.Rev()); err != nil {
			return err
		}
	}
	if err := n.crypt.Start(ctx); err != nil { // before the agent says how the host is reached
		return err
	}
	if err := n.agent.Start(ctx); err != nil {
		return err
	}
	n.began.Store(true)
	n.fenced()
	return nil
}

// fenced tells the agent what the watchdog stopped, also before this process began; what
// is read is gone, so it waits until the agent has found what is on the host.
func (n *node) fenced() {
	if !n.began.Load() {
		return
	}
	list, done, err := fence.Take(n.c.Run)
	if err == nil {
		for _, f := range list {
			n.agent.Fenced(f.ID)
		}
		err = done()
	}
	if err != nil {
		n.log.Warn("cannot learn what the watchdog stopped", "error", err)
	}
}

// run keeps the host in the pool until ctx ends. Instances run on.
func (n *node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	// The heart does not wait for what is done about a lease that was lost or taken.
	g.Go(func() error {
		return each(ctx, n.lost, func() {
			n.bgp.Look()
			n.agent.LeaseLost(ctx)
		})
	})
	g.Go(func() error {
		return each(ctx, n.taken, func() {
			n.catchUp(ctx)
			n.bgp.Look()
		})
	})
	if n.rep != nil {
		g.Go(func() error { return n.keepLease(ctx) })
	}
	g.Go(func() error { return n.rec.Run(ctx) })
	g.Go(func() error { return n.agent.Run(ctx) })
	g.Go(func() error { return n.crypt.Run(ctx) })
	g.Go(func() error { return n.fabric.Run(ctx) })
	g.Go(func() error { return n.names.Run(ctx) })
	g.Go(func() error { return n.dhcp.Run(ctx) })
	g.Go(func() error { return n.shaping.Run(ctx) })
	g.Go(func() error { return n.drops.Run(ctx) })
	g.Go(func() error { return n.bgp.Run(ctx) })
	return g.Wait()
}

// wireguardOf is the WireGuard of this host.
func wireguardOf(c config, clk clock.Clock) *encrypt.System {
	return &encrypt.System{Dir: filepath.Join(c.Run, encrypt.Verb), Clock: clk, Spawn: encrypt.Spawn(c.Group)}
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is on its way
	}
}

func each(ctx context.Context, c <-chan struct{}, fn func()) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c:
			fn()
		}
	}
}

// catchUp has the agent look at everything by a lease that was taken anew.
func (n *node) catchUp(ctx context.Context) {
	for n.holder.Held() && ctx.Err() == nil {
		err := n.agent.LeaseTaken(ctx, n.holder.Rev())
		if err == nil {
			return
		}
		n.log.Warn("the lease was taken; cannot look at the pool yet", "error", err)
		_ = n.clk.Sleep(ctx, leaseAgain) // ends early only with ctx
	}
}

const leaseAgain = 500 * time.Millisecond

// errChanged ends a watch that has told what it is there for.
var errChanged = errors.New("something changed")

const (
	changeAgain = 2 * time.Second // after what failed
	changeMost  = 5 * time.Minute // without a change
)

// onChange calls look, which gives the revision it looked at, at once, whenever what is
// chosen has changed since, soon after it failed, and seldom otherwise. A thousand hosts
// that ask every few seconds whether anything is new would be most of a server's work.
func onChange(ctx context.Context, clk clock.Clock, st store.Store, sel api.Selector, look func() (int64, error)) {
	for ctx.Err() == nil {
		rev, err := look()
		if err == nil {
			wait, cancel := context.WithTimeout(ctx, changeMost)
			err = st.Watch(wait, sel, rev, func(store.Event) error { return errChanged })
			cancel()
		}
		if !errors.Is(err, errChanged) && !errors.Is(err, context.DeadlineExceeded) {
			_ = clk.Sleep(ctx, changeAgain) // ends early only with ctx
		}
	}
}

// endpoints learns where the servers are, from the members themselves.
func (n *node) endpoints(ctx context.Context) (urls []string, rev int64, err error) {
	list, rev, err := store.List[*api.Member](ctx, n.st, api.Selector{Kind: api.KindMember})
	if err != nil {
		return nil, 0, err
	}
	urls = voters(list)
	if n.remote != nil && len(urls) > 0 {
		if err := n.remote.Use(urls); err != nil {
			return nil, 0, err
		}
	}
	return urls, rev, nil
}

// remoteStore is the pool as a host sees it that does not keep its state.
func remoteStore(id *join.Identity) (*remote.Store, error) {
	ends := id.Endpoints()
	if len(ends) == 0 {
		return nil, errs.New(errs.Invalid, "no server of the pool is known").WithHint("join again: atoll node token, and here: atolld join")
	}
	return remote.New(remote.Config{Endpoints: ends, CA: id.Authority(), ClientCert: id.TLS().GetClientCertificate, Full: true, Agent: "atolld/" + version})
}
