package main

import (
	"context"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/agent"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/fence"
	"atoll/internal/join"
	"atoll/internal/lease"
	"atoll/internal/reconcile"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/store/replica"
	"atoll/internal/sys/boot"
	"atoll/internal/sys/cgroup"
	"atoll/internal/tunnel"
	"atoll/internal/tunnel/wire"
)

// node is the part of this process that runs instances on its host: the agent, the
// lease it acts by, and the connections to the pool's servers.
type node struct {
	c   config
	clk clock.Clock
	log *slog.Logger

	st     store.Store   // as this node may write: by its lease
	remote *remote.Store // what is below it; nil where the pool began, which has the state in this process
	agent  *agent.Agent
	rec    *reconcile.Recorder
	holder *lease.Holder
	warden *warden
	id     *join.Identity   // nil: this host is alone, and listens nowhere
	link   *wire.Link       // nil as well
	plane  func() *plane    // the control plane in this process; gives nil while there is none
	rep    *replica.Replica // what the agent works on, where others keep the state; else nil

	mu   sync.Mutex
	ways map[string]*lease.Remote // by endpoint
}

// nodeDeps is what a node is made of.
type nodeDeps struct {
	c     config
	clk   clock.Clock
	log   *slog.Logger
	store store.Store
	imgs  *images
	id    *join.Identity
	plane func() *plane
	up    *changer
}

func newNode(d nodeDeps) (*node, error) {
	n := &node{c: d.c, clk: d.clk, log: d.log, id: d.id, plane: d.plane, ways: map[string]*lease.Remote{}}
	n.remote, _ = d.store.(*remote.Store)
	n.warden = newWarden(fence.New(fence.Config{Run: d.c.Run, Group: d.c.Group, Start: fence.Spawn(d.c.Run, d.c.Group), Clock: d.clk, Log: d.log, OnFenced: n.fenced}), d.log)
	n.holder = lease.NewHolder(lease.HolderDeps{HolderConfig: lease.HolderConfig{Interval: d.c.Heartbeat.D()}, Clock: d.clk, Log: d.log, Ways: n.servers,
		Boot: boot.Now, Extended: n.warden.extend})
	n.st = store.Fenced(d.store, api.NodeLease(d.c.Node), n.holder.Rev)
	dv, err := buildDrivers(d.c, d.clk, d.log)
	if err != nil {
		return nil, err
	}
	cg, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	n.rec = reconcile.NewRecorder(n.st, d.clk, d.log, "agent/"+d.c.Node)
	n.agent = agent.New(agent.Deps{Node: d.c.Node, Store: n.st, Clock: d.clk, Log: d.log, Runtimes: dv.runtimes, Network: dv.network, Storage: dv.storage,
		Images: d.imgs, Groups: groups{cg}, Root: d.c.Group, Recorder: n.rec, DNS: resolvers(d.c), Facts: newFacts(d.c, d.up.status).read, Lease: n.holder, Guard: n.warden})
	if d.id != nil {
		n.link = wire.NewLink(wire.LinkConfig{TLS: d.id.TLS(), Handler: n.agent.Handle, Clock: d.clk, Log: d.log,
			Rand: mrand.New(mrand.NewPCG(uint64(d.clk.Now().UnixNano()), uint64(len(d.c.Node))))}) //nolint:gosec // jitter
	}
	return n, nil
}

// start takes the lease and publishes the host. run must be called next.
func (n *node) start(ctx context.Context, g *errgroup.Group) error {
	if n.link != nil {
		n.link.Set(n.others())
		g.Go(func() error { return n.link.Run(ctx) })
	}
	alone, err := n.first(ctx)
	if err != nil {
		return fmt.Errorf("take the lease of %s: %w", n.c.Node, err)
	}
	if !alone {
		if err := n.agent.LeaseTaken(ctx, n.holder.Rev()); err != nil {
			return err
		}
	}
	if err := n.agent.Start(ctx); err != nil {
		return err
	}
	n.fenced()
	return nil
}

// fenced tells the agent what the watchdog stopped, also before this process began.
func (n *node) fenced() {
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
	// The heart must not wait for what is done about a lease that was lost or taken.
	taken, lost := make(chan struct{}, 1), make(chan struct{}, 1)
	n.holder.Took = func(lease.Grant) { poke(taken) }
	n.holder.Lost = func() {
		n.dropLease()
		poke(lost)
	}
	g.Go(func() error { return n.holder.Run(ctx) })
	g.Go(func() error {
		return each(ctx, lost, func() { n.agent.LeaseLost(ctx) })
	})
	g.Go(func() error {
		return each(ctx, taken, func() { n.catchUp(ctx) })
	})
	if n.rep != nil {
		g.Go(func() error { return n.keepLease(ctx) })
	}
	g.Go(func() error { return n.warden.run(ctx) })
	g.Go(func() error { return n.rec.Run(ctx) })
	g.Go(func() error { return n.agent.Run(ctx) })
	if n.id != nil {
		g.Go(func() error { return n.id.Run(ctx, n.log) })
		g.Go(func() error { return n.refresh(ctx) })
	}
	return g.Wait()
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

const (
	leaseAgain   = 500 * time.Millisecond
	refreshEvery = 5 * time.Second
)

// others lists the servers but the one in this process.
func (n *node) others() []string {
	out := n.id.Endpoints()
	if p := n.plane(); p != nil {
		own := serverConfig(n.c).Advertise
		out = slices.DeleteFunc(out, func(u string) bool { return slices.Contains(own, u) })
	}
	return out
}

// refresh follows which servers there are.
func (n *node) refresh(ctx context.Context) error {
	for n.clk.Sleep(ctx, refreshEvery) == nil {
		if err := n.endpoints(ctx); err != nil && ctx.Err() == nil {
			n.log.Debug("cannot learn where the servers are", "error", err)
		}
		n.link.Set(n.others())
	}
	return ctx.Err()
}

// endpoints learns where the servers are, from the members themselves.
func (n *node) endpoints(ctx context.Context) error {
	list, _, err := store.List[*api.Member](ctx, n.st, api.Selector{Kind: api.KindMember})
	if err != nil {
		return err
	}
	var urls []string
	for _, m := range list {
		if m.Spec.API != "" && !m.Spec.Witness && m.Spec.State == api.MemberVoter {
			urls = append(urls, m.Spec.API)
		}
	}
	if len(urls) == 0 {
		return nil
	}
	if n.remote != nil {
		if err := n.remote.Use(urls); err != nil {
			return err
		}
	}
	return n.id.SetEndpoints(urls)
}

// servers are the ways to whoever leads: the one in this process first.
func (n *node) servers() []lease.Renewer {
	var out []lease.Renewer
	if p := n.plane(); p != nil {
		out = append(out, lease.Local(n.c.Node, p.keeper.Load))
	}
	if n.link == nil {
		return out
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, u := range n.others() {
		w := n.ways[u]
		if w == nil {
			w = lease.NewRemote(func(ctx context.Context) (*tunnel.Stream, error) {
				return n.link.Open(ctx, u, tunnel.Header{Verb: lease.Verb})
			})
			n.ways[u] = w
		}
		out = append(out, w)
	}
	return out
}

// remoteStore is the pool as a host sees it that does not keep its state.
func remoteStore(id *join.Identity) (*remote.Store, error) {
	ends := id.Endpoints()
	if len(ends) == 0 {
		return nil, errs.New(errs.Invalid, "no server of the pool is known").WithHint("join again: atoll node token, and here: atolld join")
	}
	return remote.New(remote.Config{Endpoints: ends, CA: id.Authority(), ClientCert: id.TLS().GetClientCertificate, Full: true, Agent: "atolld/" + version})
}
